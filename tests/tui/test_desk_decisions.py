"""Decisions and notes are in the store at once, stay there, and can be withdrawn."""

import os
from datetime import timedelta

import pytest
from filled_store import Crawl, Opener

from scanner.errors import StoreError
from scanner.records import ReviewDecision
from tui.review import reviewer_name
from tui.widgets.table import Table

BEN = "ben/strong-shoe"


async def test_a_confirmed_match_is_still_confirmed_after_reopening(filled: Crawl, desk: Opener) -> None:
    first, second, *_ = filled.matches[BEN]
    async with desk() as seen:
        await seen.press("enter", "b", "c")
        assert seen.toast == "Recorded: ✓ confirmed, match 1 of 4, 2-0.png. z withdraws it."
        await seen.press("d")
        assert filled.log(first.match_id) == [("decide", "confirm", "vera")]
        assert filled.log(second.match_id) == [("decide", "dismiss", "vera")]
    async with desk() as seen:
        assert "2 of 3 decided" in seen.text
        await seen.press("enter")
        assert "0.943 ✓ confirmed" in seen.flat
        assert "0.871 ✗ dismissed" in seen.flat
        await seen.pilot.resize_terminal(90, 90)
        await seen.settle()
        assert "✓ confirmed, by vera" in seen.part("#facts")


async def test_a_match_is_confirmed_only_after_its_images_were_shown(filled: Crawl, desk: Opener) -> None:
    first, second, *_ = filled.matches[BEN]
    async with desk() as seen:
        await seen.press("enter", "c")
        assert seen.toast == "Only what was shown can be confirmed. b shows the images."
        await seen.press("d", "up", "b", "b", "c")  # shown, and blurred again
        assert seen.app.screen.query_one(Table).current == second.match_id
        await seen.press("c")
    assert filled.log(first.match_id) == [("decide", "dismiss", "vera"), ("decide", "confirm", "vera")]
    assert filled.log(second.match_id) == []


