"""The crawl: keep N scans of a plan in flight, record all outcomes. Ray lives here.

What inspection ruled out gets its row at once; the rest goes to workers, which write their rows themselves:
the driver moves records and counters. A worker that dies is replaced, and its checkpoint tried again,
`ATTEMPTS` times.
"""

from __future__ import annotations

import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import batched
from typing import Any

from scanner.errors import ConfigError
from scanner.planning import Plan
from scanner.records import Checkpoint, Prospect, Scan, Verdict, new_id, now
from scanner.store import Store
from scanner.worker import Scanner, Task

ATTEMPTS = 3  # of a checkpoint whose worker died
RECORDED_AT_ONCE = 500  # rows of what was ruled out, a part of the store
# What a worker on another node must know of the driver's surroundings. Tokens are the node's own affair.
PASSED_ON = ("HF_ENDPOINT", "CIVITAI_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "FINEXTRACT_SSCD")


class Crew:
    """Ray actors, each holding a scanner. Started on entering, gone on leaving."""

    def __init__(self, task: Task, *, address: str | None, workers: int | None) -> None:
        self._task, self._address, self._wanted = task, address, workers

    def __enter__(self) -> Crew:
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            _start(ray, self._address)
        gpus = int(ray.cluster_resources().get("GPU", 0))
        cpus = int(ray.cluster_resources().get("CPU", 1))
        self.size = self._wanted or gpus or cpus
        self.device = "GPU" if gpus else "CPU"
        remote: Any = ray.remote(Scanner)
        self._actor = remote.options(
            num_gpus=1 if gpus else 0, num_cpus=0 if gpus else 1, max_restarts=0, max_task_retries=0
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._ray.shutdown()

    def scan(self, checkpoints: list[Checkpoint], store: Store) -> Iterator[tuple[Checkpoint, Scan]]:
        """Each checkpoint with its scan, as they finish. At most one a worker is in flight."""
        ray = self._ray
        queue = deque(checkpoints)
        attempts: Counter[str] = Counter()
        running: dict[Any, tuple[Any, Checkpoint]] = {}
        idle = [self._actor.remote(self._task) for _ in range(min(self.size, len(queue)))]
        while queue or running:
            while queue and idle:
                actor, checkpoint = idle.pop(), queue.popleft()
                running[actor.scan.remote(checkpoint)] = (actor, checkpoint)
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, checkpoint = running.pop(done)
            try:
                scan: Scan = ray.get(done)
            except ray.exceptions.RayActorError as error:
                # A worker's own rows count: it may have died after it wrote them.
                written = store.select(
                    Scan,
                    "WHERE checkpoint_id = ? AND run_id = ?",
                    [checkpoint.checkpoint_id, self._task.run_id],
                )
                if written:
                    yield checkpoint, written[0]
                else:
                    attempts[checkpoint.checkpoint_id] += 1
                    if attempts[checkpoint.checkpoint_id] < ATTEMPTS:
                        queue.append(checkpoint)
                    else:
                        yield checkpoint, _record_death(store, self._task, checkpoint, error)
                if queue:
                    idle.append(self._actor.remote(self._task))
                continue
            idle.append(actor)
            yield checkpoint, scan


def check_cluster(address: str) -> None:
    """Raises ConfigError where nobody answers at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like are Ray's own affair
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address}: {error}.\n"
            "Start one with `ray start --head`, or leave --ray-address out to start one here."
        ) from error


def _start(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "120")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(include_dashboard=False, object_store_memory=100_000_000, **options)
    else:
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        ray.init(address=address, runtime_env={"env_vars": passed}, **options)


def _record_death(store: Store, task: Task, checkpoint: Checkpoint, error: Exception) -> Scan:
    """The row of a checkpoint whose workers died: nobody else is left to write it."""
    first_line = (str(error).strip().splitlines() or ["no reason told"])[0]
    reason = f"its worker died {ATTEMPTS} times: {first_line[:300]}"
    scan = _without_scan(task, checkpoint, Verdict.FAILED, reason)
    store.append([scan])
    return scan


def _ruled_out(task: Task, checkpoint: Checkpoint) -> Scan:
    """The row of a checkpoint that inspection ruled out."""
    skipped = checkpoint.prospect is Prospect.SKIPPED
    return _without_scan(task, checkpoint, Verdict.SKIPPED if skipped else Verdict.FAILED, checkpoint.reason)


def _without_scan(task: Task, checkpoint: Checkpoint, verdict: Verdict, reason: str) -> Scan:
    at = now()
    return Scan(
        scan_id=new_id(),
        checkpoint_id=checkpoint.checkpoint_id,
        config_id=task.config.config_id,
        run_id=task.run_id,
        verdict=verdict,
        reason=reason,
        stage="inspect",
        started_at=at,
        finished_at=at,
        caption=checkpoint.caption,
        base=checkpoint.base,
        tau=task.config.tau,
        alpha=task.config.alpha,
        seed=task.config.seed,
    )


def crawl(
    task: Task,
    plan: Plan,
    store: Store,
    *,
    address: str | None = None,
    workers: int | None = None,
    report: Callable[[Checkpoint, Scan, int, int], None] = lambda *_: None,
) -> Counter[Verdict]:
    """Scans what a plan has left to do. `report` is told of each scan, how many are done, and of how many."""
    todo = plan.todo
    verdicts: Counter[Verdict] = Counter()
    ready = [c for c in todo if c.prospect is Prospect.READY]
    done = 0
    for batch in batched((c for c in todo if c.prospect is not Prospect.READY), RECORDED_AT_ONCE):
        rows = [_ruled_out(task, checkpoint) for checkpoint in batch]
        store.append(rows)
        for checkpoint, scan in zip(batch, rows, strict=True):
            done += 1
            verdicts[scan.verdict] += 1
            report(checkpoint, scan, done, len(todo))
    if not ready:
        return verdicts
    with Crew(task, address=address, workers=workers) as crew:
        for checkpoint, scan in crew.scan(ready, store):
            done += 1
            verdicts[scan.verdict] += 1
            report(checkpoint, scan, done, len(todo))
    return verdicts
