"""LoKr: the change of a layer's weight is the Kronecker product of two smaller matrices.

W <- W + (alpha / r) * kron(W1, W2), Yeh et al. (ICLR 2024), section 3.3. Each of the two is stored whole or
as a low-rank product, the second one also with a Tucker decomposition over the kernel. r = rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finextract.adapters.peft_config import configured_rank
from finextract.adapters.tensors import LayerTensors, require_fit, tucker


@dataclass(frozen=True)
class Factor:
    """One of the two matrices of the Kronecker product, whole or as a product."""

    whole: Tensor | None  # [out, in] or [out, in, *kernel]
    a: Tensor | None = None  # [out, r]; [r, out] with a core
    b: Tensor | None = None  # [r, in] or [r, in * kernel]
    core: Tensor | None = None  # [r, r, *kernel]

    @property
    def shape(self) -> list[int]:
        """[out, in, *kernel], or [out, in * kernel] where it is stored as a product."""
        if self.whole is not None:
            return list(self.whole.shape)
        assert self.a is not None
        assert self.b is not None
        if self.core is None:
            return [self.a.shape[0], self.b.shape[1]]
        return [self.a.shape[1], self.b.shape[1], *self.core.shape[2:]]

    def matrix(self, like: Tensor) -> Tensor:
        """The matrix in the precision and on the device of another tensor."""
        if self.whole is not None:
            return self.whole.to(like)
        assert self.a is not None
        assert self.b is not None
        a, b = self.a.to(like), self.b.to(like)
        return a @ b if self.core is None else tucker(self.core.to(like), a, b)


@dataclass(frozen=True)
class LokrLayer:
    """The LoKr of one layer."""

    layer: str  # its name in the file
    first: Factor  # over the channels alone
    second: Factor  # with the kernel
    scale: float  # alpha / r

    @property
    def shape(self) -> list[int]:
        """[out, in, *kernel] of the Kronecker product."""
        (out_1, in_1), (out_2, in_2, *kernel) = self.first.shape, self.second.shape
        return [out_1 * out_2, in_1 * in_2, *kernel]

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight plus this layer's difference. See `Adapter.__call__`."""
        require_fit(self.layer, self.shape, weight)
        first, second = self.first.matrix(weight), self.second.matrix(weight)
        first = first.reshape(*first.shape, *[1] * (second.dim() - 2))
        return weight + self.scale * torch.kron(first, second.contiguous()).reshape(weight.shape), bias


def parse(tensors: LayerTensors) -> LokrLayer:
    """The LoKr of one layer. Raises CorruptWeights for an incomplete layer or parts that do not fit.

    Where neither matrix is a product there is no rank: LyCORIS then ignores its alpha, and PEFT divides its
    own by the rank of its configuration.
    """
    first, second = (_factor(tensors, number) for number in (1, 2))
    if len(first.shape) != 2:
        raise tensors.unusable("lokr_w1")
    products = [factor.b for factor in (first, second) if factor.b is not None]
    if products:
        scale = tensors.scale(products[0].shape[0], "alpha")
    else:
        rank = configured_rank(tensors.layer, tensors.config)
        stated = {name: tensor for name, tensor in tensors.parts.items() if name == "scalar"}
        if "alpha" in tensors.parts or rank is None:
            tensors = LayerTensors(tensors.layer, stated)
        scale = tensors.scale(rank or 1, "alpha")
    return LokrLayer(tensors.layer, first, second, scale)


def _factor(tensors: LayerTensors, number: int) -> Factor:
    name, core = f"lokr_w{number}", None
    if name in tensors.parts:
        if any(f"{name}_{half}" in tensors.parts for half in "ab"):
            raise tensors.unfit()
        return Factor(tensors.matrix(name))
    a, b = tensors.matrix(f"{name}_a"), tensors.matrix(f"{name}_b").flatten(1)
    if number == 2 and "lokr_t2" in tensors.parts:
        core = tensors.matrix("lokr_t2")
    if a.dim() != 2:
        raise tensors.unusable(f"{name}_a")
    fits = a.shape[1] == b.shape[0] if core is None else core.shape[:2] == (a.shape[0], b.shape[0])
    if not fits:
        raise tensors.unfit()
    return Factor(None, a, b, core)
