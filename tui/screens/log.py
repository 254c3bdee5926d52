"""Everything that reviewers decided, wrote and withdrew, newest first."""

from __future__ import annotations

import asyncio
from pathlib import Path, PurePath
from typing import NamedTuple

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.widgets import DataTable, Static

from scanner.errors import ScannerError
from scanner.records import EventKind, now
from scanner.store.desk_queries import PAGE_SIZE
from scanner.store.log_queries import LogEvent, export_log, log_events, reviewers
from scanner.text import for_terminal
from tui.content.formatting import NONE, cell, count, decision_text
from tui.content.styles import ACCENT, MUTED
from tui.keys import LOG, VIEW, bindings
from tui.screens.checkpoint import CheckpointScreen
from tui.screens.view import ViewScreen
from tui.session import Session
from tui.widgets.table import Column, Line, Table

NOTHING_SAID = "Nobody has decided, written or withdrawn anything yet."
TIME, REVIEWER, EVENT = Column("Time", 16), Column("Reviewer", 10), Column("Event", 14, share=2)
REPO, ABOUT = Column("Checkpoint", 16, share=2, keep_end=True), Column("About", 12, share=1, keep_end=True)


class Said(NamedTuple):
    """A page of the log, and everybody who ever wrote into it."""

    events: list[LogEvent]
    reviewers: list[str]


class LogScreen(ViewScreen[Said]):
    """Lists the events of all reviewers, or of one."""

    name_in_bar = "log"
    BINDINGS = bindings(VIEW, LOG)
    AUTO_FOCUS = "#table"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.limit = PAGE_SIZE
        self.reviewer: str | None = None  # None = all

    def body(self) -> ComposeResult:
        """A table, or advice in its place, and the event under the cursor in full."""
        yield Static(id="empty")
        yield Table(id="table")
        yield Static(id="detail")

    def read(self) -> Said:
        """Asks for the newest events."""
        store = self.session.store
        return Said(log_events(self.session.index, self.limit, self.reviewer), reviewers(store))

    def show(self, answer: Said) -> None:
        """Fills the table."""
        total = answer.events[0].total if answer.events else 0
        head = Text().append(f"Log: {count(total, 'event')}", style="bold")
        head.append(f" of {for_terminal(self.reviewer, 60) if self.reviewer else 'all reviewers'}")
        if total > len(answer.events):
            head.append(f" · newest {len(answer.events):,}")
        self.heading(head)
        self.set_class(not answer.events, "-empty")
        self.query_one("#empty", Static).update(Text("" if answer.events else NOTHING_SAID))
        wide = self.size.width >= 100
        columns = [TIME, REVIEWER, EVENT, REPO, *([ABOUT] if wide else [])]
        self.query_one(Table).fill(columns, [self._line(event, wide=wide) for event in answer.events])
        self.show_detail()

    def _line(self, event: LogEvent, *, wide: bool) -> Line:
        about = [cell(_about(event))] if wide else []
        stands = event.stands or event.event is EventKind.WITHDRAW
        style = f"decision.{event.decision}" if event.decision else ""
        return Line(
            event.decision_id,
            (
                cell(f"{event.decided_at.astimezone():%Y-%m-%d %H:%M}"),
                cell(for_terminal(event.reviewer, 40)),
                cell(self._words(event), style=style if stands else MUTED),
                cell(for_terminal(event.repo, 200) or NONE),
                *about,
            ),
        )

    def _words(self, event: LogEvent) -> str:
        if event.event is EventKind.DECIDE:
            return decision_text(event.decision)
        if event.event is EventKind.NOTE:
            return f"note “{for_terminal(event.note)}”" if event.note else "note removed"
        events = self.answer.events if self.answer else []
        named = next((other for other in events if other.decision_id == event.withdraws), None)
        if named is None or named.event is EventKind.WITHDRAW:
            return "withdrew an event"
        return f"withdrew {self._words(named)} of {for_terminal(named.reviewer, 40)}"

    @on(DataTable.RowHighlighted)
    def show_detail(self) -> None:
        """Shows the event under the cursor in full."""
        event, text = self.event(), Text()
        if event is not None:
            text.append(self._words(event), style="bold").append(f" by {for_terminal(event.reviewer, 60)}")
            text.append(" · stands" if event.stands else "", style=ACCENT)
            place = " ".join(for_terminal(part, 200) for part in (event.repo, event.file) if part)
            text.append(f" · {_about(event)} of {place or 'a checkpoint that is not in the store'}")
        self.query_one("#detail", Static).update(text)

    def event(self) -> LogEvent | None:
        """Returns the event under the cursor."""
        key = self.query_one(Table).current
        events = self.answer.events if self.answer else []
        return next((event for event in events if event.decision_id == key), None)

    @on(Table.AtEnd)
    def load_more(self) -> None:
        """Loads another page below the last row."""
        events = self.answer.events if self.answer else []
        if events and len(events) < events[0].total and self.limit <= len(events):
            self.limit += PAGE_SIZE
            self.load()

    @on(DataTable.RowSelected)
    def open(self) -> None:
        """Opens the checkpoint of the event under the cursor, at the row that the event is about."""
        event = self.event()
        if event is None or event.checkpoint_id is None or event.repo is None:
            self.show_message("The checkpoint of this event is not in the store.", "warning")
            return
        repo = for_terminal(event.repo, 200)
        self.app.push_screen(
            CheckpointScreen(self.session, event.checkpoint_id, event.scan_id, repo, event.subject_id)
        )

    def action_next_reviewer(self) -> None:
        """Lists the events of the next reviewer; after the last one those of all."""
        everybody: list[str | None] = [None, *(self.answer.reviewers if self.answer else [])]
        at = everybody.index(self.reviewer) if self.reviewer in everybody else 0
        self.reviewer, self.limit = everybody[(at + 1) % len(everybody)], PAGE_SIZE
        self.load()

    @work(exclusive=True, group="report")
    async def action_export(self) -> None:
        """Writes all events that are listed into a new file in the current folder, in a thread."""
        path = Path.cwd() / f"decision-log-{now():%Y%m%d-%H%M%S-%f}.jsonl"
        try:
            number = await asyncio.to_thread(export_log, self.session.store, path, self.reviewer)
        except ScannerError as error:
            self.show_message(f"Nothing was written: {for_terminal(str(error))}", "warning")
            return
        self.show_message(f"Written: {count(number, 'event')}, {for_terminal(str(path), 400)}")


def _about(event: LogEvent) -> str:
    if event.reference_path:
        return for_terminal(PurePath(event.reference_path).name, 60)
    if event.subject == "checkpoint":
        return "as a whole"
    return f"corpus {for_terminal(event.corpus, 40)}" if event.corpus else NONE
