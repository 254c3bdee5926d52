"""The decision log: which events stand, in Python and in SQL, and how old rows are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.records import Decision, EventKind, ReviewDecision
from scanner.store.decisions import STANDING_DECISIONS, Standing, events_from_legacy, fold
from scanner.store.store import Store
from scanner.store.tables import arrow_schema

START = datetime(2026, 11, 23, 22, tzinfo=UTC)
CONFIRM, DISMISS, UNSURE = ReviewDecision


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def decide(number: int, decision: ReviewDecision, reviewer: str = "vera", subject: str = "m") -> Decision:
    return Decision(f"d{number}", subject, EventKind.DECIDE, decision, "", None, reviewer, at(number))


def note(number: int, text: str, reviewer: str = "vera") -> Decision:
    return Decision(f"d{number}", "m", EventKind.NOTE, None, text, None, reviewer, at(number))


def withdraw(number: int, event: Decision, reviewer: str = "vera") -> Decision:
    return Decision(f"d{number}", "m", EventKind.WITHDRAW, None, "", event.decision_id, reviewer, at(number))


@st.composite
def logs(draw: st.DrawFn, subjects: Sequence[str] = ("m",)) -> list[Decision]:
    """Random events, some at the same time; a withdraw event names any id, known or not, also its own."""
    count = draw(st.integers(0, 12))
    ids = [f"d{number}" for number in draw(st.permutations(range(count)))]
    events = []
    for decision_id in ids:
        event = draw(st.sampled_from(EventKind))
        events.append(
            Decision(
                decision_id,
                draw(st.sampled_from(subjects)),
                event,
                draw(st.sampled_from(ReviewDecision)) if event is EventKind.DECIDE else None,
                draw(st.sampled_from(("", "laces", "ünsure"))) if event is EventKind.NOTE else "",
                draw(st.sampled_from([*ids, "gone"])) if event is EventKind.WITHDRAW else None,
                draw(st.sampled_from(("vera", "anna"))),
                at(draw(st.integers(0, 5))),
            )
        )
    return events


def test_the_newest_decision_stands_whoever_made_it() -> None:
    first, second = decide(1, CONFIRM, "anna"), decide(2, DISMISS, "vera")
    assert fold([second, first]) == Standing(second, None)


def test_an_earlier_decision_stands_again_once_the_later_one_is_withdrawn() -> None:
    first, second = decide(1, CONFIRM, "anna"), decide(2, DISMISS, "vera")
    assert fold([first, second, withdraw(3, second, "otto")]).decided == first


def test_a_note_and_a_decision_stand_independently_of_each_other() -> None:
    decided, noted = decide(1, CONFIRM), note(2, "laces")
    assert fold([decided, noted]) == Standing(decided, noted)
    assert fold([decided, noted, withdraw(3, decided)]) == Standing(None, noted)
    assert fold([decided, noted, withdraw(3, noted)]) == Standing(decided, None)


def test_a_withdraw_event_cannot_be_withdrawn() -> None:
    decided = decide(1, CONFIRM)
    withdrawal = withdraw(2, decided)
    assert fold([decided, withdrawal, withdraw(3, withdrawal)]) == Standing()


def test_an_empty_note_removes_the_note() -> None:
    assert fold([note(1, "laces"), note(2, "")]).note == ""


@given(logs(), st.randoms(use_true_random=False))
def test_what_stands_does_not_depend_on_the_order_in_which_events_are_read(
    log: list[Decision], random: Any
) -> None:
    shuffled = list(log)
    random.shuffle(shuffled)
    assert fold(shuffled) == fold(log)


@given(logs())
def test_what_stands_was_never_withdrawn_and_nothing_newer_counts(log: list[Decision]) -> None:
    standing = fold(log)
    withdrawn = {event.withdraws for event in log}
    for event, kind in ((standing.decided, EventKind.DECIDE), (standing.noted, EventKind.NOTE)):
        counting = [e for e in log if e.event is kind and e.decision_id not in withdrawn]
        assert (event is None) == (not counting)
        if event is not None:
            assert event in counting
            assert event.decided_at == max(e.decided_at for e in counting)


@given(logs())
def test_withdrawing_everything_that_stands_leaves_what_stood_before(log: list[Decision]) -> None:
    standing = fold(log)
    if standing.decided is not None:
        without = [event for event in log if event != standing.decided]
        undone = fold([*log, withdraw(99, standing.decided)])
        assert undone.decided == fold(without).decided


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB for all examples of a test."""
    with duckdb.connect() as opened:
        yield opened


