"""Seconds by stage: those that pass, and those that the processors of this process work."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class Spent:
    """The cost of a stage."""

    seconds: float = 0.0  # that passed
    processor_s: float = 0.0  # that all threads of this process worked; other programs do not change it

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.processor_s + other.processor_s)


class Stopwatch:
    """Divides the time between its laps among stages, so that the stages add up to the whole."""

    def __init__(self, device: torch.device) -> None:
        self.spent: dict[str, Spent] = {}
        self._device = device
        self._at = self._now()

    def lap(self, stage: str | None) -> None:
        """The time since the last lap was that of a stage; None is time that does not count."""
        now = self._now()
        if stage is not None:
            passed = Spent(now.seconds - self._at.seconds, now.processor_s - self._at.processor_s)
            self.spent[stage] = self.spent.get(stage, Spent()) + passed
        self._at = now

    def copy(self) -> Self:
        """A stopwatch that goes on from the same lap; neither changes the other."""
        other = copy.copy(self)
        other.spent = dict(self.spent)
        return other

    @property
    def total(self) -> Spent:
        """All stages together."""
        return sum(self.spent.values(), Spent())

    def _now(self) -> Spent:
        if self._device.type == "cuda":  # a GPU computes after a call has returned
            torch.cuda.synchronize(self._device)
        return Spent(time.perf_counter(), time.process_time())
