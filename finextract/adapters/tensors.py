"""The tensors of one layer in an adapter file, and what all kinds of adapters ask of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finextract.adapters.peft_config import configured_scale
from finextract.errors import BaseMismatch, CorruptWeights


@dataclass(frozen=True)
class LayerTensors:
    """The tensors of one layer, by part, as finextract.weights.adapter_keys names the parts."""

    layer: str  # its name in the file
    parts: Mapping[str, Tensor]
    config: Mapping[str, object] = field(default_factory=dict)  # the fields of a PEFT configuration

    def __getitem__(self, part: str) -> Tensor:
        """A part that the layer must have. Raises CorruptWeights where it is missing."""
        if part not in self.parts:
            raise CorruptWeights(
                f"the adapter holds only half of the layer {self.layer[:120]!r}: it lacks "
                f"{part}. Fetch it again."
            )
        return self.parts[part]

    def get(self, part: str) -> Tensor | None:
        """A part that the layer may have."""
        return self.parts.get(part)

    def matrix(self, part: str) -> Tensor:
        """A part with two axes or more, none of them empty."""
        tensor = self[part]
        if tensor.dim() < 2 or tensor.numel() == 0:
            raise self.unusable(part)
        return tensor

    def number(self, part: str) -> float | None:
        """A part that is a single number; None where the layer has none."""
        tensor = self.parts.get(part)
        if tensor is None:
            return None
        if tensor.numel() != 1:
            raise self.unusable(part)
        return float(tensor)

    def scale(self, rank: int, alpha_field: str = "lora_alpha") -> float:
        """The factor of the layer's difference: alpha / r, times LyCORIS' `scalar` where there is one.

        Without an alpha in the file it is the one that a PEFT configuration states, in the field
        `alpha_field`.
        """
        alpha, scalar = self.number("alpha"), self.number("scalar")
        scale = (
            configured_scale(self.layer, rank, self.config, alpha_field) if alpha is None else alpha / rank
        )
        return scale * (1.0 if scalar is None else scalar)

    def unusable(self, part: str) -> CorruptWeights:
        """The error that a part has a shape which its kind cannot have."""
        shape = list(self.parts[part].shape)
        return CorruptWeights(
            f"the adapter's layer {self.layer[:120]!r} has tensors of an unusable shape: {part} is {shape}."
        )

    def unfit(self) -> CorruptWeights:
        """The error that the parts do not belong together."""
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in self.parts.items())
        return CorruptWeights(
            f"the adapter's layer {self.layer[:120]!r} has halves that do not fit each other: {shapes[:400]}."
        )


def require_fit(layer: str, shape: Sequence[int], weight: Tensor) -> None:
    """Raises BaseMismatch unless a difference of this shape can be added to the weight.

    A kernel of one pixel may be missing or present, and a kernel may be flattened into the second axis.
    """
    wanted = list(weight.shape)
    flat = [wanted[0], math.prod(wanted[1:])] if len(wanted) > 1 else wanted
    if _without_ones(shape) != _without_ones(wanted) and list(shape) != flat:
        raise mismatch(layer, shape, weight)


def mismatch(layer: str, shape: Sequence[int], weight: Tensor) -> BaseMismatch:
    """The error that the adapter's layer is for a layer of another shape than the base model's."""
    return BaseMismatch(
        f"the adapter does not fit its base: {layer[:120]!r} is {list(shape)}, "
        f"the base model's {list(weight.shape)}."
    )


def added_bias(layer: str, bias: Tensor | None, difference: Tensor) -> Tensor:
    """The bias plus a difference. Raises BaseMismatch where the layer has no bias or another one."""
    if bias is None:
        raise BaseMismatch(
            f"the adapter does not fit its base: {layer[:120]!r} changes a bias, which the "
            "base model's layer lacks."
        )
    if difference.numel() != bias.numel():
        raise mismatch(layer, difference.shape, bias)
    return bias + difference.to(bias).reshape(bias.shape)


def tucker(core: Tensor, out: Tensor, into: Tensor) -> Tensor:
    """The Tucker product of a core [r, s, *kernel] with factors [r, O] and [s, I]: [O, I, *kernel]."""
    return torch.einsum("rs...,ro,si->oi...", core, out, into)


def _without_ones(shape: Sequence[int]) -> list[int]:
    """The shape without the axes of a kernel of one pixel."""
    kept = list(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    return kept
