"""What work costs, told so that it does not depend on the machine's speed or on what else runs there."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache


def cost(work: Callable[[], object]) -> float:
    """The CPU time of `work` in this thread, as a multiple of the CPU time of a million additions."""
    return _cpu_s(work) / _million_additions_s()


@cache
def _million_additions_s() -> float:
    """In CPU seconds, about 0.03; measured in ten parts of which the median counts."""
    parts = sorted(_cpu_s(_add) for _ in range(10))
    return 10 * parts[5]


def _add() -> None:
    total = 0
    for n in range(100_000):
        total += n


def _cpu_s(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began
