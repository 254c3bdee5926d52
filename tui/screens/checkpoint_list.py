"""The list of checkpoints, strongest evidence first, with the decisions on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, Static

from scanner.errors import ScannerError
from scanner.records import ReviewDecision, Verdict, now
from scanner.store.desk_filter import Filter, View
from scanner.store.desk_queries import PAGE_SIZE, CheckpointPage, CheckpointRow, list_flagged
from scanner.store.queries import VerdictCounts
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
from tui.content.sorting import with_mark
from tui.keys import DECIDE, LIST, MARK, bindings
from tui.review import Recorded, Subject
from tui.screens.checkpoint import CheckpointScreen
from tui.screens.list_views import ListViews
from tui.screens.marking import Marked
from tui.screens.working import is_working
from tui.session import Session
from tui.widgets.filter_box import FilterBox
from tui.widgets.preview import Preview
from tui.widgets.screens_bar import ScreensBar
from tui.widgets.table import Table

LARGE = 20_000  # checkpoints in a store whose index is made before it is needed
MOST_ROWS = 5 * PAGE_SIZE  # in the table; those furthest from the cursor are dropped


class ListScreen(ListViews):
    """Lists checkpoints page by page, and follows the store while a crawl writes."""

    BINDINGS = bindings(LIST, DECIDE, MARK)
    AUTO_FOCUS = "#checkpoints"  # by default the first widget, which may be the filter that is not displayed
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide"), (170, "-widest")]  # noqa: RUF012 - Textual's own
    VERTICAL_BREAKPOINTS = [(0, "-low"), (30, "-high")]  # noqa: RUF012

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.index = session.index
        self.first_row, self.limit = 0, PAGE_SIZE  # the rows in the table
        self.from_top = False  # whether the next load begins at the first row
        self.page: CheckpointPage | None = None
        self.counts: VerdictCounts | None = None
        self.stamp: tuple[object, ...] = ()  # of the store, at the last load
        self.marks: dict[str, CheckpointRow] = {}  # by checkpoint id, as they were listed last
        self.opened: set[str | None] = set()  # scans whose evidence was shown in this session

    def compose(self) -> ComposeResult:
        yield ScreensBar("list")
        yield Static(id="counts")
        yield Static(id="reasons")
        yield FilterBox(self.index.values, id="filter-box")
        with Horizontal(id="listing"):
            with Vertical(id="framed"):
                yield Static(id="empty")
                yield Table(id="checkpoints")
            yield Preview(self.session.store, id="list-preview")
        yield Static(id="detail")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#counts", Static).update(Text("Reading the store …"))
        for part in ("#reasons", "#empty"):
            self.query_one(part).display = False
        self.load()
        self.set_interval(self.session.refresh_s, self.load_if_changed)

    def on_screen_resume(self) -> None:
        """Loads again after a checkpoint was opened, because decisions may have been made there."""
        if self.page is not None:
            self.load()

    def load_if_changed(self) -> None:
        """Loads again if the store has changed, unless a load is still running."""
        if self.is_current and not is_working(self, "list"):
            self.load(only_if_changed=True)

    @work(exclusive=True, group="list")
    async def load(self, only_if_changed: bool = False, go_to: str | None = None) -> None:
        """Queries the store in a thread and shows the answer. A later load replaces this one."""
        view, store = self.view, self.session.store
        try:
            stamp = await asyncio.to_thread(store.stamp)
            if only_if_changed and stamp == self.stamp:
                return
            page = await asyncio.to_thread(self._page, view, self.first_row, self.limit)
            self.show(page)  # before the counts, which take longer
            if go_to is None and self.from_top and page.rows:
                go_to = page.rows[0].checkpoint_id
            self.from_top = False
            if go_to is not None:
                self.query_one(Table).go_to(go_to)
            await self.show_reasons(view)
            self.counts = await asyncio.to_thread(self.index.counts)
        except ScannerError as error:
            self.query_one("#counts", Static).update(
                Text(f"The store cannot be read: {for_terminal(str(error))}")
            )
            return
        self.stamp = stamp if page.as_of is None else ()
        self.show(page)
        if page.as_of is not None or (self.counts.planned > LARGE and not self.index.is_made):
            self.refresh_index(again=page.as_of is not None)

    def _page(self, view: View, offset: int, limit: int) -> CheckpointPage:
        at_once = None
        if view.is_first and not self.index.is_new():
            at_once = list_flagged(self.session.store, offset, limit)
        return at_once or self.index.page(view, offset, limit)

    @work(exclusive=True, group="index")
    async def refresh_index(self, *, again: bool) -> None:
        """Makes the index of a large store in a thread, and lists `again` from it."""
        try:
            is_new = await asyncio.to_thread(self.index.refresh)
        except ScannerError:
            return  # the next load says why
        if again and is_new and not is_working(self, "list"):
            self.load()

    async def show_reasons(self, view: View) -> None:
        """Shows how many checkpoints have which reason code, above a list of skipped or failed ones."""
        reasons = await asyncio.to_thread(self.index.reasons, view) if view.shown in WITH_REASONS else []
        line = self.query_one("#reasons", Static)
        line.update(reasons_text(reasons))
        line.display = bool(reasons)

    def show(self, page: CheckpointPage) -> None:
        """Fills the screen."""
        self.page = page
        self.marks.update({r.checkpoint_id: r for r in page.rows if r.checkpoint_id in self.marks})
        counts = counts_line(self.counts, self.size.width - 2, read_only=self.session.read_only)
        self.query_one("#counts", Static).update(counts)
        state = list_state(page, self.counts, self.view, self.words, len(self.marks))
        self.query_one("#framed").border_title = state.heading
        empty, table = self.query_one("#empty", Static), self.query_one(Table)
        empty.display = state.advice is not None
        self.set_class(state.advice is not None, "-empty")
        empty.update(state.advice or Text(""))
        shown, wide = self.view.shown, self.is_wide
        filled = lines(page.rows, shown, now(), wide, self.marks)
        table.fill(with_mark(columns(shown, wide), self.view), filled)
        self.show_detail()

    def on_resize(self) -> None:
        """Shows more columns on a wider terminal."""
        self.query_one(Footer).compact = self.size.width < 110
        self.refresh_bindings()
        if self.page is not None:
            self.show(self.page)

    def hidden_keys(self) -> set[str]:
        """The footer of a narrow terminal leaves out what there is no place for."""
        narrow = {"list.undecided", "mark.toggle"} if self.size.width < 96 else set()
        return super().hidden_keys() | narrow

    def repaint(self) -> None:
        """Shows the words again, in the colours of another theme."""
        self.query_one(ScreensBar).repaint()
        if self.page is not None:
            self.show(self.page)

    @on(Table.AtEnd)
    def load_more(self) -> None:
        """Loads another page below the last row."""
        page = self.page
        if page and page.offset + len(page.rows) < page.total and self.limit <= len(page.rows):
            self.limit += PAGE_SIZE
            if self.limit > MOST_ROWS:
                self.first_row, self.limit = self.first_row + PAGE_SIZE, MOST_ROWS
            self.load()

    @on(Table.AtStart)
    def load_before(self, event: Table.AtStart) -> None:
        """Loads the page above the first row, or the first page of all."""
        if self.first_row:
            self.first_row = 0 if event.first else max(0, self.first_row - PAGE_SIZE)
            self.limit = PAGE_SIZE if event.first else min(self.limit + PAGE_SIZE, MOST_ROWS)
            self.load()

    @on(DataTable.RowHighlighted)
    def show_detail(self) -> None:
        """Shows the row under the cursor in full below the table."""
        row = self.row()
        self.query_one("#detail", Static).update(in_full(row) if row else Text(""))
        place = (self.page.offset if self.page else 0) + self.query_one(Table).cursor_row + 1
        of = f"{place:,} of {self.page.total:,}" if row and self.page else ""
        self.query_one("#framed").border_subtitle = of
        self.query_one(Preview).follow(row)

    @on(DataTable.RowSelected)
    def open(self) -> None:
        """Opens the checkpoint under the cursor."""
        if row := self.row():
            repo = for_terminal(row.repo, 200)
            self.opened.add(row.scan_id)
            self.query_one(Preview).blurred = True
            self.app.push_screen(CheckpointScreen(self.session, row.checkpoint_id, row.scan_id, repo))

    def row(self) -> CheckpointRow | None:
        """Returns the row under the cursor."""
        key = self.query_one(Table).current
        rows = self.page.rows if self.page else ()
        return next((row for row in rows if row.checkpoint_id == key), None)

    def action_reload(self) -> None:
        """Loads again now."""
        self.load()

    def change(self, view: View, words: str | None = None) -> None:
        """Lists another view from its beginning."""
        self.view, self.words = view, self.words if words is None else words
        self.first_row, self.limit, self.from_top = 0, PAGE_SIZE, True
        self.load()

    def action_clear_filter(self) -> None:
        """Closes the filter and lists all repos again; without a filter, takes all marks away."""
        self.query_one(Table).focus()
        box = self.query_one(FilterBox)
        if self.words or box.box.value:
            box.put("")
            self.change(replace(self.view, where=Filter()), "")
        else:
            box.put("")
            self.unmark(list(self.marks))

    def selected(self) -> Subject | str:
        """Returns the scan under the cursor, if it has a result."""
        row = self.row()
        return self.subject(row) if row else "There is no checkpoint under the cursor."

    def refusal(self, decision: ReviewDecision) -> str | None:
        """Returns why the row under the cursor cannot be decided so."""
        row = self.row()
        return self.refusal_of(row.checkpoint_id, decision) if row else None

    def refusal_of(self, key: str, decision: ReviewDecision) -> str | None:
        """A scan that found nothing is not decided as a whole, and a flagged one is opened before it is
        confirmed, or its only pair seen beside the list: only what was shown can be confirmed."""
        rows = {row.checkpoint_id: row for row in self.page.rows} if self.page else {}
        row = rows.get(key) or self.marks.get(key)
        if row is not None and row.verdict is Verdict.NOTHING_FOUND:
            return "Nothing was found: nothing to decide as a whole. enter opens it."
        if row is not None and decision is ReviewDecision.CONFIRM and not self._was_shown(row):
            return "Only what was shown can be confirmed. enter opens its evidence."
        return None

    def _was_shown(self, row: CheckpointRow) -> bool:
        beside = row.flags == 1 and row.scan_id in self.query_one(Preview).seen
        return beside or row.scan_id in self.opened

    def note_of(self, subject: Subject) -> str:
        """Returns the note on the scan under the cursor."""
        row = self.row()
        return row.note if row and row.scan_id == subject.subject_id else ""

    def marked(self) -> list[Marked]:
        """Returns the marked rows, also those that are not listed any more."""
        listed = {row.checkpoint_id for row in self.page.rows} if self.page else set()
        return [
            Marked(key, self.subject(row), row.decision, key in listed) for key, row in self.marks.items()
        ]

    def unmark(self, keys: Sequence[str]) -> None:
        """Takes marks away."""
        self.marks = {key: row for key, row in self.marks.items() if key not in set(keys)}
        if self.page is not None:
            self.show(self.page)

    def show_recorded(self, recorded: Recorded, *, move_on: bool) -> None:
        """Shows the event at once, and loads again after it."""
        assert self.page is not None
        self.show_events([recorded])
        rows, scan_id = self.page.rows, recorded.subject.subject_id
        at = next((place for place, row in enumerate(rows) if row.scan_id == scan_id), None)
        if at is not None:
            following = [row for row in rows[at + 1 :] if row.undecided] if move_on else []
            self.query_one(Table).go_to((following or [rows[at]])[0].checkpoint_id)
            if move_on and not following:
                self.go_to_undecided(rows[at].checkpoint_id, quiet=True)
                return
        self.load()

    def show_group(self, recorded: Sequence[Recorded]) -> None:
        """Shows events at once, and loads again after them."""
        self.show_events(recorded)
        self.load()

    def show_events(self, recorded: Sequence[Recorded]) -> None:
        """Shows what stands since some events."""
        assert self.page is not None
        standing = {one.subject.subject_id: one.standing for one in recorded}
        rows = tuple(
            replace(row, decision=standing[row.scan_id].decision, note=standing[row.scan_id].note)
            if row.scan_id in standing
            else row
            for row in self.page.rows
        )
        self.show(replace(self.page, rows=rows))
