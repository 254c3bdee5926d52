"""The styles of tui.content.styles in the colours of Textual's themes, for the Rich console of an app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.style import Style
from rich.theme import Theme
from textual.color import Color, ColorParseError

from tui.content.styles import COLOURS


@runtime_checkable
class Repaintable(Protocol):
    """A screen whose texts were given their colours when they were shown."""

    def repaint(self) -> None:
        """Shows the texts again."""


class Styles:
    """The styles that a console knows; they change with the theme of the app."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._pushed = False

    def use(self, variables: Mapping[str, str]) -> None:
        """Gives the styles the colours of a theme, named by its variables."""
        if self._pushed:
            self.console.pop_theme()
        self.console.push_theme(rich_theme(variables))
        self._pushed = True


def rich_theme(variables: Mapping[str, str]) -> Theme:
    """Returns every style of the desk in the colours of a theme."""
    return Theme({name: _style(variables.get(variable, "")) for name, variable in COLOURS.items()})


def _style(colour: str) -> Style:
    if not colour:
        return Style(dim=True)
    try:
        return Style(color=Color.parse(colour).rich_color)
    except ColorParseError:
        return Style()
