"""What a store holds, as bars: verdicts by day, source and family, reasons with their remedies, and hours."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table as Grid
from rich.text import Text

from scanner.records import Verdict
from scanner.store.overview_queries import Overview, ReasonTally, Tally
from scanner.store.queries import reason_label
from scanner.text import for_terminal
from tui.content.formatting import count, share_of
from tui.content.styles import MUTED, VERDICT_MARKS, bar, verdict_mark, verdict_style

ORDER = (Verdict.FLAGGED, Verdict.NOTHING_FOUND, Verdict.SKIPPED, Verdict.FAILED, None)
FILLED = {
    Verdict.FLAGGED: "█",
    Verdict.NOTHING_FOUND: "▒",
    Verdict.SKIPPED: "░",
    Verdict.FAILED: "▓",
    None: "·",
}
DAYS, GROUPS = 14, 12  # rows that are shown
NOTHING_YET = "Nothing yet: no checkpoint has been listed."
NOT_SCANNED = "Nothing was skipped, and nothing has failed."
NO_TIME = "No scan has recorded how long its stages took."


def legend() -> Text:
    """Returns what the signs of the bars stand for."""
    text = Text()
    for place, verdict in enumerate(ORDER):
        text.append("   " if place else "")
        text.append(f"{FILLED[verdict]} ", style=verdict_style(verdict)).append_text(verdict_mark(verdict))
    return text


def tallies(rows: Sequence[Tally], width: int, most_rows: int = GROUPS, *, cut: bool = True) -> Grid | Text:
    """Returns the numbers of each verdict and one bar for each row, in `width` cells.

    `cut` says in a last line how many rows are left out.
    """
    if not rows:
        return Text(NOTHING_YET, style=MUTED)
    shown, most = rows[:most_rows], max(row.total for row in rows[:most_rows])
    names = [for_terminal(row.name, 14) or "unknown" for row in shown]
    grid = Grid.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, width=max(map(len, names)))
    verdicts = [verdict for verdict in ORDER if any(row.counts.get(verdict) for row in shown)]
    numbers = {verdict: max(len(_number(row, verdict)) for row in shown) for verdict in verdicts}
    for size in numbers.values():
        grid.add_column(no_wrap=True, justify="right", width=size)
    grid.add_column(no_wrap=True)
    room = width - max(map(len, names)) - sum(size + 1 for size in numbers.values()) - 2
    heading = [Text(VERDICT_MARKS[v], style=verdict_style(v)) for v in verdicts]
    grid.add_row(Text(""), *heading, Text(""))
    for name, row in zip(names, shown, strict=True):
        cells = [
            Text(_number(row, v), style=verdict_style(v) if row.counts.get(v) else MUTED) for v in verdicts
        ]
        grid.add_row(Text(name), *cells, stacked(row, most, max(room, 4)))
    if cut and len(rows) > len(shown):
        grid.add_row(Text(f"+ {len(rows) - len(shown)} more", style=MUTED))
    return grid


def _number(row: Tally, verdict: Verdict | None) -> str:
    return f"{row.counts.get(verdict, 0):,}"


def stacked(row: Tally, most: int, width: int) -> Text:
    """Returns one bar with a part for each verdict; a verdict that occurs has one cell at least."""
    text, room = Text(no_wrap=True, overflow="crop"), round(width * row.total / most) if most else 0
    for verdict in ORDER:
        number = row.counts.get(verdict, 0)
        if number:
            cells = max(1, round(max(room, 1) * number / row.total))
            text.append(FILLED[verdict] * cells, style=verdict_style(verdict))
    text.truncate(width)
    return text


def reasons(rows: Sequence[ReasonTally], width: int) -> Grid | Text:
    """Returns how often each reason occurred, with what can be done about it."""
    if not rows:
        return Text(NOT_SCANNED, style=MUTED)
    grid = Grid.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column(no_wrap=True, width=8)
    grid.add_column(ratio=1)
    most = max(row.count for row in rows)
    for row in rows:
        style = verdict_style(row.verdict)
        words = Text().append(f"{VERDICT_MARKS[row.verdict]} {reason_label(row.reason_code)}", style=style)
        if row.reason_code is not None:
            words.append(f": {row.reason_code.remedy}", style=MUTED)
        grid.add_row(Text(f"{row.count:,}", style="bold"), bar(row.count, most, 8, style), words)
    return grid


def hours(found: Overview, width: int) -> Grid | Text:
    """Returns the time of all attempts by stage, and its sum."""
    total = sum(found.seconds.values())
    if not total:
        return Text(NO_TIME, style=MUTED)
    grid = Grid.grid(padding=(0, 1))
    for column in range(4):
        grid.add_column(no_wrap=True, justify="right" if column in (1, 2) else "left")
    most = max(found.seconds.values())
    for stage, seconds in found.seconds.items():
        drawn = bar(seconds, most, max(width - 34, 4))
        name = Text(for_terminal(stage, 14))
        grid.add_row(name, Text(duration(seconds)), Text(share_of(seconds, total), style=MUTED), drawn)
    each = duration(total / found.attempts) if found.attempts else "–"
    grid.add_row(Text("all", style="bold"), Text(duration(total), style="bold"), Text(""), Text(""))
    grid.add_row(
        Text("a scan"), Text(each), Text(""), Text(f"of {count(found.attempts, 'attempt')}", style=MUTED)
    )
    return grid


def duration(seconds: float) -> str:
    """Returns a time in the unit that suits it: `43 s`, `12.5 min`, `3.4 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"
