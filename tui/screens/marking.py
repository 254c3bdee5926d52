"""Decisions on several marked rows at once, for a screen whose rows can be marked.

All decisions are written as one commit. A row that cannot be decided so stays marked, and a message says why.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from textual import work

from scanner.errors import ScannerError
from scanner.records import ReviewDecision
from tui.content.formatting import count, decision_text
from tui.review import Subject
from tui.screens.confirm import ConfirmScreen
from tui.screens.deciding import DecidingScreen, in_words


@dataclass(frozen=True, slots=True)
class Marked:
    """A marked row: what a decision on it is about, or why there is nothing to decide on."""

    key: str
    subject: Subject | str
    standing: ReviewDecision | None
    listed: bool = True  # whether it is among the rows in the table


class MarkingScreen(DecidingScreen):
    """A screen with a table whose rows can be marked. Without a mark the row under the cursor is meant."""

    NOUN = "checkpoint", "checkpoints"  # what a row is, and several
    WHOLE = ", each as a whole"  # what a decision on a row is about, in the question before several

    def marked(self) -> list[Marked]:
        """Returns the marked rows."""
        raise NotImplementedError

    def refusal_of(self, key: str, decision: ReviewDecision) -> str | None:
        """Returns why a row cannot be decided so; None if it can."""
        raise NotImplementedError

    def unmark(self, keys: Sequence[str]) -> None:
        """Takes marks away."""
        raise NotImplementedError

    async def action_decide(self, decision: str) -> None:
        """Records a decision about the marked rows, or else about the row under the cursor."""
        if self.marked() and not self.refused_here():
            self.decide_marked(ReviewDecision(decision))
        elif not self.marked():
            await super().action_decide(decision)

    async def action_undo(self) -> None:
        """Withdraws the decisions on the marked rows, or else what `DecidingScreen` does."""
        if self.marked() and not self.refused_here():
            self.undo_marked()
        elif not self.marked():
            await super().action_undo()

    @work
    async def decide_marked(self, decision: ReviewDecision) -> None:
        """Asks, and records one decision about every marked row that can be decided so."""
        possible: dict[str, Subject] = {}
        refused: Counter[str] = Counter()
        standing: Counter[str] = Counter()
        for row in self.marked():
            if isinstance(row.subject, str):
                refused[row.subject] += 1
            elif why := self.refusal_of(row.key, decision):
                refused[why] += 1
            else:
                possible[row.key] = row.subject
                standing[decision_text(row.standing)] += 1
        reasons = "\n".join(f"{number:,} cannot: {why}" for why, number in refused.most_common())
        if not possible:
            self.show_message(reasons, "warning")
            return
        what = count(len(possible), *self.NOUN)
        now = ", ".join(f"{number:,} {text}" for text, number in standing.most_common())
        hidden = sum(row.key in possible and not row.listed for row in self.marked())
        elsewhere = f" {hidden:,} of them are not in the list on the screen." if hidden else ""
        details = f"Until now: {now}.{elsewhere}" + (f"\n{reasons}\nThese stay marked." if reasons else "")
        question = f"Record {decision_text(decision)} for {what}{self.WHOLE}?"
        if not await self.app.push_screen_wait(ConfirmScreen(question, details)):
            return
        review = self.session.review
        try:
            recorded = await asyncio.to_thread(review.decide_all, list(possible.values()), decision)
        except ScannerError as error:
            self.show_not_recorded(error)
            return
        self.unmark(list(possible))
        self.show_group(recorded)
        left = f" {refused.total():,} stay marked: {next(iter(refused))}" if refused else ""
        self.show_message(f"Recorded: {decision_text(decision)}, {what}. z withdraws them.{left}")

    @work
    async def undo_marked(self) -> None:
        """Asks, and withdraws the decisions that stand on the marked rows."""
        rows = [row for row in self.marked() if isinstance(row.subject, Subject)]
        subjects = [row.subject for row in rows if isinstance(row.subject, Subject)]
        review = self.session.review
        try:
            events = await asyncio.to_thread(review.decisions_on, subjects)
            if not events:
                self.show_message("None of the marked rows is decided.", "warning")
                return
            what = count(len(events), "decision")
            question = f"Withdraw {what} on marked rows?"
            if not await self.app.push_screen_wait(ConfirmScreen(question, in_words(events))):
                return
            recorded = await asyncio.to_thread(review.withdraw, events)
        except ScannerError as error:
            self.show_not_recorded(error)
            return
        done = {subject.subject_id for subject, _ in events}
        self.unmark([row.key for row in rows if row.subject.subject_id in done])  # type: ignore[union-attr]
        self.show_group(recorded)
        self.show_message(f"Withdrawn: {what}.")
