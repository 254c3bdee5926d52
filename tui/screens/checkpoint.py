"""One checkpoint: its rows of evidence, the candidate beside the reference, and the decision log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Container, Horizontal, VerticalScroll
from textual.widgets import DataTable, Footer, Static

from scanner.errors import ScannerError
from scanner.records import Examination, ReviewDecision
from scanner.store.decisions import fold
from scanner.store.desk_queries import PAGE_SIZE, EvidenceRow, OpenedCheckpoint, open_checkpoint
from scanner.text import for_terminal
from tui.content.about import about
from tui.content.details import configuration, facts
from tui.content.evidence import decision_log, evidence, verdict_in_words, without_rows
from tui.content.formatting import NONE, cell, count, probability, similarity
from tui.content.styles import MUTED, VERDICT_MARKS, decision_mark, grounds_mark, verdict_style
from tui.keys import CHECKPOINT, DECIDE, MARK, bindings
from tui.review import Recorded, Subject
from tui.screens.checkpoint_actions import CheckpointActions
from tui.screens.marking import Marked
from tui.screens.working import is_working
from tui.session import Session
from tui.widgets.pair_view import PairView
from tui.widgets.table import Column, Line, Table

MARKED = Column("", 1)
GROUNDS, SIMILAR = Column("Grounds", 12), Column("Similar", 7, right=True)
Q_VALUE, DECISION = Column("q value", 7, right=True), Column("Decision", 11, share=1)


class CheckpointScreen(CheckpointActions):
    """Shows a checkpoint with the scan that the list showed.

    Two pages share the place below the head: the evidence, and the details that nobody decides by.
    """

    BINDINGS = bindings(DECIDE, MARK, CHECKPOINT)
    NOUN, WHOLE = ("row of evidence", "rows of evidence"), ""
    AUTO_FOCUS = "#rows"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - Textual's own declaration

    def __init__(
        self,
        session: Session,
        checkpoint_id: str,
        scan_id: str | None,
        repo: str,
        subject_id: str | None = None,
    ) -> None:
        super().__init__(session)
        self.checkpoint_id, self.scan_id, self.repo = checkpoint_id, scan_id, repo
        self.go_to = subject_id  # the row that the cursor begins at
        self.limit = PAGE_SIZE
        self.opened: OpenedCheckpoint | None = None
        self.marks: set[str] = set()  # subject ids of the marked rows
        self.toml: str | None = None  # the configuration of the scan, once it was asked for
        self.stamp: tuple[object, ...] = ()  # of the store, at the last load
        self.explained: object = None  # what the words on the screen were made from

    def compose(self) -> ComposeResult:
        yield Static(Text(self.repo, style="bold"), id="head")
        yield Static(id="link")
        yield Static(id="summary")
        with Horizontal(id="top"):
            yield Table(id="rows")
            yield PairView(self.session.store, id="beside")
        with VerticalScroll(id="words"), Container(id="columns"):
            yield Static(id="evidence")
            yield Static(id="facts")
        yield Footer()

    def on_mount(self) -> None:
        self.load()
        self.set_interval(self.session.refresh_s, self.load_if_changed)

    def on_resize(self) -> None:
        """Brings the keys of the footer closer together on a narrow terminal, and shows fewer columns."""
        self.query_one(Footer).compact = self.size.width < 90
        self.refresh_bindings()
        if self.opened is not None:
            self.fill_rows(self.opened)

    def hidden_keys(self) -> set[str]:
        """The footer of a narrow terminal leaves out what there is no place for."""
        return super().hidden_keys() | ({"mark.toggle"} if self.size.width < 100 else set())

    def repaint(self) -> None:
        """Shows the words again, in the colours of another theme."""
        if self.opened is not None:
            self.explained = None
            self.show(self.opened)

    def load_if_changed(self) -> None:
        """Loads again if the store has changed, unless a load is still running."""
        if self.is_current and not is_working(self, "checkpoint"):
            self.load(only_if_changed=True)

    @work(exclusive=True, group="checkpoint")
    async def load(self, only_if_changed: bool = False) -> None:
        """Queries the store in a thread and shows the answer."""
        store = self.session.store
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
        self.stamp = stamp
        self.show(opened)

    def show(self, opened: OpenedCheckpoint) -> None:
        """Fills the screen; the cursor stays on its row."""
        self.opened = opened
        self.query_one("#head", Static).update(self._head(opened))
        self.query_one("#link", Static).update(self._link(opened))
        self.set_class(not opened.rows, "-without-rows")
        if not opened.rows:
            self.query_one("#words").focus()  # the table is not displayed; the arrows scroll the text
        self.fill_rows(opened)
        if self.go_to is not None and opened.rows:
            self.query_one(Table).go_to(self.go_to)
            self.go_to = None
        self.explain()

    def fill_rows(self, opened: OpenedCheckpoint) -> None:
        """Fills the table; a narrow terminal leaves the q value to the words below it."""
        wide = self.size.width >= 100
        columns = [GROUNDS, SIMILAR, *([Q_VALUE] if wide else []), DECISION]
        columns = [MARKED, *columns] if self.marks else columns
        table = self.query_one(Table)
        table.fill(columns, [self._line(row, wide=wide) for row in opened.rows])
        flags = count(opened.flagged, "flag")
        table.border_title = f"Evidence · {flags}" if opened.flagged else "Evidence"
        table.border_subtitle = f"{opened.decided:,} decided" if opened.flagged else ""

    def _head(self, opened: OpenedCheckpoint) -> Text:
        head = Text().append(self.repo, style="bold")
        if opened.scan:
            verdict = opened.scan.verdict
            words = f"  {VERDICT_MARKS[verdict]} {verdict_in_words(opened.scan)}"
            head.append(words, style=verdict_style(verdict))
        if opened.flagged:
            flags = count(opened.flagged, "flag")
            head.append(f" · {opened.decided:,} of {flags} decided")
        if (whole := fold(opened.history).decided) is not None:
            head.append(" · ").append_text(decision_mark(whole.decision))
            head.append(f" as a whole by {for_terminal(whole.reviewer, 40)}")
        if self.session.read_only:
            head.append(" · read-only")
        return head

    def _line(self, row: EvidenceRow, *, wide: bool) -> Line:
        instead = NONE if row.reference_id else "corpus"
        alike = similarity(row.match.similarity) if row.match else instead
        found = row.match or row.membership
        q_value = [cell(probability(found.q_value if found else None), right=True)] if wide else []
        mark = [cell("■" if row.subject_id in self.marks else "")] if self.marks else []
        return Line(
            row.subject_id,
            (
                *mark,
                grounds_mark(row.grounds) if row.grounds else cell(NONE, style=MUTED),
                cell(alike, right=True, style="bold" if row.grounds else MUTED),
                *q_value,
                self._state(row),
            ),
        )

    @staticmethod
    def _state(row: EvidenceRow) -> Text:
        decision = fold(row.history).decision
        return decision_mark(decision) if decision or row.grounds else cell("no flag", style=MUTED)

    def row(self) -> EvidenceRow | None:
        """Returns the row under the cursor."""
        key = self.query_one(Table).current
        rows = self.opened.rows if self.opened else ()
        return next((row for row in rows if row.subject_id == key), None)

    @on(DataTable.RowHighlighted)
    def show_row(self) -> None:
        """Shows the evidence of another row at once, and its images as soon as they are loaded."""
        self.explain()
        if (row := self.row()) is not None:
            screened = self.opened and self.opened.scan and self.opened.scan.examined
            self.pair.show_row(row, sampled=screened is not Examination.SCREENED)

    def explain(self) -> None:
        """Shows the words about the row under the cursor, on the page that is open."""
        if self.opened is None:
            return
        row, details = self.row(), self.has_class("-details")
        made_from = (row, self.opened.scan, self.opened.history, details, self.toml)
        if made_from == self.explained:
            return
        self.explained = made_from
        left, right = self._details(self.opened, row) if details else self._evidence(self.opened, row)
        self.query_one("#evidence", Static).update(left)
        self.query_one("#facts", Static).update(right)
        self.query_one("#summary", Static).update(Text(self._summary(row) if row else ""))
        words = self.query_one("#words")
        about_row = f" · {self._label(row)}" if row else ""
        words.border_title = f"{'Details' if details else 'What was found'}{about_row}"
        words.border_subtitle = f"i {'evidence' if details else 'details'} · e report"

    def _evidence(
        self, opened: OpenedCheckpoint, row: EvidenceRow | None
    ) -> tuple[RenderableType, RenderableType]:
        words = evidence(opened, row) if row else without_rows(opened)
        log = decision_log(row.history if row else opened.history)
        short = about(opened, row)
        return words, Group(log, Text(), short) if log else short

    def _details(
        self, opened: OpenedCheckpoint, row: EvidenceRow | None
    ) -> tuple[RenderableType, RenderableType]:
        words = evidence(opened, row, in_full=True) if row else without_rows(opened)
        return Group(words, Text(), configuration(self.toml)), facts(opened, row)

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

    @on(Table.AtEnd)
    def load_more(self) -> None:
        """Loads another page of rows below the last one."""
        opened = self.opened
        if opened and len(opened.rows) < opened.total and self.limit <= len(opened.rows):
            self.limit += PAGE_SIZE
            self.load()

    def selected(self) -> Subject | str:
        """Returns the match or membership under the cursor."""
        row = self.row()
        if row is None:
            return "There is nothing here to decide on."
        return self.subject(row)

    def subject(self, row: EvidenceRow) -> Subject:
        """Returns what a decision on a row is about."""
        return Subject(row.subject_id, f"{self._label(row)}, {self._picture_name(row)}")

    def refusal(self, decision: ReviewDecision) -> str | None:
        """Returns why the row under the cursor cannot be decided so."""
        row = self.row()
        return self.refusal_of(row.subject_id, decision) if row is not None else None

    def refusal_of(self, key: str, decision: ReviewDecision) -> str | None:
        """A row is confirmed once its images were shown without the blur."""
        if decision is ReviewDecision.CONFIRM and key not in self.pair.seen:
            return "Only what was shown can be confirmed. b shows the images."
        return None

    def marked(self) -> list[Marked]:
        """Returns the marked rows."""
        rows = [row for row in self.opened.rows if row.subject_id in self.marks] if self.opened else []
        return [Marked(row.subject_id, self.subject(row), fold(row.history).decision) for row in rows]

    def unmark(self, keys: Sequence[str]) -> None:
        """Takes marks away."""
        self.marks.difference_update(keys)
        if self.opened is not None:
            self.fill_rows(self.opened)

    def action_mark(self) -> None:
        """Marks the row under the cursor, or takes its mark away, and goes one row down."""
        if self.opened is not None and (row := self.row()) is not None:
            self.marks ^= {row.subject_id}
            self.fill_rows(self.opened)
            self.query_one(Table).action_cursor_down()

    def action_mark_all(self) -> None:
        """Marks all loaded rows; if all are marked, takes their marks away."""
        if self.opened is not None:
            every = {row.subject_id for row in self.opened.rows}
            self.marks = set() if every <= self.marks else every
            self.fill_rows(self.opened)

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
