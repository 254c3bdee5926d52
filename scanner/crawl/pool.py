"""The workers of a crawl as Ray actors: as many as the cluster has room for, replaced when they die.

Ray lives here and in the engine. A worker holds a `scanner.crawl.worker.Scanner`; a fetcher holds another, on
any node with a processor, and brings files into the cache before their scan. On a machine or a cluster with
GPUs workers take GPUs, several sharing one where its memory allows; otherwise a core each.
"""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from scanner.crawl.planning import Planned
from scanner.crawl.worker import Scanner, Stage, Task
from scanner.errors import ConfigError, NoWorkers
from scanner.records import Checkpoint

# What a worker on another node must know of the driver's surroundings. Tokens are the node's own affair.
PASSED_ON = ("HF_ENDPOINT", "CIVITAI_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "FINEXTRACT_SSCD",
             "AWS_ENDPOINT_URL")  # fmt: skip
# GiB of a GPU by the name that Ray gives its kind; of others nothing is known, and one worker takes it whole.
GPU_GIB = {"T4": 16, "V100": 16, "L4": 24, "A10G": 24, "A100": 40, "A100-80G": 80, "L40S": 48, "H100": 80,
           "H200": 141, "B200": 192}  # fmt: skip
# GiB that a worker needs by family: the pair in half precision, and a batch of 32 at 512x512. An estimate.
WORKER_GIB = {"sd1": 12}
STARTS = 5  # of workers that may fail in a row
MOST_A_GPU = 4  # workers; beyond that they only wait for each other
NODE_DEATH = re.compile(r"node (has )?(died|been terminated|was terminated)|its node|preempt", re.IGNORECASE)


class WorkerDied(Exception):
    """A worker is gone, and what it did may or may not have been done."""

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.with_its_node = NODE_DEATH.search(told) is not None


class WorkerFailed(Exception):
    """A worker raised what it should not: the store or Ray is in trouble."""


@dataclass(eq=False)
class WorkerHandle:
    """One actor, and what it is at."""

    actor: Any
    starting: Any = None  # the reference that is there once it can be given work
    at: Checkpoint | None = None
    answer: Any = None  # the reference of its scan
    asked: Any = None  # the reference of its last `stage`
    stage: Stage | None = None
    began: float = 0.0  # monotonic seconds, its scan
    seconds: float = math.inf  # of a scan, on average of late
    queue: list[Planned] = field(default_factory=list)  # that it has claimed beyond, in order


