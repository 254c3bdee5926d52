"""What a crawl reports while it runs: its progress, its budget, and the observer that receives its events.

Knows no Ray and no terminal.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scanner.records import Checkpoint, Scan, Verdict

if TYPE_CHECKING:
    from scanner.hubs.http import RateLimitWait
    from scanner.store.queries import VerdictCounts

WORKER_SECONDS = 600.0  # of work for which a worker is started
Running = tuple[Checkpoint, str, float]  # a checkpoint, the stage of its scan, and seconds in that stage


@dataclass
class Progress:
    """How far a crawl has come."""

    total: int = 0  # checkpoints to scan, as far as they are listed
    listed: int = 0  # entries of the source
    listing: bool = False  # whether more entries may follow
    done: int = 0  # checkpoints with a verdict
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    running: list[Running] = field(default_factory=list)
    elsewhere: int = 0  # checkpoints that another crawl holds
    starting: int = 0  # workers that are starting up
    waiting: int = 0  # workers that wait for a node of the cluster
    retried: int = 0  # attempts after the first of a checkpoint
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a crawl over one source."""

    run_id: str  # of the scans that it makes
    config_id: str
    source: str
    store: str


@dataclass
class Budget:
    """What a crawl may spend. A scan that has begun when the budget is spent is completed."""

    seconds: float = math.inf  # of all workers together
    size_bytes: float = math.inf  # of downloaded checkpoints
    spent_seconds: float = 0.0
    spent_bytes: int = 0

    @property
    def is_spent(self) -> bool:
        """Whether no further scan may begin."""
        return self.spent_seconds >= self.seconds or self.spent_bytes >= self.size_bytes

    @property
    def workers(self) -> float:
        """The most workers that are of use for what is left: each needs minutes before its first scan."""
        return 0 if self.is_spent else 1 + (self.seconds - self.spent_seconds) / WORKER_SECONDS


class Observer:
    """Receives the events of a crawl. Every method does nothing here; override those that you need.

    `rate_limited` and `message` may be called from the threads that list and that notify; the other methods
    are called from the thread that runs the crawl.
    """

    def begun(self, run: Run) -> None:
        """A crawl begins, before anything of it is scanned."""

    def message(self, text: str) -> None:
        """A sentence for people, such as the beginning and the end of the listing."""

    def checkpoint_listed(self, checkpoint: Checkpoint) -> None:
        """A checkpoint was listed and inspected. Called once for each, by a listing without scans."""

    def listing_progress(self, listed: int, inspected: int) -> None:
        """A batch was listed: how many entries were listed and inspected in all."""

    def rate_limited(self, wait: RateLimitWait) -> None:
        """A hub limits requests, and the crawl waits until a time."""

    def outcome(self, checkpoint: Checkpoint, scan: Scan, progress: Progress) -> None:
        """A checkpoint came to its verdict."""

    def interrupted(self, counts: VerdictCounts) -> None:
        """A KeyboardInterrupt ends the crawl: the verdicts of all checkpoints of the store up to now."""

    def tick(self, progress: Progress) -> None:
        """Called every few seconds while workers scan."""


class Observers(Observer):
    """Gives each event to several observers, in order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def begun(self, run: Run) -> None:
        """See `Observer.begun`, as for all of these."""
        for observer in self._observers:
            observer.begun(run)

    def message(self, text: str) -> None:
        for observer in self._observers:
            observer.message(text)

    def checkpoint_listed(self, checkpoint: Checkpoint) -> None:
        for observer in self._observers:
            observer.checkpoint_listed(checkpoint)

    def listing_progress(self, listed: int, inspected: int) -> None:
        for observer in self._observers:
            observer.listing_progress(listed, inspected)

    def rate_limited(self, wait: RateLimitWait) -> None:
        for observer in self._observers:
            observer.rate_limited(wait)

    def outcome(self, checkpoint: Checkpoint, scan: Scan, progress: Progress) -> None:
        for observer in self._observers:
            observer.outcome(checkpoint, scan, progress)

    def interrupted(self, counts: VerdictCounts) -> None:
        for observer in self._observers:
            observer.interrupted(counts)

    def tick(self, progress: Progress) -> None:
        for observer in self._observers:
            observer.tick(progress)
