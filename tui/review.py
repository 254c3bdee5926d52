"""Decisions, notes and withdrawals of one reviewer in one session. Knows no Textual.

Each method that records appends its events to the decision log, as one commit, before it returns. The methods
are called from one thread at a time.
scanner.store.decisions explains which events stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scanner.errors import StoreError
from scanner.records import Decision, EventKind, ReviewDecision
from scanner.store.decisions import fold, in_order
from scanner.store.reviewing import Recorded as Recorded
from scanner.store.reviewing import Subject as Subject
from scanner.store.reviewing import event_after, histories_of
from scanner.store.reviewing import reviewer_name as reviewer_name
from scanner.store.store import Store

READ_ONLY = "This desk is read-only: it was opened with --read-only, so nothing can be decided or noted."
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
        return histories_of(self.store, [subject.subject_id for subject in subjects])

    def _record(self, new: Sequence[_New]) -> list[Recorded]:
        """Writes events as one commit."""
        if self.read_only:
            raise StoreError(READ_ONLY)
        histories = self._histories([one.subject for one in new])
        rows = [one.after(histories[one.subject.subject_id], self.reviewer) for one in new]
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

    def after(self, history: Sequence[Decision], reviewer: str) -> Decision:
        return event_after(
            history, self.subject.subject_id, self.kind, reviewer, decision=self.decision, note=self.note,
            withdraws=self.withdraws,
        )  # fmt: skip
