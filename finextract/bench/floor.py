"""The floor under a run's seconds: what a device can compute, and how much of that a denoiser reaches.

Operations are floating-point ones, two for a multiplication with its addition. A denoiser's are those of its
matrix products, convolutions and attention, as torch counts them. On a CPU seconds are those that the
processors worked, divided by the threads, so that other programs do not change them; on a GPU they are those
that passed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from finextract.bench.transcription import Networks
from finextract.models.base import Pair
from finextract.text import first_line

_SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices that are multiplied
BATCH_SIZES = (5, 32, 64)
_T = 500.0  # the timestep of the evaluations that are timed


def dense_rate(device: torch.device, dtype: torch.dtype, least_s: float = 1.0) -> float:
    """Operations a second of a product of two square matrices; of the fastest one within `least_s`.

    `device` is a CPU or a CUDA device.
    """
    side = _SIDE[device.type]
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    fastest, ends = float("inf"), _now(device) + least_s
    while (began := _now(device)) < ends:
        torch.mm(one, other)
        fastest = min(fastest, _now(device) - began)
    return 2 * side**3 / fastest


def operations(pair: Pair) -> int:
    """The operations of one evaluation of the tuned model's denoiser, for one sample."""
    model = pair.tuned
    x = torch.randn(1, *model.latent_shape, device=model.device, dtype=model.dtype)
    conditioning = model.condition("")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.predict(x, _T, conditioning)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Variant:
    """A way to evaluate the denoisers, and what it costs."""

    dtype: str  # "float32", "bfloat16"
    compiled: bool
    attention: str  # "chosen by torch", "plain"
    batch_size: int
    networks: int  # 1, or base and tuned in turn
    seconds: float | None = None  # for one evaluation of one sample; None where it failed
    why: str = ""  # it failed


def variants(device_type: str) -> list[Variant]:
    """Those that are measured on a device: on a GPU also torch.compile and attention."""
    if device_type != "cuda":
        plain = [Variant("float32", False, "chosen by torch", size, 1) for size in BATCH_SIZES]
        return [*plain, replace(plain[-1], networks=2), replace(plain[-1], dtype="bfloat16")]
    found = [
        Variant(dtype, compiled, "chosen by torch", size, 1)
        for dtype in ("float32", "bfloat16")
        for compiled in (False, True)
        for size in BATCH_SIZES
    ]
    return [
        *found,
        Variant("bfloat16", False, "plain", BATCH_SIZES[-1], 1),
        Variant("bfloat16", False, "chosen by torch", BATCH_SIZES[-1], 2),
        Variant("bfloat16", True, "chosen by torch", BATCH_SIZES[-1], 2),
    ]


def timed_variants(networks: Networks, which: Sequence[Variant], least_s: float = 0.5) -> list[Variant]:
    """The variants with their seconds, each measured for `least_s`, above 0, or longer after two calls."""
    found = []
    for variant in which:
        try:
            found.append(replace(variant, seconds=_seconds(networks, variant, least_s)))
        except RuntimeError as error:  # too little memory, or no compiler for torch.compile
            found.append(replace(variant, why=first_line(error)[:120]))
    return found


def _seconds(networks: Networks, variant: Variant, least_s: float) -> float:
    dtype, device = getattr(torch, variant.dtype), networks.device
    used = [networks.tuned, networks.base][: variant.networks]
    unets: list[Any] = [copy.deepcopy(n).to(dtype=dtype, memory_format=torch.channels_last) for n in used]
    if variant.compiled:
        torch.compiler.reset()  # else the variants before would count against its limit of recompilations
        unets = [torch.compile(unet, dynamic=False) for unet in unets]
    model = networks.pair.tuned
    x = torch.randn(variant.batch_size, *model.latent_shape, device=device, dtype=dtype)
    x = x.to(memory_format=torch.channels_last)
    states = model.condition("").to(dtype).expand(variant.batch_size, -1, -1)
    time_of = torch.full((1,), _T, device=device)
    attention = sdpa_kernel(SDPBackend.MATH) if variant.attention == "plain" else nullcontext()
    with torch.no_grad(), attention:
        for _ in range(2):
            for unet in unets:
                unet(x, time_of, encoder_hidden_states=states)
        began, passed, rounds = _now(device), 0.0, 0
        while passed < least_s:
            for unet in unets:
                unet(x, time_of, encoder_hidden_states=states)
            rounds += 1
            passed = _now(device) - began
    return passed / (rounds * len(unets) * variant.batch_size)


def _now(device: torch.device) -> float:
    """The clock of a device, in seconds."""
    if device.type == "cuda":  # which computes after a call has returned
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()
