"""Untrusted values, read leniently: one of an unexpected type, size or range is None, and nothing raises.

Texts lose the characters that cannot be printed (control characters, lone surrogates) and are cut; numbers
are finite and within bounds; JSON and YAML may be broken or nested without end.
"""

from __future__ import annotations

import json
import math
from typing import Any

import yaml

MAX_TEXT_CHARS = 1_000
MAX_YAML_CHARS = 100_000  # about half a second of PyYAML
_YAML_ERRORS = (  # PyYAML raises the plain ones for values such as `!!int ""`
    yaml.YAMLError, ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError,
    OverflowError,
)  # fmt: skip


def text_of(value: object, limit: int = MAX_TEXT_CHARS) -> str | None:
    """A text on one line, cut to `limit` characters; None for any other type, and for an empty text."""
    if not isinstance(value, str):
        return None
    return "".join(c for c in value[: 4 * limit].strip() if c.isprintable())[:limit].strip() or None


def number_of(value: object, low: float, high: float) -> float | None:
    """A number, or a text that contains one, in [low, high]; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > 40:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and low <= number <= high else None


def whole_of(value: object, low: int, high: int) -> int | None:
    """An integer, or a text that contains one, in [low, high]; else None."""
    number = number_of(value, low, high)
    return int(number) if number is not None and number == int(number) else None


def flag_of(value: object) -> bool | None:
    """A bool, or a text "true" or "false" in any case; else None."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value[:10].strip().lower())
    return value if isinstance(value, bool) else None


def json_of(text: object) -> Any:
    """The value of a JSON text; None where it cannot be parsed."""
    if not isinstance(text, str):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def object_of(text: object) -> dict[str, Any]:
    """The object in a JSON text; an empty one where there is none."""
    value = json_of(text)
    return value if isinstance(value, dict) else {}


class _Yaml(yaml.SafeLoader):
    """Plain values only. Aliases are refused, as nested ones expand without bound; unknown tags are None."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


_Yaml.add_multi_constructor("", lambda loader, suffix, node: None)


def yaml_of(text: str) -> dict[str, Any]:
    """The mapping in a YAML text of at most 100,000 characters; else an empty one."""
    if len(text) > MAX_YAML_CHARS:
        return {}
    try:
        value = yaml.load(text, Loader=_Yaml)  # a SafeLoader
    except _YAML_ERRORS:
        return {}
    return value if isinstance(value, dict) else {}
