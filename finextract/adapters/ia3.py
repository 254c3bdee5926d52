"""(IA)3: every input or every output of a layer is multiplied by a number that was trained.

Liu et al. (NeurIPS 2022), section 3.3. PEFT stores the factor, and where it scales the outputs it multiplies
the bias too. LyCORIS stores the factor less 1, and leaves the bias alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from finextract.adapters.peft_config import name_in_component
from finextract.adapters.tensors import LayerTensors, mismatch
from finextract.errors import UnsupportedWeights


@dataclass(frozen=True)
class Ia3Layer:
    """The (IA)3 of one layer."""

    layer: str  # its name in the file
    vector: Tensor  # one number for each input or output
    offset: float  # the factors are vector + offset
    on_input: bool | None  # None where only the sizes of the layer show it
    with_bias: bool

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The scaled weight. See `Adapter.__call__`."""
        on_input = self._on_input(weight)
        axis = 1 if on_input else 0
        if weight.dim() < 2 or self.vector.numel() != weight.shape[axis]:
            raise mismatch(self.layer, self.vector.shape, weight)
        factor = self.vector.to(weight).flatten() + self.offset
        sizes = [-1 if i == axis else 1 for i in range(weight.dim())]
        if self.with_bias and not on_input and bias is not None:
            bias = bias * factor.reshape(bias.shape)
        return weight * factor.reshape(sizes), bias

    def _on_input(self, weight: Tensor) -> bool:
        if self.on_input is not None:
            return self.on_input
        if weight.dim() > 1 and weight.shape[0] == weight.shape[1]:
            raise UnsupportedWeights(
                f"the adapter's layer {self.layer[:120]!r} has as many inputs as outputs, and no readable "
                "adapter_config.json beside it says which of them its (IA)3 scales."
            )
        return weight.dim() > 1 and self.vector.numel() == weight.shape[1]


def parse(tensors: LayerTensors) -> Ia3Layer:
    """The (IA)3 of one layer, by LyCORIS or by PEFT. Raises CorruptWeights for an incomplete layer."""
    if "on_input" in tensors.parts:
        on_input, vector = bool(tensors.number("on_input")), tensors["weight"]
        return Ia3Layer(tensors.layer, vector, 1.0, on_input, with_bias=False)
    vector = tensors["ia3_l"]
    on_input_or_unknown = _is_feedforward(tensors)
    if vector.dim() == 2:  # of a linear layer: [out, 1] or [1, in]
        if 1 not in vector.shape:
            raise tensors.unusable("ia3_l")
        on_input_or_unknown = vector.shape[1] > 1
    return Ia3Layer(tensors.layer, vector, 0.0, on_input_or_unknown, with_bias=True)


def _is_feedforward(tensors: LayerTensors) -> bool | None:
    """Whether PEFT's configuration lists a layer as one whose inputs are scaled; None where none says so."""
    stated, name = tensors.config.get("feedforward_modules"), name_in_component(tensors.layer)
    if isinstance(stated, list):
        return any(isinstance(end, str) and name.endswith(end) for end in stated)
    if isinstance(stated, str) and re.fullmatch(r"[\w.]*", stated):  # a plain name, no expression
        return name == stated
    return None
