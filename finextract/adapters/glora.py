"""GLoRA: a low-rank product, and a second one that multiplies the weight.

W <- W + (alpha / r) * (W @ A1 @ A2 + B1 @ B2), after Chavan et al. (2023), as LyCORIS stores it. In a
convolution A mixes the input channels of each pixel of the kernel. r = rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finextract.adapters.tensors import LayerTensors, mismatch, require_fit, tucker


@dataclass(frozen=True)
class GloraLayer:
    """The GLoRA of one layer."""

    layer: str  # its name in the file
    a1: Tensor  # [in, r]
    a2: Tensor  # [r, in]
    b1: Tensor  # [out, r]
    b2: Tensor  # [r, in, *kernel]; [r, in] with a core
    core: Tensor | None  # [r, r, *kernel]
    scale: float  # alpha / r

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight plus this layer's difference. See `Adapter.__call__`."""
        kernel = self.b2.shape[2:] if self.core is None else self.core.shape[2:]
        require_fit(self.layer, [self.b1.shape[0], self.b2.shape[1], *kernel], weight)
        if self.a1.shape[0] != weight.shape[1] or self.a2.shape[1] != weight.shape[1]:
            raise mismatch(self.layer, [self.a1.shape[0], self.a2.shape[1]], weight)
        a1, a2, b1 = (part.to(weight) for part in (self.a1, self.a2, self.b1))
        b2 = self.b2.to(weight).flatten(1)
        mixed = torch.einsum("or...,ri->oi...", torch.einsum("oi...,ir->or...", weight, a1), a2)
        added = b1 @ b2 if self.core is None else tucker(self.core.to(weight), b1.T, b2)
        return weight + self.scale * (mixed + added.reshape(weight.shape)), bias


def parse(tensors: LayerTensors) -> GloraLayer:
    """The GLoRA of one layer. Raises CorruptWeights for an incomplete layer or parts that do not fit."""
    a1, a2, b1 = (tensors.matrix(name).flatten(1) for name in ("a1", "a2", "b1"))
    b2 = tensors.matrix("b2")
    core = tensors.matrix("bm") if "bm" in tensors.parts else None
    rank = a2.shape[0]
    fits = a1.shape[1] == rank and b1.shape[1] == b2.shape[0]
    if core is not None:
        fits &= core.shape[:2] == (b1.shape[1], b2.shape[0]) and b2.flatten(1).shape[1] == b2.shape[1]
    if not fits:
        raise tensors.unfit()
    return GloraLayer(tensors.layer, a1, a2, b1, b2, core, tensors.scale(rank))