async def test_a_note_right_after_a_decision_names_the_picture_that_it_is_about(
    filled: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        await seen.press("enter", "u", "n")
        assert "Note on match 2 of 4, 2-1.png" in seen.text


async def test_after_a_decision_the_next_undecided_match_is_under_the_cursor(
    filled: Crawl, desk: Opener
) -> None:
    matches = filled.matches[BEN]
    async with desk() as seen:
        await seen.press("enter", "b", "down", "u")
        assert seen.app.screen.query_one(Table).current == matches[2].match_id
        await seen.press("c")  # goes round to the first; the fourth match is not flagged
        assert seen.app.screen.query_one(Table).current == matches[0].match_id
        await seen.press("c")
        assert seen.app.screen.query_one(Table).current == matches[0].match_id
        assert "3 of 3 flags decided" in seen.text


async def test_keys_pressed_in_a_hurry_each_decide_another_match(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("enter", "b")
        await seen.pilot.press("c", "d", "u")
        await seen.settle()
    decisions = [filled.decision(match.match_id) for match in filled.matches[BEN]]
    assert decisions == ["confirm", "dismiss", "unsure", None]


async def test_undo_withdraws_the_last_decision_and_then_the_one_before(filled: Crawl, desk: Opener) -> None:
    first, second, *_ = filled.matches[BEN]
    async with desk() as seen:
        await seen.press("enter", "b", "c", "d", "z")
        assert seen.toast == "Withdrawn: match 2 of 4, 2-1.png is undecided again."
        assert seen.app.screen.query_one(Table).current == second.match_id
        await seen.press("z")
        assert seen.app.screen.query_one(Table).current == first.match_id
        await seen.press("z")
        assert "Nothing to withdraw" in seen.toast
    assert filled.log(first.match_id) == [
        ("decide", "confirm", "vera"),
        ("withdraw", "confirm of vera", "vera"),
    ]
    assert filled.log(second.match_id) == [
        ("decide", "dismiss", "vera"),
        ("withdraw", "dismiss of vera", "vera"),
    ]


async def test_undo_lets_the_earlier_decision_of_another_reviewer_stand_again(
    filled: Crawl, desk: Opener
) -> None:
    match = filled.matches[BEN][0].match_id
    filled.decide(match, ReviewDecision.CONFIRM, "anna")
    async with desk() as seen:
        await seen.press("enter", "d")
        assert filled.decision(match) == "dismiss"
        await seen.press("up", "up", "up", "z")
        assert "✓ confirmed again" in seen.toast
    assert filled.decision(match) == "confirm"
    assert filled.log(match) == [  # and no event was written under the name of anna
        ("decide", "confirm", "anna"),
        ("decide", "dismiss", "vera"),
        ("withdraw", "dismiss of vera", "vera"),
    ]


async def test_two_decisions_on_one_match_are_withdrawn_one_by_one(filled: Crawl, desk: Opener) -> None:
    match = filled.matches[BEN][0].match_id
    async with desk() as seen:
        await seen.press("enter", "b", "c", "up", "u", "up", "z")
        assert filled.decision(match) == "confirm"
        await seen.press("z")
        assert filled.decision(match) is None


async def test_a_decision_of_an_earlier_session_can_be_withdrawn(filled: Crawl, desk: Opener) -> None:
    match = filled.matches[BEN][0].match_id
    async with desk() as seen:
        await seen.press("enter", "b", "c")
    async with desk(reviewer="otto") as seen:
        await seen.press("enter", "z")
    assert filled.log(match) == [("decide", "confirm", "vera"), ("withdraw", "confirm of vera", "otto")]


async def test_undo_leaves_a_decision_that_another_reviewer_has_made_since(
    filled: Crawl, desk: Opener
) -> None:
    match = filled.matches[BEN][0].match_id
    async with desk() as seen:
        await seen.press("enter", "b", "c")
        filled.decide(match, ReviewDecision.DISMISS, "anna")
        await seen.press("z")  # the cursor is on the second match, which is undecided
        assert "Nothing to withdraw" in seen.toast
    assert filled.decision(match) == "dismiss"


async def test_undo_leaves_the_note_of_another_reviewer(filled: Crawl, desk: Opener) -> None:
    first, second, *_ = filled.matches[BEN]
    async with desk(reviewer="anna") as seen:
        await seen.press("enter", "down", "n")
        await seen.write("ask eve")
        await seen.press("enter")
    async with desk() as seen:
        await seen.press("enter", "b", "c", "z")  # the cursor has moved to the second match
    assert filled.log(first.match_id)[-1] == ("withdraw", "confirm of vera", "vera")
    assert filled.log(second.match_id) == [("note", "ask eve", "anna")]


async def test_a_new_decision_stands_although_another_clock_is_ahead(filled: Crawl, desk: Opener) -> None:
    match = filled.matches[BEN][0].match_id
    filled.decide(match, ReviewDecision.UNSURE, "anna", ahead=timedelta(hours=2))
    async with desk() as seen:
        await seen.press("enter", "b", "c")
    assert filled.decision(match) == "confirm"


async def test_a_note_stands_beside_the_decision_and_beside_the_next_one(filled: Crawl, desk: Opener) -> None:
    match = filled.matches[BEN][0].match_id
    async with desk() as seen:
        await seen.press("enter", "b", "c", "up", "n")
        await seen.write("same laces")
        await seen.press("enter")
        await seen.pilot.resize_terminal(90, 90)
        await seen.settle()
        assert "note “same laces”, by vera" in seen.part("#facts")
        await seen.press("d", "up", "z")
        assert "Withdrawn: match 1 of 4, 2-0.png is ✓ confirmed again." in seen.toast
        await seen.press("z")
        assert seen.toast == "Withdrawn: the note on match 1 of 4, 2-0.png."
    assert filled.log(match) == [
        ("decide", "confirm", "vera"),
        ("note", "same laces", "vera"),
        ("decide", "dismiss", "vera"),
        ("withdraw", "dismiss of vera", "vera"),
        ("withdraw", "same laces of vera", "vera"),
    ]


async def test_a_note_can_be_written_without_a_decision_or_cancelled(filled: Crawl, desk: Opener) -> None:
    match = filled.matches[BEN][0].match_id
    async with desk() as seen:
        await seen.press("enter", "n", "q", "escape")
        assert filled.log(match) == []
        await seen.press("n")
        await seen.write("ask eve")
        await seen.press("enter")
        assert "0 of 3 flags decided" in seen.text
        await seen.press("n", "enter")  # the same note again is no event
    assert filled.log(match) == [("note", "ask eve", "vera")]


async def test_the_decision_log_shows_who_decided_and_who_withdrew(filled: Crawl, desk: Opener) -> None:
    match = filled.matches[BEN][0].match_id
    filled.decide(match, ReviewDecision.UNSURE, "anna")
    async with desk(size=(90, 90)) as seen:
        await seen.press("enter", "b", "c", "up", "up", "up", "z")
        log = seen.part("#facts").partition("Decision log ")[2]
        assert "withdrew ✓ confirmed of vera, by vera" in log
        assert "? unsure, by anna" in log
        assert log.index("withdrew") < log.index("✓ confirmed, by vera") < log.index("? unsure, by anna")


async def test_a_checkpoint_is_decided_as_a_whole_in_the_list(filled: Crawl, desk: Opener) -> None:
    scan = filled.scans[BEN].scan_id
    async with desk() as seen:
        await seen.press("enter", "escape", "c")
        assert "ben/strong-shoe as a whole" in seen.toast
        assert seen.app.screen.query_one(Table).current == filled.scans["cleo/other-shoe"].checkpoint_id
        assert "✓ confirmed" in seen.text
    assert filled.log(scan) == [("decide", "confirm", "vera")]
    async with desk() as seen:
        assert "✓ confirmed" in seen.text
        await seen.press("z")
        assert "✓ confirmed" not in seen.text.replace(seen.toast, "")
    assert filled.decision(scan) is None


async def test_only_a_checkpoint_whose_matches_were_shown_is_confirmed_as_a_whole(
    filled: Crawl, desk: Opener
) -> None:
    scan = filled.scans[BEN].scan_id
    async with desk() as seen:
        await seen.press("c")
        assert "Only what was shown can be confirmed. enter opens" in seen.toast
        assert filled.log(scan) == []
        await seen.press("enter", "escape", "c")
        assert filled.log(scan) == [("decide", "confirm", "vera")]


async def test_where_nothing_was_found_nothing_is_decided_as_a_whole_and_a_note_is_recorded(
    filled: Crawl, desk: Opener
) -> None:
    scan, nearest = filled.scans["dora/control"].scan_id, filled.matches["dora/control"][0].match_id
    async with desk() as seen:
        await seen.press("v", "v")
        for key in ("c", "d", "u"):
            await seen.press(key)
            assert "Nothing was found: nothing to decide as a whole. enter opens it." in seen.toast
        assert filled.store.query("SELECT count(*) AS n FROM decisions") == [{"n": 0}]
        await seen.press("n")
        await seen.write("look again")
        await seen.press("enter", "enter", "b", "c")  # opens it, and confirms the nearest match
        assert filled.log(scan) == [("note", "look again", "vera")]
        assert filled.log(nearest) == [("decide", "confirm", "vera")]


async def test_a_skipped_checkpoint_cannot_be_decided(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("v", "v", "v", "c")
        assert "has no scan result" in seen.toast
    assert filled.store.query("SELECT count(*) AS n FROM decisions") == [{"n": 0}]


async def test_a_failed_write_is_reported_and_nothing_is_lost(
    filled: Crawl, desk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = filled.matches[BEN][0].match_id
    async with desk() as seen:
        await seen.press("enter", "b")

        def refuse(rows: object) -> None:
            raise StoreError("the store /s cannot be written: Read-only file system.")

        with monkeypatch.context() as broken:
            broken.setattr(seen.app.session.store, "append", refuse)
            await seen.press("c")
            assert seen.toast == "NOT recorded: the store /s cannot be written: Read-only file system."
            assert seen.app.screen.query_one(Table).current == first
            assert "0 of 3 flags decided" in seen.text
            await seen.press("n")
            await seen.write("laces")
            await seen.press("enter")
            assert "laces" in seen.text  # the note is back in its box
            await seen.press("escape", "z")
            assert "Nothing to withdraw" in seen.toast
        await seen.press("c")
    assert filled.decision(first) == "confirm"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_read_only_folder_is_reported(filled: Crawl, desk: Opener) -> None:
    (filled.store.root / "decisions").chmod(0o500)
    async with desk() as seen:
        await seen.press("enter", "b", "c")
        assert "NOT recorded" in seen.toast


def test_the_reviewer_is_named_by_the_environment_or_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEXTRACT_REVIEWER", "vera@agency")
    assert reviewer_name() == "vera@agency"
    monkeypatch.delenv("FINEXTRACT_REVIEWER")
    monkeypatch.setenv("LOGNAME", "otto")
    assert reviewer_name() == "otto"
