"""LoHa: the change of a layer's weight is the elementwise product of two low-rank products.

W <- W + (alpha / r) * (A1 @ B1) * (A2 @ B2), Hyeon-Woo et al. (ICLR 2022), as LyCORIS (Yeh et al., ICLR 2024)
and PEFT store it. With a Tucker decomposition each product has a core over the kernel. r = rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from finextract.adapters.tensors import LayerTensors, require_fit, tucker


@dataclass(frozen=True)
class Factor:
    """One of the two low-rank products."""

    a: Tensor  # [out, r]; [r, out] with a core
    b: Tensor  # [r, in * kernel]; [r, in] with a core
    core: Tensor | None  # [r, r, *kernel]

    @property
    def shape(self) -> list[int]:
        """[out, in * kernel], or [out, in, *kernel] with a core."""
        if self.core is None:
            return [self.a.shape[0], self.b.shape[1]]
        return [self.a.shape[1], self.b.shape[1], *self.core.shape[2:]]

    def product(self, weight: Tensor) -> Tensor:
        """The product in the shape, the precision and on the device of a weight."""
        a, b = self.a.to(weight), self.b.to(weight)
        whole = a @ b if self.core is None else tucker(self.core.to(weight), a, b)
        return whole.reshape(weight.shape)


@dataclass(frozen=True)
class LohaLayer:
    """The LoHa of one layer."""

    layer: str  # its name in the file
    first: Factor
    second: Factor
    scale: float  # alpha / r

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight plus this layer's difference. See `Adapter.__call__`."""
        for factor in (self.first, self.second):
            require_fit(self.layer, factor.shape, weight)
        return weight + self.scale * self.first.product(weight) * self.second.product(weight), bias


def parse(tensors: LayerTensors) -> LohaLayer:
    """The LoHa of one layer. Raises CorruptWeights for an incomplete layer or parts that do not fit."""
    if ("hada_t1" in tensors.parts) != ("hada_t2" in tensors.parts):
        raise tensors.unfit()
    first, second = (_factor(tensors, number) for number in (1, 2))
    return LohaLayer(tensors.layer, first, second, tensors.scale(first.b.shape[0], "alpha"))


def _factor(tensors: LayerTensors, number: int) -> Factor:
    a, b = tensors.matrix(f"hada_w{number}_a"), tensors.matrix(f"hada_w{number}_b").flatten(1)
    core = tensors.matrix(f"hada_t{number}") if f"hada_t{number}" in tensors.parts else None
    if a.dim() != 2:
        raise tensors.unusable(f"hada_w{number}_a")
    fits = a.shape[1] == b.shape[0] if core is None else core.shape[:2] == (a.shape[0], b.shape[0])
    if not fits:
        raise tensors.unfit()
    return Factor(a, b, core)
