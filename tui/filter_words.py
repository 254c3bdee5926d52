"""The words of the filter box as a filter of the list, and what completes them. Knows no Textual.

    monet corpus:impressionists kind:lora since:2026-11-01 undecided

A word with a colon is about one property, a word of `STATES` about the decisions, and every other word is a
part of the repo's name. Quotation marks hold words together: base:"my base".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from scanner.errors import ConfigError
from scanner.store.desk_filter import DecisionState, Filter

PROPERTIES = {  # and what their values are, for the hint below the box and for the list of keys
    "corpus": "a flag is about that corpus of yours",
    "image": "a flag is about that picture: its file name, or the beginning of its SHA256",
    "base": "the base model, or its family: sd1, sdxl, …",
    "kind": "lora, full, …",
    "source": "hf, civitai, folder",
    "grounds": "gives_back, trained_on, both",
    "since": "scanned since a day: 2026-11-01, today, or 7d for the last seven days",
}
GROUNDS = ("gives_back", "trained_on", "both")
DAYS = ("today", "7d", "30d")
STATES = {
    DecisionState.UNDECIDED: "flagged, and not yet decided",
    DecisionState.DECIDED: "flagged, and decided as a whole or flag by flag",
    DecisionState.CONFIRMED: "confirmed, as a whole or a flag",
    DecisionState.DISMISSED: "dismissed, as a whole or a flag",
    DecisionState.UNSURE: "unsure, as a whole or a flag",
    DecisionState.NOTED: "with a note",
}
EXAMPLE = "corpus:monet kind:lora since:7d undecided"
_WORD = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_DAY = re.compile(r"(\d{1,4})d")


class FilterError(ConfigError):
    """A word of the filter that cannot be used."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What may follow a text that is being typed."""

    begun: str  # the end of the text, which each value replaces
    values: tuple[str, ...]


def words_of(text: str) -> list[str]:
    """Returns the words of a text; quotation marks hold words together."""
    return _WORD.findall(text)


def parse(text: str, present: datetime) -> Filter:
    """Returns the filter that a text describes. Raises FilterError, which names the word."""
    found = Filter()
    for word in words_of(text):
        name, colon, value = (part.replace('"', "") for part in word.partition(":"))
        if not colon:
            found = _plain(found, name)
        elif name.lower() not in PROPERTIES:
            raise FilterError(_unknown(name))
        elif value:
            found = _with_property(found, name.lower(), value, present)
    return found


def _plain(found: Filter, word: str) -> Filter:
    if not word:
        return found
    if word.lower() in set(DecisionState):
        return replace(found, states=(*found.states, DecisionState(word.lower())))
    return replace(found, repo=(*found.repo, word))


def _with_property(found: Filter, name: str, value: str, present: datetime) -> Filter:
    if name == "since":
        return replace(found, since=_since(value, present))
    if name == "grounds":
        value = value.lower().replace("-", "_")
        fitting = [ground for ground in GROUNDS if ground.startswith(value)]
        if not fitting:
            raise FilterError(f"grounds:{value} is not known. Grounds are {', '.join(GROUNDS)}.")
        value = fitting[0]
    values: dict[str, Any] = {name: (*getattr(found, name), value)}
    return replace(found, **values)


def _since(value: str, present: datetime) -> datetime:
    """The beginning of a day in the local time zone."""
    today = present.astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    if value == "today":
        return today
    try:
        if days := _DAY.fullmatch(value):
            return today - timedelta(days=int(days[1]))
        return datetime.strptime(value, "%Y-%m-%d").astimezone()
    except (ValueError, OverflowError) as error:
        raise FilterError(f"since:{value} is no day. Write it as since:2026-11-01 or since:7d.") from error


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), PROPERTIES, 1)
    meant = f" Did you mean {near[0]}:?" if near else ""
    return f"“{name}:” is not known.{meant} Known are {', '.join(f'{known}:' for known in PROPERTIES)}"


def completion(text: str, values: Callable[[str], Sequence[str]]) -> Completion:
    """Returns what may follow a text; `values` gives the values that a property has in the store."""
    words = words_of(text)
    last = words[-1] if words and not text[-1:].isspace() else ""
    name, colon, begun = last.partition(":")
    if not last:
        return Completion("", ())
    if not colon:
        known = [*(f"{known}:" for known in PROPERTIES), *DecisionState]
        return Completion(last, tuple(word for word in known if word.startswith(last.lower())))
    begun = begun.replace('"', "")
    existing = _values(name.lower(), values)
    starting = [value for value in existing if value.lower().startswith(begun.lower())]
    within = [v for v in existing if v not in starting and begun.lower() in v.lower()]
    return Completion(last, tuple(f"{name}:{quoted(value)}" for value in [*starting, *within]))


def _values(name: str, values: Callable[[str], Sequence[str]]) -> Sequence[str]:
    if name == "grounds":
        return GROUNDS
    if name == "since":
        return DAYS
    return values(name) if name in ("corpus", "base", "kind", "source") else ()


def quoted(value: str) -> str:
    """Returns a value as it is written in the box."""
    return f'"{value}"' if any(character.isspace() for character in value) else value


def hint(text: str, found: Completion) -> str:
    """Returns the line below the box: what the word that is being typed may be."""
    if not text.strip():
        return f"Part of a repo's name, or words such as {EXAMPLE}. enter keeps, escape clears."
    name = found.begun.partition(":")[0].lower()
    if ":" in found.begun and name in PROPERTIES:
        shown = [value.partition(":")[2] for value in found.values]
        return f"{name}: {', '.join(shown[:12])}" if shown else f"{name}: {PROPERTIES[name]}"
    if found.values and found.begun:
        return "→ completes: " + ", ".join(found.values[:12])
    return f"Words: {' '.join(f'{known}:' for known in PROPERTIES)} {' '.join(DecisionState)}"
