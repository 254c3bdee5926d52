"""The keys work on every screen, whatever it shows: no widget that is not displayed takes them."""

import pytest
from filled_store import Crawl, Desk, Opener
from textual.widgets import Input

from scanner.records import Verdict
from tui.screens.checkpoint import CheckpointScreen
from tui.screens.checkpoint_list import ListScreen
from tui.widgets.table import Table


def under_cursor(seen: Desk) -> str | None:
    return seen.app.screen.query_one(Table).current


def focused(seen: Desk) -> str | None:
    widget = seen.app.screen.focused
    return widget.id if widget is not None else None


@pytest.fixture
def nothing_flagged(crawl: Crawl) -> Crawl:
    """Two scans that found nothing, and a checkpoint that was skipped."""
    crawl.flagged("dora/control", [0.35], 0.8)
    crawl.flagged("emil/control", [0.31], 0.8)
    crawl.scan("eve/pickled", Verdict.SKIPPED, reason="weights.ckpt is a pickle")
    return crawl


async def test_after_the_list_of_keys_was_closed_no_key_types_into_the_hidden_filter(
    nothing_flagged: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        for close in ("escape", "q", "question_mark"):
            await seen.press("question_mark", close)
            assert focused(seen) == "checkpoints"
        await seen.press("v")
        assert "All verdicts" in seen.text
        assert seen.app.screen.query_one("#filter", Input).value == ""
        await seen.press("q")
        assert not seen.app.is_running


async def test_the_arrows_move_in_the_next_list_after_one_that_was_empty(
    nothing_flagged: Crawl, desk: Opener
) -> None:
    scans = nothing_flagged.scans
    async with desk() as seen:
        await seen.press("v")
        assert under_cursor(seen) == scans["dora/control"].checkpoint_id
        await seen.press("down")
        assert under_cursor(seen) == scans["emil/control"].checkpoint_id
        await seen.press("enter")
        assert isinstance(seen.app.screen, CheckpointScreen)
        await seen.press("escape", "V", "v", "v", "j", "enter")
        assert isinstance(seen.app.screen, CheckpointScreen)


async def test_keys_work_in_an_empty_store_and_when_its_first_checkpoint_comes(
    crawl: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        await seen.press("question_mark", "escape", "v", "down", "tab", "V")
        assert "Flagged, strongest evidence first" in seen.text
        crawl.flagged("ben/shoe", [0.9], 0.01)
        crawl.flagged("cleo/shoe", [0.8], 0.02)
        await seen.press("r", "j")
        assert under_cursor(seen) == crawl.scans["cleo/shoe"].checkpoint_id


async def test_a_filter_without_hits_leaves_the_keys_to_the_list(
    nothing_flagged: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        await seen.press("v", "slash", *"none", "enter")
        await seen.until(lambda: "No checkpoint in this list fits the filter." in seen.flat)
        await seen.press("question_mark", "escape", "v", "V", "escape")
        await seen.until(lambda: "All verdicts" in seen.text and "dora/control" in seen.text)
        await seen.press("down")
        assert under_cursor(seen) == nothing_flagged.scans["emil/control"].checkpoint_id


async def test_a_click_beside_the_list_takes_no_key_from_it(nothing_flagged: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.pilot.click("#empty")
        await seen.pilot.click("#counts")
        await seen.press("v", "down")
        assert under_cursor(seen) == nothing_flagged.scans["emil/control"].checkpoint_id


async def test_a_checkpoint_without_a_match_is_scrolled_by_the_arrows(
    nothing_flagged: Crawl, desk: Opener
) -> None:
    async with desk(size=(80, 11)) as seen:
        await seen.press("v", "v", "v", "enter")
        assert "weights.ckpt is a pickle" in seen.flat
        words = seen.app.screen.query_one("#words")
        await seen.press("question_mark", "escape", "down")
        assert focused(seen) == "words"
        await seen.until(lambda: words.scroll_y > 0)
        await seen.press("f", "b")  # there are no images that could be shown
        assert "weights.ckpt is a pickle" in seen.flat or words.scroll_y > 0
        assert words.display
        assert "no images" in seen.toast
        await seen.press("escape")
        assert isinstance(seen.app.screen, ListScreen)


async def test_the_arrows_select_matches_after_large_images_hid_the_text(filled: Crawl, desk: Opener) -> None:
    second = filled.matches["ben/strong-shoe"][1].match_id
    async with desk() as seen:
        await seen.press("enter", "tab", "f", "down")
        assert under_cursor(seen) == second
        await seen.press("n", "escape", "question_mark", "escape", "up", "down")
        assert under_cursor(seen) == second
