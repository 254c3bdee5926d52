"""The patterns of a PEFT configuration that give single layers another alpha. They come from strangers.

PEFT reads each as a regular expression that has to match the end of a layer's name, from a dot on. An
expression can take time without bound, so only a part of the language is accepted: names, ".", "\\d", "\\w",
small sets of characters, groups, a few alternatives, and one repetition of one such character.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from finextract.errors import UnsupportedWeights

MAX_PATTERN_CHARS, MAX_LAYER_CHARS = 300, 300
MAX_ALTERNATIVES, MAX_REPEATED = 4, 1  # in one pattern
MAX_COSTLY = 16  # patterns with either
_ACCEPTED = re.compile(
    r"(?:[\w/-]|\\[.dw-]|\[[A-Za-z0-9_-]{1,20}\]|\.|\(\?:|[()|^$]|(?<=[.\]])[+*]|(?<=\\[dw])[+*])*", re.ASCII
)


def value_of_layer(patterns: Mapping[str, object], layer: str) -> object | None:
    """The value of the first pattern that matches a layer's name, as PEFT's get_pattern_key finds it.

    None where no pattern matches. Raises UnsupportedWeights for a pattern that is not accepted.
    """
    compiled = _compiled(tuple(patterns))
    if len(layer) > MAX_LAYER_CHARS:  # no model has such a layer
        return None
    found = next((text for text, pattern in compiled if pattern.match(layer)), None)
    return patterns[found] if found is not None else None


@lru_cache(maxsize=8)
def _compiled(patterns: tuple[str, ...]) -> list[tuple[str, re.Pattern[str]]]:
    """Each pattern as PEFT compiles it (peft.utils.other.get_pattern_key)."""
    costly = sum(1 for text in patterns if re.search(r"[+*|]", text))
    compiled = []
    for text in patterns:
        accepted = (
            len(text) <= MAX_PATTERN_CHARS
            and text.count("|") <= MAX_ALTERNATIVES
            and text.count("*") + text.count("+") <= MAX_REPEATED
            and costly <= MAX_COSTLY
            and _ACCEPTED.fullmatch(text) is not None
        )
        try:
            pattern = re.compile(rf"(.*\.)?({text})$") if accepted else None
        except re.error:
            pattern = None
        if pattern is None:
            raise UnsupportedWeights(
                f"the adapter's configuration has the pattern {text[:80]!r}, which is neither a layer's name "
                "nor a simple expression; its alpha cannot be read."
            )
        compiled.append((text, pattern))
    return compiled
