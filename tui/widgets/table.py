"""A table that fills its width, keeps its cursor on its row when it is filled again, and reports its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.message import Message
from textual.widgets import DataTable

from tui.content.formatting import cell
from tui.keys import MOVE, bindings


@dataclass(frozen=True, slots=True)
class Column:
    """A column; columns with a share divide the width that the others leave."""

    heading: str
    width: int  # in cells; the least width of a column with a share
    share: int = 0
    right: bool = False
    keep_end: bool = False  # whether a text that is too long is cut in its middle and not at its end
    sort: str = ""  # names what a click on the heading sorts by; empty for nothing


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table."""

    key: str  # the id of what the row shows
    cells: tuple[Text, ...]  # one for each column


class Table(DataTable[Text], inherit_bindings=False):
    """Shows the rows of one page."""

    BINDINGS = bindings(MOVE)

    class AtEnd(Message):
        """The cursor is on the last row."""

    class AtStart(Message):
        """A key moves the cursor up from the first row."""

        def __init__(self, *, first: bool) -> None:
            super().__init__()
            self.first = first  # whether it moves to the first row of all

    class HeadingClicked(Message):
        """The heading of a column was clicked."""

        def __init__(self, column: Column) -> None:
            super().__init__()
            self.column = column

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=False, show_row_labels=False)
        self._layout: tuple[Column, ...] = ()
        self._lines: list[Line] = []
        self._widths: list[int] = []  # of the columns, in cells

    @property
    def current(self) -> str | None:
        """Returns the key of the row under the cursor."""
        return self._lines[self.cursor_row].key if 0 <= self.cursor_row < len(self._lines) else None

    def fill(self, layout: Sequence[Column], lines: Sequence[Line]) -> None:
        """Replaces the rows. The cursor follows its row to its new place."""
        layout, lines = tuple(layout), list(lines)
        if layout == self._layout and [a.key for a in lines] == [b.key for b in self._lines]:
            for place, (line, before) in enumerate(zip(lines, self._lines, strict=True)):
                for column, text in enumerate(line.cells):
                    if text != before.cells[column]:
                        fitted = self._fitted(column, text)
                        self.update_cell_at((place, column), fitted)  # type: ignore[arg-type]
            self._lines = lines
            return
        key, place, scroll = self.current, self.cursor_row, self.scroll_y
        self._layout, self._lines = layout, lines
        self._build()
        places = {line.key: at for at, line in enumerate(lines)}
        if lines:
            self.move_cursor(row=places.get(key or "", min(max(place, 0), len(lines) - 1)), scroll=False)
            self.scroll_to(y=scroll, animate=False, force=True)
            self.call_after_refresh(self._scroll_to_cursor)

    def go_to(self, key: str) -> None:
        """Moves the cursor to the row with that key, if there is one."""
        for place, line in enumerate(self._lines):
            if line.key == key:
                self.move_cursor(row=place)

    def _build(self) -> None:
        self.clear(columns=True)
        columns = self._layout
        padding = 2 * self.cell_padding * len(columns)
        scrollbar = self.styles.scrollbar_size_vertical
        spare = self.size.width - scrollbar - padding - sum(column.width for column in columns)
        shares = sum(column.share for column in columns) or 1
        self._widths = [column.width + (max(spare, 0) * column.share // shares) for column in columns]
        for column, width in zip(columns, self._widths, strict=True):
            self.add_column(cell(column.heading, right=column.right), width=width)
        for line in self._lines:
            self.add_row(*(self._fitted(place, text) for place, text in enumerate(line.cells)), key=line.key)

    def _fitted(self, column: int, text: Text) -> Text:
        """Cuts the middle of a text that is too long, if its end is to be kept; the table cuts the others."""
        width = self._widths[column]
        if not self._layout[column].keep_end or text.cell_len <= width:
            return text
        kept, end = text.copy(), text.plain
        while cell_len(end) > width * 2 // 3:
            end = end[1:]
        kept.truncate(width - cell_len(end), overflow="ellipsis")
        return kept.append(end)

    def _scroll_to_cursor(self) -> None:
        self.move_cursor(row=self.cursor_row, animate=False)

    def on_resize(self, event: events.Resize) -> None:
        """Divides the new width among the columns."""
        if self._layout and self.size.width:
            place = self.cursor_row
            self._build()
            if self._lines:
                self.move_cursor(row=place)

    def action_cursor_up(self) -> None:
        """Moves one row up, or posts AtStart on the first row."""
        self._post_at_start()
        super().action_cursor_up()

    def action_page_up(self) -> None:
        """Moves one page up, or posts AtStart on the first row."""
        self._post_at_start()
        super().action_page_up()

    def action_scroll_top(self) -> None:
        """Moves to the first row of all."""
        self.post_message(self.AtStart(first=True))
        super().action_scroll_top()

    def _post_at_start(self) -> None:
        if self.cursor_row == 0:
            self.post_message(self.AtStart(first=False))

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """Posts which column's heading was clicked."""
        event.stop()
        self.post_message(self.HeadingClicked(self._layout[event.column_index]))

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Posts AtEnd if the cursor is on the last row."""
        if self._lines and event.cursor_row == len(self._lines) - 1:
            self.post_message(self.AtEnd())
