"""Adapters merged into the weights of a model's layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from finextract.adapters.base import Adapter
from finextract.adapters.fused import replace_weight, weight_of
from finextract.errors import BaseMismatch, CorruptWeights
from finextract.weights.original_names import file_layers


@torch.no_grad()
def merge(layers: Mapping[str, nn.Module], adapters: Iterable[Adapter]) -> None:
    """Replaces each adapted layer's weight by what its adapter makes of it, in place.

    `layers` are those of `Model.layers()`. Merge into a copy: where an error is raised, some layers may be
    changed already. Raises BaseMismatch for a layer that is unknown to the model or has another shape,
    CorruptWeights for weights that are not finite.
    """
    by_name = file_layers(layers)
    for adapter in adapters:
        target = by_name.get(adapter.layer)
        if target is None:
            raise BaseMismatch(
                f"the adapter has a layer that the base model does not have: {adapter.layer[:120]!r}."
            )
        tuned = adapter(weight_of(layers, target))
        if not torch.isfinite(tuned).all():
            raise CorruptWeights(
                f"the adapter's layer {adapter.layer[:120]!r} holds numbers that are not finite."
            )
        replace_weight(layers, target, tuned)
