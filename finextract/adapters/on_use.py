"""Weights that an adapter changes whenever they are used, instead of once.

A layer's merged weight exists while the layer computes, and no longer: a tuned model then has the tensors of
its base and the adapter's small matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from finextract.adapters.base import Adapter
from finextract.adapters.fused import rows_of, whole_of
from finextract.weights.original_names import FileLayer


def merge_on_use(layers: Mapping[str, nn.Module], target: FileLayer, adapters: Sequence[Adapter]) -> None:
    """Makes the layers of a target compute with what the adapters make of their weights and biases.

    The layers are in one block of their model, so that all of them are on one device when one computes.
    """
    parts = [layers[name] for name in target.layers]
    for name in ("weight", "bias"):
        if any(getattr(part, name, None) is None for part in parts):
            continue
        for i, part in enumerate(parts):
            change = _Change(name, i, parts, target, adapters)
            parametrize.register_parametrization(part, name, change, unsafe=True)


class _Change(nn.Module):
    """The merged weight or bias of one of the layers of a target. A parametrization of torch."""

    def __init__(
        self, name: str, index: int, parts: list[nn.Module], target: FileLayer, adapters: Sequence[Adapter]
    ) -> None:
        super().__init__()
        self._name, self._index = name, index
        self._parts = list(parts)  # a list: they are not parts of this module
        self._target, self._adapters = target, tuple(adapters)

    @torch.no_grad()
    def forward(self, own: Tensor) -> Tensor:
        """The merged tensor, of the layer's own one."""
        tensors = {name: [_own(part, name) for part in self._parts] for name in ("weight", "bias")}
        biases = [bias for bias in tensors["bias"] if bias is not None]
        weight, bias = whole_of(self._target, [w for w in tensors["weight"] if w is not None], biases)
        for adapter in self._adapters:
            weight, bias = adapter(weight, bias)
        whole = weight if self._name == "weight" else bias
        assert whole is not None, "an adapter that takes a bias away"
        lengths = [len(tensor) for tensor in tensors[self._name] if tensor is not None]
        merged = rows_of(self._target, whole, lengths)[self._index]
        return torch.empty_like(own).copy_(merged)  # in its precision and layout


def _own(part: nn.Module, name: str) -> Tensor | None:
    """A layer's own tensor, whether it has a change already or not."""
    if parametrize.is_parametrized(part, name):
        own: Tensor = part.parametrizations[name].original  # type: ignore[union-attr, index]
        return own
    found = getattr(part, name, None)
    return found if isinstance(found, Tensor) else None
