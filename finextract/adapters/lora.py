"""LoRA: the change of a layer's weight is a product of two small matrices.

W <- W + (alpha / r) * up @ down, Hu et al. (ICLR 2022), section 4.1. The adapter of a convolution (LoCon) is
the same product over its kernel. r = rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from finextract.adapters.patterns import value_of_layer
from finextract.errors import BaseMismatch, CorruptWeights, UnsupportedWeights
from finextract.metadata.untrusted import object_of
from finextract.weights.adapter_keys import parse_lora_key

_COMPONENTS = (
    "unet.",
    "text_encoder.",
    "transformer.",
)  # so diffusers opens names of layers and fields
_PEFT_ALPHA = 8  # of a PEFT configuration that states none (peft.LoraConfig.lora_alpha)


@dataclass(frozen=True)
class LoraLayer:
    """The LoRA of one layer."""

    layer: str  # its name in the file
    down: Tensor  # [r, in, *kernel]
    up: Tensor  # [out, r, *1]
    scale: float  # alpha / r

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight plus this layer's difference. See `Adapter.__call__`."""
        delta = self.delta()
        if delta.numel() != weight.numel() or delta.shape[0] != weight.shape[0]:
            raise BaseMismatch(
                f"the adapter does not fit its base: {self.layer[:120]!r} is {list(delta.shape)}, "
                f"the base model's {list(weight.shape)}."
            )
        return weight + delta.reshape(weight.shape).to(weight)

    def delta(self) -> Tensor:
        """The difference of weights, float32 [out, in, *kernel]. Raises CorruptWeights."""
        down, up = self.down.float(), self.up.float()
        if up.flatten(1).shape[1] != down.shape[0]:
            raise CorruptWeights(f"the adapter's layer {self.layer[:120]!r} has halves that do not fit.")
        product = up.flatten(1) @ down.flatten(1)  # [out, in * kernel]
        return self.scale * product.reshape(up.shape[0], *down.shape[1:])


def parse_lora(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], config: Mapping[str, object] | None = None
) -> list[LoraLayer]:
    """The LoRA of each layer in an adapter file.

    `metadata` are those of the file's header, `config` the fields of a PEFT adapter_config.json, where there
    is one; diffusers stores the same fields in the header (`lora_adapter_metadata`). Without either, and
    without an alpha in the file, alpha = r.
    Raises UnsupportedWeights for a tensor that is not part of a plain LoRA, CorruptWeights for an incomplete
    layer.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        parsed = parse_lora_key(key)
        if parsed is None:
            raise UnsupportedWeights(
                f"the adapter holds {key[:120]!r}; only plain LoRA layers can be merged so far."
            )
        parts.setdefault(parsed.layer, {})[parsed.part] = tensor
    fields = {**object_of(metadata.get("lora_adapter_metadata")), **(config or {})}
    return [_layer(name, tensors, fields) for name, tensors in parts.items() if tensors.keys() != {"alpha"}]


def _layer(name: str, tensors: Mapping[str, Tensor], fields: Mapping[str, object]) -> LoraLayer:
    if "down" not in tensors or "up" not in tensors:
        raise CorruptWeights(f"the adapter holds only half of the layer {name[:120]!r}. Fetch it again.")
    down, up, alpha = tensors["down"], tensors["up"], tensors.get("alpha")
    usable = down.dim() >= 2 and up.dim() >= 2 and down.shape[0] > 0 and (alpha is None or alpha.numel() == 1)
    if not usable:
        raise CorruptWeights(f"the adapter's layer {name[:120]!r} has tensors of an unusable shape.")
    rank = down.shape[0]
    scale = _configured_scale(name, rank, fields) if alpha is None else float(alpha) / rank
    return LoraLayer(name, down, up, scale)


def _configured_scale(layer: str, rank: int, fields: Mapping[str, object]) -> float:
    """alpha / r of one layer as PEFT's configuration states it (alpha / sqrt(r) for rank-stabilised LoRA).

    `rank` is that of the layer's tensors, which is what `r` and `rank_pattern` state. Patterns match the name
    that the layer has in its component (peft.tuners.lora.LoraModel._create_and_replace).
    """
    component = next((c for c in _COMPONENTS if layer.startswith(c)), "")
    prefix = component if any(name.startswith(component) for name in fields) else ""
    patterns = fields.get(f"{prefix}alpha_pattern")
    alpha = None
    if isinstance(patterns, dict):
        alpha = value_of_layer(patterns, layer.removeprefix("base_model.model.").removeprefix(component))
    if alpha is None:
        alpha = fields.get(f"{prefix}lora_alpha", _PEFT_ALPHA if f"{prefix}r" in fields else None)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        return 1.0
    return float(alpha) / (rank**0.5 if fields.get(f"{prefix}use_rslora") is True else rank)
