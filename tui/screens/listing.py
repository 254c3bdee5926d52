"""The list of checkpoints, best evidence first: what a crawl has found, and what people said about it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.timer import Timer
from textual.widgets import DataTable, Footer, Input, Static

from scanner.errors import ScannerError
from scanner.records import Decision, Verdict, Word, now
from scanner.store.desk_queries import PAGE_SIZE, CheckpointPage, CheckpointRow, ListFilter, list_checkpoints
from scanner.store.queries import VerdictCounts, count_standing_verdicts
from tui.keys import DECIDE, LIST, bindings
from tui.review import Subject
from tui.screens.checkpoint import CheckpointScreen
from tui.screens.deciding import DecidingScreen
from tui.widgets.table import Table
from tui.widgets.verdicts import columns, in_full, line, state_of_store, sum_line
from tui.words import plain

TYPING_S = 0.15  # how long the filter waits for the next letter before it asks the store


class ListScreen(DecidingScreen):
    """Pages through one listing and follows the store while a crawl writes."""

    BINDINGS = bindings(LIST, DECIDE)

    def __init__(self) -> None:
        super().__init__()
        self.listing = ListFilter.FLAGGED
        self.part = ""  # of the repo's name
        self.limit = PAGE_SIZE
        self.shown: CheckpointPage | None = None
        self.sum: VerdictCounts | None = None
        self.asking = 0  # questions to the store that are not answered yet
        self.stamp: tuple[object, ...] = ()  # of the store, when it was last asked
        self.typing: Timer | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="sum")
        yield Static(id="state")
        yield Input(placeholder="part of a repo's name", id="filter", select_on_focus=False)
        yield Static(id="empty")
        yield Table(id="checkpoints")
        yield Static(id="detail")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#sum", Static).update(Text("Asking the store …"))
        self.query_one("#filter").display = False
        self.query_one("#empty").display = False
        self.query_one(Table).focus()
        self.load()
        self.set_interval(self.desk.refresh_s, self.look_for_news)

    def on_screen_resume(self) -> None:
        """Coming back from a checkpoint: its decisions are news."""
        if self.shown is not None:
            self.load()

    def look_for_news(self) -> None:
        """Asks again, if the store has changed."""
        if self.is_current and not self.asking:  # a slow store is left to finish its answer
            self.load(only_news=True)

    @work(exclusive=True, group="listing")
    async def load(self, only_news: bool = False) -> None:
        """Asks the store in a thread, and shows what it answers unless a later question overtook this one."""
        asked = (self.listing, self.part, self.limit)
        self.asking += 1
        try:
            stamp = await asyncio.to_thread(self.desk.store.stamp)
            if only_news and stamp == self.stamp:
                return
            answer = await asyncio.to_thread(list_checkpoints, self.desk.store, *asked)
            self.show(answer)  # the sum takes longer
            self.sum = await asyncio.to_thread(count_standing_verdicts, self.desk.store)
        except ScannerError as error:
            self.query_one("#sum", Static).update(Text(f"The store does not answer: {plain(str(error))}"))
            return
        finally:
            self.asking -= 1
        self.stamp = stamp
        self.show(answer)

    def show(self, answer: CheckpointPage) -> None:
        """Fills the screen."""
        self.shown = answer
        self.query_one("#sum", Static).update(sum_line(self.sum))
        told = state_of_store(answer, self.sum, self.listing, self.part)
        self.query_one("#state", Static).update(told.heading)
        empty, table = self.query_one("#empty", Static), self.query_one(Table)
        empty.display, table.display = told.advice is not None, told.advice is None
        empty.update(told.advice or Text(""))
        wide, present = self.size.width >= 100, now()
        lines = [line(row, self.listing, present, wide) for row in answer.rows]
        table.fill(columns(self.listing, wide), lines)
        self.tell()

    def on_resize(self) -> None:
        """A wider terminal has more columns."""
        if self.shown is not None:
            self.show(self.shown)

    @on(Table.AtEnd)
    def more(self) -> None:
        """Asks for another page below the last row."""
        if self.shown and len(self.shown.rows) < self.shown.total and self.limit <= len(self.shown.rows):
            self.limit += PAGE_SIZE
            self.load()

    @on(DataTable.RowHighlighted)
    def tell(self) -> None:
        """What the columns cut, for the row under the cursor."""
        row = self.row()
        self.query_one("#detail", Static).update(in_full(row) if row else Text(""))

    @on(DataTable.RowSelected)
    def open(self) -> None:
        """Opens the checkpoint under the cursor."""
        if row := self.row():
            self.app.push_screen(CheckpointScreen(row.checkpoint_id, row.scan_id, plain(row.repo, 200)))

    def row(self) -> CheckpointRow | None:
        """The row under the cursor."""
        key = self.query_one(Table).current
        rows = self.shown.rows if self.shown else ()
        return next((row for row in rows if row.checkpoint_id == key), None)

    def action_turn(self, step: int) -> None:
        """Lists other verdicts."""
        self.listing, self.limit = self.listing.shifted(step), PAGE_SIZE
        self.load()

    def action_reload(self) -> None:
        """Asks again now."""
        self.load()

    def action_filter(self) -> None:
        """Opens the filter."""
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    def action_unfilter(self) -> None:
        """Closes the filter and lists everything again."""
        box = self.query_one("#filter", Input)
        box.value = ""
        box.display = False
        self.query_one(Table).focus()

    @on(Input.Changed, "#filter")
    def filter_typed(self, event: Input.Changed) -> None:
        """Asks once the typing pauses."""
        if event.value == self.part:
            return
        self.part, self.limit = event.value, PAGE_SIZE
        if self.typing:
            self.typing.stop()
        self.typing = self.set_timer(TYPING_S, self.load)

    @on(Input.Submitted, "#filter")
    def filter_done(self) -> None:
        """Back to the table; the filter stays."""
        self.query_one("#filter").display = bool(self.part)
        self.query_one(Table).focus()

    def selected(self) -> Subject | str:
        """The scan under the cursor, if it is one that found or missed something."""
        row = self.row()
        if row is None:
            return "There is no checkpoint under the cursor."
        if row.scan_id is None or row.verdict not in (Verdict.FLAGGED, Verdict.NOTHING_FOUND):
            return "This checkpoint has not been judged yet, so there is nothing to decide."
        return Subject(row.scan_id, f"{plain(row.repo, 30)} as a whole")

    def note_of(self, subject: Subject) -> str:
        """The note on the scan."""
        row = self.row()
        return row.note if row and row.scan_id == subject.subject_id else ""

    def heard(self, decision: Decision, *, move_on: bool) -> None:
        """Shows the new word at once; the store is asked again behind it."""
        assert self.shown is not None
        word = None if decision.decision is Word.WITHDRAWN else decision.decision
        rows = [
            replace(row, word=word, note=decision.note) if row.scan_id == decision.subject_id else row
            for row in self.shown.rows
        ]
        self.show(replace(self.shown, rows=tuple(rows)))
        at = next((i for i, row in enumerate(rows) if row.scan_id == decision.subject_id), None)
        if at is not None:
            rest = [*rows[at + 1 :], *rows[:at]] if move_on else []
            undecided = [row for row in rest if row.word is None and row.scan_id is not None]
            self.query_one(Table).go_to((undecided or [rows[at]])[0].checkpoint_id)
        self.load()
