"""BOFT: blocks of a layer's outputs, or of its inputs, are rotated several times, each time in another order.

Liu et al. (ICLR 2024), section 4: the product of m sparse rotations, which mix ever more distant outputs (a
butterfly). LyCORIS rotates the outputs, PEFT the inputs. m = stages, n = number of blocks, b = block size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finextract.adapters.oft import cayley, constrained, rescaled, skew
from finextract.adapters.tensors import LayerTensors, mismatch


@dataclass(frozen=True)
class OutputButterfly:
    """The BOFT of one layer's outputs, as LyCORIS has it."""

    layer: str  # its name in the file
    blocks: Tensor  # [m, n, b, b]
    constraint: float  # as that of OFT
    rescale: Tensor | None  # [out, *1]

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The rotated weight. See `Adapter.__call__`."""
        _require_butterfly(self.layer, self.blocks, weight.shape[0], weight)
        rotations = cayley(constrained(skew(self.blocks.to(weight)), self.constraint * weight.shape[0]))
        rows = weight.flatten(1)  # [out, in * kernel]
        for stage, rotation in enumerate(rotations):
            rows = _rotated(rows, rotation, _order(len(rows), rotation.shape[-1], stage, outer=False))
        return rescaled(self.layer, rows.reshape(weight.shape), self.rescale), bias


@dataclass(frozen=True)
class InputButterfly:
    """The BOFT of one layer's inputs, as PEFT has it; of a convolution those of each pixel of its kernel."""

    layer: str  # its name in the file
    blocks: Tensor  # [m, n, b, b]
    rescale: Tensor | None  # one number for each output

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The rotated weight. See `Adapter.__call__`."""
        _require_butterfly(self.layer, self.blocks, math.prod(weight.shape[1:]), weight)
        rotations = cayley(-skew(self.blocks.to(weight)) / 2)
        rows = weight.flatten(1).T  # [in * kernel, out]
        for stage, rotation in enumerate(rotations):
            rows = _rotated(rows, rotation, _order(len(rows), rotation.shape[-1], stage, outer=True))
        return rescaled(self.layer, rows.T.reshape(weight.shape), self.rescale), bias


def parse(tensors: LayerTensors) -> OutputButterfly | InputButterfly:
    """The BOFT of one layer. Raises CorruptWeights for parts that do not fit."""
    part = "boft_R" if "boft_R" in tensors.parts else "oft_blocks"
    blocks = tensors[part]
    if blocks.dim() != 4 or blocks.shape[2] != blocks.shape[3] or blocks.numel() == 0:
        raise tensors.unusable(part)
    if part == "boft_R":
        return InputButterfly(tensors.layer, blocks, tensors.get("boft_s"))
    return OutputButterfly(tensors.layer, blocks, tensors.number("alpha") or 0.0, tensors.get("rescale"))


def _require_butterfly(layer: str, blocks: Tensor, size: int, weight: Tensor) -> None:
    """Raises BaseMismatch unless every stage covers `size` channels and can be put into its order."""
    stages, number, block, _ = blocks.shape
    even = stages == 1 or (block % 2 == 0 and stages < 32 and number % 2 ** (stages - 1) == 0)
    if weight.dim() < 2 or number * block != size or not even:
        raise mismatch(layer, blocks.shape, weight)


def _order(size: int, block: int, stage: int, *, outer: bool) -> Tensor:
    """The order in which a stage puts the channels before it rotates their blocks, [size].

    Halves of blocks that are 2^stage halves apart come to lie side by side: LyCORIS swaps single channels of
    them (outer is False), PEFT whole halves.
    """
    half = block // 2
    if stage == 0 and (outer or block % 2):
        return torch.arange(size)
    if outer:
        order = torch.arange(size).reshape(-1, 2**stage, 2, half).transpose(1, 2)
        return order.reshape(-1).argsort()
    return torch.arange(size).reshape(-1, 2, 2**stage * half).transpose(1, 2).reshape(-1)


def _rotated(rows: Tensor, rotations: Tensor, order: Tensor) -> Tensor:
    """Rows [size, ...] whose blocks, in another order, are rotated by [n, b, b], in their own order again."""
    number, block, _ = rotations.shape
    order = order.to(rows.device)
    mixed = (rotations @ rows[order].reshape(number, block, -1)).reshape(rows.shape)
    return mixed[order.argsort()]
