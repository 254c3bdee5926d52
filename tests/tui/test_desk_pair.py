"""The pair: in turn at one place, by hand and by itself, and a quarter of it enlarged."""

from __future__ import annotations

from filled_store import Crawl, Desk, Opener
from PIL import Image

from tui.images import blur, quarter
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
        assert "The candidate: w the other, s both." in seen.text
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
