"""The saved filters: choose one, save the present one under a name, or remove one."""

from __future__ import annotations

from dataclasses import replace

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from scanner.errors import ConfigError
from scanner.text import for_terminal
from tui import saved_filters
from tui.content.sorting import SORTS, TITLES
from tui.keys import SAVED, bindings
from tui.saved_filters import LONGEST_NAME, SavedFilter


def described(saved: SavedFilter) -> Text:
    """Returns a saved filter as one line."""
    text = Text(f"{for_terminal(saved.name, LONGEST_NAME)}  " if saved.name else "", style="bold")
    text.append(f"{TITLES[saved.shown].partition(' (')[0]}", style="not bold")
    if saved.words:
        text.append(f" · {for_terminal(saved.words, 200)}", style="not bold")
    what, usual, other = SORTS[saved.sort]
    text.append(f" · by {what}, {other if saved.reverse else usual}", style="not bold dim")
    return text


class SavedFiltersScreen(ModalScreen[SavedFilter | None]):
    """Returns the filter that was chosen, or None."""

    BINDINGS = bindings(SAVED)

    def __init__(self, present: SavedFilter) -> None:
        """`present` is the list as it is now, without a name."""
        super().__init__()
        self.present = present
        self.saved: list[SavedFilter] = []

    def compose(self) -> ComposeResult:
        with Vertical(id="saved-box") as box:
            box.border_title = "Saved filters"
            yield OptionList(id="saved")
            yield Static(id="saved-words")
            yield Input(placeholder="a name, to save the present list", id="name", max_length=LONGEST_NAME)
            yield Static(
                Text("enter chooses or saves, tab changes place, delete removes, escape closes", style="dim")
            )

    def on_mount(self) -> None:
        self.load()
        self.query_one("#saved" if self.saved else "#name").focus()

    def load(self) -> None:
        """Reads the file again."""
        try:
            self.saved = saved_filters.load()
        except ConfigError as error:
            self._tell(error)
            self.saved = []
        listed = self.query_one(OptionList)
        listed.clear_options()
        listed.add_options([Option(described(saved)) for saved in self.saved])
        listed.display = bool(self.saved)
        if self.saved:
            listed.highlighted = 0
        words = Text("Now: ").append_text(described(replace(self.present, name="")))
        self.query_one("#saved-words", Static).update(words)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Returns the chosen filter."""
        self.dismiss(self.saved[event.option_index])

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Saves the present list, and closes."""
        name = event.value.strip()
        if not name:
            return
        try:
            saved_filters.save(replace(self.present, name=name))
        except ConfigError as error:
            self._tell(error)
            return
        self.app.notify(f"Saved: {for_terminal(name, LONGEST_NAME)}. f chooses it again.", markup=False)
        self.dismiss(None)

    def action_choose(self) -> None:
        """Enter is handled by the list and by the box themselves."""

    def action_remove(self) -> None:
        """Removes the saved filter under the cursor."""
        at = self.query_one(OptionList).highlighted
        if at is None or not self.query_one(OptionList).has_focus:
            return
        try:
            saved_filters.remove(self.saved[at].name)
        except ConfigError as error:
            self._tell(error)
            return
        self.load()
        if not self.saved:
            self.query_one(Input).focus()

    def action_close(self) -> None:
        """Returns None."""
        self.dismiss(None)

    def _tell(self, error: ConfigError) -> None:
        self.app.notify(for_terminal(str(error)), severity="error", timeout=15, markup=False)
