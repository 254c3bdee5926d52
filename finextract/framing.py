"""How a picture is cut to a model's size, and its variants that nobody trains on. Imports no torch.

A *framing* is one way in which a trainer may have brought a picture to the model's size. A *variant* is a
changed version of a framed picture. If the picture was not trained on, the model has no reason to prefer it
to its own variants, so the variants are its null. H, W = height and width in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finextract.metadata.training import Training

type Pixels = NDArray[np.uint8]  # [H, W, 3] RGB

# Framings, in the order in which a budget pays for them. A zoom is the side of a crop, as a share of the
# whole.
FRAMINGS = ("squash", "centre", "zoom-90", "zoom-75", "top-left", "top-right", "bottom-left", "bottom-right",
            "shift-left", "shift-right", "shift-up", "shift-down")  # fmt: skip
_CORNER_ZOOM = 0.9
_SMALL_SHIFT = 3 / 64  # of the side
_LARGEST_BUCKET = 2.5  # times the pixels of the model's own size: 768 pixels for a model of 512
# Variants keep sharpness, colours and objects, because a tuned model may have learned a style: mirrored,
# moved along a diagonal (what enters at an edge is reflected), and both.
VARIANTS = ("mirror", "up-left", "up-right", "down-left", "down-right", "mirror-up-left", "mirror-up-right",
            "mirror-down-left", "mirror-down-right")  # fmt: skip
_SHIFT = 5 / 64  # of the side, in each direction
_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # across, down


def variants_for(training: Training) -> tuple[str, ...]:
    """The variants that a training run did not use: no mirror images where its trainer mirrored pictures."""
    return tuple(name for name in VARIANTS if not (training.mirrored and name.startswith("mirror")))


def framings_for(training: Training, size: tuple[int, int]) -> tuple[str, ...]:
    """The usual framings, and after the first two of them the buckets that a training run states.

    Those are left out that are no multiples of 64 pixels, or much larger than the model's own size = (H, W).
    """
    buckets = [
        f"{height}x{width}"
        for width, height, _ in training.buckets
        if width % 64 == height % 64 == 0
        and (height, width) != size
        and height * width <= _LARGEST_BUCKET * size[0] * size[1]
    ]
    return (*FRAMINGS[:2], *buckets, *FRAMINGS[2:])


def framings_of(picture: Image.Image, names: Sequence[str] = FRAMINGS) -> tuple[str, ...]:
    """The framings that a picture is tried in.

    "centre" is left out for a square picture, where it is the same as "squash". Of the buckets only that is
    tried whose shape is nearest to the picture's, as a trainer chooses it.
    """
    square = picture.width == picture.height
    aspect = picture.width / picture.height
    buckets = [name for name in names if "x" in name]
    nearest = min(buckets, key=lambda name: abs(math.log(_aspect(name) / aspect)), default=None)
    return tuple(
        name
        for name in names
        if not (name == "centre" and square and "squash" in names) and ("x" not in name or name == nearest)
    )


def frame(picture: Image.Image, framing: str, size: tuple[int, int]) -> Pixels:
    """A picture in one framing, uint8 [H, W, 3], with size = (H, W) in pixels.

    "squash" scales the whole picture to the size. "centre" cuts the largest centred part of the size's aspect
    ratio. "zoom-N" cuts N % of the side of that part, and a corner's name 90 % at that corner. "shift-X"
    moves the content of "centre" by 3 pixels of 64. "HxW" cuts and scales as "centre" does to H x W pixels, a
    bucket of a trainer.
    """
    height, width = size
    if framing == "squash":
        return _scaled(picture, (0, 0, picture.width, picture.height), size)
    if "x" in framing:
        height, width = _bucket(framing)
        return _scaled(picture, _centred(picture, width / height), (height, width))
    box = _centred(picture, width / height)
    if framing == "centre":
        return _scaled(picture, box, size)
    kind, _, value = framing.partition("-")
    if kind == "zoom":
        return _scaled(picture, _cut(box, int(value) / 100, 0.5, 0.5), size)
    if kind in ("top", "bottom"):
        at = 0.0 if value == "left" else 1.0, 0.0 if kind == "top" else 1.0
        return _scaled(picture, _cut(box, _CORNER_ZOOM, *at), size)
    assert kind == "shift", f"no framing is called {framing!r}"
    return _moved(_scaled(picture, box, size), value, _SMALL_SHIFT)


def variant(framed: Pixels, name: str) -> Pixels:
    """One variant of a framed picture, of the same size."""
    if name.startswith("mirror"):
        framed = framed[:, ::-1]
    directions = name.removeprefix("mirror").strip("-")
    return _moved(framed, directions, _SHIFT) if directions else np.ascontiguousarray(framed)


def _bucket(framing: str) -> tuple[int, int]:
    height, width = framing.split("x")
    return int(height), int(width)


def _aspect(framing: str) -> float:
    height, width = _bucket(framing)
    return width / height


def _moved(pixels: Pixels, directions: str, share: float) -> Pixels:
    """The content moved by a share of the side; what enters at an edge is the reflection of what is there."""
    across, down = np.sum([_DIRECTIONS[direction] for direction in directions.split("-")], axis=0)
    height, width = pixels.shape[:2]
    by = max(1, round(share * min(height, width)))
    padded = np.pad(pixels, ((by, by), (by, by), (0, 0)), mode="reflect")
    top, left = by - down * by, by - across * by
    return np.ascontiguousarray(padded[top : top + height, left : left + width])


def _centred(picture: Image.Image, aspect: float) -> tuple[float, float, float, float]:
    """The largest centred box of an aspect ratio (width / height): left, top, right, bottom."""
    width = min(picture.width, picture.height * aspect)
    height = width / aspect
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    return left, top, left + width, top + height


def _cut(
    box: tuple[float, float, float, float], share: float, across: float, down: float
) -> tuple[float, float, float, float]:
    """A part of a box with `share` of its sides; (0, 0) is at the top left, (1, 1) at the bottom right."""
    left, top, right, bottom = box
    width, height = (right - left) * share, (bottom - top) * share
    left, top = left + (right - left - width) * across, top + (bottom - top - height) * down
    return left, top, left + width, top + height


def _scaled(picture: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]) -> Pixels:
    height, width = size
    if (width, height) == picture.size and box == (0.0, 0.0, float(width), float(height)):
        return np.asarray(picture.convert("RGB"))
    return np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, box=box))
