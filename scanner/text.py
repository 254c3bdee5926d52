"""Text from strangers and from errors, made safe to print and to store."""

from __future__ import annotations


def printable(text: str, limit: int) -> str:
    """A stranger's text on one line, without control characters, at most `limit` long."""
    return "".join(c for c in text if c.isprintable())[:limit]


def first_line(error: BaseException) -> str:
    """An error's first line without its control characters, for a message of one line."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return "".join(c for c in line if c.isprintable())[:200].rstrip(". ")
