"""The pair: in turn at one place, by hand and by itself, and a quarter of it enlarged."""

from __future__ import annotations

import pytest
from filled_store import Crawl, Desk, Opener
from PIL import Image

from scanner.store.store import Store
from tui.app import DeskApp
from tui.images import blur, quarter
from tui.pictures import cells_of, picture_widget
from tui.widgets.image_view import ImageView
from tui.widgets.pair_view import PairView


def views(seen: Desk) -> tuple[ImageView, ImageView]:
    candidate, reference = seen.app.screen.query(ImageView)
    return candidate, reference


async def test_a_key_shows_candidate_and_reference_in_turn_at_the_same_place(
    filled: Crawl, desk: Opener
) -> None:
    async with desk(size=(120, 40)) as seen:
        await seen.press("enter", "b", "f", "w")
        candidate, reference = views(seen)
        assert (candidate.display, reference.display) == (True, False)
        place, first = candidate.region, seen.colours("#candidate")
        assert "The candidate: w other, s both." in seen.text
        await seen.press("w")
        assert (candidate.display, reference.display) == (False, True)
        assert reference.region == place
        assert seen.colours("#reference") != first
        await seen.press("w")
        assert candidate.display
        await seen.press("s")
        assert candidate.display
        assert reference.display


async def test_the_images_change_by_themselves_until_the_key_is_pressed_again(
    filled: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        await seen.press("enter", "b", "W")
        candidate, reference = views(seen)
        for view in (candidate, reference, candidate):
            await seen.until(lambda view=view: view.display)  # type: ignore[misc]
            assert candidate.display != reference.display
        await seen.press("W")
        assert candidate.display
        assert reference.display
        assert seen.app.screen.query_one(PairView).flicker is None


async def test_a_quarter_of_both_images_is_enlarged_and_moved_to_every_edge(
    filled: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        await seen.press("enter", "b", "H")
        assert "m enlarges a quarter" in seen.toast
        whole = seen.colours("#candidate")
        await seen.press("m")
        candidate, reference = views(seen)
        assert candidate.corner == reference.corner == (0.25, 0.25)
        assert seen.colours("#candidate") != whole
        await seen.press("H", "K", "H")
        assert reference.corner == (0.0, 0.0)
        await seen.press("L", "L", "L", "J", "J", "shift+down")
        assert reference.corner == (0.5, 0.5)
        await seen.press("down")  # the next row is enlarged too
        assert reference.corner == (0.5, 0.5)
        await seen.press("m")
        assert reference.corner is None


async def test_a_row_whose_second_image_was_not_shown_yet_cannot_be_confirmed(
    filled: Crawl, desk: Opener
) -> None:
    match = filled.matches["ben/strong-shoe"][0].match_id
    async with desk() as seen:
        await seen.press("enter", "w", "b", "c")
        assert "Only what was shown can be confirmed." in seen.toast
        await seen.press("w", "c")
        assert "Recorded: ✓ confirmed" in seen.toast
    assert filled.log(match) == [("decide", "confirm", "vera")]


async def test_an_enlarged_quarter_is_as_blurred_as_the_whole(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("enter", "m")
        candidate, _ = views(seen)
        assert candidate.blurred
        drawn = candidate.shown()
        assert isinstance(candidate.image, Image.Image)
        assert drawn is not None
        # The patches of the whole: those of a blurred quarter would show more.
        assert drawn.tobytes() == quarter(blur(candidate.image), 0.25, 0.25).tobytes()
        assert drawn.tobytes() != blur(quarter(candidate.image, 0.25, 0.25)).tobytes()


def test_a_quarter_of_an_image_of_one_pixel_is_that_pixel() -> None:
    assert quarter(Image.new("RGB", (1, 1)), 0.5, 0.5).size == (1, 1)


@pytest.mark.parametrize("key", ["b", "m", "w"])
async def test_a_terminal_that_draws_pictures_gets_the_same_pixels_as_one_of_cells(
    filled: Crawl, key: str
) -> None:
    widget = pytest.importorskip("textual_image.widget").HalfcellImage  # the widget that a test can read
    app = DeskApp(Store(filled.store.root), "vera", 60, picture_widget=widget)
    async with app.run_test(size=(120, 40)) as pilot:
        seen = Desk(app, pilot)
        await seen.settle()
        await seen.press("enter", key)
        candidate, _ = views(seen)
        drawn, shown = candidate.picture.image, candidate.shown()  # type: ignore[union-attr]
        assert shown is not None
        assert drawn.tobytes() == shown.tobytes()
        assert candidate.picture is not None
        width, height = candidate.picture.size
        assert abs(width - 2 * height) <= 2  # a square, in cells of twice its width in height
        assert width >= candidate.size.width - 1 or height == candidate.size.height
        await seen.press("i", "i", "end")
        assert candidate.picture.display


def test_a_size_in_cells_keeps_the_shape_and_fits() -> None:
    assert cells_of(Image.new("RGB", (100, 100)), 40, 40, 0.5) == (40, 20)
    assert cells_of(Image.new("RGB", (100, 100)), 40, 10, 0.5) == (20, 10)
    assert cells_of(Image.new("RGB", (1000, 1)), 40, 10, 0.5) == (40, 1)


def test_what_is_no_terminal_gets_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert picture_widget() is None  # a test writes to no terminal
    monkeypatch.setenv("NO_COLOR", "1")
    assert picture_widget() is None
