"""Confirm, dismiss, unsure, note and undo, for the list and for an opened checkpoint.

Each action waits for its write in a thread, so the terminal is drawn meanwhile. Textual handles the keys that
follow only after the action has ended: each acts on the row that is under the cursor then. If a write fails,
nothing on the screen changes.
"""

from __future__ import annotations

import asyncio

from textual import work
from textual.screen import Screen

from scanner.errors import ScannerError
from scanner.records import EventKind, ReviewDecision
from scanner.text import for_terminal
from tui.content.formatting import decision_text
from tui.review import Recorded, Subject
from tui.screens.note import NoteScreen
from tui.session import Session


class DecidingScreen(Screen[None]):
    """A screen with a table whose rows a reviewer can decide on."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def selected(self) -> Subject | str:
        """Returns what a decision would be about, or a message why there is nothing to decide on."""
        raise NotImplementedError

    def refusal(self, decision: ReviewDecision) -> str | None:
        """Returns why the selected subject cannot be decided so, and what can be done; None if it can."""
        return None

    def note_of(self, subject: Subject) -> str:
        """Returns the note that stands for the subject."""
        raise NotImplementedError

    def show_recorded(self, recorded: Recorded, *, move_on: bool) -> None:
        """Shows a new event; the cursor goes to its row, or moves on to the next undecided one."""
        raise NotImplementedError

    async def action_decide(self, decision: str) -> None:
        """Records a decision about the row under the cursor."""
        subject = self.selected()
        if isinstance(subject, str):
            self.show_message(subject, "warning")
            return
        if refusal := self.refusal(ReviewDecision(decision)):
            self.show_message(refusal, "warning")
            return
        try:
            recorded = await asyncio.to_thread(self.session.review.decide, subject, ReviewDecision(decision))
        except ScannerError as error:
            self.show_not_recorded(error)
            return
        self.show_recorded(recorded, move_on=True)
        self.show_message(
            f"Recorded: {decision_text(recorded.event.decision)}, {subject.label}. z withdraws it."
        )

    async def action_undo(self) -> None:
        """Withdraws the decision under the cursor, or the last event of this session."""
        subject = self.selected()
        try:
            recorded = await asyncio.to_thread(
                self.session.review.undo, subject if isinstance(subject, Subject) else None
            )
        except ScannerError as error:
            self.show_not_recorded(error)
            return
        if recorded is None:
            self.show_message(
                "Nothing to withdraw: no decision here, and none of yours in this session.", "warning"
            )
            return
        self.show_recorded(recorded, move_on=False)
        if recorded.withdrawn and recorded.withdrawn.event is EventKind.NOTE:
            self.show_message(f"Withdrawn: the note on {recorded.subject.label}.")
        else:
            stands = decision_text(recorded.standing.decision)
            self.show_message(f"Withdrawn: {recorded.subject.label} is {stands} again.")

    @work
    async def action_note(self) -> None:
        """Asks for a note and records it; the decision does not change."""
        subject = self.selected()
        if isinstance(subject, str):
            self.show_message(subject, "warning")
            return
        before = self.note_of(subject)
        text: str | None = before
        while True:  # a note that could not be recorded is shown again in the box
            text = await self.app.push_screen_wait(NoteScreen(subject.label, text or ""))
            if text is None or text == before:
                return
            try:
                recorded = await asyncio.to_thread(self.session.review.annotate, subject, text)
            except ScannerError as error:
                self.show_not_recorded(error)
                continue
            break
        self.show_recorded(recorded, move_on=False)
        self.show_message(f"Recorded: note on {subject.label}. z withdraws it.")

    def show_not_recorded(self, error: ScannerError) -> None:
        """Shows that a write failed, for longer than other messages."""
        self.app.notify(
            f"NOT recorded: {for_terminal(str(error))}", severity="error", timeout=15, markup=False
        )

    def show_message(self, text: str, severity: str = "information") -> None:
        """Shows a short message."""
        self.app.notify(text, severity="warning" if severity == "warning" else "information", markup=False)
