"""LoRA: the change of a layer's weight is a product of two small matrices.

W <- W + (alpha / r) * up @ down, Hu et al. (ICLR 2022), section 4.1. The adapter of a convolution (LoCon) is
the same product over its kernel; with a Tucker decomposition (Yeh et al., ICLR 2024, section 3.2) the kernel
has a core of its own between the two. r = rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from finextract.adapters.peft_config import require_unchanged_base
from finextract.adapters.tensors import LayerTensors, added_bias, require_fit, tucker


@dataclass(frozen=True)
class LoraLayer:
    """The LoRA of one layer."""

    layer: str  # its name in the file
    down: Tensor  # [r, in, *kernel]; [r, in, *1] with a core
    up: Tensor  # [out, r, *1]
    scale: float  # alpha / r
    core: Tensor | None = None  # [r, r, *kernel]
    bias: Tensor | None = None  # [out], PEFT's lora_bias

    @property
    def shape(self) -> list[int]:
        """[out, in, *kernel] of the weight that the product is for."""
        kernel = self.down.shape[2:] if self.core is None else self.core.shape[2:]
        return [self.up.shape[0], self.down.shape[1], *kernel]

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight plus this layer's difference. See `Adapter.__call__`."""
        require_fit(self.layer, self.shape, weight)
        up, down = self.up.to(weight).flatten(1), self.down.to(weight).flatten(1)
        product = up @ down if self.core is None else tucker(self.core.to(weight), up.T, down)
        if self.bias is not None:
            bias = added_bias(self.layer, bias, self.scale * self.bias.to(weight))
        return weight + self.scale * product.reshape(weight.shape), bias


def parse(tensors: LayerTensors) -> LoraLayer:
    """The LoRA of one layer. Raises CorruptWeights for an incomplete layer or parts that do not fit.

    Raises UnsupportedWeights for one that is for other base weights than the published ones.
    """
    require_unchanged_base(tensors.layer, tensors.config)
    down, up = tensors.matrix("lora_down"), tensors.matrix("lora_up")
    core = tensors.matrix("lora_mid") if "lora_mid" in tensors.parts else None
    rank = down.shape[0]
    if up.flatten(1).shape[1] != rank:
        raise tensors.unfit()
    if core is not None and (core.shape[:2] != (rank, rank) or down.flatten(1).shape[1] != down.shape[1]):
        raise tensors.unfit()
    return LoraLayer(tensors.layer, down, up, tensors.scale(rank), core, tensors.get("lora_bias"))
