"""What the engine's tests share: a task, and the rows of workers that scan nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ray import cloudpickle

from scanner.config import ScanConfig
from scanner.crawl.worker import Task
from scanner.records import Checkpoint, Scan, Verdict, new_id, now
from scanner.store.store import Store

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import the tests
CONFIG = ScanConfig()


def task(store: Store, cache: Path, source: str = "stub") -> Task:
    cache.mkdir(exist_ok=True)
    return Task(
        store=store.uri, source=source, base=None, config=CONFIG, run_id=new_id(), cache=str(cache),
        max_download=1, cache_bytes=1, keep_weights=False, allow_pickle=False, threads=1,
    )  # fmt: skip


def ended(
    task: Task, checkpoint: Checkpoint, verdict: Verdict, reason: str = "", store: Store | None = None,
    **facts: Any,
) -> Scan:  # fmt: skip
    """The row of a scan that took no time; written as a worker writes it, unless it failed."""
    at = now()
    scan = Scan(
        scan_id=new_id(), checkpoint_id=checkpoint.checkpoint_id, config_id=task.config.config_id,
        run_id=task.run_id, verdict=verdict, reason=reason, stage="match", started_at=at, finished_at=at,
        **facts,
    )  # fmt: skip
    if verdict is not Verdict.FAILED:
        (store or Store(task.store)).append([scan])
    return scan


class Quick:
    """A worker that writes its row, and scans nothing."""

    def __init__(self, task: Task) -> None:
        self.task, self.store = task, Store(task.store)

    def ready(self) -> None:
        """At once."""

    def stage(self) -> None:
        """At nothing."""

    def fetch_ahead(self, checkpoint: Checkpoint) -> bool:
        return True

    def scan(self, checkpoint: Checkpoint) -> Scan:
        return ended(self.task, checkpoint, Verdict.NOTHING_FOUND, "", self.store, seconds={"fetch": 0.0})
