"""Untrusted text, made safe to store (`printable`, `first_line`) and to display (the others)."""

from __future__ import annotations

from finextract.text import first_line, for_terminal, for_terminal_lines, printable

__all__ = ["first_line", "for_terminal", "for_terminal_lines", "printable"]
