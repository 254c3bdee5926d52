"""Several rows marked and decided at once; a desk that only looks; the images beside the list."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from filled_store import Crawl, Desk, Opener

from scanner.errors import StoreError
from scanner.records import ReviewDecision
from scanner.store.desk_queries import EvidenceRow
from scanner.store.store import Store
from tui.pair import Pair, load_pair
from tui.review import READ_ONLY, Review, Subject
from tui.widgets.table import Table

ANNA, BEN, CLEO = "anna/weak-shoe", "ben/strong-shoe", "cleo/other-shoe"


def decided(crawl: Crawl) -> dict[str, str | None]:
    """The decisions on the flagged checkpoints as a whole."""
    return {repo: crawl.decision(crawl.scans[repo].scan_id) for repo in (ANNA, BEN, CLEO)}


def marked(seen: Desk) -> list[str]:
    lines = seen.part_lines("#checkpoints")
    return [line.split()[1].partition("/")[0] for line in lines if line.lstrip().startswith("■")]


async def test_one_decision_is_recorded_for_all_marked_rows_as_one_commit(
    filled: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        await seen.press("space", "space")
        assert marked(seen) == ["ben", "cleo"]
        assert "2 marked" in seen.text
        filled.decide(filled.scans[CLEO].scan_id, ReviewDecision.UNSURE, "otto")
        await seen.press("r")
        commits = len(filled.store.tables["decisions"].names())
        await seen.press("d")
        assert "Record ✗ dismissed for 2 checkpoints, each as a whole?" in seen.part("#confirm-box")
        assert "Until now: 1 undecided, 1 ? unsure." in seen.part("#confirm-box")
        assert decided(filled)[BEN] is None
        await seen.press("enter")
        assert decided(filled) == {ANNA: None, BEN: "dismiss", CLEO: "dismiss"}
        assert len(filled.store.tables["decisions"].names()) == commits + 1
        assert marked(seen) == []
        assert "Recorded: ✗ dismissed, 2 checkpoints." in seen.toast


async def test_marked_rows_of_evidence_are_decided_at_once_and_what_was_not_shown_stays_marked(
    filled: Crawl, desk: Opener
) -> None:
    first, second, third, _ = (match.match_id for match in filled.matches[BEN])
    async with desk() as seen:
        await seen.press("enter", "space", "space")
        assert [line.split()[0] for line in seen.part_lines("#rows")[1:4]] == ["■", "■", "●"]
        commits = len(filled.store.tables["decisions"].names())
        await seen.press("u")
        assert "Record ? unsure for 2 rows of evidence?" in seen.part("#confirm-box")
        await seen.press("enter")
        assert [filled.decision(id_) for id_ in (first, second, third)] == ["unsure", "unsure", None]
        assert len(filled.store.tables["decisions"].names()) == commits + 1
        await seen.press("home", "b", "asterisk", "c")
        assert "Record ✓ confirmed for 1 row of evidence?" in seen.part("#confirm-box")
        assert "3 cannot: Only what was shown can be confirmed." in seen.part("#confirm-box")
        await seen.press("enter")
        assert [filled.decision(id_) for id_ in (first, second, third)] == ["confirm", "unsure", None]
        await seen.press("asterisk", "asterisk")
        assert "■" not in seen.part("#rows")


async def test_undo_withdraws_the_whole_group_after_a_question(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("space", "space", "d", "enter", "z")
        assert "Withdraw all 2 decisions that you recorded at once?" in seen.part("#confirm-box")
        await seen.press("escape")
        assert decided(filled)[BEN] == "dismiss"
        await seen.press("z", "enter")
        assert decided(filled) == dict.fromkeys((ANNA, BEN, CLEO))
        await seen.press("z")
        assert "Nothing to withdraw" in seen.toast


async def test_one_of_a_group_can_be_withdrawn_alone(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("asterisk", "u", "enter", "home", "z", "o")
        assert decided(filled) == {ANNA: "unsure", BEN: None, CLEO: "unsure"}
        await seen.press("end", "z", "y")  # the cursor is on one of the two that still stand
        assert decided(filled) == dict.fromkeys((ANNA, BEN, CLEO))


async def test_rows_that_cannot_be_decided_so_stay_marked_and_say_why(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("enter", "escape", "asterisk", "c")  # only the first was shown
        assert "Record ✓ confirmed for 1 checkpoint, each as a whole?" in seen.part("#confirm-box")
        assert "2 cannot: Only what was shown can be confirmed." in seen.part("#confirm-box")
        await seen.press("enter")
        assert decided(filled) == {ANNA: None, BEN: "confirm", CLEO: None}
        assert marked(seen) == ["cleo", "anna"]
        await seen.press("c")
        assert "2 cannot: Only what was shown can be confirmed." in seen.toast
        await seen.press("escape")
        assert marked(seen) == []


async def test_marks_outlive_a_filter_and_the_question_says_what_is_not_on_the_screen(
    filled: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        await seen.press("space", "slash")
        await seen.write("anna")
        await seen.press("enter")
        await seen.settle()
        await seen.press("space")
        assert "2 marked" in seen.text
        await seen.press("d")
        assert "1 of them are not in the list on the screen" in seen.part("#confirm-box")
        await seen.press("enter")
        assert decided(filled) == {ANNA: "dismiss", BEN: "dismiss", CLEO: None}


async def test_the_decisions_on_marked_rows_are_withdrawn_whoever_made_them(
    filled: Crawl, desk: Opener
) -> None:
    filled.decide(filled.scans[BEN].scan_id, ReviewDecision.CONFIRM, "otto")
    async with desk() as seen:
        await seen.press("asterisk", "z")
        asked = seen.part("#confirm-box")
        assert asked.startswith("Withdraw 1 decision on marked rows? 1 ✓ confirmed")
        await seen.press("enter")
        assert decided(filled)[BEN] is None
        assert marked(seen) == ["cleo", "anna"]
        await seen.press("z")
        assert "None of the marked rows is decided." in seen.toast


async def test_a_group_that_cannot_be_written_is_not_written_in_part(
    filled: Crawl, desk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk() as seen:

        def refuse(rows: object) -> None:
            raise StoreError("the store /s cannot be written: No space left on device.")

        monkeypatch.setattr(seen.app.session.store, "append", refuse)
        await seen.press("space", "space", "d", "enter")
        assert "NOT recorded" in seen.toast
        assert marked(seen) == ["ben", "cleo"]
    assert decided(filled) == dict.fromkeys((ANNA, BEN, CLEO))


def everything_below(root: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_mode, path.stat().st_size)
        for path in [root, *root.rglob("*")]
    }


async def test_a_read_only_desk_decides_nothing_says_why_and_leaves_the_store_as_it_is(
    filled: Crawl, desk: Opener
) -> None:
    filled.decide(filled.scans[BEN].scan_id, ReviewDecision.UNSURE, "otto")
    root = filled.store.root
    os.chmod(root, 0o755)  # which a desk that may write takes away from others
    before = everything_below(root)
    async with desk(size=(120, 40), read_only=True) as seen:
        assert seen.part("#counts").startswith("read-only")
        assert "Confirm" not in seen.part_lines("Footer")[0]
        assert "Find" in seen.part_lines("Footer")[0]
        for keys in (["c"], ["d"], ["u"], ["n"], ["z"], ["space", "d"], ["z"]):
            seen.app.clear_notifications()
            await seen.press(*keys)
            assert seen.toast == READ_ONLY, keys
        await seen.press("escape", "enter", "b")
        assert "read-only" in seen.part("#head")
        for key in ("c", "d", "u", "n", "z"):
            seen.app.clear_notifications()
            await seen.press(key)
            assert seen.toast == READ_ONLY, key
        await seen.press("escape", "slash")
        await seen.write("shoe")
        await seen.press("enter", "s", "N")
        assert len(seen.app.screen.page.rows) == 3  # type: ignore[attr-defined]
    assert everything_below(root) == before
    review = Review(Store(root, read_only=True), "vera", read_only=True)
    with pytest.raises(StoreError, match="read-only"):
        review.decide(Subject("s", "s"), ReviewDecision.CONFIRM)


def views(seen: Desk) -> tuple[Any, Any]:
    return seen.app.screen.query_one("#preview-candidate"), seen.app.screen.query_one("#preview-reference")


async def test_a_large_terminal_shows_the_pair_under_the_cursor_blurred(filled: Crawl, desk: Opener) -> None:
    async with desk(size=(120, 40)) as seen:
        await seen.until(lambda: bool(seen.colours("#preview-candidate")))
        assert "2-0.png · similarity 0.943" in seen.part("#preview-words")
        assert "The strongest of 3 flags" in seen.part("#preview-words")
        blurred = seen.colours("#preview-reference")
        await seen.press("b")
        assert seen.colours("#preview-reference") != blurred
        await seen.press("down", "down")
        await seen.until(lambda: "similarity 0.660" in seen.part("#preview-words"))
        await seen.press("c")  # its only pair was shown
        assert decided(filled)[ANNA] == "confirm"
        await seen.press("home", "c")  # two of its flags were not
        assert "Only what was shown can be confirmed." in seen.toast
        await seen.press("enter", "escape")
        assert all(view.blurred for view in views(seen))
    async with desk(size=(119, 40)) as seen:
        assert not seen.app.screen.query_one("#list-preview").display
        await seen.press("b")
        assert "120 x 30" in seen.toast


async def test_the_cursor_does_not_wait_for_images(
    filled: Crawl, desk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, asked = threading.Event(), threading.Event()

    def slow(store: Store, row: EvidenceRow, *, sampled: bool) -> Pair:
        asked.set()
        free.wait()
        return load_pair(store, row, sampled=sampled)

    async with desk(size=(120, 40)) as seen:
        monkeypatch.setattr("tui.widgets.preview.load_pair", slow)
        table = seen.app.screen.query_one(Table)
        await seen.pilot.press("down")
        while not asked.is_set():
            await seen.pilot.pause()
        await seen.pilot.press("down")
        assert table.cursor_row == 2
        free.set()
        await seen.until(lambda: "similarity 0.660" in seen.part("#preview-words"))
