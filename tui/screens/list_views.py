"""The keys by which the list shows other rows, in another order, from another place, or marked."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from textual import on, work

from scanner.errors import ScannerError
from scanner.records import Verdict, now
from scanner.store.desk_filter import View
from scanner.store.desk_index import DeskIndex
from scanner.store.desk_queries import PAGE_SIZE, CheckpointPage, CheckpointRow
from scanner.text import for_terminal
from tui.content.checkpoint_list import columns
from tui.content.sorting import next_sort, sorted_by
from tui.filter_words import FilterError, parse
from tui.review import Subject
from tui.saved_filters import SavedFilter
from tui.screens.marking import MarkingScreen
from tui.screens.saved_filters import SavedFiltersScreen
from tui.session import Session
from tui.widgets.filter_box import FilterBox
from tui.widgets.preview import Preview
from tui.widgets.table import Table


class ListViews(MarkingScreen):
    """The part of the list's screen that changes its view."""

    index: DeskIndex
    page: CheckpointPage | None
    marks: dict[str, CheckpointRow]
    first_row: int
    limit: int

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.view = View()
        self.words = ""  # of the filter

    @property
    def is_wide(self) -> bool:
        """Whether the table has place for all columns."""
        preview = self.query_one(Preview)
        return self.size.width - (preview.width if preview.display else 0) >= 100

    def row(self) -> CheckpointRow | None:
        """Returns the row under the cursor."""
        raise NotImplementedError

    def change(self, view: View, words: str | None = None) -> None:
        """Lists another view from its beginning."""
        raise NotImplementedError

    def show(self, page: CheckpointPage) -> None:
        """Fills the screen."""
        raise NotImplementedError

    def go_to_place(self, checkpoint_id: str, number: int) -> None:
        """Moves the cursor to a row, whose page is loaded if it is not in the table."""
        page = self.page
        if page and page.offset <= number < page.offset + len(page.rows):
            self.query_one(Table).go_to(checkpoint_id)
        else:
            self.first_row, self.limit = number // PAGE_SIZE * PAGE_SIZE, PAGE_SIZE
        self.load(go_to=checkpoint_id)

    def load(self, only_if_changed: bool = False, go_to: str | None = None) -> object:
        """Queries the store in a thread and shows the answer."""
        raise NotImplementedError

    def action_shift_filter(self, step: int) -> None:
        """Lists the checkpoints with another verdict, in the default order."""
        self.change(View(self.view.shown.shifted(step), self.view.where))

    def action_filter(self) -> None:
        """Opens the filter."""
        self.query_one(FilterBox).open()

    @on(FilterBox.Changed)
    def filter_changed(self, event: FilterBox.Changed) -> None:
        """Lists what the filter selects."""
        self.change(replace(self.view, where=event.where), event.words)

    @on(FilterBox.Done)
    def filter_done(self) -> None:
        """Returns to the table; the filter stays."""
        self.query_one(Table).focus()

    @work
    async def action_saved_filters(self) -> None:
        """Asks for a saved filter, and lists what it selects."""
        view = self.view
        present = SavedFilter("", self.words, view.shown, view.sort, view.reverse)
        if (chosen := await self.app.push_screen_wait(SavedFiltersScreen(present))) is not None:
            self.use(chosen)

    def use(self, saved: SavedFilter) -> None:
        """Lists what a saved filter selects."""
        try:
            where = parse(saved.words, now())
        except FilterError as error:
            self.show_message(f"{for_terminal(saved.name)}: {for_terminal(str(error))}", "warning")
            return
        self.query_one(FilterBox).put(saved.words)
        self.query_one(Table).focus()
        self.change(View(saved.shown, where, saved.sort, saved.reverse), saved.words)

    def action_sort(self) -> None:
        """Sorts by the next column."""
        self.change(next_sort(columns(self.view.shown, self.is_wide), self.view))

    def action_reverse(self) -> None:
        """Reverses the order."""
        self.change(replace(self.view, reverse=not self.view.reverse))

    @on(Table.HeadingClicked)
    def heading_clicked(self, event: Table.HeadingClicked) -> None:
        """Sorts by the column whose heading was clicked."""
        if (view := sorted_by(event.column, self.view)) != self.view:
            self.change(view)

    def action_next_undecided(self) -> None:
        """Goes to the next undecided row of the whole list; from the last one to the first."""
        row = self.row()
        self.go_to_undecided(row.checkpoint_id if row else None)

    @work(exclusive=True, group="list")
    async def go_to_undecided(self, after: str | None, quiet: bool = False) -> None:
        """Looks the next undecided row up in the index. If `quiet`, says nothing where there is none."""
        try:
            found = await asyncio.to_thread(self.index.next_undecided, self.view, after)
            again = found is None and after is not None
            if again:
                found = await asyncio.to_thread(self.index.next_undecided, self.view, None)
        except ScannerError as error:
            self.show_message(for_terminal(str(error)), "warning")
            return
        if found is not None and found.checkpoint_id != after:
            self.go_to_place(found.checkpoint_id, found.number)
            if again and not quiet:
                self.show_message("No undecided row below: this is the first one of the list.")
            return
        self.load()
        if not quiet:
            only = found is not None
            words = "This is the only undecided row" if only else "Nothing is undecided"
            self.show_message(f"{words} in this list.", "warning")

    def action_mark(self) -> None:
        """Marks the row under the cursor, or takes its mark away, and goes one row down."""
        if self.page is None or (row := self.row()) is None:
            return
        if self.marks.pop(row.checkpoint_id, None) is None:
            self.marks[row.checkpoint_id] = row
        self.show(self.page)
        self.query_one(Table).action_cursor_down()

    def action_mark_all(self) -> None:
        """Marks all loaded rows; if all are marked, takes their marks away."""
        if self.page is None:
            return
        rows = {row.checkpoint_id: row for row in self.page.rows}
        if rows.keys() <= self.marks.keys():
            self.marks = {key: row for key, row in self.marks.items() if key not in rows}
        else:
            self.marks |= rows
        self.show(self.page)

    def action_reveal(self) -> None:
        """Shows the images beside the list, or blurs them again."""
        preview = self.query_one(Preview)
        if not preview.display:
            self.show_message("The images are beside the list from 120 x 30 cells on. enter opens the row.")
            return
        preview.blurred = not preview.blurred

    @staticmethod
    def subject(row: CheckpointRow) -> Subject | str:
        """Returns the scan of a row, if it has a result."""
        if row.scan_id is None or row.verdict not in (Verdict.FLAGGED, Verdict.NOTHING_FOUND):
            return "This checkpoint has no scan result, so there is nothing to decide."
        return Subject(row.scan_id, f"{for_terminal(row.repo, 30)} as a whole")
