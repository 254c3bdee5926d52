"""Confirm, dismiss, unsure, note and undo, for the list and for an opened checkpoint.

Each action waits for its write in a thread, so the terminal is drawn meanwhile. Textual handles the keys that
follow only after the action has ended: each acts on the row that is under the cursor then. If a write fails,
nothing on the screen changes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from textual import work
from textual.binding import ActiveBinding
from textual.screen import Screen

from scanner.errors import ScannerError
from scanner.records import EventKind, ReviewDecision
from scanner.text import for_terminal
from tui.content.formatting import decision_text
from tui.keys import DECIDE
from tui.review import READ_ONLY, Event, Recorded, Subject
from tui.screens.confirm import ConfirmScreen
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

    def show_group(self, recorded: Sequence[Recorded]) -> None:
        """Shows events that were recorded at once."""
        for one in recorded:
            self.show_recorded(one, move_on=False)

    @property
    def active_bindings(self) -> dict[str, ActiveBinding]:
        """The keys of the screen; those of `hidden_keys` work, and are not in the footer."""
        found, hidden = super().active_bindings, self.hidden_keys()
        return {
            key: active._replace(binding=replace(active.binding, show=False))
            if active.binding.id in hidden
            else active
            for key, active in found.items()
        }

    def hidden_keys(self) -> set[str]:
        """Returns the ids of keys that the footer leaves out: on a read-only desk those that decide."""
        return {key.id for key in DECIDE} if self.session.read_only else set()

    def refused_here(self) -> bool:
        """Whether nothing can be recorded because the desk is read-only; then a message says so."""
        if self.session.read_only:
            self.show_message(READ_ONLY, "warning")
        return self.session.read_only

    async def action_decide(self, decision: str) -> None:
        """Records a decision about the row under the cursor."""
        if self.refused_here():
            return
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
        """Withdraws the decision under the cursor, or the last event of this session.

        What was decided at once is withdrawn at once, after a question.
        """
        if self.refused_here():
            return
        selected = self.selected()
        review, subject = self.session.review, selected if isinstance(selected, Subject) else None
        try:
            events = await asyncio.to_thread(review.to_withdraw, subject)
            if len(events) > 1:
                self.withdraw_group(events, subject)
                return
            recorded = (await asyncio.to_thread(review.withdraw, events))[0] if events else None
        except ScannerError as error:
            self.show_not_recorded(error)
            return
        if recorded is None:
            self.show_message(
                "Nothing to withdraw: no decision here, and none of yours in this session.", "warning"
            )
            return
        self.show_withdrawn(recorded)

    @work
    async def withdraw_group(self, events: list[Event], selected: Subject | None) -> None:
        """Asks whether all that was decided at once is withdrawn, or what is about the selected row alone."""
        one = "withdraws this one alone" if selected == events[0][0] else None
        question = f"Withdraw all {len(events):,} decisions that you recorded at once?"
        answer = await self.app.push_screen_wait(ConfirmScreen(question, in_words(events), one=one))
        if not answer:
            return
        await self.withdraw(events if answer == "all" else events[:1])

    async def withdraw(self, events: list[Event]) -> None:
        """Withdraws events, and shows what stands since."""
        try:
            recorded = await asyncio.to_thread(self.session.review.withdraw, events)
        except ScannerError as error:
            self.show_not_recorded(error)
            return
        if len(recorded) == 1:
            self.show_withdrawn(recorded[0])
            return
        self.show_group(recorded)
        self.show_message(f"Withdrawn: {len(recorded):,} decisions.")

    def show_withdrawn(self, recorded: Recorded) -> None:
        """Shows what was withdrawn, and what stands since."""
        self.show_recorded(recorded, move_on=False)
        if recorded.withdrawn and recorded.withdrawn.event is EventKind.NOTE:
            self.show_message(f"Withdrawn: the note on {recorded.subject.label}.")
        else:
            stands = decision_text(recorded.standing.decision)
            self.show_message(f"Withdrawn: {recorded.subject.label} is {stands} again.")

    @work
    async def action_note(self) -> None:
        """Asks for a note and records it; the decision does not change."""
        if self.refused_here():
            return
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


def in_words(events: Sequence[Event]) -> str:
    """Returns how many events are which decision: "9 ✓ confirmed, 3 ? unsure"."""
    counts = Counter(decision_text(event.decision) for _, event in events if event.decision)
    return ", ".join(f"{number:,} {text}" for text, number in counts.most_common())
