"""Numbers, times, verdicts and decisions as text.

Repo names, captions, licences and reasons come from hubs, so anybody can have written them. Every such text
passes through scanner.text.for_terminal before it is shown, and goes into `rich.text.Text`, which parses no
markup.
"""

from __future__ import annotations

from datetime import datetime
from urllib.parse import urlsplit

from rich.text import Text

from scanner.records import ReviewDecision, Verdict
from scanner.text import for_terminal

NONE = "–"  # stands for a value that is missing
# A mark and a word, so that no meaning depends on a colour.
DECISIONS = {
    ReviewDecision.CONFIRM: "✓ confirmed",
    ReviewDecision.DISMISS: "✗ dismissed",
    ReviewDecision.UNSURE: "? unsure",
    None: "undecided",
}
VERDICTS = {
    Verdict.FLAGGED: "flagged",
    Verdict.NOTHING_FOUND: "nothing found",
    Verdict.SKIPPED: "skipped",
    Verdict.FAILED: "failed",
    None: "to do",
}


def cell(text: str, *, right: bool = False, style: str = "") -> Text:
    """Returns a table cell: one line, cut with an ellipsis if the column is narrower."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis", justify="right" if right else "left")


def similarity(value: float | None) -> str:
    """Returns a cosine with three decimal places."""
    return NONE if value is None else f"{value:.3f}"


def probability(value: float | None) -> str:
    """Returns a p or q value with four decimal places; never a bare zero."""
    if value is None:
        return NONE
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def one_in(value: float) -> str:
    """Returns a probability as a frequency: 0.001 is `1 in 1,000`."""
    return f"1 in {round(1 / value):,}" if 0 < value <= 0.5 else f"{value:.0%}"


def share(value: float) -> str:
    """Returns the largest share that a q value allows: `about 2.5% or fewer`; never a bare zero."""
    return f"about {value:.1%} or fewer" if value >= 0.001 else "fewer than 0.1%"


def count(number: int, noun: str, plural: str = "") -> str:
    """Returns a number with its noun: `1 match`, `2,000 matches`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def short_time(time: datetime | None, present: datetime) -> str:
    """Returns a time in the local time zone: as `14:05`, `22 Nov` or `Dec 2024`."""
    if time is None:
        return NONE
    local, today = time.astimezone(), present.astimezone()
    if local.date() == today.date():
        return f"{local:%H:%M}"
    return f"{local:%d %b}" if local.year == today.year else f"{local:%b %Y}"


def utc(time: datetime | None) -> str:
    """Returns a time in UTC to the second."""
    return NONE if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"


def decision_text(decision: ReviewDecision | None) -> str:
    """Returns a decision with its mark, `✓ confirmed`, or `undecided`."""
    return DECISIONS[decision]


def web_address(url: str) -> str | None:
    """Returns the URL if a browser may open it: http or https, with a host, without hidden characters."""
    if url != for_terminal(url) or any(character.isspace() for character in url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.hostname else None
