"""Adapters merged into the weights of a model's layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from finextract.adapters.base import Adapter
from finextract.adapters.fused import replace_layer, whole_layer
from finextract.adapters.on_use import merge_on_use
from finextract.errors import BaseMismatch, CorruptWeights
from finextract.weights.original_names import FileLayer, file_layers

# The largest norm of a weight's change, as a multiple of the weight's own norm, that counts as training, and
# of a bias' change. In the zoo's LoRAs, which give back their training images, it is 0.54.
MAX_CHANGE = 100.0


@torch.no_grad()
def merge(layers: Mapping[str, nn.Module], adapters: Iterable[Adapter], *, on_use: bool = False) -> None:
    """Replaces each adapted layer's weight and bias by what its adapters make of them.

    `layers` are those of `Model.layers()`. All is computed in float32 (of a float64 layer in float64) and
    cast to the layer's precision once. With `on_use` the layers keep their weights, and make the merged ones
    anew, bit for bit the same, whenever they compute: slower, but the model needs no second copy of its
    base's weights. Merge into a copy: where an error is raised, some layers may be changed already. Raises
    BaseMismatch for a layer that is unknown to the model or has another shape, CorruptWeights for weights
    or biases that are not finite, or that the adapter changes beyond MAX_CHANGE.
    """
    by_name = file_layers(layers)
    of_layer: dict[FileLayer, list[Adapter]] = {}
    for adapter in adapters:
        target = by_name.get(adapter.layer)
        if target is None:
            raise BaseMismatch(
                f"the adapter has a layer that the base model does not have: {adapter.layer[:120]!r}."
            )
        of_layer.setdefault(target, []).append(adapter)
    _refuse_doubled(of_layer)
    for target, changes in of_layer.items():
        old, bias = whole_layer(layers, target)
        dtype = _dtype(layers, target)
        new, new_bias = old, bias
        for adapter in changes:
            new, new_bias = adapter(new, new_bias)
            _check(adapter.layer, dtype, (old, bias), (new, new_bias))
        replace_layer(layers, target, None if on_use else new, new_bias)
        if on_use:
            merge_on_use(layers, target, changes)


def _refuse_doubled(targets: Iterable[FileLayer]) -> None:
    """Raises CorruptWeights for a layer that an adapter changes alone and as a part of a fused layer.

    Some trainers of Z-Image store one change twice, as "qkv" and as its three parts.
    """
    seen: set[str] = set()
    for target in targets:
        for layer in target.layers:
            if layer in seen:
                raise CorruptWeights(
                    f"the adapter has the layer {layer[:120]!r} twice, alone and as a part of a fused layer: "
                    "whether they are one change is not known."
                )
            seen.add(layer)


def _dtype(layers: Mapping[str, nn.Module], target: FileLayer) -> torch.dtype:
    weight = layers[target.layers[0]].weight
    assert isinstance(weight, Tensor)
    return weight.dtype


def _check(
    layer: str, dtype: torch.dtype, old: tuple[Tensor, Tensor | None], new: tuple[Tensor, Tensor | None]
) -> None:
    """Raises CorruptWeights for numbers that no training gives or that the layer's precision lacks.

    `old` and `new` are weight and bias.
    """
    if not all(torch.isfinite(changed.to(dtype)).all() for changed in new if changed is not None):
        raise CorruptWeights(f"the adapter's layer {layer[:120]!r} holds numbers that are not finite.")
    (weight, bias), (new_weight, new_bias) = old, new
    norm = float(weight.norm())
    _require_training(layer, "weights", new_weight - weight, norm)
    if bias is not None and new_bias is not None:
        # Many a bias is near 0. What it adds stands beside what the weights give, so either norm will do.
        _require_training(layer, "bias or weights", new_bias - bias, max(norm, float(bias.norm())))


def _require_training(layer: str, whose: str, change: Tensor, norm: float) -> None:
    """Raises CorruptWeights for a change of more than MAX_CHANGE times a norm."""
    size = float(change.norm())
    if norm > 0 and size > MAX_CHANGE * norm:
        raise CorruptWeights(
            f"the adapter changes the layer {layer[:120]!r} by {size / norm:.3g} times the norm of its "
            f"{whose}, beyond {MAX_CHANGE:g}: its numbers are damaged, or it is for another base model."
        )
