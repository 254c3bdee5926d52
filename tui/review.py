"""One person's decisions in one session, and the way back from each. Knows no Textual.

A decision is a new row; nothing is changed or removed. Taking one back appends what stood before it, so the
history stays whole. Every method writes before it returns, and is called from one thread at a time.
"""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass, replace
from datetime import timedelta

from scanner.records import Decision, Word, new_id, now
from scanner.store.store import Store


def reviewer_name() -> str:
    """Who decides: $FINEXTRACT_REVIEWER, or the login name."""
    if named := os.environ.get("FINEXTRACT_REVIEWER", "").strip():
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"


@dataclass(frozen=True, slots=True)
class Subject:
    """What a decision is about: a match or a scan, and how to name it to a person."""

    subject_id: str
    label: str


@dataclass(frozen=True, slots=True)
class Made:
    """A decision of this session, with what stood before it."""

    subject: Subject
    decision: Decision
    before: Decision | None


class Review:
    """Holds the decisions of this session, so that the last can be taken back first."""

    def __init__(self, store: Store, reviewer: str) -> None:
        self.store = store
        self.reviewer = reviewer
        self._made: list[Made] = []

    def newest(self, subject_id: str) -> Decision | None:
        """The newest row about a match or scan, a withdrawn one included."""
        rows = self.store.select(Decision, "WHERE subject_id = ?", [subject_id])
        return rows[0] if rows else None

    def record(self, subject: Subject, word: Word) -> Decision:
        """Records a word; a note that stands beside the subject stays with it."""
        before = self.newest(subject.subject_id)
        return self._append(subject, word, before.note if before else "", before)

    def annotate(self, subject: Subject, note: str) -> Decision:
        """Records a note; the word that stands, or that none stands, stays as it is."""
        before = self.newest(subject.subject_id)
        return self._append(subject, before.decision if before else Word.WITHDRAWN, note, before)

    def take_back(self, selected: Subject | None) -> Made | None:
        """Takes back the selected subject's word, or, where it has none, the last one of this session.

        What this session recorded gives way to what stood before; a word from elsewhere is withdrawn. Returns
        the row that now stands and the one it replaced, or None where there is nothing to take back.
        """
        if (
            selected
            and (newest := self.newest(selected.subject_id))
            and newest.decision is not Word.WITHDRAWN
        ):
            own = next((made for made in reversed(self._made) if made.decision == newest), None)
            return self._restore(own or Made(selected, newest, None))
        while self._made:
            last = self._made[-1]
            if self.newest(last.subject.subject_id) == last.decision:
                return self._restore(last)
            self._made.pop()  # somebody has decided since, and theirs is not ours to take back
        return None

    def _restore(self, made: Made) -> Made:
        withdrawn = self._row(made.subject, Word.WITHDRAWN, "", made.decision)
        rows = [withdrawn]
        if made.before is not None:
            # The earlier word is its speaker's still; the row before it tells who took the later one back.
            later = withdrawn.decided_at + timedelta(microseconds=1)
            rows.append(replace(made.before, decision_id=new_id(), decided_at=later))
        self.store.append(rows)
        self._made = [other for other in self._made if other is not made]
        # What this session had recorded before stands again under a new row, and can be taken back in turn.
        self._made = [
            replace(other, decision=rows[-1]) if other.decision == made.before else other
            for other in self._made
        ]
        return Made(made.subject, rows[-1], made.decision)

    def _append(self, subject: Subject, word: Word, note: str, before: Decision | None) -> Decision:
        row = self._row(subject, word, note, before)
        self.store.append([row])
        self._made.append(Made(subject, row, before))
        return row

    def _row(self, subject: Subject, word: Word, note: str, before: Decision | None) -> Decision:
        time = now()
        if before is not None:  # another machine's clock may run ahead; the newest word must still be ours
            time = max(time, before.decided_at + timedelta(microseconds=1))
        return Decision(new_id(), subject.subject_id, word, note, self.reviewer, time)
