"""Model cards: the YAML front matter of README.md, and sentences below it. Imports no torch.

The sentences are those that the training scripts of diffusers write (hub_utils.py and examples/dreambooth),
and those of the notebook of the DreamBooth hackathon and of the DreamBooth training space.
A card is untrusted: a field may be missing or of any type, and no content raises an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from finextract.metadata.sidecar_files import parse_sidecar_file
from finextract.metadata.training import Training, parse_training
from finextract.metadata.untrusted import MAX_TEXT_CHARS as MAX_CAPTION_CHARS
from finextract.metadata.untrusted import text_of, yaml_of

__all__ = [
    "MAX_CAPTION_CHARS", "Card", "Training", "card_from", "parse_card", "parse_sidecar_file",
    "parse_training",
]  # fmt: skip

MAX_CARD_CHARS = 1_000_000
MAX_TAGS = 1_000
_FRONT_MATTER = re.compile(r"---[ \t\r]*\n(.*?)\n---[ \t\r]*(?:\n|$)", re.DOTALL)
_TRAINED_ON = re.compile(r"[Ww]eights were trained on ([^\n\[\]]{1,300}?) using \[DreamBooth\]")
_NOTEBOOK = re.compile(r"modifying the `instance_prompt`:? {0,3}\*\*([^\n*]{1,300})\*\*")
_SPACE = re.compile(r"^([^\n()!\[\]]{1,100}?) {0,3}\(use that on your prompt\)", re.MULTILINE)
_TRIGGER = re.compile(r"You should use `?([^\n`]{1,300}?)`? to trigger")

_SENTENCES = (_TRAINED_ON, _NOTEBOOK, _SPACE, _TRIGGER)


@dataclass(frozen=True, slots=True)
class Card:
    """The fields of a model card that a scan can use."""

    base_model: str | None = None  # OWNER/NAME, or a path on the author's computer
    instance_prompt: str | None = None  # the training caption
    trigger_words: str | None = None  # of a hub's entry, or of a file that a download tool wrote
    alternatives: tuple[str, ...] = ()  # further prompts beside the one that was chosen as caption
    license: str | None = None
    tags: tuple[str, ...] = ()


def parse_card(text: str) -> Card:
    """The card in the text of a README; an empty card where there is none that can be read.

    Where the front matter has no instance prompt, it is taken from the sentences of the training scripts.
    """
    text = text[:MAX_CARD_CHARS].lstrip("\ufeff \t\r\n")
    match = _FRONT_MATTER.match(text)
    card = card_from(yaml_of(match[1])) if match else Card()
    if card.instance_prompt is not None:
        return card
    found = next((m for pattern in _SENTENCES if (m := pattern.search(text))), None)
    return card if found is None else replace(card, instance_prompt=text_of(found[1].strip("`\"' ")))


def card_from(data: Mapping[str, Any]) -> Card:
    """The card in a hub's `cardData`, or in parsed front matter."""
    tags = data.get("tags")
    return Card(
        base_model=_text(data.get("base_model")),
        instance_prompt=_text(data.get("instance_prompt")),
        license=_text(data.get("license")),
        tags=tuple(t for t in tags[:MAX_TAGS] if isinstance(t, str)) if isinstance(tags, list) else (),
    )


def _text(value: object) -> str | None:
    if isinstance(value, list) and value:  # base_model may be a list
        value = value[0]
    return text_of(value)
