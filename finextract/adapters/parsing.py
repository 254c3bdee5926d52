"""Adapter files parsed into the adapters of each layer. A layer's own tensors show its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finextract.adapters import boft, dora, full, glora, ia3, loha, lokr, lora, oft
from finextract.adapters.base import Adapter
from finextract.adapters.tensors import LayerTensors
from finextract.errors import CorruptWeights, UnsupportedWeights
from finextract.metadata.untrusted import object_of
from finextract.weights.adapter_keys import OFT_PARTS, group_by_layer


@dataclass(frozen=True)
class AdapterKind:
    """A kind of adapter: what shows that a layer has it, what it takes, and the parser of one layer."""

    parse: Callable[[LayerTensors], Adapter]
    shown_by: frozenset[str]  # parts of which each one shows the kind
    takes: frozenset[str] = frozenset()  # further parts
    is_difference: bool = False  # whether a DoRA may be around it
    beside_others: bool = False  # whether a layer may have it in addition to another kind

    def fits(self, tensors: LayerTensors) -> bool:
        """Whether a layer has this kind. Both kinds that have oft_blocks are told apart by their axes."""
        shown = self.shown_by & tensors.parts.keys()
        if shown == {"oft_blocks"}:
            return (self.parse is boft.parse) == (tensors["oft_blocks"].dim() == 4)
        return bool(shown)


_SCALE = frozenset({"alpha", "scalar"})
KINDS = (
    AdapterKind(
        lora.parse,
        frozenset({"lora_down", "lora_up"}),
        _SCALE | {"lora_mid", "lora_bias"},
        is_difference=True,
    ),
    AdapterKind(
        loha.parse,
        frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        _SCALE | {"hada_t1", "hada_t2"},
        is_difference=True,
    ),
    AdapterKind(
        lokr.parse,
        frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}),
        _SCALE | {"lokr_t2"},
        is_difference=True,
    ),
    AdapterKind(glora.parse, frozenset({"a1", "a2", "b1", "b2"}), _SCALE | {"bm"}),
    AdapterKind(
        oft.parse,
        frozenset({"oft_blocks", "oft_diag", "oft_R", *OFT_PARTS}),
        frozenset({"alpha", "rescale", "scaled_oft"}),
    ),
    AdapterKind(boft.parse, frozenset({"oft_blocks", "boft_R"}), frozenset({"alpha", "rescale", "boft_s"})),
    AdapterKind(ia3.parse, frozenset({"on_input", "ia3_l"}), frozenset({"weight"})),
    AdapterKind(full.parse, frozenset({"diff", "diff_b"}), beside_others=True),
    AdapterKind(full.parse_norm, frozenset({"w_norm", "b_norm"}), beside_others=True),
)
_FLOATS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)
DORA = frozenset({"dora_scale", "lora_magnitude"})


def parse_adapter(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], config: Mapping[str, object]
) -> Sequence[Adapter]:
    """The adapters of all layers in an adapter file, whichever algorithms its layers have.

    `metadata` are those of the file's header, `config` the fields of a PEFT adapter_config.json, empty where
    there is none; diffusers stores the same fields in the header (`lora_adapter_metadata`). Without either,
    and without an alpha in the file, alpha = r. Learned embeddings are no layers: see
    finextract.models.learned_words.
    Raises UnsupportedWeights for a tensor that fits no kind, CorruptWeights for an incomplete layer.
    """
    grouped = group_by_layer(state)
    if grouped.rest:
        raise UnsupportedWeights(
            f"the adapter holds {_named(grouped.rest)}, which fits no kind of adapter that can be merged."
        )
    fields = {**object_of(metadata.get("lora_adapter_metadata")), **config}
    adapters: list[Adapter] = []
    for layer, keys in grouped.layers.items():
        parts = {part: _numbers(key, part, state[key]) for part, key in keys.items()}
        adapters += _of_layer(LayerTensors(layer, parts, fields))
    return adapters


def _of_layer(tensors: LayerTensors) -> Iterator[Adapter]:
    """The adapters of one layer, in the order in which they change it."""
    left = set(tensors.parts)
    kinds = [kind for kind in KINDS if kind.fits(tensors)]
    if sum(not kind.beside_others for kind in kinds) > 1:
        raise UnsupportedWeights(
            f"the adapter's layer {tensors.layer[:120]!r} holds tensors of several kinds: "
            f"{_named(sorted(left))}."
        )
    for kind in kinds:
        adapter = kind.parse(tensors)
        left -= kind.shown_by | kind.takes
        if kind.is_difference and left & DORA:
            adapter = dora.around(adapter, tensors)
            left -= DORA
        yield adapter
    if left and (kinds or left != {"alpha"}):
        raise UnsupportedWeights(
            f"the adapter's layer {tensors.layer[:120]!r} holds {_named(sorted(left))}, which no kind of "
            "adapter that can be merged has there."
        )


def _numbers(key: str, part: str, tensor: Tensor) -> Tensor:
    """A tensor that holds real numbers, or whole ones where it is a single number. Raises CorruptWeights."""
    whole = part in ("alpha", "on_input", "scaled_oft") and not tensor.dtype.is_complex
    if tensor.dtype not in _FLOATS and not whole:
        raise CorruptWeights(f"the adapter holds {key[:120]!r} as {tensor.dtype}, which no trainer writes.")
    return tensor


def _named(keys: Sequence[str]) -> str:
    """The first of some keys, for a message, and how many more there are."""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(repr(key[:120]) for key in keys[:3]) + more
