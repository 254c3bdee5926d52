"""Image files, opened safely, and the check whether a sample is a picture at all. Imports no torch.

N = samples, H and W = height and width in pixels.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from finextract.errors import ImageError, RequestError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # decoders that start no other program
# What Pillow's decoders raise for damaged files.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, MemoryError, TypeError, AttributeError, LookupError,
           ArithmeticError, struct.error, zlib.error)  # fmt: skip
_FRAMED = ("GIF", "WEBP", "PNG", "TIFF")  # formats that may hold several pictures
_MAX_PROFILE_BYTES = 4 * 1024**2
MIN_CONTRAST = 4.0  # standard deviation of the grey values, in 0 to 255
MIN_SMOOTHNESS = 0.4  # correlation of neighbouring grey values; white noise has 0, photographs over 0.9


@dataclass(frozen=True)
class Picture:
    """A picture that is opened when it is needed."""

    key: str  # identifies its content, such as its SHA256
    open: Callable[[], Image.Image]


def picture_files(folder: Path) -> tuple[Path, ...]:
    """The image files below a folder, sorted. Raises RequestError where there is none."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder. Name a folder that holds pictures.")
    files = tuple(sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES))
    if not files:
        raise RequestError(f"{folder} holds no images (png, jpg, webp, bmp, gif or tiff).")
    return files


def picture_of(file: Path) -> Picture:
    """A picture of a file. Raises RequestError where the file cannot be read, now or when it is opened."""
    try:
        key = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}. Repair or remove it.") from error
    return Picture(key, partial(open_picture, file))


def open_picture(file: Path) -> Image.Image:
    """`open_image`, with an error that names the file. Raises RequestError."""
    try:
        return open_image(file)
    except ImageError as error:
        raise RequestError(f"{file} {error}. Repair or remove it.") from error


def open_image(
    file: Path | BinaryIO,
    *,
    max_pixels: int | None = None,
    max_aspect: float | None = None,
    max_side: int | None = None,
    background: str | tuple[int, int, int] = "white",
) -> Image.Image:
    """The first frame of an image file as RGB, rotated as its EXIF orientation says.

    An image of more than `max_pixels` pixels (by default Pillow's own limit against decompression bombs,
    89 million) is refused before it is decoded, and so is one whose longer side exceeds `max_aspect` times
    the shorter one. With `max_side`, a larger image is scaled down to that many pixels on its longer side.
    Transparent pixels take the colour `background`. CMYK is converted by its embedded colour profile. The
    values of RGB are kept whatever its profile says, as training programs keep them.
    Raises ImageError, whose message is a predicate: it follows the name of the file.
    """
    try:
        # Warning filters belong to the whole process: a caller with threads passes its own limit.
        with warnings.catch_warnings() if max_pixels is None else nullcontext():
            if max_pixels is None:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as opened:
                width, height = opened.size
                if max_pixels is not None and width * height > max_pixels:
                    raise ImageError(f"is too large to open: {width} x {height} pixels")
                if max_aspect is not None and max(width, height) > max_aspect * min(width, height):
                    raise ImageError(f"is a strip of {width} x {height} pixels")
                if max_side is not None:
                    opened.draft("RGB", (max_side, max_side))
                opened.load()
                image = flatten(_without_cmyk(ImageOps.exif_transpose(opened)), background)
    except UnidentifiedImageError as error:
        raise ImageError("is not an image in a supported format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"has so many pixels that it may be a decompression bomb ({error})") from error
    except _DAMAGE as error:
        raise ImageError(f"cannot be read: {error or type(error).__name__}") from error
    if max_side is not None:
        image.thumbnail((max_side, max_side))
    return image


def is_animated(file: Path | BinaryIO) -> bool:
    """Whether an image file has several frames or pages, of which `open_image` takes the first."""
    try:
        with Image.open(file, formats=FORMATS) as opened:
            return opened.format in _FRAMED and bool(getattr(opened, "is_animated", False))
    except _DAMAGE:
        return False


def _without_cmyk(image: Image.Image) -> Image.Image:
    """The image as RGB where it is CMYK with a colour profile that can be used; otherwise as it is.

    Without its profile, CMYK would be converted as if its inks were pure, which gives glaring colours.
    """
    profile = image.info.get("icc_profile")
    if image.mode != "CMYK" or not profile or len(profile) > _MAX_PROFILE_BYTES:
        return image
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, *_DAMAGE):
        return image
    return converted or image


def flatten(image: Image.Image, background: str | tuple[int, int, int] = "white") -> Image.Image:
    """An image of any mode as RGB on a background colour; 16-bit grey becomes 8-bit grey."""
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image, dtype=np.float32) / 256, 0, 255).astype(np.uint8)  # [H, W]
        return Image.fromarray(grey).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    pixels = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", pixels.size, background), pixels).convert("RGB")


def is_picture(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """images uint8 [N, 3, H, W] -> bool [N]; False for a blank image and for noise.

    Blank and noisy samples resemble each other and would form false cliques: two independent images of white
    noise have an SSCD similarity of 0.75.
    """
    grey: NDArray[np.float32] = images.mean(axis=1, dtype=np.float32)  # [N, H, W]
    contrast: NDArray[np.float32] = grey.std(axis=(1, 2))
    across = _correlation(grey[:, :, 1:], grey[:, :, :-1])
    down = _correlation(grey[:, 1:], grey[:, :-1])
    result: NDArray[np.bool_] = (contrast >= MIN_CONTRAST) & (np.minimum(across, down) >= MIN_SMOOTHNESS)
    return result


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pearson's correlation over the last two axes, [N]; 0 where an image is blank."""
    a, b = _centred(a), _centred(b)
    scale = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
    result: NDArray[np.float32] = ((a * b).sum(axis=(1, 2)) / np.maximum(scale, 1e-6)).astype(np.float32)
    return result


def _centred(a: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = a - a.mean(axis=(1, 2), keepdims=True)
    return result
