"""Checks that the tests of several families share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import tried_formats
from torch import Tensor, nn

from finextract.models.base import Solver
from finextract.weights.adapter_keys import parse_key
from finextract.weights.embedding_keys import parse_embedding_key
from finextract.weights.original_names import file_layers


def far(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def stating(solver: Solver, x: Tensor, noise: Tensor, t: float) -> Tensor:
    """The prediction that states this noise to be in x_t."""
    return (noise - solver.noise(x, torch.zeros_like(x), t)) / solver.noise_share(t)


@dataclass(frozen=True)
class Call:
    """One call of a pipeline's denoiser."""

    inputs: tuple[Any, ...]
    named: dict[str, Any]
    output: Any


@contextmanager
def calls_of(denoiser: nn.Module) -> Iterator[list[Call]]:
    """The calls of a pipeline's denoiser within the block."""
    calls: list[Call] = []
    hook = denoiser.register_forward_hook(
        lambda _, inputs, named, output: calls.append(Call(inputs, named, output)), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


def assert_adapter_fits(adapter: str, layers: Mapping[str, Any]) -> None:
    """Every key of a file of tried_formats.py is of one of a model's layers, and of its widths."""
    names = file_layers(layers)
    shapes: dict[str, list[int]] = tried_formats.read(adapter)["tensors"]
    assert shapes
    for key, shape in shapes.items():
        if parse_embedding_key(key) is not None:
            continue
        parsed = parse_key(key)
        assert parsed is not None, key
        weights = [layers[name].weight for name in names[parsed.layer].layers]
        if parsed.part == "lora_down":
            assert all(weight.shape[1:].numel() == shape[1] for weight in weights), key
        elif parsed.part == "lora_up":
            assert sum(len(weight) for weight in weights) == shape[0], key


def ones_of_rank_1(layer: str) -> dict[str, Tensor]:
    """A LoRA that adds 1 to all weights of a layer of 32 by 32."""
    return {f"{layer}.lora_A.weight": torch.ones(1, 32), f"{layer}.lora_B.weight": torch.ones(32, 1)}
