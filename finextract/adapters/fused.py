"""The weight of a layer that an adapter file names, where it is made of several layers of the model.

An adapter is a function of a weight, whatever its kind: the weights of the layers are put together as the
file has them, the adapter changes the whole, and the rows go back to where they came from.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from finextract.weights.original_names import FileLayer


def weight_of(layers: Mapping[str, nn.Module], target: FileLayer) -> Tensor:
    """The weight [rows, ...] as the file's model has it. `layers` are those of `Model.layers()`."""
    weights = [_weight(layers[name]) for name in target.layers]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return _halves_swapped(weight) if target.swapped else weight


def replace_weight(layers: Mapping[str, nn.Module], target: FileLayer, weight: Tensor) -> None:
    """Copies the rows of such a weight into the layers, in place."""
    if target.swapped:
        weight = _halves_swapped(weight)
    weights = [_weight(layers[name]) for name in target.layers]
    for own, rows in zip(weights, torch.split(weight, [len(own) for own in weights]), strict=True):
        own.copy_(rows)


def _halves_swapped(weight: Tensor) -> Tensor:
    return torch.cat(weight.chunk(2)[::-1])


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
