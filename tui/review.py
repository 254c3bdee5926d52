"""Decisions, notes and withdrawals of one reviewer in one session. Knows no Textual.

Each method that records appends its events to the decision log, as one commit, before it returns. The methods
are called from one thread at a time.
scanner.store.decisions explains which events stand.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from scanner.errors import StoreError
from scanner.records import Decision, EventKind, ReviewDecision, new_id, now
from scanner.store.decisions import Standing, fold, in_order
from scanner.store.store import Store

READ_ONLY = "This desk is read-only: it was opened with --read-only, so nothing can be decided or noted."


def reviewer_name() -> str:
    """Returns $FINEXTRACT_REVIEWER, or else the login name."""
    if name := os.environ.get("FINEXTRACT_REVIEWER", "").strip():
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"


@dataclass(frozen=True, slots=True)
class Subject:
    """The match, membership or scan that an event is about."""

    subject_id: str
    label: str  # names the subject in messages to the reviewer


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event that was recorded, and what stands for its subject since."""

    subject: Subject
    event: Decision
    standing: Standing
    withdrawn: Decision | None = None  # the event that a withdraw event names


Event = tuple[Subject, Decision]


class Review:
    """Keeps the decide and note events of this session, so that the newest can be withdrawn first.

    What was decided at once is one group, which is written and withdrawn as a whole. A review that is
    `read_only` writes nothing.
    """

    def __init__(self, store: Store, reviewer: str, *, read_only: bool = False) -> None:
        self.store = store
        self.reviewer = reviewer
        self.read_only = read_only
        self._own: list[tuple[Event, ...]] = []  # groups, oldest first, without what was withdrawn

    def decide(self, subject: Subject, decision: ReviewDecision) -> Recorded:
        """Records a decision; the note that stands is not changed."""
        return self.decide_all([subject], decision)[0]

    def decide_all(self, subjects: Sequence[Subject], decision: ReviewDecision) -> list[Recorded]:
        """Records one decision about each subject, all of them or none."""
        return self._record([_New(subject, EventKind.DECIDE, decision=decision) for subject in subjects])

    def annotate(self, subject: Subject, note: str) -> Recorded:
        """Records a note, or an empty one that removes the note; the decision that stands is not changed."""
        return self._record([_New(subject, EventKind.NOTE, note=note)])[0]

    def undo(self, selected: Subject | None) -> Recorded | None:
        """Withdraws what `to_withdraw` says; returns the first of it, None if there is nothing."""
        events = self.to_withdraw(selected)
        return self.withdraw(events)[0] if events else None

    def to_withdraw(self, selected: Subject | None) -> list[Event]:
        """Returns what undo is about: the selected subject if it is decided, else the last of this session.

        For a decided subject this is the decision that stands, of whichever reviewer, or a newer note of
        this session. If the event was recorded in a group, all of the group that still stands is returned,
        the selected subject first. An event of this session that no longer stands is left alone, because
        somebody has decided since.
        """
        if selected is not None:
            standing = fold(self._histories([selected])[selected.subject_id])
            if standing.decided is not None:
                own = [event for group in self._own for _, event in group]
                noted = [standing.noted] if standing.noted in own and standing.noted else []
                event = max([standing.decided, *noted], key=in_order)
                group = next((group for group in self._own if (selected, event) in group), ())
                others = [other for other in self._standing(group) if other != (selected, event)]
                return [(selected, event), *others]
        for group in reversed(self._own):
            if standing_events := self._standing(group):
                return standing_events
        return []

    def decisions_on(self, subjects: Sequence[Subject]) -> list[Event]:
        """Returns the decisions that stand for subjects, of whichever reviewer."""
        histories = self._histories(subjects)
        found = [(subject, fold(histories[subject.subject_id]).decided) for subject in subjects]
        return [(subject, decided) for subject, decided in found if decided is not None]

    def withdraw(self, events: Sequence[Event]) -> list[Recorded]:
        """Withdraws events, all of them or none."""
        recorded = self._record([_New(s, EventKind.WITHDRAW, withdraws=event) for s, event in events])
        gone = {event.decision_id for _, event in events}
        left = (tuple(own for own in group if own[1].decision_id not in gone) for group in self._own)
        self._own = [group for group in left if group]
        return recorded

    def _standing(self, group: Sequence[Event]) -> list[Event]:
        histories = self._histories([subject for subject, _ in group])
        folded = {subject_id: fold(history) for subject_id, history in histories.items()}
        return [
            (subject, event)
            for subject, event in group
            if event in (folded[subject.subject_id].decided, folded[subject.subject_id].noted)
        ]

    def _histories(self, subjects: Sequence[Subject]) -> dict[str, list[Decision]]:
        histories: dict[str, list[Decision]] = {subject.subject_id: [] for subject in subjects}
        if histories:
            where = "WHERE subject_id IN (SELECT unnest(?))"
            for event in self.store.select(Decision, where, [list(histories)]):
                histories[event.subject_id].append(event)
        return histories

    def _record(self, new: Sequence[_New]) -> list[Recorded]:
        """Writes events as one commit."""
        if self.read_only:
            raise StoreError(READ_ONLY)
        histories = self._histories([one.subject for one in new])
        rows = [one.event(self.reviewer, _time_after(histories[one.subject.subject_id])) for one in new]
        self.store.append(rows)
        recorded = [
            Recorded(one.subject, row, fold([*histories[one.subject.subject_id], row]), one.withdraws)
            for one, row in zip(new, rows, strict=True)
        ]
        own = tuple((done.subject, done.event) for done in recorded if done.withdrawn is None)
        if own:
            self._own.append(own)
        return recorded


@dataclass(frozen=True, slots=True)
class _New:
    """An event that is to be written."""

    subject: Subject
    kind: EventKind
    decision: ReviewDecision | None = None
    note: str = ""
    withdraws: Decision | None = None

    def event(self, reviewer: str, time: datetime) -> Decision:
        named = self.withdraws.decision_id if self.withdraws else None
        subject_id = self.subject.subject_id
        return Decision(new_id(), subject_id, self.kind, self.decision, self.note, named, reviewer, time)


def _time_after(history: Sequence[Decision]) -> datetime:
    """Returns the present, or a time just after the newest event if another machine's clock is ahead."""
    present = now()
    if not history:
        return present
    return max(present, max(event.decided_at for event in history) + timedelta(microseconds=1))
