"""Untrusted text and error messages, made safe to print and to store. Imports only the standard library."""

from __future__ import annotations

MAX_LINE_CHARS = 200


def printable(text: str, limit: int) -> str:
    """The text on one line, without control characters, cut to `limit` characters."""
    return "".join(c for c in text if c.isprintable())[:limit]


def first_line(error: BaseException, limit: int = MAX_LINE_CHARS) -> str:
    """The first line of an error's message without control characters, to be quoted inside a sentence.

    The name of the error's class where the message is empty. A final full stop is removed.
    """
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return printable(line, limit).rstrip(". ")
