"""Learned embeddings that belong to an adapter: their keys, and the file that holds them beside it.

Pivotal tuning trains new words for the text encoders together with an adapter. Tools store their vectors in
the adapter's file (kohya's and A1111's bundles, OneTrainer) or in a file of their own (the advanced training
scripts of diffusers, cog-sdxl). Works on names alone and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

NUMBERED = "<s{}>"  # the words of files that name none, as the training scripts number them
_BUNDLED = re.compile(
    r"bundle_emb\.(?P<word>.+?)\.(?P<part>string_to_param\.\*|emb_params|<[^<>]+>|[^.]+)", re.DOTALL
)
_ENCODER = re.compile(r"clip_[lg]|t5|text_encoders_[0-9]")
_BY_WIDTH = frozenset({"emb_params", "string_to_param.*"})
_WORD = re.compile(r"<[^<>]+>")
_SEPARATE = re.compile(r"(?P<adapter>.+)_emb\.safetensors|embeddings\.(?:safetensors|pti)")
_UNNAMED = frozenset({"pytorch_lora_weights.safetensors", "lora.safetensors"})  # adapters of those scripts


@dataclass(frozen=True, slots=True)
class EmbeddingKey:
    """The key of the vectors that a word has in one text encoder."""

    word: str  # what stands for the vectors in a prompt; "" where the key names none
    encoder: str  # "clip_l", "clip_g", "t5", "text_encoders_0"; "" where the vectors' width shows it
    numbered: bool = False  # each vector is a word of its own: NUMBERED
    bundled: bool = False  # made to be in the file of an adapter


def parse_embedding_key(key: str) -> EmbeddingKey | None:
    """Word and text encoder of a tensor of learned embeddings; None for any other tensor.

    A bundle may have parts that no text encoder here has ("gemma", "clip_l_out"): they are the `encoder`.
    """
    if match := _BUNDLED.fullmatch(key):
        part = match["part"].replace("t5xxl", "t5")
        by_width = part in _BY_WIDTH or _WORD.fullmatch(part)
        return EmbeddingKey(match["word"], "" if by_width else part, bundled=True)
    if key in _BY_WIDTH:
        return EmbeddingKey("", "")
    if _WORD.fullmatch(key):
        return EmbeddingKey(key, "")
    plain = key.replace("t5xxl", "t5")
    return EmbeddingKey("", plain, numbered=True) if _ENCODER.fullmatch(plain) else None


def is_embeddings_file(name: str) -> bool:
    """Whether a file name is one that training scripts give to the embeddings beside an adapter."""
    return _SEPARATE.fullmatch(name) is not None


def embeddings_beside(adapter: str, names: Iterable[str]) -> str | None:
    """The file of learned embeddings that belongs to an adapter, among the names of its folder.

    ADAPTER_emb.safetensors, or for an adapter under the name that every training script writes the only file
    of embeddings there. None where there is none, or where several could belong to it.
    """
    found = [name for name in sorted(names) if name != adapter and is_embeddings_file(name)]
    own = f"{adapter.rpartition('.')[0]}_emb.safetensors"
    if own in found:
        return own
    return found[0] if adapter in _UNNAMED and len(found) == 1 else None
