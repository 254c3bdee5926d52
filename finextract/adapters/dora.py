"""DoRA: the direction of the changed weight, with a magnitude that was trained.

W <- m * V / |V| with V = W + dW, Liu et al. (ICML 2024), section 4. dW is the difference of a LoRA, and in
LyCORIS also of a LoHa or a LoKr. The norm is taken for each output of the layer, or for each input, as older
versions of LyCORIS did: the shape of the stored magnitude shows which.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finextract.adapters.base import Adapter
from finextract.adapters.tensors import LayerTensors, mismatch


@dataclass(frozen=True)
class DoraLayer:
    """The DoRA of one layer, around the adapter that changes the direction."""

    direction: Adapter
    magnitude: Tensor  # [out], or as stored: [out, 1, ...] or [1, in, ...]
    for_outputs: bool  # whether it always is one number for each output, as PEFT's

    @property
    def layer(self) -> str:
        """The layer's name in the file."""
        return self.direction.layer

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The changed weight with this layer's magnitude. See `Adapter.__call__`."""
        changed, bias = self.direction(weight, bias)
        axis = self._axis(weight)
        others = [i for i in range(weight.dim()) if i != axis]
        norm = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
        norm = norm.clamp(min=torch.finfo(changed.dtype).tiny)
        magnitude = self.magnitude.to(weight).reshape(norm.shape)
        return changed * (magnitude / norm), bias

    def _axis(self, weight: Tensor) -> int:
        """The axis of the weight along which the magnitude runs."""
        shape, outputs = list(self.magnitude.shape), weight.shape[0]
        if self.magnitude.numel() == outputs and (self.for_outputs or shape[0] == outputs):
            return 0
        by_input = len(shape) > 1 and shape[1] == self.magnitude.numel() == weight.shape[1]
        if self.for_outputs or not by_input:
            raise mismatch(self.layer, shape, weight)
        return 1


def around(direction: Adapter, tensors: LayerTensors) -> DoraLayer:
    """The DoRA of one layer around the adapter that changes its direction. Raises CorruptWeights."""
    names = [name for name in ("dora_scale", "lora_magnitude") if name in tensors.parts]
    if len(names) != 1:
        raise tensors.unfit()
    magnitude = tensors[names[0]]
    if magnitude.dim() < 1 or magnitude.numel() == 0:
        raise tensors.unusable(names[0])
    return DoraLayer(direction, magnitude, names[0] == "lora_magnitude")
