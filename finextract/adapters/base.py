"""The protocol of an adapter: a function of one layer's weight and bias. One module for each kind."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Adapter(Protocol):
    """The change of one layer that an adapter file describes.

    A function of the weight, since some kinds (DoRA, OFT, IA3) are no difference that could be added.
    """

    @property
    def layer(self) -> str:
        """The layer's name as the file has it; finextract.weights.layer_names knows the styles."""
        ...

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The new weight and the new bias, of the same shapes. The given ones are not changed.

        Both are in float32 (or float64), on the device of the layer; `merge` casts the results once. Most
        kinds return the bias as it is; a layer without a bias has None. Raises BaseMismatch where the layer
        has another shape, before anything large is computed.
        """
        ...
