"""Verdicts, decisions, short times and addresses as text; numbers are those of scanner.wording.

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
from scanner.wording import NONE as NONE
from scanner.wording import count as count
from scanner.wording import one_in as one_in
from scanner.wording import probability as probability
from scanner.wording import share as share
from scanner.wording import similarity as similarity
from scanner.wording import utc as utc

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


def short_time(time: datetime | None, present: datetime) -> str:
    """Returns a time in the local time zone: as `14:05`, `22 Nov` or `Dec 2024`."""
    if time is None:
        return NONE
    local, today = time.astimezone(), present.astimezone()
    if local.date() == today.date():
        return f"{local:%H:%M}"
    return f"{local:%d %b}" if local.year == today.year else f"{local:%b %Y}"


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


def share_of(part: float, whole: float) -> str:
    """Returns a part of a whole in per cent; a part above 0 is never told as 0 %."""
    if whole <= 0:
        return NONE
    return "<1 %" if 0 < part / whole < 0.01 else f"{part / whole:.0%}".replace("%", " %")
