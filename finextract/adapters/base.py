"""The protocol of an adapter: a function of one layer's weight. One module for each kind of adapter."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Adapter(Protocol):
    """The change of one layer's weight that an adapter file describes.

    A function of the weight, since some kinds (DoRA, OFT, IA3) are no difference that could be added.
    """

    @property
    def layer(self) -> str:
        """The layer's name as the file has it; finextract.weights.adapter_keys knows the styles."""
        ...

    def __call__(self, weight: Tensor) -> Tensor:
        """The new weight, of the same shape, dtype and device. The given one is not changed.

        The adapter's own product is computed in float32 and cast to the weight's dtype once.
        Raises BaseMismatch where the layer has another shape, CorruptWeights for tensors that do not belong
        together.
        """
        ...