@given(log=logs(subjects=("m", "n", "o")))
def test_the_fold_in_sql_agrees_with_the_fold_in_python(
    connection: duckdb.DuckDBPyConnection, log: list[Decision]
) -> None:
    rows = [{name: getattr(event, name) for name in arrow_schema(Decision).names} for event in log]
    connection.register("decisions", pa.Table.from_pylist(rows, schema=arrow_schema(Decision)))
    found = connection.execute(f"SELECT subject_id, decision, note FROM ({STANDING_DECISIONS})").fetchall()
    standing = {subject: fold(e for e in log if e.subject_id == subject) for subject in ("m", "n", "o")}
    expected = {s: (f.decision, f.note) for s, f in standing.items() if f.decided or f.noted}
    assert {subject: (decision, text) for subject, decision, text in found} == expected


def test_the_view_of_decisions_holds_every_event(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", create=True)
    log = [decide(1, CONFIRM), decide(2, DISMISS, "anna")]
    log.append(withdraw(3, log[1]))
    for event in log:
        store.append([event])
    assert store.select(Decision, "ORDER BY decided_at") == log
    (standing,) = store.query(STANDING_DECISIONS)
    assert standing == {"subject_id": "m", "decision": "confirm", "note": ""}


# Rows of a store from before the log of events.


def row(number: float, decision: str, text: str = "", reviewer: str = "vera") -> dict[str, Any]:
    return {
        "decision_id": f"old{number}",
        "subject_id": "m",
        "decision": decision,
        "note": text,
        "reviewer": reviewer,
        "decided_at": at(number),
    }


def undone(number: int, before: dict[str, Any], reviewer: str) -> list[dict[str, Any]]:
    """The two rows that undoing wrote: a withdrawn one, and the row that stood before, under its old name."""
    withdrawn = row(number, "withdrawn", "", reviewer)
    restored = {
        **before,
        "decision_id": f"old{number}+",
        "decided_at": withdrawn["decided_at"] + timedelta(microseconds=1),
    }
    return [withdrawn, restored]


def kinds(events: Sequence[Decision]) -> list[str]:
    return [str(event.event) for event in events]


@pytest.mark.parametrize("decision", ["confirm", "dismiss", "unsure"])
def test_an_old_decision_is_a_decide_event_with_its_id_author_and_time(decision: str) -> None:
    (event,) = events_from_legacy([row(1, decision, reviewer="anna")])
    assert event == Decision("old1", "m", EventKind.DECIDE, ReviewDecision(decision), "", None, "anna", at(1))


def test_an_old_decision_with_a_new_note_is_a_decision_and_a_note() -> None:
    decided, noted = events_from_legacy([row(1, "confirm", "laces")])
    assert {decided.event, noted.event} == {EventKind.DECIDE, EventKind.NOTE}
    assert len({decided.decision_id, noted.decision_id}) == 2
    standing = fold([decided, noted])
    assert (standing.decision, standing.note) == (CONFIRM, "laces")


def test_a_note_that_an_old_decision_carried_on_is_no_new_note() -> None:
    events = events_from_legacy([row(1, "confirm", "laces"), row(2, "dismiss", "laces", "anna")])
    assert sorted(kinds(events)) == ["decide", "decide", "note"]


def test_a_note_on_a_decision_that_stands_is_only_a_note() -> None:
    events = events_from_legacy([row(1, "confirm", reviewer="anna"), row(2, "confirm", "laces", "vera")])
    assert kinds(events) == ["decide", "note"]
    assert fold(events).decided.reviewer == "anna"  # type: ignore[union-attr]
    assert fold(events).noted.reviewer == "vera"  # type: ignore[union-attr]


def test_an_old_withdrawn_row_withdraws_what_stood() -> None:
    events = events_from_legacy([row(1, "confirm"), row(2, "withdrawn", reviewer="otto")])
    assert events[1] == Decision("old2", "m", EventKind.WITHDRAW, None, "", "old1", "otto", at(2))
    assert fold(events) == Standing()


def test_an_old_withdrawn_row_leaves_no_earlier_decision_standing() -> None:
    rows = [
        row(1, "confirm", "laces", "anna"),
        row(2, "dismiss", "laces"),
        row(3, "withdrawn", reviewer="otto"),
    ]
    assert fold(events_from_legacy(rows)) == Standing()


def test_an_old_withdrawn_row_with_a_note_is_a_bare_note() -> None:
    (event,) = events_from_legacy([row(1, "withdrawn", "ask eve")])
    assert event == Decision("old1", "m", EventKind.NOTE, None, "ask eve", None, "vera", at(1))


def test_an_old_undo_is_one_withdraw_event_of_the_later_decision() -> None:
    first = row(1, "confirm", "laces", "anna")
    rows = [first, row(2, "dismiss", "laces", "vera"), *undone(3, first, "vera")]
    events = events_from_legacy(rows)
    assert kinds(events)[-2:] == ["decide", "withdraw"]
    assert events[-1] == Decision("old3", "m", EventKind.WITHDRAW, None, "", "old2", "vera", at(3))
    standing = fold(events)
    assert standing.decided.reviewer == "anna"  # type: ignore[union-attr]
    assert standing.decided.decided_at == at(1)  # type: ignore[union-attr]
    assert standing.note == "laces"


def test_an_old_undo_of_a_note_withdraws_the_note() -> None:
    first = row(1, "confirm")
    events = events_from_legacy([first, row(2, "confirm", "laces"), *undone(3, first, "vera")])
    assert kinds(events) == ["decide", "note", "withdraw"]
    assert fold(events) == Standing(events[0], None)


def test_decisions_that_were_undone_one_after_the_other_are_withdrawn_one_after_the_other() -> None:
    first, second = row(1, "confirm"), row(2, "unsure")
    rows = [first, second, row(3, "dismiss"), *undone(4, second, "vera"), *undone(5, first, "vera")]
    events = events_from_legacy(rows)
    assert [event.withdraws for event in events if event.event is EventKind.WITHDRAW] == ["old3", "old2"]
    assert fold(events).decision is CONFIRM


def test_a_new_decision_just_after_a_withdrawal_is_no_undo() -> None:
    quick = {**row(3, "confirm", reviewer="vera"), "decided_at": at(2) + timedelta(microseconds=1)}
    rows = [row(0, "confirm", reviewer="anna"), row(1, "unsure"), row(2, "withdrawn"), quick]
    standing = fold(events_from_legacy(rows))
    assert standing.decided.reviewer == "vera"  # type: ignore[union-attr]


def test_two_reviewers_who_withdrew_the_same_decision_are_both_in_the_log() -> None:
    events = events_from_legacy(
        [row(1, "confirm"), row(2, "withdrawn", reviewer="anna"), row(3, "withdrawn", reviewer="otto")]
    )
    assert [(event.reviewer, event.withdraws) for event in events[1:]] == [("anna", "old1"), ("otto", "old1")]


old_rows = st.tuples(
    st.sampled_from(("confirm", "dismiss", "unsure", "withdrawn")),
    st.sampled_from(("", "", "laces", "sole")),
    st.sampled_from(("vera", "anna")),
    st.booleans(),
)


@given(st.lists(old_rows, max_size=10))
def test_old_rows_stand_for_what_their_newest_row_said(drawn: list[tuple[str, str, str, bool]]) -> None:
    rows: list[dict[str, Any]] = []
    for number, (decision, text, reviewer, undo) in enumerate(drawn):
        if undo and len(rows) > 1 and rows[-1]["decision"] != "withdrawn":
            rows += undone(number, rows[-2], reviewer)
        else:
            rows.append(row(number, decision, text, reviewer))
    events = events_from_legacy(reversed(rows))
    standing = fold(events)
    newest = rows[-1] if rows else {"decision": "withdrawn", "note": ""}
    assert (standing.decision or "withdrawn", standing.note) == (newest["decision"], newest["note"])
    assert len({event.decision_id for event in events}) == len(events)
    assert events_from_legacy(rows) == events


def test_old_rows_of_several_subjects_are_read_apart() -> None:
    rows = [row(1, "confirm"), {**row(2, "withdrawn"), "subject_id": "n"}, row(3, "dismiss")]
    events = events_from_legacy(rows)
    assert [replace(event, reviewer="") for event in events] == [
        replace(decide(1, CONFIRM), decision_id="old1", reviewer=""),
        replace(decide(3, DISMISS), decision_id="old3", reviewer=""),
    ]
