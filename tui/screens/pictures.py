"""The references that something was found about, and the checkpoints in which one of them was found."""

from __future__ import annotations

import asyncio

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import DataTable, Static

from scanner.records import Ground, ReviewDecision
from scanner.store.desk_queries import PAGE_SIZE
from scanner.store.picture_queries import FoundPicture, found_pictures
from scanner.store.report_queries import PictureRow, scans_of_pictures
from scanner.text import for_terminal
from tui.content.formatting import cell, count, probability, similarity
from tui.content.styles import MUTED, decision_mark, grounds_mark
from tui.images import NoImage
from tui.keys import PICTURES, VIEW, bindings
from tui.pair import load_reference
from tui.screens.checkpoint import CheckpointScreen
from tui.screens.view import ViewScreen
from tui.session import Session
from tui.widgets.image_view import ImageView
from tui.widgets.table import Column, Line, Table

NONE_FOUND = """\
None of your pictures was found in a checkpoint so far.

This does not prove that none of them is in one. Pictures stand here as soon as a scan
finds that a checkpoint gives one back, or that it was trained on one."""
COLUMNS = [
    Column("Picture", 16, share=3, keep_end=True),
    Column("Corpus", 10, share=1),
    Column("● Given", 7, right=True),
    Column("◆ Trained", 9, right=True),
    Column("Similar", 7, right=True),
    Column("Decided", 8, right=True),
]
CHECKPOINTS = [
    Column("Repo", 16, share=3, keep_end=True),
    Column("Grounds", 12),
    Column("Similar", 7, right=True),
    Column("q value", 7, right=True),
    Column("Decision", 11),
]


class PicturesScreen(ViewScreen[list[FoundPicture]]):
    """Lists the pictures, those that most checkpoints give back first."""

    name_in_bar = "pictures"
    BINDINGS = bindings(VIEW, PICTURES)
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - Textual's own declaration
    AUTO_FOCUS = "#table"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.limit = PAGE_SIZE

    def body(self) -> ComposeResult:
        """A table, or advice in its place."""
        yield Static(id="empty")
        with Horizontal(id="beside-table"):
            yield Table(id="table")
            yield ImageView("the picture, blurred: b shows", id="preview")

    def read(self) -> list[FoundPicture]:
        """Asks for the first page, or for the pages that were loaded."""
        return found_pictures(self.session.store, self.limit)

    def show(self, answer: list[FoundPicture]) -> None:
        """Fills the table."""
        total = answer[0].total if answer else 0
        head = Text().append(f"My pictures: {count(total, 'picture')} found in checkpoints", style="bold")
        if total > len(answer):
            head.append(f" · first {len(answer):,}")
        self.heading(head)
        self.set_class(not answer, "-empty")
        self.query_one("#empty", Static).update(Text("" if answer else NONE_FOUND))
        self.query_one(Table).fill(COLUMNS, [self._line(picture) for picture in answer])

    @staticmethod
    def _line(picture: FoundPicture) -> Line:
        def number(value: int, style: str) -> Text:
            return cell(f"{value:,}", right=True, style=style if value else MUTED)

        return Line(
            _key(picture),
            (
                cell(for_terminal(picture.name, 200), style="bold"),
                cell(for_terminal(picture.corpus, 60)),
                number(picture.given_back, "ground.gives_back"),
                number(picture.trained_on, "ground.trained_on"),
                cell(similarity(picture.similarity), right=True),
                cell(f"{picture.decided:,}/{picture.checkpoints:,}", right=True, style=MUTED),
            ),
        )

    @on(Table.AtEnd)
    def load_more(self) -> None:
        """Loads another page below the last row."""
        if self.answer and len(self.answer) < self.answer[0].total and self.limit <= len(self.answer):
            self.limit += PAGE_SIZE
            self.load()

    def picture(self) -> FoundPicture | None:
        """Returns the picture under the cursor."""
        key = self.query_one(Table).current
        return next((picture for picture in self.answer or () if _key(picture) == key), None)

    @on(DataTable.RowHighlighted)
    @work(exclusive=True, group="images")
    async def show_picture(self) -> None:
        """Loads the picture under the cursor in a thread, and shows it beside the table."""
        view, picture = self.query_one(ImageView), self.picture()
        view.show(NoImage(""))
        if picture is not None:
            store = self.session.store
            view.show(await asyncio.to_thread(load_reference, store, picture.path, picture.image_sha256))

    def action_reveal(self) -> None:
        """Shows the picture, or blurs it again."""
        view = self.query_one(ImageView)
        view.blurred = not view.blurred
        view.border_title = "the picture, blurred: b shows" if view.blurred else "the picture: b blurs"

    @on(DataTable.RowSelected)
    def open(self) -> None:
        """Opens the picture under the cursor."""
        if (picture := self.picture()) is not None:
            self.app.push_screen(PictureScreen(self.session, picture))


class PictureScreen(ViewScreen[list[PictureRow]]):
    """Lists the checkpoints in which one picture was found, with the evidence."""

    name_in_bar = "pictures"
    BINDINGS = bindings(VIEW)
    AUTO_FOCUS = "#table"

    def __init__(self, session: Session, picture: FoundPicture) -> None:
        super().__init__(session)
        self.picture = picture

    def body(self) -> ComposeResult:
        """A table."""
        yield Table(id="table")

    def read(self) -> list[PictureRow]:
        """Asks for what the standing scans found about the picture."""
        rows = scans_of_pictures(self.session.store, [self.picture.reference_id])
        return [
            row for row in rows if row.corpus == self.picture.corpus and (row.gives_back or row.trained_on)
        ]

    def show(self, answer: list[PictureRow]) -> None:
        """Fills the table."""
        name = for_terminal(self.picture.name, 60)
        head = Text().append(name, style="bold")
        head.append(
            f" of {for_terminal(self.picture.corpus, 60)} · found in {count(len(answer), 'checkpoint')}"
        )
        self.heading(head)
        self.query_one(Table).fill(CHECKPOINTS, [self._line(row) for row in answer])

    @staticmethod
    def _line(row: PictureRow) -> Line:
        grounds = (Ground.TRAINED_ON,) * row.trained_on + (Ground.GIVES_BACK,) * row.gives_back
        decision = ReviewDecision(row.decision) if row.decision else None
        q_value = row.match_q if row.gives_back else row.membership_q
        return Line(
            row.subject_id,
            (
                cell(for_terminal(row.repo, 300), style="bold"),
                grounds_mark(grounds),
                cell(similarity(row.similarity), right=True),
                cell(probability(q_value), right=True),
                decision_mark(decision),
            ),
        )

    @on(DataTable.RowSelected)
    def open(self) -> None:
        """Opens the checkpoint at the row of evidence about the picture."""
        key = self.query_one(Table).current
        for row in self.answer or ():
            if row.subject_id == key:
                repo = for_terminal(row.repo, 200)
                opened = CheckpointScreen(
                    self.session, row.checkpoint_id, row.scan_id, repo, subject_id=row.subject_id
                )
                self.app.push_screen(opened)


def _key(picture: FoundPicture) -> str:
    return f"{picture.corpus}/{picture.reference_id}"
