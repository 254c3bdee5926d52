"""Fields of an entry that every source reads or makes in the same way."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

MAX_SIZE = 1 << 50  # bytes; a larger number counts as missing
UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=UTC)


def placeholder_id(source: str, repo: str, revision: str, file: str) -> str:
    """The id of an entry whose weights have no known SHA256, different from that of every other entry."""
    return hashlib.sha256("\n".join(("unidentified", source, repo, revision, file)).encode()).hexdigest()


def visible(name: str, limit: int = 200) -> str:
    """A name of a file or a repository as it is stored and shown: what cannot be printed is escaped.

    Different names stay different; a longer one than `limit` characters ends in a part of its hash.
    """
    shown = "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in name)
    if len(shown) <= limit:
        return shown
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{shown[: limit - 12]}...{digest[:9]}"


def when(value: object) -> datetime:
    """A time that a hub states, UTC; UNKNOWN_TIME where it cannot be read."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else UNKNOWN_TIME
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return UNKNOWN_TIME
