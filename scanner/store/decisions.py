"""The decision log: what stands for a subject, in Python and in SQL, and old rows as events.

A subject is a match or a scan. Its log is an append-only list of events, each with its own author and time:
a reviewer decides, writes a note, or withdraws one earlier decide or note event. No event is ever changed or
removed, so what stands is computed each time the log is read:

- A decide or note event that a withdraw event names does not count. A withdraw event cannot be withdrawn: to
  restore what it withdrew, a reviewer decides again.
- Of the remaining decide events the newest stands, of whichever reviewer. So an earlier decision stands
  again once the later one is withdrawn.
- Of the remaining note events the newest stands. A note with an empty text stands for no note.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from scanner.records import Decision, EventKind, ReviewDecision

# `fold` for all subjects at once: the events that stand, at most one decide and one note event of a subject.
STANDING_EVENTS = """
    SELECT * FROM decisions
    ANTI JOIN (SELECT subject_id, withdraws AS decision_id FROM decisions WHERE event = 'withdraw')
        USING (subject_id, decision_id)
    WHERE event IN ('decide', 'note')
    QUALIFY row_number() OVER (PARTITION BY subject_id, event ORDER BY decided_at DESC, decision_id DESC) = 1
"""
# One row for each subject that has such an event.
STANDING_DECISIONS = f"""
    SELECT
        subject_id, any_value(decision) AS decision,
        coalesce(any_value(note) FILTER (event = 'note'), '') AS note
    FROM ({STANDING_EVENTS}) GROUP BY subject_id"""
RESTORED_AFTER = timedelta(microseconds=1)  # between the two rows by which older versions undid a decision


@dataclass(frozen=True, slots=True)
class Standing:
    """The events that stand for one subject."""

    decided: Decision | None = None  # a decide event
    noted: Decision | None = None  # a note event

    @property
    def decision(self) -> ReviewDecision | None:
        """The decision that stands; None if the subject is undecided."""
        return self.decided.decision if self.decided else None

    @property
    def note(self) -> str:
        """The note that stands; empty if there is none."""
        return self.noted.note if self.noted else ""


def in_order(event: Decision) -> tuple[datetime, str]:
    """The sort key of a log, oldest event first."""
    return event.decided_at, event.decision_id


def fold(events: Iterable[Decision]) -> Standing:
    """Returns what stands for one subject, given all its events in any order."""
    events = sorted(events, key=in_order)
    withdrawn = {event.withdraws for event in events if event.event is EventKind.WITHDRAW}
    decided = noted = None
    for event in events:
        if event.decision_id in withdrawn:
            continue
        if event.event is EventKind.DECIDE:
            decided = event
        elif event.event is EventKind.NOTE:
            noted = event
    return Standing(decided, noted)


def events_from_legacy(rows: Iterable[Mapping[str, Any]]) -> list[Decision]:
    """Reads decision rows of a store from before the log of events.

    Each row has the columns decision_id, subject_id, decision ("confirm", "dismiss", "unsure" or
    "withdrawn"), note, reviewer and decided_at; the newest row of a subject gave its decision and its note.
    `fold` gives the same for the events. The first event of a row keeps the row's id; further ones get ids
    that are derived from it, so reading the same rows again gives the same events.
    """
    subjects: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        subjects[row["subject_id"]].append(row)
    events = [
        event
        for subject in subjects.values()
        for event in _subject_from_legacy(
            sorted(subject, key=lambda row: (row["decided_at"], row["decision_id"]))
        )
    ]
    return sorted(events, key=in_order)


def _subject_from_legacy(rows: Sequence[Mapping[str, Any]]) -> list[Decision]:
    events: list[Decision] = []
    restored = False  # whether the row was read together with the one before it
    for place, row in enumerate(rows):
        if restored:
            restored = False
            continue
        following = rows[place + 1] if place + 1 < len(rows) else None
        undone = _undone(events, row, following, rows[:place]) if following else None
        if undone is not None:
            new, restored = undone, True
        elif row["decision"] == "withdrawn":
            new = _withdrawn(events, row)
        else:
            new = _decided(fold(events), row)
        events += new
    return events


def _decided(standing: Standing, row: Mapping[str, Any]) -> list[Decision]:
    """A row with a decision. If it repeats the one that stands and changes the note, it was only a note."""
    new: list[Decision] = []
    decision, note = ReviewDecision(row["decision"]), row["note"]
    if decision is not standing.decision or note == standing.note:
        new.append(_event(row, 0, EventKind.DECIDE, decision=decision))
    if note != standing.note:
        new.append(_event(row, len(new), EventKind.NOTE, note=note))
    return new


def _withdrawn(events: Sequence[Decision], row: Mapping[str, Any]) -> list[Decision]:
    """A row after which no decision stood, and no note but its own."""
    named = {event.withdraws for event in events}
    open_events = [e for e in events if e.event is not EventKind.WITHDRAW and e.decision_id not in named]
    if not row["note"]:
        # With nothing left to withdraw, another reviewer had already withdrawn the same event.
        targets = open_events or [e for e in events if e.event is EventKind.DECIDE][-1:]
        return [_withdraw(row, number, target) for number, target in enumerate(reversed(targets))]
    decided = [e for e in open_events if e.event is EventKind.DECIDE]
    new = [_withdraw(row, number, target) for number, target in enumerate(reversed(decided))]
    return [*new, _event(row, len(new), EventKind.NOTE, note=row["note"])]


def _undone(
    events: Sequence[Decision],
    row: Mapping[str, Any],
    following: Mapping[str, Any],
    earlier: Sequence[Mapping[str, Any]],
) -> list[Decision] | None:
    """Undoing was two rows: a withdrawn one, and a copy of the row that stood before the undone one.

    Returns the withdraw events that the two rows stand for; None if they are no such pair.
    """
    same = ("decision", "note", "reviewer")
    if (
        row["decision"] != "withdrawn"
        or row["note"]
        or following["decided_at"] - row["decided_at"] != RESTORED_AFTER
        or not any(all(before[name] == following[name] for name in same) for before in earlier[:-1])
    ):
        return None
    standing = fold(events)
    for targets in ((standing.decided,), (standing.noted,), (standing.decided, standing.noted)):
        new = [_withdraw(row, number, target) for number, target in enumerate(targets) if target]
        after = fold([*events, *new])
        if new and (after.decision or "withdrawn", after.note) == (following["decision"], following["note"]):
            return new
    return None


def _withdraw(row: Mapping[str, Any], number: int, target: Decision) -> Decision:
    return _event(row, number, EventKind.WITHDRAW, withdraws=target.decision_id)


def _event(
    row: Mapping[str, Any],
    number: int,
    event: EventKind,
    *,
    decision: ReviewDecision | None = None,
    note: str = "",
    withdraws: str | None = None,
) -> Decision:
    """The event with that number, from 0, that a row stands for."""
    own = row["decision_id"]
    decision_id = own if number == 0 else uuid5(NAMESPACE_OID, f"{own}/{number}").hex
    return Decision(
        decision_id, row["subject_id"], event, decision, note, withdraws, row["reviewer"], row["decided_at"]
    )
