"""Weights in scaled 8 bits, as ComfyUI writes them, multiplied out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from finextract.weights.scales import FACTORS, OF_INPUTS, is_mark


def is_eighth(tensor: Tensor) -> bool:
    """Whether it holds floating point numbers of 8 bits, which few operations of torch take."""
    return tensor.is_floating_point() and tensor.itemsize == 1


def multiplied_out(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, each scaled weight of 8 bits as its product with its factor, in float16.

    A factor is one number, or one for each row. Tensors that say how such weights are scaled are left out;
    those beside weights of other kinds stay, so that they fit no model.
    """
    found = {key: tensor for key, tensor in state.items() if not is_mark(key)}
    for key in [key for key, tensor in found.items() if key.endswith(".weight") and is_eighth(tensor)]:
        layer, weight = key.removesuffix("weight"), found[key]
        factor = next((found[layer + name] for name in FACTORS if layer + name in found), None)
        if factor is None or factor.numel() not in (1, *weight.shape[:1]):
            continue
        rows = factor.float().reshape(-1, *[1] * (weight.dim() - 1))
        found[key] = (weight.float() * rows).half()
        for name in (*FACTORS, *OF_INPUTS):
            found.pop(layer + name, None)
    return found
