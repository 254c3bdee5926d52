"""The layer that an adapter file names, where it is made of several layers of the model.

An adapter is a function of a weight and a bias, whatever its kind: those of the layers are put together as
the file has them, the adapter changes the whole, and the rows go back to where they came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from finextract.weights.original_names import FileLayer


def parameters_of(layers: Mapping[str, nn.Module], target: FileLayer) -> tuple[Tensor, Tensor | None]:
    """The weight [rows, ...] and the bias [rows] as the file's model has them; None for a missing bias.

    `layers` are those of `Model.layers()`.
    """
    biases = _biases(layers, target)
    return _together(_weights(layers, target), target), _together(biases, target) if biases else None


def replace_parameters(
    layers: Mapping[str, nn.Module], target: FileLayer, weight: Tensor, bias: Tensor | None
) -> None:
    """Copies the rows of such a weight and bias into the layers, in place."""
    _copy_back(weight, _weights(layers, target), target)
    if bias is not None:
        _copy_back(bias, _biases(layers, target), target)


def _weights(layers: Mapping[str, nn.Module], target: FileLayer) -> list[Tensor]:
    weights = [layers[name].weight for name in target.layers]
    return [weight for weight in weights if isinstance(weight, Tensor)]


def _biases(layers: Mapping[str, nn.Module], target: FileLayer) -> list[Tensor]:
    """The biases of all the layers; none where one of them has none."""
    biases = [getattr(layers[name], "bias", None) for name in target.layers]
    found = [bias for bias in biases if isinstance(bias, Tensor)]
    return found if len(found) == len(biases) else []


def _together(parts: Sequence[Tensor], target: FileLayer) -> Tensor:
    whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return _halves_swapped(whole) if target.swapped else whole


def _copy_back(whole: Tensor, parts: Sequence[Tensor], target: FileLayer) -> None:
    if target.swapped:
        whole = _halves_swapped(whole)
    for own, rows in zip(parts, torch.split(whole, [len(part) for part in parts]), strict=True):
        own.copy_(rows)


def _halves_swapped(whole: Tensor) -> Tensor:
    return torch.cat(whole.chunk(2)[::-1])
