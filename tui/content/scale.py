"""A similarity on one axis with what it is compared with; as a Rich renderable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

from tui.content.styles import ACCENT, MUTED


@dataclass(frozen=True, slots=True)
class Mark:
    """A value on the axis."""

    sign: str  # one cell
    value: float  # from 0 to 1; others are drawn at the nearer end
    name: str
    style: str = ""


class Scale:
    """An axis from 0 to 1, filled up to its last mark, and a legend below it."""

    def __init__(self, marks: Sequence[Mark]) -> None:
        self.marks = tuple(marks)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(20, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield axis(self.marks, min(options.max_width, 72))
        legend = Text()
        for place, mark in enumerate(self.marks):
            legend.append("  " if place else "")
            legend.append(mark.sign, style=mark.style).append(f" {mark.name} {mark.value:.3f}", style=MUTED)
        yield legend


def axis(marks: Sequence[Mark], width: int) -> Text:
    """Returns the axis in `width` cells; a later mark hides an earlier one in the same cell."""
    at = {round(min(max(mark.value, 0), 1) * (width - 1)): mark for mark in marks}
    end = max(place for place, mark in at.items() if mark is marks[-1])
    line = Text(no_wrap=True, overflow="crop")
    for place in range(width):
        if (mark := at.get(place)) is not None:
            line.append(mark.sign, style=mark.style)
        else:
            line.append("━" if place < end else "─", style=ACCENT if place < end else MUTED)
    return line
