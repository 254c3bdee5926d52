"""Weights that an adapter changes whenever they are used, instead of once.

A layer's merged weight exists while the layer computes, and no longer: a tuned model then has the tensors of
its base and the adapter's small matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from finextract.adapters.base import Adapter
from finextract.adapters.fused import rows_of, whole_of
from finextract.weights.original_names import FileLayer


def merge_on_use(layers: Mapping[str, nn.Module], target: FileLayer, adapters: Sequence[Adapter]) -> None:
    """Makes the layers of a target compute with what the adapters make of their weights; biases stay.

    The layers are in one block of their model, so that all of them are on one device when one computes.
    """
    parts = [layers[name] for name in target.layers]
    for i, part in enumerate(parts):
        parametrize.register_parametrization(part, "weight", _Change(i, parts, target, adapters), unsafe=True)


class _Change(nn.Module):
    """The merged weight of one of the layers of a target. A parametrization of torch."""

    def __init__(
        self, index: int, parts: list[nn.Module], target: FileLayer, adapters: Sequence[Adapter]
    ) -> None:
        super().__init__()
        self._index, self._parts = index, parts  # a list: they are not parts of this module
        self._target, self._adapters = target, tuple(adapters)

    @torch.no_grad()
    def forward(self, own: Tensor) -> Tensor:
        """The merged weight, of the layer's own one."""
        weights = [_own_weight(part) for part in self._parts]
        biases = [bias for part in self._parts if isinstance(bias := getattr(part, "bias", None), Tensor)]
        whole, bias = whole_of(self._target, weights, biases)
        for adapter in self._adapters:
            whole, bias = adapter(whole, bias)
        merged = rows_of(self._target, whole, [len(weight) for weight in weights])[self._index]
        return torch.empty_like(own).copy_(merged)  # in its precision and layout


def _own_weight(part: Any) -> Tensor:
    """A layer's own weight, whether it has a change already or not."""
    changed = parametrize.is_parametrized(part, "weight")
    own: Tensor = part.parametrizations["weight"].original if changed else part.weight
    return own
