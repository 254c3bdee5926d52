"""Adapter files parsed into one adapter for each layer. The parser is chosen by the file's algorithms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from finextract.adapters.base import Adapter
from finextract.adapters.lora import parse_lora
from finextract.errors import UnsupportedWeights
from finextract.support import describe
from finextract.weights.formats import WeightsKind

# The tensors of the file, the metadata of its header, and the fields of a PEFT adapter_config.json.
type Parser = Callable[[Mapping[str, Tensor], Mapping[str, str], Mapping[str, object]], Sequence[Adapter]]
# `WeightsKind.algorithms` -> parser, one for each entry of finextract.support.SUPPORTED_ALGORITHMS.
PARSERS: Mapping[tuple[str, ...], Parser] = {("LoRA",): parse_lora}


def parse_adapter(
    kind: WeightsKind,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    config: Mapping[str, object],
) -> Sequence[Adapter]:
    """The adapter of each layer in an adapter file of this kind.

    `metadata` are those of the file's header, `config` the fields of a PEFT adapter_config.json, empty where
    there is none. Raises UnsupportedWeights where the algorithms have no parser, and what the parser raises.
    """
    parser = PARSERS.get(kind.algorithms)
    if parser is None:
        raise UnsupportedWeights(f"{describe(kind)} cannot be merged: their algorithm has no parser.")
    return parser(state, metadata, config)