class WorkerPool:
    """Ray, connected or started on entering; its workers are gone on leaving."""

    def __init__(
        self, task: Task, *, address: str | None, workers: int | None, fetchers: int = 1, kind: type = Scanner
    ) -> None:
        self._task, self._address, self._wanted, self._num_fetchers = task, address, workers, fetchers
        self._kind = kind  # what a worker holds; it has the methods of a Scanner
        self.workers: list[WorkerHandle] = []
        self._fetchers: list[Any] = []
        self._ahead: dict[Any, int] = {}  # reference of a fetch -> bytes
        self._fetched: set[str] = set()  # checkpoints whose fetch was begun
        self._failed_starts = 0  # since the last that went well

    def __enter__(self) -> WorkerPool:
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            _start(ray, self._address)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            self._ray.kill(worker.actor)
        for fetcher in self._fetchers:
            self._ray.kill(fetcher)
        if self._ours:
            self._ray.shutdown()

    @property
    def room(self) -> int:
        """Workers that the cluster has room for now, or as many as were asked for."""
        return self._wanted or max(1, self._gpu_room() or int(self._ray.cluster_resources().get("CPU", 1)))

    def _gpu_room(self) -> int:
        return int(int(self._ray.cluster_resources().get("GPU", 0)) / self._gpu_share())

    def _gpu_share(self) -> float:
        """The part of a GPU that a worker takes: as its memory allows on the smallest kind that is there."""
        kinds = [name.removeprefix("accelerator_type:") for name in self._ray.cluster_resources()
                 if name.startswith("accelerator_type:")]  # fmt: skip
        need = max(WORKER_GIB.values())  # a worker may be given any of them
        least = min((GPU_GIB.get(kind, need) for kind in kinds), default=need)
        return 1 / max(1, min(MOST_A_GPU, least // need))

    def grow(self, most: int) -> None:
        """Starts workers until there are as many as there is room for, or as `most`."""
        while len(self.workers) < min(self.room, most):
            gpus = int(self._ray.cluster_resources().get("GPU", 0))
            remote: Any = self._ray.remote(self._kind)
            actor = remote.options(
                num_gpus=self._gpu_share() if gpus else 0, num_cpus=0 if gpus else 1, max_restarts=0,
                max_task_retries=0, max_concurrency=2,
            ).remote(self._task)  # fmt: skip
            self.workers.append(WorkerHandle(actor, starting=actor.ready.remote()))

    def start(self, worker: WorkerHandle, checkpoint: Checkpoint) -> None:
        """Gives a worker that is at nothing a checkpoint."""
        worker.at, worker.stage, worker.began = checkpoint, None, time.monotonic()
        worker.answer = worker.actor.scan.remote(checkpoint)

    def fetch_ahead(self, checkpoint: Checkpoint, most_bytes: int) -> None:
        """Has a file brought into the cache, unless that would be more than `most_bytes` at once."""
        done, _ = (
            self._ray.wait(list(self._ahead), num_returns=len(self._ahead), timeout=0)
            if self._ahead
            else ([], [])
        )
        for reference in done:
            del self._ahead[reference]
        if not self._num_fetchers or checkpoint.checkpoint_id in self._fetched:
            return
        if sum(self._ahead.values()) + checkpoint.size_bytes > most_bytes:
            return
        self._fetched.add(checkpoint.checkpoint_id)
        if not self._fetchers:
            remote: Any = self._ray.remote(self._kind)
            self._fetchers = [
                remote.options(
                    num_cpus=1 if self._address else 0, max_restarts=-1, max_task_retries=0
                ).remote(self._task)  # on a cluster a processor's own node; here it takes none from a scan
                for _ in range(self._num_fetchers)
            ]
        fetcher = self._fetchers[len(self._ahead) % len(self._fetchers)]
        self._ahead[fetcher.fetch_ahead.remote(checkpoint)] = checkpoint.size_bytes

    def finished(self, wait_s: float) -> Iterator[tuple[WorkerHandle, Any]]:
        """Workers whose scan has ended within `wait_s`, each with its Scan, WorkerDied or WorkerFailed.

        Returns early when a worker has come up, too. Raises NoWorkers where none does.
        """
        ray = self._ray
        starting = {w.starting: w for w in self.workers if w.starting is not None}
        running = {w.answer: w for w in self.workers if w.answer is not None}
        awaited = [*running, *starting]
        if not awaited:
            return
        done, _ = ray.wait(awaited, num_returns=1, timeout=wait_s)
        if done:  # and whatever else is done by now
            done, _ = ray.wait(awaited, num_returns=len(awaited), timeout=0)
        for reference in done:
            if reference in starting:
                self._started(starting[reference])
                continue
            worker = running[reference]
            worker.answer = None
            took = time.monotonic() - worker.began
            worker.seconds = took if worker.seconds == math.inf else 0.8 * worker.seconds + 0.2 * took
            try:
                outcome: Any = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                outcome = WorkerDied(str(error))
            except ray.exceptions.RayError as error:
                outcome = WorkerFailed(str(getattr(error, "cause", None) or error))
            yield worker, outcome

    def _started(self, worker: WorkerHandle) -> None:
        """A worker has come up, or has not: then it goes, and another is tried."""
        try:
            self._ray.get(worker.starting)
        except self._ray.exceptions.RayError as error:
            self.dismiss(worker)
            died = WorkerDied(str(error))
            self._failed_starts += not died.with_its_node
            if self._failed_starts >= STARTS:
                told = str(getattr(error, "cause", None) or error).strip().splitlines() or ["no reason told"]
                raise NoWorkers(
                    f"{STARTS} workers in a row did not come up; the last said: {told[0][:300]}\n"
                    "`scanner doctor` tells what a worker needs; what is recorded stays."
                ) from error
        else:
            worker.starting, self._failed_starts = None, 0

    def look(self) -> None:
        """Asks every busy worker for its stage, and takes what has been answered since the last look."""
        for worker in self.workers:
            if worker.answer is None:
                continue
            if worker.asked is not None:
                done, _ = self._ray.wait([worker.asked], timeout=0)
                if not done:
                    continue
                try:
                    worker.stage = self._ray.get(worker.asked)
                except self._ray.exceptions.RayError:
                    worker.stage = None  # its scan's own answer tells why
            worker.asked = worker.actor.stage.remote()

    def dismiss(self, worker: WorkerHandle) -> None:
        """Ends a worker's process; what it was at is nobody's."""
        self._ray.kill(worker.actor)
        worker.answer = None
        self.workers.remove(worker)


def named_cluster() -> str | None:
    """The cluster of the job that this process is; RAY_ADDRESS may also name a job server, which is none."""
    named = os.environ.get("RAY_ADDRESS", "")
    return named if named and not named.startswith("http") else None


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
    address = address or named_cluster()
    if address is None:
        ray.init(address="local", include_dashboard=False, object_store_memory=100_000_000, **options)
    else:
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        ray.init(address=address, runtime_env={"env_vars": passed}, **options)
