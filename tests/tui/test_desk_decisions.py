"""What a person says is in the store at once, stays there, and can be taken back."""

import os
from datetime import timedelta

import pytest
from filled_store import Crawl, Opener

from scanner.errors import StoreError
from scanner.records import Decision, Word, new_id, now
from tui.review import reviewer_name
from tui.widgets.table import Table

BEN = "ben/strong-shoe"


async def test_a_confirmed_match_is_still_confirmed_after_reopening(filled: Crawl, desk: Opener) -> None:
    first, second, *_ = filled.matches[BEN]
    async with desk() as seen:
        await seen.press("enter", "c")
        assert seen.toast == "Recorded: ✓ confirmed, match 1 of 4. z takes it back."
        await seen.press("d")
        assert filled.said(first.match_id) == [("confirm", "", "vera")]
        assert filled.said(second.match_id) == [("dismiss", "", "vera")]
    async with desk() as seen:
        assert "2 of 3 decided" in seen.text
        await seen.press("enter")
        assert "0.943 0.0040 ✓ confirmed" in seen.flat
        assert "0.871 0.0050 ✗ dismissed" in seen.flat
        await seen.pilot.resize_terminal(90, 90)
        await seen.settle()
        assert "✓ confirmed by vera" in seen.part("#argument")


async def test_after_a_decision_the_next_undecided_match_is_under_the_cursor(
    filled: Crawl, desk: Opener
) -> None:
    matches = filled.matches[BEN]
    async with desk() as seen:
        await seen.press("enter", "down", "u")
        assert seen.app.screen.query_one(Table).current == matches[2].match_id
        await seen.press("c")  # goes round to the first; the unflagged fourth waits for nobody
        assert seen.app.screen.query_one(Table).current == matches[0].match_id
        await seen.press("c")
        assert seen.app.screen.query_one(Table).current == matches[0].match_id
        assert "3 of 3 matches decided" in seen.text


