"""CLIP's tokenizer, made of the list of merges that the package open_clip_torch brings along.

The published tokenizers of CLIP hold the same vocabulary as vocab.json and merges.txt: the 256 bytes as
characters, these as ends of words, one token for each merge in its order, and the two marks.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finextract.errors import RequestError

_SIZE = 49_408  # tokens
_BYTES = 256
_MARKS = ("<|startoftext|>", "<|endoftext|>")


@cache
def clip_vocabulary() -> tuple[Mapping[str, int], tuple[tuple[str, str], ...]]:
    """The ids of CLIP's 49,408 tokens, and its merges in order.

    Raises RequestError where open_clip_torch is not installed.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    spec = find_spec("open_clip")  # found, and not imported
    places = [
        Path(place) / "bpe_simple_vocab_16e6.txt.gz"
        for place in (spec and spec.submodule_search_locations) or ()
    ]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise RequestError("CLIP's vocabulary is missing: install open_clip_torch, which brings it along.")
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()
    count = _SIZE - 2 * _BYTES - len(_MARKS)
    merges = tuple((left, right) for left, right in (line.split() for line in lines[1 : 1 + count]))
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{c}</w>" for c in letters), *(left + right for left, right in merges), *_MARKS]
    return {word: number for number, word in enumerate(words)}, merges


def clip_tokenizer(config: Mapping[str, Any]) -> Any:
    """A transformers.CLIPTokenizer with CLIP's vocabulary, and the tokens of a tokenizer_config.json."""
    from transformers import CLIPTokenizer

    vocabulary, merges = clip_vocabulary()
    options = {key: value for key, value in config.items() if key != "tokenizer_class"}
    return CLIPTokenizer(vocab=dict(vocabulary), merges=list(merges), **options)
