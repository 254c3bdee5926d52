"""Models of any size that take no memory and little time: their weights have shapes, and no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def on_meta() -> Iterator[None]:
    """What is made within is on torch's meta device."""
    with torch.device("meta"), not_initialised():
        yield


@contextmanager
def not_initialised() -> Iterator[None]:
    """The weights of what is made within get no first numbers, which takes longer than all the rest."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        yield


def moved(module: nn.Module, place: torch.device | str, dtype: torch.dtype | None = None) -> nn.Module:
    """What `module.to(place, dtype)` does, for fake tensors, which torch cannot exchange.

    The numbers of rotary embeddings keep their precision, as in transformers.
    """
    for part in module.modules():
        for named in (part._parameters, part._buffers):
            for name, tensor in named.items():
                if tensor is not None:
                    changes = dtype is not None and tensor.is_floating_point() and name != "inv_freq"
                    new = torch.empty(tensor.shape, dtype=dtype if changes else tensor.dtype, device=place)
                    is_weight = isinstance(tensor, nn.Parameter)
                    named[name] = nn.Parameter(new, requires_grad=False) if is_weight else new
    return module
