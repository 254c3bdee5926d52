"""The list of checkpoints, strongest evidence first, with the decisions on them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.timer import Timer
from textual.widgets import DataTable, Footer, Input, Static

from scanner.errors import ScannerError
from scanner.records import ReviewDecision, Verdict, now
from scanner.store.desk_queries import (
    PAGE_SIZE,
    CheckpointPage,
    CheckpointRow,
    ListFilter,
    count_standing_reasons,
    list_checkpoints,
)
from scanner.store.queries import VerdictCounts, count_verdicts
from scanner.text import for_terminal
from tui.content.checkpoint_list import (
    WITH_REASONS,
    columns,
    counts_line,
    in_full,
    lines,
    list_state,
    reasons_text,
)
from tui.keys import DECIDE, LIST, bindings
from tui.review import Recorded, Subject
from tui.screens.checkpoint import CheckpointScreen
from tui.screens.deciding import DecidingScreen
from tui.session import Session
from tui.widgets.screens_bar import ScreensBar
from tui.widgets.table import Table

TYPING_S = 0.15  # after the last key typed into the filter, until the store is queried


class ListScreen(DecidingScreen):
    """Lists the checkpoints with one verdict, page by page, and follows the store while a crawl writes."""

    BINDINGS = bindings(LIST, DECIDE)
    AUTO_FOCUS = "#checkpoints"  # by default the first widget, which may be the filter that is not displayed

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.filter = ListFilter.FLAGGED
        self.part = ""  # of the repo names that are listed
        self.limit = PAGE_SIZE
        self.page: CheckpointPage | None = None
        self.counts: VerdictCounts | None = None
        self.queries = 0  # loads that have not ended yet
        self.stamp: tuple[object, ...] = ()  # of the store, at the last load
        self.typing: Timer | None = None
        self.opened: set[str | None] = set()  # scans whose evidence was shown in this session

    def compose(self) -> ComposeResult:
        yield ScreensBar("list")
        yield Static(id="counts")
        yield Static(id="heading")
        yield Static(id="reasons")
        yield Input(placeholder="part of a repo's name", id="filter", select_on_focus=False)
        yield Static(id="empty")
        yield Table(id="checkpoints")
        yield Static(id="detail")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#counts", Static).update(Text("Reading the store …"))
        for part in ("#reasons", "#filter", "#empty"):
            self.query_one(part).display = False
        self.load()
        self.set_interval(self.session.refresh_s, self.load_if_changed)

    def on_screen_resume(self) -> None:
        """Loads again after a checkpoint was opened, because decisions may have been made there."""
        if self.page is not None:
            self.load()

    def load_if_changed(self) -> None:
        """Loads again if the store has changed, unless a load is still running."""
        if self.is_current and not self.queries:
            self.load(only_if_changed=True)

    @work(exclusive=True, group="list")
    async def load(self, only_if_changed: bool = False) -> None:
        """Queries the store in a thread and shows the answer. A later load replaces this one."""
        shown, part = self.filter, self.part
        store = self.session.store
        self.queries += 1
        try:
            stamp = await asyncio.to_thread(store.stamp)
            if only_if_changed and stamp == self.stamp:
                return
            page = await asyncio.to_thread(list_checkpoints, store, shown, part, self.limit)
            self.show(page)  # before the counts, which take longer
            await self.show_reasons(shown, part)
            self.counts = await asyncio.to_thread(count_verdicts, store)
        except ScannerError as error:
            self.query_one("#counts", Static).update(
                Text(f"The store cannot be read: {for_terminal(str(error))}")
            )
            return
        finally:
            self.queries -= 1
        self.stamp = stamp
        self.show(page)

    async def show_reasons(self, shown: ListFilter, part: str) -> None:
        """Shows how many checkpoints have which reason code, above a list of skipped or failed ones."""
        verdict = WITH_REASONS.get(shown)
        reasons = (
            await asyncio.to_thread(count_standing_reasons, self.session.store, verdict, part)
            if verdict
            else []
        )
        line = self.query_one("#reasons", Static)
        line.update(reasons_text(reasons))
        line.display = bool(reasons)

    def show(self, page: CheckpointPage) -> None:
        """Fills the screen."""
        self.page = page
        self.query_one("#counts", Static).update(counts_line(self.counts, self.size.width - 2))
        state = list_state(page, self.counts, self.filter, self.part)
        self.query_one("#heading", Static).update(state.heading)
        empty, table = self.query_one("#empty", Static), self.query_one(Table)
        empty.display = state.advice is not None
        self.set_class(state.advice is not None, "-empty")
        empty.update(state.advice or Text(""))
        wide, present = self.size.width >= 100, now()
        table.fill(columns(self.filter, wide), lines(page.rows, self.filter, present, wide))
        self.show_detail()

    def on_resize(self) -> None:
        """Shows more columns on a wider terminal."""
        if self.page is not None:
            self.show(self.page)

    def repaint(self) -> None:
        """Shows the words again, in the colours of another theme."""
        self.query_one(ScreensBar).repaint()
        if self.page is not None:
            self.show(self.page)

    @on(Table.AtEnd)
    def load_more(self) -> None:
        """Loads another page below the last row."""
        if self.page and len(self.page.rows) < self.page.total and self.limit <= len(self.page.rows):
            self.limit += PAGE_SIZE
            self.load()

    @on(DataTable.RowHighlighted)
    def show_detail(self) -> None:
        """Shows the row under the cursor in full below the table."""
        row = self.row()
        self.query_one("#detail", Static).update(in_full(row) if row else Text(""))

    @on(DataTable.RowSelected)
    def open(self) -> None:
        """Opens the checkpoint under the cursor."""
        if row := self.row():
            repo = for_terminal(row.repo, 200)
            self.opened.add(row.scan_id)
            self.app.push_screen(CheckpointScreen(self.session, row.checkpoint_id, row.scan_id, repo))

    def row(self) -> CheckpointRow | None:
        """Returns the row under the cursor."""
        key = self.query_one(Table).current
        rows = self.page.rows if self.page else ()
        return next((row for row in rows if row.checkpoint_id == key), None)

    def action_shift_filter(self, step: int) -> None:
        """Lists the checkpoints with another verdict."""
        self.filter, self.limit = self.filter.shifted(step), PAGE_SIZE
        self.load()

    def action_reload(self) -> None:
        """Loads again now."""
        self.load()

    def action_filter(self) -> None:
        """Opens the filter."""
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    def action_clear_filter(self) -> None:
        """Closes the filter and lists all repos again."""
        box = self.query_one("#filter", Input)
        box.value = ""
        box.display = False
        self.query_one(Table).focus()

    @on(Input.Changed, "#filter")
    def filter_typed(self, event: Input.Changed) -> None:
        """Loads once the typing pauses."""
        if event.value == self.part:
            return
        self.part, self.limit = event.value, PAGE_SIZE
        if self.typing:
            self.typing.stop()
        self.typing = self.set_timer(TYPING_S, self.load)

    @on(Input.Submitted, "#filter")
    def filter_done(self) -> None:
        """Returns to the table; the filter stays."""
        self.query_one("#filter").display = bool(self.part)
        self.query_one(Table).focus()

    def selected(self) -> Subject | str:
        """Returns the scan under the cursor, if it has a result."""
        row = self.row()
        if row is None:
            return "There is no checkpoint under the cursor."
        if row.scan_id is None or row.verdict not in (Verdict.FLAGGED, Verdict.NOTHING_FOUND):
            return "This checkpoint has no scan result, so there is nothing to decide."
        return Subject(row.scan_id, f"{for_terminal(row.repo, 30)} as a whole")

    def refusal(self, decision: ReviewDecision) -> str | None:
        """A scan that found nothing is not decided as a whole, and a flagged one is opened before it is
        confirmed: only what was shown can be confirmed."""
        row = self.row()
        if row is not None and row.verdict is Verdict.NOTHING_FOUND:
            return "Nothing was found: nothing to decide as a whole. enter opens it."
        if row is not None and decision is ReviewDecision.CONFIRM and row.scan_id not in self.opened:
            return "Only what was shown can be confirmed. enter opens its evidence."
        return None

    def note_of(self, subject: Subject) -> str:
        """Returns the note on the scan under the cursor."""
        row = self.row()
        return row.note if row and row.scan_id == subject.subject_id else ""

    def show_recorded(self, recorded: Recorded, *, move_on: bool) -> None:
        """Shows the event at once, and loads again after it."""
        assert self.page is not None
        scan_id, standing = recorded.subject.subject_id, recorded.standing
        rows = [
            replace(row, decision=standing.decision, note=standing.note) if row.scan_id == scan_id else row
            for row in self.page.rows
        ]
        self.show(replace(self.page, rows=tuple(rows)))
        at = next((place for place, row in enumerate(rows) if row.scan_id == scan_id), None)
        if at is not None:
            others = [*rows[at + 1 :], *rows[:at]] if move_on else []
            undecided = [row for row in others if row.decision is None and row.scan_id is not None]
            self.query_one(Table).go_to((undecided or [rows[at]])[0].checkpoint_id)
        self.load()
