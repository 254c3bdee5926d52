"""A training caption from the prompts and trigger words that authors publish. Imports no torch.

They are written for image generators: A1111's web UI reads "<lora:NAME:1>" as an instruction to load a file
and "(words:1.2)" as a weight of words. Neither was in a training caption. All of it is untrusted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from finextract.metadata.untrusted import text_of

MAX_WORDS = 100  # of a list of trigger words
MAX_ALTERNATIVES, MAX_ALTERNATIVE_CHARS = 20, 300
FEW = 4  # so many short trigger words are the pieces of one caption; more are alternatives
CLIP_POSITIONS = 75  # tokens of a caption that CLIP reads, without those for its start and its end
_NETWORK = re.compile(r"<\s*(?:lora|lyco|lycoris|hypernet)\s*:[^<>]{0,300}>", re.IGNORECASE)
_WEIGHTED = re.compile(r"\(([^()]{1,1000}?)\s*:\s*\d{0,3}\.?\d{1,4}\s*\)")
_ESCAPED = {"\\(": "\ue000", "\\)": "\ue001"}  # literal parentheses, as in "name \(series\)"
_MAX_NESTED = 5
# CLIP's tokenizer splits a text at these places at least (Radford et al. 2021, openai/CLIP simple_tokenizer).
_CLIP_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The caption that was chosen from a list of trigger words."""

    caption: str | None = None
    alternatives: tuple[str, ...] = ()  # the other entries of the list, where each is a prompt of its own


def plain_prompt(prompt: object) -> str | None:
    """A prompt without network tags and weights; None where nothing else is left."""
    text = text_of(prompt)
    if text is None:
        return None
    text = _NETWORK.sub(" ", text)
    for escaped, stand_in in _ESCAPED.items():
        text = text.replace(escaped, stand_in)
    for _ in range(_MAX_NESTED):
        text, found = _WEIGHTED.subn(r"\1", text)
        if not found:
            break
    for escaped, stand_in in _ESCAPED.items():
        text = text.replace(stand_in, escaped[1])
    text = re.sub(r"\s*,(?:\s*,)*", ",", re.sub(r"\s+", " ", text))
    return text.strip(" ,") or None


def choose_caption(words: object) -> Chosen:
    """The caption in a list of trigger words, or in one text of them.

    Where entries are whole prompts (they have a comma, or four words), the first of those is the caption.
    Else up to four entries are the pieces of one caption, joined by commas, and of five and more the first is
    the caption.
    """
    entries = words if isinstance(words, list) else [words]
    stated = list(dict.fromkeys(p for w in entries[:MAX_WORDS] if (p := plain_prompt(w))))
    if not stated:
        return Chosen()
    whole = next((p for p in stated if "," in p or len(p.split()) >= 4), None)
    if whole is None and len(stated) <= FEW:
        return Chosen(text_of(", ".join(stated)))
    caption = whole or stated[0]
    others = (text_of(p, MAX_ALTERNATIVE_CHARS) for p in stated if p != caption)
    return Chosen(caption, tuple(p for p in others if p)[:MAX_ALTERNATIVES])


def exceeds_clip(caption: str) -> bool:
    """Whether a caption certainly has more tokens than CLIP reads: its end has no effect.

    False does not show the contrary, since CLIP splits rare words further.
    """
    return sum(1 for _ in _CLIP_PIECE.finditer(caption)) > CLIP_POSITIONS
