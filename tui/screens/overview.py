"""What the store holds: verdicts by day, source and family, reasons with remedies, and the time it took."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container, VerticalScroll
from textual.widgets import Static

from scanner.records import Verdict
from scanner.store.overview_queries import Overview, overview
from tui.content.overview import DAYS, hours, legend, reasons, tallies
from tui.content.styles import verdict_style
from tui.keys import VIEW, bindings
from tui.screens.view import ViewScreen

TITLES = {
    "days": "Verdicts by day (UTC)",
    "why": "Why checkpoints were not scanned",
    "sources": "By source",
    "families": "By family",
    "hours": "Time spent, by stage",
}


class OverviewScreen(ViewScreen[Overview]):
    """Draws the numbers of a store."""

    name_in_bar = "overview"
    BINDINGS = bindings(VIEW)
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - Textual's own declaration
    AUTO_FOCUS = "#overview"

    def body(self) -> ComposeResult:
        """One panel for each question."""
        yield Static(id="legend")
        with VerticalScroll(id="overview"):
            for column in (("days", "sources", "families"), ("hours", "why")):
                with Container(classes="panels"):
                    for name in column:
                        panel = Static(id=name, classes="panel")
                        panel.border_title = TITLES[name]
                        yield panel

    def read(self) -> Overview:
        """Counts everything."""
        return overview(self.session.index)

    def show(self, answer: Overview) -> None:
        """Draws the bars as wide as the panels are."""
        counts = answer.total.counts
        head = Text().append(f"{answer.total.total:,} checkpoints", style="bold")
        for verdict in Verdict:
            if number := counts.get(verdict):
                words = f"{number:,} {verdict.replace('_', ' ')}"
                head.append(" · ").append(words, style=verdict_style(verdict))
        self.heading(head)
        self.query_one("#legend", Static).update(legend())
        width = (self.size.width - 2) // (2 if self.size.width >= 100 else 1) - 6
        parts = {
            "days": tallies(answer.days, width, DAYS),
            "sources": tallies(answer.sources, width),
            "families": tallies(answer.families, width),
            "why": reasons(answer.reasons, width),
            "hours": hours(answer, width),
        }
        for name, drawn in parts.items():
            self.query_one(f"#{name}", Static).update(drawn)
