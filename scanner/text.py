"""Untrusted text, made safe to store (`printable`, `first_line`) and to display (`for_terminal`)."""

from __future__ import annotations

import unicodedata

from finextract.text import first_line, printable

__all__ = ["first_line", "for_terminal", "printable"]

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, direction marks, surrogates, unassigned
_MAX_MARKS = 2  # combining marks in a row; no script needs more, and more would cover the lines above


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
