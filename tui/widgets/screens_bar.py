"""One line that names the screens of the desk with their keys, and marks the one that is open."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from tui.content.styles import ACCENT, MUTED

SCREENS = {"list": "1 Checkpoints", "overview": "2 Overview", "pictures": "3 My pictures", "log": "4 Log"}


class ScreensBar(Static):
    """The names of the screens; the open one stands in brackets."""

    def __init__(self, current: str) -> None:
        super().__init__(id="screens")
        self.current = current

    def on_mount(self) -> None:
        self.repaint()

    def repaint(self) -> None:
        """Draws the line, in the colours of the theme."""
        text = Text(no_wrap=True, overflow="ellipsis")
        for name, words in SCREENS.items():
            is_open = name == self.current
            text.append(f"[{words}]" if is_open else f" {words} ", style=ACCENT if is_open else MUTED)
            text.append(" ")
        self.update(text)
