"""A question before something is done to several rows at once."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.keys import CONFIRM, bindings


class ConfirmScreen(ModalScreen[str]):
    """Returns "all", "one" where only the row under the cursor is meant, or "" for nothing."""

    BINDINGS = bindings(CONFIRM)

    def __init__(self, question: str, details: str = "", *, one: str | None = None) -> None:
        """`one` says what the answer for one row would do; None where there is no such answer."""
        super().__init__()
        self.question, self.details, self.one = question, details, one

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="confirm-box"):
            yield Static(Text(self.question, style="bold"))
            if self.details:
                yield Static(Text(self.details))
            one = f"o {self.one}, " if self.one else ""
            yield Static(Text(f"enter does it, {one}escape cancels", style="dim"))

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_answer(self, answer: str) -> None:
        """Returns the answer."""
        if answer != "one" or self.one is not None:
            self.dismiss(answer)
