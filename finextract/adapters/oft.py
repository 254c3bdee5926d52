"""OFT: blocks of a layer's outputs, or of its inputs, are rotated.

Qiu et al. (NeurIPS 2023), section 4: the rotations are Cayley transforms of skew-symmetric matrices. LyCORIS
and kohya rotate the outputs, PEFT (from version 0.15 on) the inputs. n = number of blocks, b = block size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finextract.adapters.tensors import LayerTensors, mismatch
from finextract.errors import UnsupportedWeights
from finextract.support import WHY_NO_ONETRAINER_OFT
from finextract.weights.adapter_keys import OFT_PARTS, ONETRAINER_OFT, is_onetrainers_oft

_MAX_TERMS = 100  # of PEFT's approximation of the Cayley transform; its own default is 5
_CONSTRAINED_EPS = 6e-5  # PEFT's default for the radius of constrained OFT


@dataclass(frozen=True)
class OutputRotation:
    """The OFT of one layer's outputs."""

    layer: str  # its name in the file
    blocks: Tensor  # [n, b, b]
    constraint: float  # the largest norm of the skew-symmetric matrices for each output; 0 for none
    rotations: bool  # whether the blocks are the rotations themselves
    rescale: Tensor | None  # [out, *1]

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The rotated weight. See `Adapter.__call__`."""
        blocks, size, _ = self.blocks.shape
        if weight.dim() < 2 or blocks * size != weight.shape[0]:
            raise mismatch(self.layer, self.blocks.shape, weight)
        rotations = self.blocks.to(weight)
        if not self.rotations:
            rotations = cayley(constrained(skew(rotations), self.constraint * weight.shape[0]))
        rows = weight.reshape(blocks, size, -1)
        rotated = (rotations.mT @ rows).reshape(weight.shape)
        return rescaled(self.layer, rotated, self.rescale), bias


@dataclass(frozen=True)
class SplitRotation:
    """The OFT of a layer whose parts are rotated one by one, as kohya has it for the fused ones of FLUX.1."""

    layer: str  # its name in the file
    parts: tuple[OutputRotation, ...]  # of its rows, in their order

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The rotated weight. See `Adapter.__call__`."""
        sizes = [len(part.blocks) * part.blocks.shape[1] for part in self.parts]
        if sum(sizes) != weight.shape[0]:
            raise mismatch(self.layer, [sum(sizes)], weight)
        rotated = (
            part(rows, None)[0] for part, rows in zip(self.parts, torch.split(weight, sizes), strict=True)
        )
        return torch.cat(list(rotated)), bias


