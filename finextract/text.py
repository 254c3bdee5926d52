"""Untrusted text and error messages, made safe to print and to store. Imports only the standard library."""

from __future__ import annotations

import sys
import unicodedata

MAX_LINE_CHARS = 200
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, direction marks, surrogates, unassigned
_MAX_MARKS = 2  # combining marks in a row; no script needs more, and more would cover the lines above


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


def for_terminal(text: str | None, limit: int = 2000) -> str:
    """Returns one line of at most `limit` characters that a terminal only displays.

    A line break or tab becomes a space, every other invisible character `�`. A longer text ends in `…`.
    """
    shown: list[str] = []
    marks = 0
    for character in (text or "")[:limit]:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if character in "\n\r\t" or category == "Zs":
            shown.append(" ")
        elif category in _INVISIBLE:
            shown.append("\N{REPLACEMENT CHARACTER}")
        elif marks <= _MAX_MARKS:
            shown.append(character)
    return "".join(shown) + ("…" if len(text or "") > limit else "")


def for_terminal_lines(text: str) -> str:
    """The text with its line breaks, each line as `for_terminal` returns it, however long it is."""
    return "\n".join(for_terminal(line, sys.maxsize) for line in text.split("\n"))
