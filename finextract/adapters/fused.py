"""The weight of a layer that an adapter file names, where it is made of several layers of the model.

An adapter is a function of a weight and a bias, whatever its kind: those of the layers are put together as
the file has them, the adapter changes the whole, and the rows go back to where they came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from finextract.sharing import replace_tensors
from finextract.weights.original_names import FileLayer


def whole_layer(layers: Mapping[str, nn.Module], target: FileLayer) -> tuple[Tensor, Tensor | None]:
    """Weight [rows, ...] and bias [rows] as the file's model has them, in float32 (or float64).

    There is no bias where one of the layers has none. `layers` are those of `Model.layers()`.
    """
    return whole_of(target, _tensors(layers, target, "weight"), _tensors(layers, target, "bias"))


def whole_of(
    target: FileLayer, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """The same of the layers' own weights, and of the biases of those that have one."""
    weight = _in_the_files_order(weights, target)
    return weight, _in_the_files_order(biases, target) if len(biases) == len(weights) else None


def replace_layer(
    layers: Mapping[str, nn.Module], target: FileLayer, weight: Tensor | None, bias: Tensor | None
) -> None:
    """Gives the layers the rows of such a weight and bias, in their own precision; None changes nothing."""
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        lengths = [len(tensor) for tensor in _tensors(layers, target, name)]
        for layer, part in zip(target.layers, rows_of(target, value, lengths), strict=True):
            replace_tensors(layers[layer], {name: part})


def rows_of(target: FileLayer, whole: Tensor, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    """The rows of a whole weight or bias that each of the layers has, whose numbers of rows are `lengths`."""
    return torch.split(_halves_swapped(whole) if target.swapped else whole, list(lengths))


def _in_the_files_order(tensors: Sequence[Tensor], target: FileLayer) -> Tensor:
    whole = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
    whole = whole.to(torch.promote_types(whole.dtype, torch.float32))
    return _halves_swapped(whole) if target.swapped else whole


def _halves_swapped(weight: Tensor) -> Tensor:
    return torch.cat(weight.chunk(2)[::-1])


def _tensors(layers: Mapping[str, nn.Module], target: FileLayer, name: str) -> list[Tensor]:
    """The tensors of that name of the layers that have one."""
    found = (getattr(layers[layer], name, None) for layer in target.layers)
    return [tensor for tensor in found if isinstance(tensor, Tensor)]
