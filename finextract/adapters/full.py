"""Full differences of a layer's weight and bias, those of normalisation layers among them.

LyCORIS stores them as diff and diff_b, and for normalisation layers as w_norm and b_norm.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from finextract.adapters.tensors import LayerTensors, added_bias, require_fit


@dataclass(frozen=True)
class FullDifference:
    """The differences of one layer."""

    layer: str  # its name in the file
    weight: Tensor | None  # of the layer's shape
    bias: Tensor | None  # [out]

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias plus their differences. See `Adapter.__call__`."""
        if self.weight is not None:
            require_fit(self.layer, self.weight.shape, weight)
            weight = weight + self.weight.to(weight).reshape(weight.shape)
        if self.bias is not None:
            bias = added_bias(self.layer, bias, self.bias)
        return weight, bias


def parse(tensors: LayerTensors) -> FullDifference:
    """The full differences of one layer."""
    return FullDifference(tensors.layer, tensors.get("diff"), tensors.get("diff_b"))


def parse_norm(tensors: LayerTensors) -> FullDifference:
    """The full differences of one normalisation layer."""
    return FullDifference(tensors.layer, tensors.get("w_norm"), tensors.get("b_norm"))
