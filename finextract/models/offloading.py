"""Modules whose weights are on the CPU, and on a GPU only while they compute.

Weights are copied to the GPU for each use, and the copies are dropped: nothing is moved back, and no tensor
is changed, so that models can share them (finextract.sharing).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

# What is on the CPU between its uses. "denoiser" is everything: the denoiser's blocks come one at a time.
type Offloading = Literal["nothing", "encoders and VAE", "denoiser"]


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module's tensors are on a device within the block."""
    visit = _Visit(device)
    try:
        visit.begin(module)
        yield
    finally:
        visit.end(module)


def stream_blocks(module: nn.Module, device: torch.device) -> None:
    """From now on, each block of a module is on a device while it computes, and on the CPU before and after.

    Tensors that are in no block are on the device while the module computes. The module is on the CPU, its
    inputs on the device. Copies of it (finextract.sharing) do the same.
    """
    visits = [(block, _Visit(device)) for block in blocks_of(module)]
    for part, visit in [(module, _Visit(device, within=False)), *visits]:
        part.register_forward_pre_hook(visit.begin)
        part.register_forward_hook(visit.end, always_call=True)  # an operation may run out of memory
    module.streamed_to = device  # type: ignore[assignment]  # torch declares modules and tensors alone


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The parts of a module that compute one after another: its children, and the entries of its lists.

    A ModuleDict is a list here. Tensors that a module has beside them are in none of the parts.
    """
    found: list[nn.Module] = []
    for child in module.children():
        is_list = isinstance(child, nn.ModuleList | nn.ModuleDict)
        found += list(child.children()) if is_list else [child]
    return found


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes."""
    streamed: torch.device | None = getattr(module, "streamed_to", None)
    return streamed or next(module.parameters()).device


class _Visit:
    """A stay of a module's tensors on a device; without those of the modules within it, or with them."""

    def __init__(self, device: torch.device, *, within: bool = True) -> None:
        self._device, self._within = device, within
        self._at_home: list[tuple[dict[str, Any], str, Tensor]] = []

    def begin(self, module: nn.Module, *_: object) -> None:
        """Replaces the tensors by copies on the device; one that the module has twice is copied once."""
        copies: dict[int, Tensor] = {}
        for part in module.modules() if self._within else (module,):
            for named in (part._parameters, part._buffers):
                for name, tensor in named.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in copies:
                        copy = tensor.detach().to(self._device, non_blocking=True)
                        is_weight = isinstance(tensor, nn.Parameter)
                        copies[id(tensor)] = nn.Parameter(copy, requires_grad=False) if is_weight else copy
                    self._at_home.append((named, name, tensor))
                    named[name] = copies[id(tensor)]  # type: ignore[assignment]  # of the same kind

    def end(self, module: nn.Module, *_: object) -> None:
        """Gives the module its own tensors again."""
        while self._at_home:
            named, name, tensor = self._at_home.pop()
            named[name] = tensor
