"""Untrusted text and error messages, made safe to print and to store. Imports only the standard library."""

from __future__ import annotations

MAX_LINE_CHARS = 200


def printable(text: str, limit: int) -> str:
    """The text on one line, without control characters, cut to `limit` characters."""
    return "".join(c for c in text if c.isprintable())[:limit]


def first_line(error: BaseException, limit: int = MAX_LINE_CHARS) -> str:
    """The first line of an error's message without control characters, to be quoted inside a sentence.

    Of an error of the operating system the description alone, without its number. The name of the error's
    class where the message is empty. A final full stop is removed.
    """
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = next(iter(message.strip().splitlines()), "") or type(error).__name__
    return printable(line, limit).rstrip(". ")
