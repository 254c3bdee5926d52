"""Models that share their tensors: a tuned model holds only what differs from its base.

A copy has modules of its own and the tensors of the original. Nothing is changed in place: a tensor that
differs replaces the shared one, so that the original stays as it was, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def copy_sharing[M: nn.Module](module: M) -> M:
    """A copy of a module that has the same tensors, until `replace` gives it others."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def replace_tensors(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Gives a module other values for some of its parameters and buffers, by their names in the module.

    A value takes the precision, the device and the layout of the present one. An equal value changes nothing,
    so that the tensor stays shared. A tensor that the module has under several names is replaced under each.
    """
    places = _places(module)
    for path, value in values.items():
        owner, _, last = path.rpartition(".")
        present = getattr(module.get_submodule(owner), last)
        new = torch.empty_like(present).copy_(value)
        if not new.is_meta and torch.equal(new, present):
            continue
        if isinstance(present, nn.Parameter):
            new = nn.Parameter(new, requires_grad=False)
        for part, name in places.get(id(present), ()):
            setattr(part, name, new)


def exchange_tensor(module: nn.Module, present: Tensor, new: Tensor) -> None:
    """Gives a module another tensor, of any shape, under every name that it has the present one."""
    for part, name in _places(module).get(id(present), ()):
        setattr(part, name, new)


def _places(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """id of a tensor -> the parts of the module that have it, and its name there."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for part in module.modules():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                places.setdefault(id(tensor), []).append((part, name))
    return places