async def test_keys_pressed_in_a_hurry_each_decide_another_match(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("enter")
        await seen.pilot.press("c", "d", "u")
        await seen.settle()
    said = [filled.stands(match.match_id) for match in filled.matches[BEN]]
    assert said == ["confirm", "dismiss", "unsure", None]


async def test_undo_takes_back_the_last_decision_and_then_the_one_before(filled: Crawl, desk: Opener) -> None:
    first, second, *_ = filled.matches[BEN]
    async with desk() as seen:
        await seen.press("enter", "c", "d", "z")
        assert seen.toast == "Taken back: match 2 of 4 is undecided again."
        assert seen.app.screen.query_one(Table).current == second.match_id
        await seen.press("z")
        assert seen.app.screen.query_one(Table).current == first.match_id
        await seen.press("z")
        assert "Nothing to take back" in seen.toast
    assert filled.said(first.match_id) == [("confirm", "", "vera"), ("withdrawn", "", "vera")]
    assert filled.said(second.match_id) == [("dismiss", "", "vera"), ("withdrawn", "", "vera")]


async def test_undo_brings_back_the_word_that_stood_before_as_its_speakers(
    filled: Crawl, desk: Opener
) -> None:
    match = filled.matches[BEN][0].match_id
    filled.store.append([Decision(new_id(), match, Word.CONFIRM, "the laces", "anna", now())])
    async with desk() as seen:
        await seen.press("enter", "d")
        assert filled.stands(match) == "dismiss"
        await seen.press("up", "up", "up", "z")
        assert "✓ confirmed again" in seen.toast
    assert filled.said(match) == [
        ("confirm", "the laces", "anna"),
        ("dismiss", "the laces", "vera"),
        ("withdrawn", "", "vera"),
        ("confirm", "the laces", "anna"),
    ]


async def test_two_words_on_one_match_are_taken_back_one_by_one(filled: Crawl, desk: Opener) -> None:
    match = filled.matches[BEN][0].match_id
    async with desk() as seen:
        await seen.press("enter", "c", "up", "u", "up", "z")
        assert filled.stands(match) == "confirm"
        await seen.press("z")
        assert filled.stands(match) == "withdrawn"


async def test_a_decision_of_an_earlier_session_can_be_withdrawn(filled: Crawl, desk: Opener) -> None:
    match = filled.matches[BEN][0].match_id
    async with desk() as seen:
        await seen.press("enter", "c")
    async with desk(reviewer="otto") as seen:
        await seen.press("enter", "z")
    assert filled.said(match) == [("confirm", "", "vera"), ("withdrawn", "", "otto")]


async def test_undo_leaves_a_word_that_somebody_else_has_said_since(filled: Crawl, desk: Opener) -> None:
    match = filled.matches[BEN][0].match_id
    async with desk() as seen:
        await seen.press("enter", "c")
        filled.store.append([Decision(new_id(), match, Word.DISMISS, "", "anna", now())])
        await seen.press("z")  # the cursor is on the second match, which has no word
        assert "Nothing to take back" in seen.toast
    assert filled.stands(match) == "dismiss"


async def test_a_word_outlasts_one_from_a_clock_that_runs_ahead(filled: Crawl, desk: Opener) -> None:
    match = filled.matches[BEN][0].match_id
    filled.store.append([Decision(new_id(), match, Word.UNSURE, "", "anna", now() + timedelta(hours=2))])
    async with desk() as seen:
        await seen.press("enter", "c")
    assert filled.stands(match) == "confirm"


async def test_a_note_stands_beside_the_word_and_stays_with_the_next(filled: Crawl, desk: Opener) -> None:
    match = filled.matches[BEN][0].match_id
    async with desk() as seen:
        await seen.press("enter", "c", "up", "n")
        await seen.write("same laces")
        await seen.press("enter")
        await seen.pilot.resize_terminal(90, 90)
        await seen.settle()
        assert "“same laces”" in seen.part("#argument")
        await seen.press("d")
    assert filled.said(match) == [
        ("confirm", "", "vera"),
        ("confirm", "same laces", "vera"),
        ("dismiss", "same laces", "vera"),
    ]


async def test_a_note_can_be_left_without_a_word_or_given_up(filled: Crawl, desk: Opener) -> None:
    match = filled.matches[BEN][0].match_id
    async with desk() as seen:
        await seen.press("enter", "n", "q", "escape")
        assert filled.said(match) == []
        await seen.press("n")
        await seen.write("ask eve")
        await seen.press("enter")
        assert "0 of 3 matches decided" in seen.text
    assert filled.said(match) == [("withdrawn", "ask eve", "vera")]


async def test_a_checkpoint_is_decided_as_a_whole_in_the_list(filled: Crawl, desk: Opener) -> None:
    scan = filled.scans[BEN].scan_id
    async with desk() as seen:
        await seen.press("c")
        assert "ben/strong-shoe as a whole" in seen.toast
        assert seen.app.screen.query_one(Table).current == filled.scans["cleo/other-shoe"].checkpoint_id
        assert "✓ confirmed" in seen.text
    assert filled.said(scan) == [("confirm", "", "vera")]
    async with desk() as seen:
        assert "✓ confirmed" in seen.text
        await seen.press("z")
        assert "✓ confirmed" not in seen.text.replace(seen.toast, "")
    assert filled.stands(scan) == "withdrawn"


async def test_a_skipped_checkpoint_cannot_be_decided(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("v", "v", "v", "c")
        assert "not been judged" in seen.toast
    assert filled.store.query("SELECT count(*) AS n FROM all_decisions") == [{"n": 0}]


async def test_a_store_that_cannot_be_written_is_told_and_nothing_is_lost(
    filled: Crawl, desk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = filled.matches[BEN][0].match_id
    async with desk() as seen:
        await seen.press("enter")

        def refuse(rows: object) -> None:
            raise StoreError("the store /s cannot be written: Read-only file system.")

        with monkeypatch.context() as broken:
            broken.setattr(seen.app.store, "append", refuse)
            await seen.press("c")
            assert seen.toast == "NOT recorded: the store /s cannot be written: Read-only file system."
            assert seen.app.screen.query_one(Table).current == first
            assert "0 of 3 matches decided" in seen.text
            await seen.press("n")
            await seen.write("laces")
            await seen.press("enter")
            assert "laces" in seen.text  # the note is back in its box
            await seen.press("escape", "z")
            assert "Nothing to take back" in seen.toast
        await seen.press("c")
    assert filled.stands(first) == "confirm"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_read_only_folder_is_told(filled: Crawl, desk: Opener) -> None:
    (filled.store.root / "decisions").chmod(0o500)
    async with desk() as seen:
        await seen.press("enter", "c")
        assert "NOT recorded" in seen.toast


def test_the_reviewer_is_named_by_the_environment_or_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEXTRACT_REVIEWER", "vera@agency")
    assert reviewer_name() == "vera@agency"
    monkeypatch.delenv("FINEXTRACT_REVIEWER")
    monkeypatch.setenv("LOGNAME", "otto")
    assert reviewer_name() == "otto"
