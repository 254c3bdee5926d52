"""Decisions, notes and withdrawals of one reviewer in one session. Knows no Textual.

Each method appends one event to the decision log before it returns, and is called from one thread at a time.
scanner.store.decisions explains which events stand.
"""

from __future__ import annotations

from scanner.records import Decision, EventKind, ReviewDecision
from scanner.store.decisions import fold, in_order
from scanner.store.reviewing import Recorded as Recorded
from scanner.store.reviewing import Subject as Subject
from scanner.store.reviewing import event_after
from scanner.store.reviewing import reviewer_name as reviewer_name
from scanner.store.store import Store


class Review:
    """Keeps the decide and note events of this session, so that the newest can be withdrawn first."""

    def __init__(self, store: Store, reviewer: str) -> None:
        self.store = store
        self.reviewer = reviewer
        self._own: list[tuple[Subject, Decision]] = []  # oldest first, without those that were withdrawn

    def decide(self, subject: Subject, decision: ReviewDecision) -> Recorded:
        """Records a decision; the note that stands is not changed."""
        return self._record(subject, EventKind.DECIDE, decision=decision)

    def annotate(self, subject: Subject, note: str) -> Recorded:
        """Records a note, or an empty one that removes the note; the decision that stands is not changed."""
        return self._record(subject, EventKind.NOTE, note=note)

    def undo(self, selected: Subject | None) -> Recorded | None:
        """Withdraws one event: of the selected subject if it is decided, and else the last of this session.

        For a decided subject this is the decision that stands, of whichever reviewer, or a newer note of
        this session. An event of this session that no longer stands is left alone, because somebody has
        decided since. Returns None if there is nothing to withdraw.
        """
        if selected is not None:
            standing = fold(self._history(selected))
            if standing.decided is not None:
                own_note = [event for _, event in self._own if event == standing.noted]
                return self._withdraw(selected, max([standing.decided, *own_note], key=in_order))
        for subject, event in reversed(self._own):
            standing = fold(self._history(subject))
            if event in (standing.decided, standing.noted):
                return self._withdraw(subject, event)
        return None

    def _history(self, subject: Subject) -> list[Decision]:
        return self.store.select(Decision, "WHERE subject_id = ?", [subject.subject_id])

    def _withdraw(self, subject: Subject, event: Decision) -> Recorded:
        recorded = self._record(subject, EventKind.WITHDRAW, withdraws=event)
        self._own = [(about, own) for about, own in self._own if own != event]
        return recorded

    def _record(
        self,
        subject: Subject,
        event: EventKind,
        *,
        decision: ReviewDecision | None = None,
        note: str = "",
        withdraws: Decision | None = None,
    ) -> Recorded:
        history = self._history(subject)
        row = event_after(
            history, subject.subject_id, event, self.reviewer, decision=decision, note=note,
            withdraws=withdraws,
        )  # fmt: skip
        self.store.append([row])
        if withdraws is None:
            self._own.append((subject, row))
        return Recorded(subject, row, fold([*history, row]), withdraws)
