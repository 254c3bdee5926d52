"""One checkpoint: its matches, the candidate beside the reference, the evidence and the decision log."""

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
from scanner.store.decisions import fold
from scanner.store.desk_queries import PAGE_SIZE, MatchRow, OpenedCheckpoint, open_checkpoint
from scanner.text import for_terminal
from tui.content.evidence import decision_log, evidence, facts, without_match
from tui.content.formatting import (
    VERDICTS,
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

BLURRED = "Blurred: may show people. b shows them."
SHOWN = "Shown. b blurs them again, so does escape."
COLUMNS = [
    Column("Similar", 7, right=True),
    Column("q value", 7, right=True),
    Column("Decision", 11, share=1),
]


class CheckpointScreen(DecidingScreen):
    """Shows a checkpoint with the scan that the list showed."""

    BINDINGS = bindings(DECIDE, CHECKPOINT)
    AUTO_FOCUS = "#matches"
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
        self.images_of: str | None = None  # the match whose images are shown

    def compose(self) -> ComposeResult:
        yield Static(Text(self.repo, style="bold"), id="head")
        yield Static(id="link")
        yield Static(id="summary")
        with Horizontal(id="top"):
            yield Table(id="matches")
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
        """Fills the screen; the cursor stays on its match."""
        self.opened = opened
        head = Text(self.repo, style="bold")
        if opened.scan:
            head.append(f"  {VERDICTS[opened.scan.verdict]}", style="not bold")
        if opened.flagged:
            matches = count(opened.flagged, "match", "matches")
            head.append(f" · {opened.decided:,} of {matches} decided", style="not bold")
        if (whole := fold(opened.history).decided) is not None:
            by = for_terminal(whole.reviewer, 40)
            head.append(f" · {decision_text(whole.decision)} as a whole by {by}", style="not bold")
        self.query_one("#head", Static).update(head)
        self.query_one("#link", Static).update(Text(self._link(opened.checkpoint.url)))
        self.set_class(not opened.matches, "-without-match")
        if not opened.matches:
            self.query_one("#words").focus()  # the table is not displayed; the arrows scroll the text
        self.query_one(Table).fill(COLUMNS, [self._line(match) for match in opened.matches])
        self.explain()

    def _link(self, url: str) -> str:
        opens = "  (o opens it)" if web_address(url) else ""
        return f"{for_terminal(url)}{opens}" if url else "The address of this checkpoint is not known."

    def _line(self, match: MatchRow) -> Line:
        return Line(
            match.match_id,
            (
                cell(similarity(match.similarity), right=True, style="bold" if match.flagged else "dim"),
                cell(probability(match.q_value), right=True),
                cell(self._state(match)),
            ),
        )

    @staticmethod
    def _state(match: MatchRow) -> str:
        decision = fold(match.history).decision
        return decision_text(decision) if decision or match.flagged else "no flag"

    def match(self) -> MatchRow | None:
        """Returns the match under the cursor."""
        key = self.query_one(Table).current
        matches = self.opened.matches if self.opened else ()
        return next((match for match in matches if match.match_id == key), None)

    @on(DataTable.RowHighlighted)
    def show_match(self) -> None:
        """Shows the evidence for another match at once, and its images as soon as they are loaded."""
        self.explain()
        self.load_images()

    def explain(self) -> None:
        """Shows the evidence, the decision log and the facts for the match under the cursor."""
        if self.opened is None:
            return
        match = self.match()
        if (made_from := (match, self.opened.scan, self.opened.history)) == self.explained:
            return
        self.explained = made_from
        words = evidence(self.opened, match) if match else without_match(self.opened)
        log = decision_log(match.history if match else self.opened.history)
        self.query_one("#evidence", Static).update(Group(words, Text(), log) if log else words)
        self.query_one("#facts", Static).update(facts(self.opened, match))
        self.query_one("#summary", Static).update(Text(self._summary(match) if match else ""))

    def _summary(self, match: MatchRow) -> str:
        scores = f"similarity {similarity(match.similarity)}, q {probability(match.q_value)}"
        return f"{self._label(match).capitalize()}: {scores} · {self._state(match)}"

    @work(exclusive=True, group="images")
    async def load_images(self) -> None:
        """Loads the candidate and the reference in a thread."""
        if (match := self.match()) is None or match.match_id == self.images_of:
            return
        self.images_of = None
        for view in self.query(ImageView):  # never the images of one match beside the evidence for another
            view.show(NoImage(""))
        candidate, reference = await asyncio.to_thread(self._pair, match)
        self.query_one("#candidate", ImageView).show(candidate)
        self.query_one("#reference", ImageView).show(reference)
        self.images_of = match.match_id

    def _pair(self, match: MatchRow) -> tuple[Image.Image | NoImage, Image.Image | NoImage]:
        stored = partial(self.session.store.image, match.image_sha256) if match.image_sha256 else None
        path = Path(match.reference_path) if match.reference_path else None
        return load(stored, "candidate image"), load(path, "reference image")

    @on(Table.AtEnd)
    def load_more(self) -> None:
        """Loads another page of matches below the last row."""
        opened = self.opened
        if opened and len(opened.matches) < opened.total and self.limit <= len(opened.matches):
            self.limit += PAGE_SIZE
            self.load()

    def watch_blurred(self, blurred: bool) -> None:
        """Blurs or shows both images, and changes the line below them."""
        for view in self.query(ImageView):
            view.blurred = blurred
        if self.is_mounted:
            self.query_one("#blur-state", Static).update(Text(BLURRED if blurred else SHOWN))

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
        """Whether a match with its images is shown; else a message says that there is none."""
        if self.opened is None or not self.opened.matches:
            self.show_message("There are no images here: this checkpoint has no match.", "warning")
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
        """Returns the match under the cursor."""
        match = self.match()
        if match is None:
            return "There is no match here to decide on."
        return Subject(match.match_id, self._label(match))

    def _label(self, match: MatchRow) -> str:
        assert self.opened is not None
        return f"match {self.opened.matches.index(match) + 1} of {self.opened.total:,}"

    def note_of(self, subject: Subject) -> str:
        """Returns the note on the match under the cursor."""
        match = self.match()
        return fold(match.history).note if match and match.match_id == subject.subject_id else ""

    def show_recorded(self, recorded: Recorded, *, move_on: bool) -> None:
        """Shows the event at once, and loads again after it."""
        assert self.opened is not None
        match_id = recorded.subject.subject_id
        matches = [
            replace(match, history=(*match.history, recorded.event)) if match.match_id == match_id else match
            for match in self.opened.matches
        ]
        self.show(replace(self.opened, matches=tuple(matches)))
        at = next((place for place, match in enumerate(matches) if match.match_id == match_id), None)
        if at is not None:
            others = [*matches[at + 1 :], *matches[:at]] if move_on else []
            undecided = [m for m in others if m.flagged and fold(m.history).decision is None]
            self.query_one(Table).go_to((undecided or [matches[at]])[0].match_id)
        self.load()
