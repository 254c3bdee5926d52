"""Confirm, dismiss, unsure, note and undo: what the list and the opened checkpoint have in common.

An action awaits its write in a thread, so the terminal goes on drawing while the keys that follow wait their
turn: each acts on the row that is under the cursor then, and a failed write leaves everything as it was.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from textual import work
from textual.screen import Screen

from scanner.errors import ScannerError
from scanner.records import Decision, Word
from tui.review import Subject
from tui.screens.note import NoteScreen
from tui.words import WORDS, plain

if TYPE_CHECKING:
    from tui.app import DeskApp


class DecidingScreen(Screen[None]):
    """A screen with a row under the cursor that a person may judge."""

    @property
    def desk(self) -> DeskApp:
        """The app, by its own type."""
        return cast("DeskApp", self.app)

    def selected(self) -> Subject | str:
        """What a decision would be about, or why there is nothing to decide on."""
        raise NotImplementedError

    def note_of(self, subject: Subject) -> str:
        """The note that stands beside it."""
        raise NotImplementedError

    def heard(self, decision: Decision, *, move_on: bool) -> None:
        """Takes up a row that was just recorded; goes on to what is undecided, or to the row itself."""
        raise NotImplementedError

    async def action_decide(self, word: str) -> None:
        """Records a word on what is under the cursor."""
        subject = self.selected()
        if isinstance(subject, str):
            self.say(subject, "warning")
            return
        try:
            made = await asyncio.to_thread(self.desk.review.record, subject, Word(word))
        except ScannerError as error:
            self.not_recorded(error)
            return
        self.heard(made, move_on=True)
        self.say(f"Recorded: {WORDS[made.decision]}, {subject.label}. z takes it back.")

    async def action_take_back(self) -> None:
        """Takes back the word under the cursor, or this session's last."""
        subject = self.selected()
        try:
            restored = await asyncio.to_thread(
                self.desk.review.take_back, subject if isinstance(subject, Subject) else None
            )
        except ScannerError as error:
            self.not_recorded(error)
            return
        if restored is None:
            self.say("Nothing to take back: no decision here, and none of yours in this session.", "warning")
            return
        stands = WORDS.get(restored.decision.decision, "undecided")
        self.heard(restored.decision, move_on=False)
        self.say(f"Taken back: {restored.subject.label} is {stands} again.")

    @work
    async def action_note(self) -> None:
        """Asks for a note and records it; the word that stands is kept."""
        subject = self.selected()
        if isinstance(subject, str):
            self.say(subject, "warning")
            return
        written: str | None = self.note_of(subject)
        while True:  # a note that could not be recorded comes back into the box
            written = await self.app.push_screen_wait(NoteScreen(subject.label, written or ""))
            if written is None:
                return
            try:
                made = await asyncio.to_thread(self.desk.review.annotate, subject, written)
            except ScannerError as error:
                self.not_recorded(error)
                continue
            break
        self.heard(made, move_on=False)
        self.say(f"Recorded: note on {subject.label}. z takes it back.")

    def not_recorded(self, error: ScannerError) -> None:
        """Says that a write failed, for longer than other news."""
        self.app.notify(f"NOT recorded: {plain(str(error))}", severity="error", timeout=15, markup=False)

    def say(self, text: str, severity: str = "information") -> None:
        """A one-line toast."""
        self.app.notify(text, severity="warning" if severity == "warning" else "information", markup=False)
