"""One checkpoint: its matches, the candidate beside its nearest reference, and the evidence in words."""

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
from scanner.records import Decision
from scanner.store.desk_queries import PAGE_SIZE, MatchRow, OpenedCheckpoint, open_checkpoint, standing
from tui.keys import CHECKPOINT, DECIDE, bindings
from tui.pictures import Unseen, load
from tui.review import Subject
from tui.screens.deciding import DecidingScreen
from tui.widgets.evidence import argument, facts, spoken, unopened
from tui.widgets.picture import Picture
from tui.widgets.table import Column, Line, Table
from tui.words import VERDICTS, cell, count, plain, probability, said, similarity, web_address

BLURRED = "Blurred: may show a person. b shows both."
SHOWN = "Shown. b blurs both again, so does leaving."
COLUMNS = [
    Column("Similar", 7, right=True),
    Column("q value", 7, right=True),
    Column("Decision", 11, share=1),
]


class CheckpointScreen(DecidingScreen):
    """Opened by a checkpoint's id; shows the scan that the list showed."""

    BINDINGS = bindings(DECIDE, CHECKPOINT)
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - Textual's own declaration
    blurred = reactive(True)

    def __init__(self, checkpoint_id: str, scan_id: str | None, repo: str) -> None:
        super().__init__()
        self.checkpoint_id, self.scan_id, self.repo = checkpoint_id, scan_id, repo
        self.limit = PAGE_SIZE
        self.shown: OpenedCheckpoint | None = None
        self.asking = 0  # questions to the store that are not answered yet
        self.stamp: tuple[object, ...] = ()
        self.explained: object = None  # what the words on the screen are about
        self.pictured: str | None = None  # the match whose pictures are shown

    def compose(self) -> ComposeResult:
        yield Static(Text(self.repo, style="bold"), id="head")
        yield Static(id="link")
        yield Static(id="which")
        with Horizontal(id="top"):
            yield Table(id="matches")
            with Vertical(id="beside"):
                with Horizontal(id="pair"):
                    yield Picture("candidate", id="candidate")
                    yield Picture("nearest reference", id="reference")
                yield Static(Text(BLURRED), id="veil")
        with VerticalScroll(id="words"), Container(id="columns"):
            yield Static(id="argument")
            yield Static(id="facts")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(Table).focus()
        self.load()
        self.set_interval(self.desk.refresh_s, self.look_for_news)

    def look_for_news(self) -> None:
        """Another reviewer may have decided."""
        if self.is_current and not self.asking:  # a slow store is left to finish its answer
            self.load(only_news=True)

    @work(exclusive=True, group="checkpoint")
    async def load(self, only_news: bool = False) -> None:
        """Asks the store in a thread."""
        self.asking += 1
        try:
            stamp = await asyncio.to_thread(self.desk.store.stamp)
            if only_news and stamp == self.stamp:
                return
            answer = await asyncio.to_thread(
                open_checkpoint, self.desk.store, self.checkpoint_id, self.scan_id, self.limit
            )
        except ScannerError as error:
            self.query_one("#link", Static).update(Text(f"The store does not answer: {plain(str(error))}"))
            return
        finally:
            self.asking -= 1
        self.stamp = stamp
        self.show(answer)

    def show(self, answer: OpenedCheckpoint) -> None:
        """Fills the screen; the cursor stays on its match."""
        self.shown = answer
        head = Text(self.repo, style="bold")
        if answer.scan:
            head.append(f"  {VERDICTS[answer.scan.verdict]}", style="not bold")
        if answer.flagged:
            matches = count(answer.flagged, "match", "matches")
            head.append(f" · {answer.decided:,} of {matches} decided", style="not bold")
        if (whole := standing(answer.history)) is not None:
            head.append(f" · as a whole {said(whole)} by {plain(whole.reviewer, 40)}", style="not bold")
        self.query_one("#head", Static).update(head)
        self.query_one("#link", Static).update(Text(self._source(answer.checkpoint.url)))
        self.set_class(not answer.found, "-nothing")
        self.query_one(Table).fill(COLUMNS, [self._line(found) for found in answer.found])
        self.explain()

    def _source(self, url: str) -> str:
        opens = "  (o opens it)" if web_address(url) else ""
        return f"{plain(url)}{opens}" if url else "No link is known."

    def _line(self, found: MatchRow) -> Line:
        return Line(
            found.match_id,
            (
                cell(similarity(found.similarity), right=True, style="bold" if found.flagged else "dim"),
                cell(probability(found.q_value), right=True),
                cell(self._state(found)),
            ),
        )

    @staticmethod
    def _state(found: MatchRow) -> str:
        word = standing(found.history)
        return said(word) if word or found.flagged else "no flag"

    def found(self) -> MatchRow | None:
        """The match under the cursor."""
        key = self.query_one(Table).current
        return (
            next((found for found in self.shown.found if found.match_id == key), None) if self.shown else None
        )

    @on(DataTable.RowHighlighted)
    def turn_to(self) -> None:
        """Another match: its words at once, its pictures as soon as they are read."""
        self.explain()
        self.read_pictures()

    def explain(self) -> None:
        """Words and facts for the match under the cursor."""
        if self.shown is None:
            return
        found = self.found()
        if (about := (found, self.shown.scan, self.shown.history)) == self.explained:
            return
        self.explained = about
        words = argument(self.shown, found) if found else unopened(self.shown)
        said_so_far = spoken(found.history if found else self.shown.history)
        self.query_one("#argument", Static).update(
            Group(words, Text(), said_so_far) if said_so_far else words
        )
        self.query_one("#facts", Static).update(facts(self.shown, found))
        self.query_one("#which", Static).update(Text(self._in_short(found) if found else ""))

    def _in_short(self, found: MatchRow) -> str:
        scores = f"similarity {similarity(found.similarity)}, q {probability(found.q_value)}"
        return f"{self._called(found).capitalize()}: {scores} · {self._state(found)}"

    @work(exclusive=True, group="pictures")
    async def read_pictures(self) -> None:
        """Reads both files in a thread."""
        if (found := self.found()) is None or found.match_id == self.pictured:
            return
        self.pictured = None
        for picture in self.query(Picture):  # never one match's pictures beside another's words
            picture.hold(Unseen(""))
        candidate, reference = await asyncio.to_thread(self._pair, found)
        self.query_one("#candidate", Picture).hold(candidate)
        self.query_one("#reference", Picture).hold(reference)
        self.pictured = found.match_id

    def _pair(self, found: MatchRow) -> tuple[Image.Image | Unseen, Image.Image | Unseen]:
        kept = partial(self.desk.store.image, found.image_sha256) if found.image_sha256 else None
        owned = Path(found.reference_path) if found.reference_path else None
        return load(kept, "candidate picture"), load(owned, "reference picture")

    @on(Table.AtEnd)
    def more(self) -> None:
        """Asks for another page of matches."""
        if self.shown and len(self.shown.found) < self.shown.total and self.limit <= len(self.shown.found):
            self.limit += PAGE_SIZE
            self.load()

    def watch_blurred(self, blurred: bool) -> None:
        """Both pictures, and the line that says so."""
        for picture in self.query(Picture):
            picture.blurred = blurred
        if self.is_mounted:
            self.query_one("#veil", Static).update(Text(BLURRED if blurred else SHOWN))

    def action_reveal(self) -> None:
        """Shows the pictures, or blurs them again."""
        self.blurred = not self.blurred

    def action_large(self) -> None:
        """Pictures alone, or with the rest again."""
        self.toggle_class("-large")

    def action_back(self) -> None:
        """To the list."""
        self.blurred = True
        self.dismiss(None)

    def action_open_link(self) -> None:
        """The source in a browser, if it is a web address."""
        url = self.shown.checkpoint.url if self.shown else ""
        if (address := web_address(url)) is None:
            self.say("Only http and https addresses are opened, and this is none. y copies it.", "warning")
            return
        self.app.open_url(address)
        self.say(f"Opening {address}")

    def action_copy_link(self) -> None:
        """The source's address to the clipboard."""
        url = plain(self.shown.checkpoint.url) if self.shown else ""
        self.app.copy_to_clipboard(url)
        self.say(f"Copied {url}")

    def selected(self) -> Subject | str:
        """The match under the cursor."""
        found = self.found()
        if found is None:
            return "There is no match here to decide on."
        return Subject(found.match_id, self._called(found))

    def _called(self, found: MatchRow) -> str:
        assert self.shown is not None
        return f"match {self.shown.found.index(found) + 1} of {self.shown.total:,}"

    def note_of(self, subject: Subject) -> str:
        """The newest note on the match."""
        found = self.found()
        return found.history[-1].note if found and found.history else ""

    def heard(self, decision: Decision, *, move_on: bool) -> None:
        """Shows the new word at once; the store is asked again behind it."""
        assert self.shown is not None
        every = [
            replace(found, history=(*found.history, decision))
            if found.match_id == decision.subject_id
            else found
            for found in self.shown.found
        ]
        self.show(replace(self.shown, found=tuple(every)))
        at = next((i for i, found in enumerate(every) if found.match_id == decision.subject_id), None)
        if at is not None:
            rest = [*every[at + 1 :], *every[:at]] if move_on else []
            undecided = [found for found in rest if found.flagged and standing(found.history) is None]
            self.query_one(Table).go_to((undecided or [every[at]])[0].match_id)
        self.load()
