"""One checkpoint: its rows of evidence, the candidate beside the reference, and the decision log."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image
from rich.console import Group
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.reactive import reactive
from textual.widgets import DataTable, Footer, Static

from scanner.errors import ScannerError
from scanner.records import Examination, ReviewDecision
from scanner.store.decisions import fold
from scanner.store.desk_queries import PAGE_SIZE, EvidenceRow, OpenedCheckpoint, open_checkpoint
from scanner.store.grounds import grounds_cell
from scanner.text import for_terminal
from tui.content.evidence import decision_log, evidence, facts, verdict_in_words, without_rows
from tui.content.formatting import (
    NONE,
    cell,
    count,
    decision_text,
    probability,
    similarity,
    web_address,
)
from tui.images import NoImage, load
from tui.keys import CHECKPOINT, DECIDE, bindings
from tui.review import Recorded, Subject
from tui.screens.deciding import DecidingScreen
from tui.session import Session
from tui.widgets.image_view import ImageView
from tui.widgets.table import Column, Line, Table

BLURRED = "Blurred: may show people. b shows"
SHOWN = "Shown. b or escape blurs again."
NOT_GENERATED = "No image was generated: this is about training."
NOT_ALIKE = "No generated image matches this reference: this is about training."
NO_CANDIDATE = "No candidate: this is about training."
WHOLE_CORPUS = "This is about the corpus as a whole, and not about one picture of it."
COLUMNS = [
    Column("Grounds", 10),
    Column("Similar", 7, right=True),
    Column("q value", 7, right=True),
    Column("Decision", 11, share=1),
]


class CheckpointScreen(DecidingScreen):
    """Shows a checkpoint with the scan that the list showed."""

    BINDINGS = bindings(DECIDE, CHECKPOINT)
    AUTO_FOCUS = "#rows"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - Textual's own declaration
    blurred = reactive(True)

    def __init__(self, session: Session, checkpoint_id: str, scan_id: str | None, repo: str) -> None:
        super().__init__(session)
        self.checkpoint_id, self.scan_id, self.repo = checkpoint_id, scan_id, repo
        self.limit = PAGE_SIZE
        self.opened: OpenedCheckpoint | None = None
        self.queries = 0  # loads that have not ended yet
        self.stamp: tuple[object, ...] = ()  # of the store, at the last load
        self.explained: object = None  # what the evidence on the screen was made from
        self.images_of: str | None = None  # the row whose images are shown
        self.seen: set[str] = set()  # the rows whose images were shown without the blur

    def compose(self) -> ComposeResult:
        yield Static(Text(self.repo, style="bold"), id="head")
        yield Static(id="link")
        yield Static(id="summary")
        with Horizontal(id="top"):
            yield Table(id="rows")
            with Vertical(id="beside"):
                with Horizontal(id="pair"):
                    yield ImageView("candidate", id="candidate")
                    yield ImageView("reference", id="reference")
                yield Static(Text(BLURRED), id="blur-state")
        with VerticalScroll(id="words"), Container(id="columns"):
            yield Static(id="evidence")
            yield Static(id="facts")
        yield Footer()

    def on_mount(self) -> None:
        self.load()
        self.set_interval(self.session.refresh_s, self.load_if_changed)

    def on_resize(self) -> None:
        """Brings the keys of the footer closer together on a narrow terminal."""
        self.query_one(Footer).compact = self.size.width < 90

    def load_if_changed(self) -> None:
        """Loads again if the store has changed, unless a load is still running."""
        if self.is_current and not self.queries:
            self.load(only_if_changed=True)

    @work(exclusive=True, group="checkpoint")
    async def load(self, only_if_changed: bool = False) -> None:
        """Queries the store in a thread and shows the answer."""
        store = self.session.store
        self.queries += 1
        try:
            stamp = await asyncio.to_thread(store.stamp)
            if only_if_changed and stamp == self.stamp:
                return
            opened = await asyncio.to_thread(
                open_checkpoint, store, self.checkpoint_id, self.scan_id, self.limit
            )
        except ScannerError as error:
            self.query_one("#link", Static).update(
                Text(f"The store cannot be read: {for_terminal(str(error))}")
            )
            return
        finally:
            self.queries -= 1
        self.stamp = stamp
        self.show(opened)

    def show(self, opened: OpenedCheckpoint) -> None:
        """Fills the screen; the cursor stays on its row."""
        self.opened = opened
        head = Text(self.repo, style="bold")
        if opened.scan:
            head.append(f"  {verdict_in_words(opened.scan)}", style="not bold")
        if opened.flagged:
            flags = count(opened.flagged, "flag")
            head.append(f" · {opened.decided:,} of {flags} decided", style="not bold")
        if (whole := fold(opened.history).decided) is not None:
            by = for_terminal(whole.reviewer, 40)
            head.append(f" · {decision_text(whole.decision)} as a whole by {by}", style="not bold")
        if self.session.read_only:
            head.append(" · read-only")
        self.query_one("#head", Static).update(head)
        self.query_one("#link", Static).update(Text(self._link(opened.checkpoint.url)))
        self.set_class(not opened.rows, "-without-rows")
        if not opened.rows:
            self.query_one("#words").focus()  # the table is not displayed; the arrows scroll the text
        self.query_one(Table).fill(COLUMNS, [self._line(row) for row in opened.rows])
        self.explain()

    def _link(self, url: str) -> str:
        opens = "  (o opens it)" if web_address(url) else ""
        return f"{for_terminal(url)}{opens}" if url else "The address of this checkpoint is not known."

    def _line(self, row: EvidenceRow) -> Line:
        instead = NONE if row.reference_id else "corpus"
        alike = similarity(row.match.similarity) if row.match else instead
        found = row.match or row.membership
        return Line(
            row.subject_id,
            (
                cell(grounds_cell(row.grounds) if row.grounds else NONE, style="bold"),
                cell(alike, right=True, style="bold" if row.grounds else "dim"),
                cell(probability(found.q_value if found else None), right=True),
                cell(self._state(row)),
            ),
        )

    @staticmethod
    def _state(row: EvidenceRow) -> str:
        decision = fold(row.history).decision
        return decision_text(decision) if decision or row.grounds else "no flag"

    def row(self) -> EvidenceRow | None:
        """Returns the row under the cursor."""
        key = self.query_one(Table).current
        rows = self.opened.rows if self.opened else ()
        return next((row for row in rows if row.subject_id == key), None)

    @on(DataTable.RowHighlighted)
    def show_row(self) -> None:
        """Shows the evidence of another row at once, and its images as soon as they are loaded."""
        self.explain()
        self.load_images()

    def explain(self) -> None:
        """Shows the evidence, the decision log and the facts for the row under the cursor."""
        if self.opened is None:
            return
        row = self.row()
        if (made_from := (row, self.opened.scan, self.opened.history)) == self.explained:
            return
        self.explained = made_from
        words = evidence(self.opened, row) if row else without_rows(self.opened)
        log = decision_log(row.history if row else self.opened.history)
        self.query_one("#evidence", Static).update(Group(words, Text(), log) if log else words)
        self.query_one("#facts", Static).update(facts(self.opened, row))
        self.query_one("#summary", Static).update(Text(self._summary(row) if row else ""))

    def _summary(self, row: EvidenceRow) -> str:
        found = (
            [f"similarity {similarity(row.match.similarity)}, q {probability(row.match.q_value)}"]
            if row.match
            else []
        )
        if row.membership:
            margin = NONE if row.membership.margin is None else f"{row.membership.margin:.3f}"
            found += [f"margin {margin}, q {probability(row.membership.q_value)}"]
        return f"{self._label(row).capitalize()}: {'; '.join(found)} · {self._state(row)}"

    @work(exclusive=True, group="images")
    async def load_images(self) -> None:
        """Loads the candidate and the reference in a thread."""
        if (row := self.row()) is None or row.subject_id == self.images_of:
            return
        self.images_of = None
        for view in self.query(ImageView):  # never the images of one row beside the evidence for another
            view.show(NoImage(""))
        candidate, reference = await asyncio.to_thread(self._pair, row)
        self.query_one("#candidate", ImageView).show(candidate)
        self.query_one("#reference", ImageView).show(reference)
        self.images_of = row.subject_id
        self._note_what_is_seen()

    def _pair(self, row: EvidenceRow) -> tuple[Image.Image | NoImage, Image.Image | NoImage]:
        image = self.session.store.image
        candidate: Image.Image | NoImage
        if row.match is not None:
            sha256 = row.candidate.image_sha256 if row.candidate else None
            candidate = load(partial(image, sha256) if sha256 else None, "candidate image")
        elif self.opened and self.opened.scan and self.opened.scan.examined is Examination.SCREENED:
            candidate = NoImage(NOT_GENERATED)
        else:
            candidate = NoImage(NOT_ALIKE if row.reference_id else NO_CANDIDATE)
        if not row.reference_id:
            return candidate, NoImage(WHOLE_CORPUS)
        reference = load(Path(row.reference.path) if row.reference else None, "reference image")
        if isinstance(reference, NoImage) and row.reference and row.reference.image_sha256:
            copy = load(partial(image, row.reference.image_sha256), "reference image")
            reference = reference if isinstance(copy, NoImage) else copy
        return candidate, reference

    @on(Table.AtEnd)
    def load_more(self) -> None:
        """Loads another page of rows below the last one."""
        opened = self.opened
        if opened and len(opened.rows) < opened.total and self.limit <= len(opened.rows):
            self.limit += PAGE_SIZE
            self.load()

    def watch_blurred(self, blurred: bool) -> None:
        """Blurs or shows both images, and changes the line below them."""
        for view in self.query(ImageView):
            view.blurred = blurred
        self._note_what_is_seen()
        if self.is_mounted:
            self.query_one("#blur-state", Static).update(Text(BLURRED if blurred else SHOWN))

    def _note_what_is_seen(self) -> None:
        hidden = self.blurred and any(isinstance(view.image, Image.Image) for view in self.query(ImageView))
        if self.images_of and not hidden:
            self.seen.add(self.images_of)

    def action_reveal(self) -> None:
        """Shows the images, or blurs them again."""
        if self._has_images():
            self.blurred = not self.blurred

    def action_large(self) -> None:
        """Shows the images alone, or with everything else again."""
        if self._has_images():
            self.toggle_class("-large")
            self.query_one(Table).focus()  # the text, which is hidden now, may have had the focus

    def _has_images(self) -> bool:
        """Whether a row with its images is shown; else a message says that there is none."""
        if self.opened is None or not self.opened.rows:
            self.show_message("There are no images here: this scan found no reference.", "warning")
            return False
        return True

    def action_back(self) -> None:
        """Returns to the list."""
        self.blurred = True
        self.dismiss(None)

    def action_open_link(self) -> None:
        """Opens the checkpoint's page in a browser, if its address is a web address."""
        url = self.opened.checkpoint.url if self.opened else ""
        if (address := web_address(url)) is None:
            self.show_message("Only http and https addresses are opened. y copies this one.", "warning")
            return
        self.app.open_url(address)
        self.show_message(f"Opening {address}")

    def action_copy_link(self) -> None:
        """Copies the address of the checkpoint's page."""
        url = for_terminal(self.opened.checkpoint.url) if self.opened else ""
        self.app.copy_to_clipboard(url)
        self.show_message(f"Copied {url}")

    def selected(self) -> Subject | str:
        """Returns the match or membership under the cursor."""
        row = self.row()
        if row is None:
            return "There is nothing here to decide on."
        return Subject(row.subject_id, f"{self._label(row)}, {self._picture_name(row)}")

    def refusal(self, decision: ReviewDecision) -> str | None:
        """A row is confirmed once its images were shown without the blur."""
        row = self.row()
        if row is not None and decision is ReviewDecision.CONFIRM and row.subject_id not in self.seen:
            return "Only what was shown can be confirmed. b shows the images."
        return None

    def _label(self, row: EvidenceRow) -> str:
        assert self.opened is not None
        kind = "match" if row.match else "membership"
        return f"{kind} {self.opened.rows.index(row) + 1} of {self.opened.total:,}"

    @staticmethod
    def _picture_name(row: EvidenceRow) -> str:
        """The reference's file, or the corpus, so that a reviewer sees at once which row it is."""
        if row.reference is None:
            return for_terminal(row.reference_id or row.corpus, 24)
        return for_terminal(Path(row.reference.path).name, 24)

    def note_of(self, subject: Subject) -> str:
        """Returns the note on the row under the cursor."""
        row = self.row()
        return fold(row.history).note if row and row.subject_id == subject.subject_id else ""

    def show_recorded(self, recorded: Recorded, *, move_on: bool) -> None:
        """Shows the event at once, and loads again after it."""
        assert self.opened is not None
        subject_id = recorded.subject.subject_id
        rows = [
            replace(row, history=(*row.history, recorded.event)) if row.subject_id == subject_id else row
            for row in self.opened.rows
        ]
        self.show(replace(self.opened, rows=tuple(rows)))
        at = next((place for place, row in enumerate(rows) if row.subject_id == subject_id), None)
        if at is not None:
            others = [*rows[at + 1 :], *rows[:at]] if move_on else []
            undecided = [row for row in others if row.grounds and fold(row.history).decision is None]
            self.query_one(Table).go_to((undecided or [rows[at]])[0].subject_id)
        self.load()
