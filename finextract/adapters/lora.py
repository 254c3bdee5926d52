"""LoRA: the change of a layer's weight is a product of two small matrices.

W <- W + (alpha / r) * up @ down, Hu et al. (ICLR 2022), section 4.1. The adapter of a convolution (LoCon) is
the same product over its kernel. r = rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from finextract.errors import BaseMismatch, CorruptWeights, UnsupportedWeights
from finextract.metadata.untrusted import object_of
from finextract.weights.adapter_keys import parse_lora_key


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
    """alpha / r of one layer as PEFT's configuration states it (alpha / sqrt(r) for rank-stabilised LoRA)."""
    prefix = next(
        (p for p in ("unet.", "text_encoder.") if layer.startswith(p) and f"{p}lora_alpha" in fields), ""
    )
    alpha = fields.get(f"{prefix}lora_alpha")
    patterns = fields.get(f"{prefix}alpha_pattern")
    if isinstance(patterns, dict):
        for pattern, special in patterns.items():
            if layer.endswith(str(pattern)):
                alpha = special
    if not isinstance(alpha, int | float):
        return 1.0
    return float(alpha) / (rank**0.5 if fields.get(f"{prefix}use_rslora") is True else rank)
