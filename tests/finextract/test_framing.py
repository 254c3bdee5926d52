"""Framings and variants of pictures: exact properties, for pictures of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finextract.framing import (
    FRAMINGS,
    VARIANTS,
    Pixels,
    frame,
    framings_for,
    framings_of,
    variant,
    variants_for,
)
from finextract.metadata.training import Training

SIZE = (64, 48)  # height, width
MOVES = tuple(name for name in VARIANTS if not name.startswith("mirror"))
sides = st.integers(16, 90)
seeds = st.integers(0, 2**32 - 1)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def framed(width: int, height: int, seed: int) -> Pixels:
    return np.asarray(noise(width, height, seed))


@given(sides, sides, st.sampled_from([*FRAMINGS, "zoom-50"]))
def test_every_framing_has_the_size_that_was_asked_for(width: int, height: int, framing: str) -> None:
    found = frame(noise(width, height), framing, SIZE)
    assert (found.shape, found.dtype) == ((*SIZE, 3), np.uint8)


@given(sides, sides)
def test_a_bucket_has_its_own_size_and_is_cut_as_the_centre_is(width: int, height: int) -> None:
    picture = noise(width, height)
    assert frame(picture, "32x80", SIZE).shape == (32, 80, 3)
    assert (frame(picture, "64x48", SIZE) == frame(picture, "centre", SIZE)).all()


@given(sides, seeds)
def test_the_centre_of_a_picture_of_the_right_shape_is_the_whole_picture(side: int, seed: int) -> None:
    picture = noise(side, side, seed)
    assert (frame(picture, "centre", (64, 64)) == frame(picture, "squash", (64, 64))).all()
    assert "centre" not in framings_of(picture)
    assert "centre" in framings_of(noise(side, side + 1))


def test_a_picture_of_the_right_size_is_taken_as_it_is() -> None:
    picture = noise(48, 64)
    assert (frame(picture, "squash", SIZE) == np.asarray(picture)).all()


def test_the_centre_of_a_wide_picture_is_its_middle() -> None:
    picture = noise(100, 64)
    assert (frame(picture, "centre", (64, 64)) == np.asarray(picture)[:, 18:82]).all()


@pytest.mark.parametrize(
    ("corner", "rows", "columns"),
    [
        ("top-left", slice(90), slice(90)),
        ("top-right", slice(90), slice(10, 100)),
        ("bottom-left", slice(10, 100), slice(90)),
        ("bottom-right", slice(10, 100), slice(10, 100)),
        ("zoom-90", slice(5, 95), slice(5, 95)),
    ],
)
def test_a_crop_is_the_part_that_its_name_says(corner: str, rows: slice, columns: slice) -> None:
    picture = noise(100, 100)
    assert (frame(picture, corner, (90, 90)) == np.asarray(picture)[rows, columns]).all()


@given(sides, sides, seeds)
def test_mirroring_twice_is_the_identity(width: int, height: int, seed: int) -> None:
    pixels = framed(width, height, seed)
    once = variant(pixels, "mirror")
    assert (variant(once, "mirror") == pixels).all()
    assert (once == pixels[:, ::-1]).all()


@given(sides, sides, seeds, st.sampled_from(MOVES))
def test_a_move_keeps_the_size_and_the_pixels_that_stay(
    width: int, height: int, seed: int, name: str
) -> None:
    pixels = framed(width, height, seed)
    moved = variant(pixels, name)
    by = max(1, round(5 / 64 * min(width, height)))
    down, across = (by if "down" in name else -by), (by if "right" in name else -by)
    assert moved.shape == pixels.shape
    stay = np.roll(pixels, (down, across), axis=(0, 1))
    rows = slice(by, None) if down > 0 else slice(None, -by)
    columns = slice(by, None) if across > 0 else slice(None, -by)
    assert (moved[rows, columns] == stay[rows, columns]).all()
    assert (moved != pixels).any()


@given(sides, sides, seeds, st.sampled_from(MOVES))
def test_a_mirrored_move_is_the_move_of_the_mirror_image(
    width: int, height: int, seed: int, name: str
) -> None:
    pixels = framed(width, height, seed)
    assert (variant(pixels, f"mirror-{name}") == variant(variant(pixels, "mirror"), name)).all()


def test_what_enters_at_an_edge_is_a_reflection_and_the_variants_are_all_different() -> None:
    pixels = framed(64, 64, 0)
    moved = variant(pixels, "down-right")
    assert (moved[:5] == moved[10:5:-1]).all()
    views = [pixels, *(variant(pixels, name) for name in VARIANTS)]
    assert len({view.tobytes() for view in views}) == len(VARIANTS) + 1


def test_where_the_trainer_mirrored_images_no_variant_is_mirrored() -> None:
    assert variants_for(Training(mirrored=True)) == MOVES
    assert len(MOVES) == 4
    assert variants_for(Training(mirrored=False)) == variants_for(Training()) == VARIANTS


def test_the_buckets_of_a_training_run_are_framings_and_a_picture_is_tried_in_the_nearest() -> None:
    buckets = ((512, 512, 9), (640, 384, 5), (384, 640, 2), (500, 300, 1), (2048, 2048, 1))
    names = framings_for(Training(buckets=buckets), (512, 512))
    assert names[:4] == ("squash", "centre", "384x640", "640x384")
    assert set(names[4:]) == set(FRAMINGS[2:])
    assert [n for n in framings_of(noise(30, 20), names) if "x" in n] == ["384x640"]
    assert [n for n in framings_of(noise(20, 30), names) if "x" in n] == ["640x384"]
    assert framings_for(Training(), (512, 512)) == FRAMINGS
