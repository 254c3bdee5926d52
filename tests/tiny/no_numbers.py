"""Models of any size that take no memory and little time: their weights have shapes, and no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes


@contextmanager
def on_meta() -> Iterator[None]:
    """What is made within is on torch's meta device."""
    with torch.device("meta"), not_initialised():
        yield


@contextmanager
def not_initialised() -> Iterator[None]:
    """The weights of what is made within get no first numbers, which takes longer than all the rest."""
    # diffusers keeps torch's functions when it is imported, and restores those after it has loaded a model:
    # imported within, it would leave every later model of the process without first numbers.
    import diffusers.models.modeling_utils  # noqa: F401
    from transformers.initialization import no_init_weights

    with no_init_weights():
        yield


@contextmanager
def on_any_device() -> Iterator[None]:
    """Tensors made within have a device, a shape and a precision, and no numbers.

    A number that is read is 1, and no two tensors are equal, so that a program runs as far as its way does
    not depend on numbers. An operation that mixes devices or precisions is an error there as it is on a GPU.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _Ones(), patch.object(Tensor, "numpy", _ones):
        yield


class _Ones(TorchDispatchMode):
    """Answers what fake tensors leave open: the number in one, and whether two are equal."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        reads = (aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default)
        if func not in (*reads, aten.equal.default):
            return func(*args, **(kwargs or {}))
        if any(isinstance(tensor, FakeTensor) for tensor in args):
            assert len({tensor.device for tensor in args}) == 1
            if func in (aten.equal.default, aten.is_nonzero.default):
                return func is aten.is_nonzero.default
            return 1.0 if args[0].is_floating_point() else 1
        with _disable_current_modes():
            return func(*args)


def _ones(tensor: Tensor) -> Any:
    """What `Tensor.numpy` does; of a fake tensor the array holds ones."""
    if isinstance(tensor, FakeTensor):
        assert tensor.device.type == "cpu"
        return np.ones(tensor.shape, str(tensor.dtype).removeprefix("torch."))
    with _disable_current_modes():
        return _NUMPY(tensor)


_NUMPY = Tensor.numpy


def moved(module: nn.Module, place: torch.device | str, dtype: torch.dtype | None = None) -> nn.Module:
    """What `module.to(place, dtype)` does, for fake tensors, which torch cannot exchange.

    The numbers of rotary embeddings keep their precision, as in transformers.
    """
    for part in module.modules():
        for named in (part._parameters, part._buffers):
            for name, tensor in named.items():
                if tensor is not None:
                    changes = dtype is not None and tensor.is_floating_point() and name != "inv_freq"
                    new = torch.empty_like(tensor, dtype=dtype if changes else tensor.dtype, device=place)
                    is_weight = isinstance(tensor, nn.Parameter)
                    named[name] = nn.Parameter(new, requires_grad=False) if is_weight else new
    return module
