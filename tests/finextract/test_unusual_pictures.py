"""Unusual and damaged picture files: each is made here, opened, and where it matters embedded by SSCD."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from finextract.errors import ImageError
from finextract.images import is_animated, open_image
from finextract.sscd import OnnxEmbedder

PICTURE = Path(__file__).resolve().parents[1] / "zoo/images/subjects"
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # what a camera did to the picture, for each orientation that it states


@pytest.fixture(scope="module")
def upright() -> Image.Image:
    """A real picture of 240 x 320 pixels."""
    path = sorted(PICTURE.rglob("*.png"))[0]
    return Image.open(path).convert("RGB").resize((240, 320), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def embedder() -> OnnxEmbedder:
    return OnnxEmbedder(threads=1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_the_same_in_every_orientation(
    upright: Image.Image, embedder: OnnxEmbedder, orientation: int, kind: str
) -> None:
    turn = TURNS[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored.save(stream, kind, exif=exif, quality=95, subsampling=0)
    opened = open_image(stream)
    assert opened.size == upright.size
    error = np.abs(np.asarray(opened, np.float32) - np.asarray(upright, np.float32)).mean()
    assert error < 4  # of 255, by compression
    if kind == "JPEG":
        first, second = embedder.embed([opened, upright])
        assert first @ second > 0.98


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_what_is_transparent_is_white_in_every_format(kind: str) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:8] = (200, 30, 30, 255)
    image, stream = Image.fromarray(pixels), io.BytesIO()
    image.save(stream, kind, lossless=True)
    opened = open_image(stream)
    assert opened.getpixel((3, 12)) == (255, 255, 255)
    assert np.abs(np.subtract(opened.getpixel((3, 3)), (200, 30, 30))).max() < 4


def test_a_palette_with_transparency_and_half_transparent_pixels_lie_on_white() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    stream = io.BytesIO()
    palette.save(stream, "PNG", transparency=1)
    assert open_image(stream).getpixel((0, 0)) == (255, 255, 255)
    half = io.BytesIO()
    Image.new("LA", (4, 4), (0, 128)).save(half, "PNG")
    assert open_image(half).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_keep_their_shades(kind: str) -> None:
    ramp = np.linspace(0, 65_535, 64, dtype=np.uint16)[None].repeat(8, axis=0)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, kind)
    found = np.asarray(open_image(stream))[0, :, 0]
    assert np.abs(found.astype(int) - ramp[0] // 256).max() <= 1


def cmyk_profile() -> bytes:
    """A small but whole colour profile of CMYK (ICC.1, lut8Type): what sixteen mixtures of inks look like.

    Cyan alone is L* 55, a* -37, b* -50, as printed; every other mixture of inks is black, and none is white.
    """
    white, cyan, black = (255, 128, 128), (140, 91, 78), (0, 128, 128)
    mixtures = bytearray()
    for mixture in range(16):  # the last ink varies fastest
        mixtures += bytes({0: white, 8: cyan}.get(mixture, black))
    identity = b"".join(struct.pack(">i", 65_536 * (n % 4 == 0)) for n in range(9))
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * ramp + bytes(mixtures) + 3 * ramp
    told = b"desc" + bytes(4) + struct.pack(">I", 5) + b"inks\0" + bytes(78)
    rights = b"text" + bytes(4) + b"none\0"
    point = b"XYZ " + bytes(4) + struct.pack(">3i", 63_190, 65_536, 54_061)
    tags = {b"desc": told, b"cprt": rights, b"wtpt": point, b"A2B0": table}
    directory, content = struct.pack(">I", len(tags)), b""
    begin = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        directory += name + struct.pack(">2I", begin + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    head = struct.pack(">I", begin + len(content)) + bytes(4) + b"\x02\x40\0\0" + b"prtrCMYKLab "
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63_190, 65_536, 54_061) + bytes(48)
    return head + directory + content


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_is_converted_by_its_profile(kind: str) -> None:
    stream = io.BytesIO()
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(stream, kind, icc_profile=cmyk_profile())
    red, green, blue = open_image(stream).getpixel((0, 0))
    assert red < 60 < green < 190 < blue + 20, "printed cyan, and not the (0, 255, 255) of a screen"
    paper = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(paper, kind, icc_profile=cmyk_profile())
    assert min(open_image(paper).getpixel((0, 0))) > 245


@pytest.mark.parametrize(
    "profile", [None, b"no profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()]
)
@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_without_a_profile_that_fits_is_converted_all_the_same(kind: str, profile: bytes | None) -> None:
    stream = io.BytesIO()
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(stream, kind, icc_profile=profile)
    assert np.abs(np.subtract(open_image(stream).getpixel((0, 0)), (0, 255, 255))).max() < 4


def test_the_values_of_rgb_are_kept_whatever_its_profile(upright: Image.Image) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    stream = io.BytesIO()
    upright.save(stream, "PNG", icc_profile=profile)
    assert np.array_equal(np.asarray(open_image(stream)), np.asarray(upright))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken_and_told(kind: str, upright: Image.Image) -> None:
    stream, alone = io.BytesIO(), io.BytesIO()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(alone, kind)
    assert np.abs(np.subtract(open_image(stream).getpixel((8, 8)), (255, 0, 0))).max() < 8
    assert is_animated(stream)
    assert not is_animated(alone)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_half_a_picture_is_none(kind: str, share: float, upright: Image.Image) -> None:
    stream = io.BytesIO()
    upright.save(stream, kind, quality=90)
    content = stream.getvalue()
    with pytest.raises(ImageError, match=r"cannot be read|is not an image"):
        open_image(io.BytesIO(content[: int(len(content) * share)]))


def test_a_progressive_jpeg_that_ends_early_is_none(upright: Image.Image) -> None:
    stream = io.BytesIO()
    upright.save(stream, "JPEG", progressive=True)
    with pytest.raises(ImageError, match="truncated"):
        open_image(io.BytesIO(stream.getvalue()[: stream.tell() * 2 // 3]))


def test_the_content_says_what_a_file_is(tmp_path: Path, upright: Image.Image) -> None:
    upright.save(tmp_path / "picture", "JPEG")
    (tmp_path / "picture").rename(tmp_path / "picture.png")
    assert open_image(tmp_path / "picture.png").size == upright.size
