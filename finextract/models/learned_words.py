"""Words that were learned together with an adapter, put into a tuned model's tokenizers and text encoders.

V = vectors of one word, D = width of a text encoder. The base model's own tokenizers and tensors stay as they
are.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finextract.errors import BaseMismatch, CorruptWeights, UnsupportedWeights
from finextract.sharing import exchange_tensor
from finextract.weights.embedding_keys import NUMBERED, parse_embedding_key

MAX_VECTORS = 1000  # of one file; prompts have at most 512 tokens
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class LearnedWord:
    """The vectors that stand for a word in one text encoder."""

    word: str  # as prompts have it: "<s0>", "sks"
    encoder: str  # "clip_l", "clip_g", "t5", "text_encoders_0"; "" where the vectors' width shows it
    vectors: Tensor  # [V, D]
    key: str  # of their tensor in the file


def parse_words(state: Mapping[str, Tensor], file_name: str) -> list[LearnedWord]:
    """The learned words among the tensors of a file, which may hold others.

    A word without a name is called like the file, or numbered as the training scripts do it: <s0>, <s1>.
    Raises CorruptWeights for a tensor that cannot be vectors, and where a word has another number of vectors
    in one text encoder than in the other.
    """
    words: list[LearnedWord] = []
    for key, tensor in state.items():
        if (parsed := parse_embedding_key(key)) is None:
            continue
        vectors = tensor[None] if tensor.dim() == 1 else tensor
        usable = vectors.dim() == 2 and tensor.dtype in _FLOATS and 0 < len(vectors) <= MAX_VECTORS
        if not usable or not torch.isfinite(vectors).all():
            raise CorruptWeights(
                f"the embedding {key[:120]!r} is {list(tensor.shape)[:8]} {tensor.dtype}: it is not one to "
                f"{MAX_VECTORS} vectors of finite numbers."
            )
        if parsed.numbered:
            words += [
                LearnedWord(NUMBERED.format(i), parsed.encoder, vector[None], key)
                for i, vector in enumerate(vectors)
            ]
        else:
            name = parsed.word or file_name.removesuffix(".safetensors") or file_name
            words.append(LearnedWord(name, parsed.encoder, vectors, key))
    together: dict[str, dict[str, int]] = {}  # word, or NUMBERED -> key -> vectors
    for learned in words:
        parsed = parse_embedding_key(learned.key)
        word = NUMBERED if parsed is not None and parsed.numbered else learned.word
        counts = together.setdefault(word, {})
        counts[learned.key] = counts.get(learned.key, 0) + len(learned.vectors)
    for counts in together.values():
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{key[:120]!r} {count}" for key, count in counts.items())
            raise CorruptWeights(f"the embeddings of one word have not as many vectors each: {listed}.")
    return words


class LearnedTokenizer:
    """A tokenizer that knows learned words: each is replaced by the tokens of its vectors."""

    def __init__(self, tokenizer: Any, words: Mapping[str, Sequence[str]]) -> None:
        self._tokenizer, self._words = tokenizer, {word.lower(): " ".join(w) for word, w in words.items()}
        longest_first = sorted(words, key=len, reverse=True)
        self._any_word = re.compile("|".join(map(_whole_word, longest_first)), re.IGNORECASE)

    @property
    def model_max_length(self) -> int:
        """The number of tokens that the model takes."""
        length: int = self._tokenizer.model_max_length
        return length

    def __call__(self, prompt: str, **options: Any) -> Any:
        """What the tokenizer makes of the prompt with its learned words replaced."""
        replaced = self._any_word.sub(self._tokens_of, prompt)
        return self._tokenizer(replaced, **options)

    def _tokens_of(self, match: re.Match[str]) -> str:
        return self._words.get(match[0].lower(), match[0])


def _whole_word(word: str) -> str:
    """A pattern of the word that does not match inside a longer one."""
    start, end = word[:1].isalnum(), word[-1:].isalnum()
    return f"{r'(?<!\w)' if start else ''}{re.escape(word)}{r'(?!\w)' if end else ''}"


def learn(
    modules: Mapping[str, Any], encoders: Mapping[str, str], words: Iterable[LearnedWord]
) -> dict[str, LearnedTokenizer]:
    """Puts words into text encoders, and returns the tokenizers that know them, by component.

    `modules` are a tuned model's own text encoders and its tokenizers by component, `encoders` maps the names
    that files have for its text encoders to their components. A text encoder's embedding is exchanged for a
    longer one; no tensor is changed in place. A text encoder that the model lacks is left out. Raises
    BaseMismatch for vectors of another width, UnsupportedWeights for those of no text encoder of the family.
    """
    of_component: dict[str, list[LearnedWord]] = {}
    for learned in words:
        component = _component_of(learned, modules, encoders)
        if modules.get(component) is None:
            continue
        width = modules[component].get_input_embeddings().weight.shape[1]
        if learned.vectors.shape[1] != width:
            raise BaseMismatch(
                f"the embedding {learned.key[:120]!r} holds vectors of {learned.vectors.shape[1]} numbers; "
                f"the base model's {component} takes {width}."
            )
        of_component.setdefault(component, []).append(learned)
    return {
        tokenizer: _learn(modules[component], modules[tokenizer], learned)
        for component, learned in of_component.items()
        for tokenizer in [component.replace("text_encoder", "tokenizer")]
    }


def _component_of(learned: LearnedWord, modules: Mapping[str, Any], encoders: Mapping[str, str]) -> str:
    """The text encoder that a word belongs to. Raises BaseMismatch and UnsupportedWeights."""
    if learned.encoder:
        numbered = {f"text_encoders_{i}": component for i, component in enumerate(encoders.values())}
        component = encoders.get(learned.encoder) or numbered.get(learned.encoder)
        if component is None:
            raise UnsupportedWeights(
                f"the embedding {learned.key[:120]!r} is for a text encoder that the base model lacks, or "
                "for another place than its tokens."
            )
        return component
    widths = {
        component: module.get_input_embeddings().weight.shape[1]
        for component in encoders.values()
        if (module := modules.get(component)) is not None
    }
    fitting = [c for c, width in widths.items() if width == learned.vectors.shape[1]]
    if not fitting:
        takes = ", ".join(f"{component} {width}" for component, width in widths.items())
        raise BaseMismatch(
            f"the embedding {learned.key[:120]!r} holds vectors of {learned.vectors.shape[1]} numbers; the "
            f"base model's text encoders take others ({takes})."
        )
    return fitting[0]


def _learn(encoder: Any, tokenizer: Any, words: Sequence[LearnedWord]) -> LearnedTokenizer:
    tokenizer = copy.deepcopy(tokenizer)
    tokens: dict[str, list[str]] = {}
    rows: dict[int, Tensor] = {}
    for learned in words:
        for vector in learned.vectors:
            token = f"<learned-{len(rows)}>"  # of no vocabulary, whatever the word is
            tokenizer.add_tokens(token)
            rows[tokenizer.convert_tokens_to_ids(token)] = vector
            tokens.setdefault(learned.word, []).append(token)
    embedding = encoder.get_input_embeddings()
    old = embedding.weight
    new = old.new_zeros(max(len(old), max(rows) + 1), old.shape[1])
    new[: len(old)] = old
    for row, vector in rows.items():
        new[row] = vector.to(new)
    exchange_tensor(encoder, old, torch.nn.Parameter(new, requires_grad=False))
    embedding.num_embeddings = len(new)
    return LearnedTokenizer(tokenizer, tokens)
