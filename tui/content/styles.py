"""The marks and colours of verdicts, grounds and decisions, defined here alone.

A mark and a word tell what a colour tells, so that nothing is lost without colours. A style is named here and
gets its colour from Textual's theme (tui.themes), so that each theme, light or dark, has readable ones.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from scanner.records import Ground, ReviewDecision, Verdict
from tui.content.formatting import VERDICTS, decision_text

VERDICT_MARKS = {
    Verdict.FLAGGED: "▲",
    Verdict.NOTHING_FOUND: "○",
    Verdict.SKIPPED: "–",
    Verdict.FAILED: "!",
    None: "…",
}
GROUND_MARKS = {Ground.GIVES_BACK: "●", Ground.TRAINED_ON: "◆"}
# The name of each style, with the variable of Textual's theme that colours it; without one it is dim.
ACCENT, MUTED = "desk.accent", "desk.muted"
COLOURS = {
    "verdict.flagged": "text-error",
    "verdict.nothing_found": "text-secondary",
    "verdict.skipped": "",
    "verdict.failed": "text-warning",
    "verdict.to_do": "",
    "ground.gives_back": "text-error",
    "ground.trained_on": "text-warning",
    "decision.confirm": "text-success",
    "decision.dismiss": "text-secondary",
    "decision.unsure": "text-primary",
    "decision.none": "",
    ACCENT: "text-accent",
    MUTED: "",
}


def verdict_style(verdict: Verdict | None) -> str:
    """Returns the name of a verdict's style."""
    return f"verdict.{verdict or 'to_do'}"


def verdict_mark(verdict: Verdict | None) -> Text:
    """Returns a verdict with its mark: `▲ flagged`."""
    return marked(VERDICT_MARKS[verdict], VERDICTS[verdict], verdict_style(verdict))


def ground_mark(ground: Ground) -> Text:
    """Returns one ground of a flag with its mark: `● gives back`."""
    return marked(GROUND_MARKS[ground], ground.replace("_", " "), f"ground.{ground}")


def grounds_mark(grounds: Iterable[Ground]) -> Text:
    """Returns the grounds of a flag with their marks, for a column of 12 cells: `◆● both`."""
    text, named = Text(no_wrap=True, overflow="ellipsis"), tuple(grounds)
    if len(named) == 1:
        return text.append_text(ground_mark(named[0]))
    for ground in named:
        text.append(GROUND_MARKS[ground], style=f"ground.{ground}")
    return text.append(" both", style="bold") if named else text


def decision_mark(decision: ReviewDecision | None) -> Text:
    """Returns a decision with its mark, `✓ confirmed`, or `undecided`."""
    style = f"decision.{decision or 'none'}"
    return Text(no_wrap=True, overflow="ellipsis").append(decision_text(decision), style=style)


def marked(mark: str, word: str, style: str) -> Text:
    """Returns a mark and its word in one style."""
    return Text(no_wrap=True, overflow="ellipsis").append(f"{mark} {word}", style=style)


def bar(value: float, most: float, width: int, style: str = ACCENT) -> Text:
    """Returns a bar of at most `width` cells, in eighths of a cell; a value above 0 has one at least."""
    eighths = 0 if most <= 0 or value <= 0 else max(1, round(8 * width * min(value / most, 1)))
    whole, rest = divmod(eighths, 8)
    return Text("█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else ""), style=style, no_wrap=True)