@dataclass(frozen=True)
class InputRotation:
    """The OFT of one layer's inputs, as PEFT has it; of a convolution those of each pixel of its kernel."""

    layer: str  # its name in the file
    vectors: Tensor  # [n, b * (b - 1) / 2], or [1, ...] where all blocks share it
    terms: int | None  # of the series that approximates the Cayley transform; None for the transform itself
    radius: float | None  # of constrained OFT
    shared: bool

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The rotated weight. See `Adapter.__call__`."""
        vectors = self.vectors.to(weight)
        size, inputs = block_size(vectors), math.prod(weight.shape[1:])
        blocks = inputs // size if self.shared else len(vectors)
        if weight.dim() < 2 or blocks * size != inputs:
            raise mismatch(self.layer, self.vectors.shape, weight)
        upper = torch.zeros(len(vectors), size, size, dtype=weight.dtype, device=weight.device)
        rows, columns = torch.triu_indices(size, size, 1, device=weight.device)
        upper[:, rows, columns] = vectors
        matrices = upper - upper.mT
        if self.radius is not None:
            norms = matrices.norm(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
            matrices = matrices * (self.radius / len(vectors) ** 0.5 / norms).clamp(max=1)
        rotations = cayley(-matrices) if self.terms is None else _series(matrices, self.terms)
        columns_of_blocks = weight.reshape(weight.shape[0], blocks, size)
        rotated = torch.einsum("onj,nij->oni", columns_of_blocks, rotations.expand(blocks, -1, -1))
        return rotated.reshape(weight.shape), bias


def parse(tensors: LayerTensors) -> OutputRotation | SplitRotation | InputRotation:
    """The OFT of one layer. Raises CorruptWeights for parts that do not fit."""
    if "oft_R" in tensors.parts:
        return _input_rotation(tensors)
    if number := sum(part in tensors.parts for part in OFT_PARTS):
        split = tuple(_output_rotation(tensors, part) for part in OFT_PARTS[:number])
        return SplitRotation(tensors.layer, split)
    return _output_rotation(tensors, "oft_diag" if "oft_diag" in tensors.parts else "oft_blocks")


def _output_rotation(tensors: LayerTensors, part: str) -> OutputRotation:
    """The OFT of LyCORIS or kohya of one layer, or of a part of it."""
    blocks = tensors[part]
    if blocks.dim() != 3 or blocks.shape[1] != blocks.shape[2] or blocks.numel() == 0:
        raise tensors.unusable(part)
    constraint = tensors.number("alpha") or 0.0
    return OutputRotation(tensors.layer, blocks, constraint, part == "oft_diag", tensors.get("rescale"))


def _input_rotation(tensors: LayerTensors) -> InputRotation:
    """PEFT's OFT of one layer, whose configuration says how the rotation is computed."""
    if is_onetrainers_oft(tensors.layer, tensors.parts):
        where = f"the adapter's layer {tensors.layer[:120]!r}"
        raise UnsupportedWeights(f"{where} is an {ONETRAINER_OFT}: {WHY_NO_ONETRAINER_OFT}")
    vectors, config = tensors.matrix("oft_R"), tensors.config
    if vectors.dim() != 2 or block_size(vectors) * (block_size(vectors) - 1) // 2 != vectors.shape[1]:
        raise tensors.unusable("oft_R")
    exact, terms = not config.get("use_cayley_neumann", False), config.get("num_cayley_neumann_terms", 5)
    if "oft_block_size" not in config or (not exact and not (type(terms) is int and 0 < terms <= _MAX_TERMS)):
        raise UnsupportedWeights(
            f"the adapter's layer {tensors.layer[:120]!r} is an OFT of PEFT, and no readable "
            "adapter_config.json beside it says how its rotations are computed."
        )
    eps = config.get("eps", _CONSTRAINED_EPS)
    radius = float(eps) if config.get("coft") is True and isinstance(eps, int | float) else None
    shared = config.get("block_share") is True and len(vectors) == 1
    return InputRotation(tensors.layer, vectors, None if exact else int(str(terms)), radius, shared)


def block_size(vectors: Tensor) -> int:
    """The b of which b * (b - 1) / 2 is the length of the vectors, rounded down."""
    return (1 + math.isqrt(1 + 8 * vectors.shape[1])) // 2


def skew(matrices: Tensor) -> Tensor:
    """The skew-symmetric matrices Q = M - M^T, [..., b, b]."""
    return matrices - matrices.mT


def constrained(matrices: Tensor, largest: float) -> Tensor:
    """The matrices, scaled so that their common norm is at most `largest`; 0 for no limit."""
    return matrices * (largest / matrices.norm()).clamp(max=1) if largest > 0 else matrices


def cayley(matrices: Tensor) -> Tensor:
    """The rotations (I + Q) (I - Q)^-1 of skew-symmetric matrices [..., b, b]."""
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    # I - Q has an inverse for every real skew-symmetric Q; numbers that are not finite give none.
    rotations: Tensor = torch.linalg.solve_ex(identity - matrices, identity + matrices, left=False)[0]
    return rotations


def rescaled(layer: str, weight: Tensor, rescale: Tensor | None) -> Tensor:
    """The weight with every output multiplied by its number. Raises BaseMismatch."""
    if rescale is None:
        return weight
    if rescale.numel() != weight.shape[0]:
        raise mismatch(layer, rescale.shape, weight)
    return weight * rescale.to(weight).reshape(-1, *[1] * (weight.dim() - 1))


def _series(matrices: Tensor, terms: int) -> Tensor:
    """PEFT's approximation of the Cayley transform: I + 2 Q + 2 Q^2 + ... + Q^k.

    It has k = terms - 1 powers of Q, but 3 powers where 3 terms are asked for.
    """
    rotations = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device).expand_as(
        matrices
    )
    last = {1: 0, 2: 1, 3: 3}.get(terms, terms - 1)
    power = matrices
    for k in range(1, last + 1):
        rotations = rotations + (1 if k == last and terms > 2 else 2) * power
        power = power @ matrices
    return rotations
