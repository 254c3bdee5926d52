"""How the desk says things: foreign text made harmless, numbers and times as a person reads them.

Repo names, captions, licences and reasons come from hubs, so from strangers. `plain` is the one door they
pass; what comes out is never parsed as markup, because the desk only ever puts it into `rich.text.Text`.
"""

from __future__ import annotations

import unicodedata
from datetime import datetime
from urllib.parse import urlsplit

from rich.text import Text

from scanner.records import Decision, Verdict, Word

NOTHING = "–"
# Said with a mark and a word, so that nothing hangs on a colour.
WORDS = {Word.CONFIRM: "✓ confirmed", Word.DISMISS: "✗ dismissed", Word.UNSURE: "? unsure"}
VERDICTS = {
    Verdict.FLAGGED: "flagged",
    Verdict.NOTHING_FOUND: "nothing found",
    Verdict.SKIPPED: "skipped",
    Verdict.FAILED: "failed",
    None: "to do",
}
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, direction marks, surrogates, unassigned
_MARKS_IN_A_ROW = 2  # more combining marks than any script's word needs would climb over the lines above


def plain(foreign: str | None, limit: int = 2000) -> str:
    """One line of text that no terminal acts upon: what cannot be seen is shown as `�`, long text is cut."""
    shown: list[str] = []
    marks = 0
    for character in (foreign or "")[:limit]:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if character in "\n\r\t" or category == "Zs":
            shown.append(" ")
        elif category in _INVISIBLE:
            shown.append("\N{REPLACEMENT CHARACTER}")
        elif marks <= _MARKS_IN_A_ROW:
            shown.append(character)
    return "".join(shown) + ("…" if len(foreign or "") > limit else "")


def cell(text: str, *, right: bool = False, style: str = "") -> Text:
    """A table cell: one line, cut with an ellipsis where the column is narrower."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis", justify="right" if right else "left")


def similarity(value: float | None) -> str:
    """A cosine, to three places."""
    return NOTHING if value is None else f"{value:.3f}"


def probability(value: float | None) -> str:
    """A p or q value: four places, and never a bare zero."""
    if value is None:
        return NOTHING
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def one_in(value: float) -> str:
    """A probability as a frequency: 0.001 is `1 in 1,000`."""
    return f"1 in {round(1 / value):,}" if 0 < value <= 0.5 else f"{value:.0%}"


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 match`, `2,000 matches`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def when(time: datetime | None, present: datetime) -> str:
    """A time in the reader's own zone, as short as it can be told."""
    if time is None:
        return NOTHING
    local, today = time.astimezone(), present.astimezone()
    if local.date() == today.date():
        return f"{local:%H:%M}"
    return f"{local:%d %b}" if local.year == today.year else f"{local:%b %Y}"


def utc(time: datetime | None) -> str:
    """A time as evidence tells it."""
    return NOTHING if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"


def said(decision: Decision | None) -> str:
    """What stands: `✓ confirmed`, or that nobody has decided."""
    return "undecided" if decision is None else WORDS.get(decision.decision, "undecided")


def web_address(url: str) -> str | None:
    """The address, if it is one that a browser may be sent to: http or https with a host, nothing hidden."""
    if url != plain(url) or any(character.isspace() for character in url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.hostname else None
