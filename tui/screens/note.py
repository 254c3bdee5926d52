"""A box to write a note in."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from tui.keys import NOTE, bindings


class NoteScreen(ModalScreen[str | None]):
    """Returns the note, or None if it is not to be changed."""

    BINDINGS = bindings(NOTE)

    def __init__(self, label: str, note: str) -> None:
        super().__init__()
        self.label, self.note = label, note

    def compose(self) -> ComposeResult:
        with Vertical(id="note-box"):
            yield Static(Text(f"Note on {self.label}", style="bold"))
            yield Input(self.note, id="note", max_length=1000, select_on_focus=False)
            yield Static(Text("enter records the note, escape cancels", style="dim"))

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    def on_input_submitted(self) -> None:
        """Handles enter, which the input takes before the binding."""
        self.action_save()

    def action_save(self) -> None:
        """Returns the text of the note."""
        self.dismiss(self.query_one(Input).value.strip())

    def action_cancel(self) -> None:
        """Returns None: the note is not changed."""
        self.dismiss(None)
