"""All keys of tui.keys and what they do, as they are mapped now; the words of the filter and of the lists."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table as Grid
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.content.glossary import WORDS
from tui.filter_words import EXAMPLE, PROPERTIES, STATES
from tui.keys import GROUPS, HELP, Key, bindings

FILTER_WORDS = {f"{name}:": meaning for name, meaning in PROPERTIES.items()} | {
    str(state): meaning for state, meaning in STATES.items()
}


class HelpScreen(ModalScreen[None]):
    """Shows the keys and the words; the key that opened it, or escape, closes it."""

    BINDINGS = bindings(HELP)

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help-box") as box:
            box.border_title, box.border_subtitle = "Keys", "↓ also the words of the filter and of the lists"
            yield Static(self._grid())
            yield Static(self._words("Words of the filter, for example " + EXAMPLE, FILTER_WORDS))
            yield Static(self._words("Words in the lists", WORDS))

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def _grid(self) -> Grid:
        grid = Grid.grid(padding=(0, 2), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        for title, keys in GROUPS.items():
            grid.add_row(Text(""), Text(title, style="bold underline"))
            for key in keys:
                grid.add_row(Text(self._shown(key), style="bold", justify="right"), Text(key.sentence))
        return grid

    def _words(self, title: str, words: Mapping[str, str]) -> Grid:
        grid = Grid.grid(padding=(0, 2), expand=True)
        grid.add_column(width=13)
        grid.add_column(ratio=1)
        grid.add_row(Text(""), Text(title, style="bold underline"))
        for word, meaning in words.items():
            grid.add_row(Text(word, style="bold", justify="right"), Text(meaning))
        return grid

    def _shown(self, key: Key) -> str:
        mapped = self.app._keymap.get(key.id, key.keys)
        return ", ".join(self.app.get_key_display(Binding(one, "")) for one in mapped.split(","))

    def action_close(self) -> None:
        """Returns to the screen below."""
        self.dismiss(None)
