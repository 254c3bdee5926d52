"""How many CPU threads a worker computes with. Standard library only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def thread_settings(threads: int) -> dict[str, str]:
    """Environment variables with which torch computes with so many threads, whichever thread calls it.

    They are read once, when torch is imported; `torch.set_num_threads` holds for the thread that calls it. A
    thread that waits for another one sleeps: on a busy machine, one that spins takes the core that the other
    one needs.
    """
    number = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return number | {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


def share_of_cores(gpus: float) -> int:
    """The cores of this node for a worker that takes so many GPUs, or a part of one; at least 1.

    A worker without a GPU gets one core, because Ray gives each such worker one.
    """
    if not gpus:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # the limit of a container, in microseconds of each period
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) // int(period))
    on_node = len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) or 1
    return max(1, int(cores * gpus / on_node))
