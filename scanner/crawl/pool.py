"""The workers of a crawl as Ray actors: as many as there is room for, replaced when they die.

A worker holds a `scanner.crawl.worker.Scanner`. It takes a GPU, or a part of one where its memory allows
several workers, and scans checkpoints of the families alone that need no larger share. On this machine it
takes a CPU core where there is no GPU. On a cluster it never does so by itself: workers then wait for a node
with a GPU, which is the demand that Ray's autoscaler acts on.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from finextract.reasons import ReasonCode
from scanner.crawl.cluster import connected, is_cluster
from scanner.crawl.code import version_reader
from scanner.crawl.fetchers import Fetchers
from scanner.crawl.gpu_shares import share_of_gpu
from scanner.crawl.worker import Scanner, Stage, Task
from scanner.errors import NoWorkers, StoreError
from scanner.records import Checkpoint
from scanner.store.leases import LeaseLost
from scanner.text import first_line

MAX_FAILED_STARTS = 5  # of workers, in a row
MAX_WAITING = 8  # workers of a cluster that wait for a node, at any time
NODE_DEATH = re.compile(r"node (has )?(died|been terminated|was terminated)|its node|preempt", re.IGNORECASE)
# What the memory monitor of Ray says. Other messages name the OOM killer as one possible cause.
OUT_OF_MEMORY = re.compile(r"running low on memory|killed due to memory pressure")


class WorkerDied(Exception):
    """The process of a worker ended. Whether it wrote its last row is not known."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.with_its_node = NODE_DEATH.search(message) is not None
        out_of_memory = OUT_OF_MEMORY.search(message) is not None
        self.reason_code = ReasonCode.OUT_OF_MEMORY if out_of_memory else ReasonCode.WORKER_DIED


class WorkerFailed(Exception):
    """A scan raised an exception (an error of the store or of Ray), or was stopped."""

    def __init__(self, message: str, reason_code: ReasonCode = ReasonCode.INTERNAL_ERROR) -> None:
        super().__init__(message)
        self.reason_code = reason_code


@dataclass(eq=False)
class WorkerHandle:
    """One actor, as the driver sees it. References are Ray's."""

    actor: Any
    share: float = 0.0  # the GPUs that it takes
    starting: Any = None  # reference of its start, until it can be given work
    version: Any = None  # reference of the version of this program in its process
    node: str = ""  # the id of its node, once that was asked for
    placed: float | None = None  # when it was first seen to have a process, monotonic seconds
    answer: Any = None  # reference of its scan, while it runs
    asked: Any = None  # reference of the last call of `stage`, until it is answered
    asked_at: float = 0.0  # when that was, monotonic seconds
    stage: Stage | None = None  # of its scan, as last polled
    began: float = 0.0  # its scan, monotonic seconds
    seconds: float = math.inf  # of a scan: a moving average

    @property
    def is_idle(self) -> bool:
        """Whether it can be given work."""
        return self.answer is None and self.starting is None

    @property
    def is_waiting(self) -> bool:
        """Whether no node has a process for it yet, as far as is known."""
        return self.starting is not None and self.placed is None


class WorkerPool:
    """A context manager: connects to Ray or starts it on entering, and ends its workers on leaving."""

    def __init__(
        self,
        task: Task,
        *,
        address: str | None,
        workers: int | None,
        gpus_per_worker: float | None = None,
        fetches: bool = True,
        worker_class: type = Scanner,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._task, self._address, self._wanted, self._fetches = task, address, workers, fetches
        self._on_cluster = is_cluster(address)  # which may get more nodes, unlike this machine
        self._worker_class = worker_class  # it has the methods of a Scanner
        self._gpus_per_worker = gpus_per_worker  # 0 = CPU cores; None = by what there is
        self._tell = tell  # gets a sentence where Ray does not start at once, or no node has a GPU
        self._told = False  # that no node has a GPU
        self._shares: dict[str, float] = {}  # by family
        self._connection = contextlib.ExitStack()
        self.workers: list[WorkerHandle] = []
        self._failed_starts = 0  # since the last successful one

    def __enter__(self) -> WorkerPool:
        self._ray = self._connection.enter_context(connected(self._address, self._tell))
        self._fetchers = Fetchers(self._ray, self._task, self._worker_class)
        return self

    def __exit__(self, *_: object) -> None:
        with self._connection:
            for worker in self.workers:
                self._ray.kill(worker.actor)
            self._fetchers.end()

    def has_room(self, share: float) -> bool:
        """Whether there is room for one more worker of a share: as the user gave it, or as the nodes hold.

        On a cluster for up to MAX_WAITING more, so that an autoscaler sees how many nodes would be of use.
        """
        if self._wanted:
            return len(self.workers) < self._wanted
        has, each = self._ray.cluster_resources(), share or 1.0  # GPUs, or CPU cores
        there = int(has.get("GPU" if share else "CPU", 0))
        used = sum(worker.share or 1.0 for worker in self.workers)
        room = max(there, each)
        if self._on_cluster:
            placed = sum(worker.share or 1.0 for worker in self.workers if not worker.is_waiting)
            room = max(there, placed) + MAX_WAITING * each
        return used + each <= room + 1e-6

    @property
    def num_waiting(self) -> int:
        """Workers that wait for a node of a cluster; on this machine a worker begins to start at once."""
        return sum(worker.is_waiting for worker in self.workers) if self._on_cluster else 0

    def share(self, family: str) -> float:
        """The GPUs that a worker for a family takes, often a part of one; 0 where workers take CPU cores.

        A part is told by the memory of the smallest type of GPU in the cluster. Where none is there yet, its
        type is not known, and a worker takes a whole one. `grow` looks at the cluster anew.
        """
        if family not in self._shares:
            self._shares[family] = self._share(family)
        return self._shares[family]

    def _share(self, family: str) -> float:
        if self._gpus_per_worker is not None:
            return self._gpus_per_worker
        has = self._ray.cluster_resources()
        if not has.get("GPU") and not self._on_cluster:
            return 0
        kinds = [name.removeprefix("accelerator_type:") for name in has
                 if name.startswith("accelerator_type:")]  # fmt: skip
        return share_of_gpu(family, kinds)

    def families_for(self, worker: WorkerHandle, waiting: Mapping[str, int]) -> list[str]:
        """The families that a worker takes: those that need its share, else those that need less.

        `waiting` is the number of checkpoints that wait, by family.
        """
        exact = [family for family in waiting if self.share(family) == worker.share]
        return exact or [family for family in waiting if self.share(family) < worker.share]

    def grow(self, most: int, waiting: Mapping[str, int]) -> None:
        """Starts workers until there is no room for more, there are `most`, or no more are of use.

        `waiting` is the number of checkpoints that wait, by family. The families that need the smallest share
        of a GPU come first. Of workers that wait for a node, no more than are of use are kept: each may be a
        node to pay for.
        """
        self._shares.clear()
        useful: dict[float, int] = {}  # share -> checkpoints
        for family, count in waiting.items():
            share = self.share(family)
            useful[share] = useful.get(share, 0) + count
        for worker in [worker for worker in self.workers if worker.is_waiting][::-1]:
            if len(self.workers) > most or (useful and worker.share < min(useful)):
                self.dismiss(worker)
        present = {worker.share for worker in self.workers}
        alike = len(present | useful.keys()) == 1  # then any worker may take what another one has claimed
        for share in sorted(useful or (present if alike else ())):
            self._tell_of_gpus(share)
            while len(self.workers) < most and self.has_room(share):
                free = sum(w.share == share and w.answer is None for w in self.workers)
                if not alike and free >= useful[share]:
                    break
                self._start_worker(share)

    def is_in_the_way(self, worker: WorkerHandle, waiting: Mapping[str, int]) -> bool:
        """Whether an idle worker holds the room of one with a larger share, and nothing waits for itself.

        `waiting` is the number of checkpoints that wait, by family.
        """
        shares = [self.share(family) for family in waiting]
        return bool(shares) and worker.share < min(shares) and not self.has_room(min(shares))

    def _tell_of_gpus(self, share: float) -> None:
        """Tells once that workers wait for a GPU."""
        if share and not self._told and not self._ray.cluster_resources().get("GPU"):
            self._told = True
            self._tell(
                "No node of the cluster has a GPU yet: workers wait until one has.\n"
                "For a cluster that never has one, pass --gpus-per-worker 0."
            )

    def _start_worker(self, share: float) -> None:
        remote: Any = self._ray.remote(self._worker_class)
        actor = remote.options(
            num_gpus=share, num_cpus=0 if share else 1, max_restarts=0, max_task_retries=0,
            max_concurrency=2,
        ).remote(replace(self._task, gpus=share))  # fmt: skip
        version = actor.__ray_call__.remote(version_reader())
        self.workers.append(WorkerHandle(actor, share, actor.ready.remote(), version))

    def start(self, worker: WorkerHandle, checkpoint: Checkpoint) -> None:
        """Has an idle worker scan a checkpoint."""
        worker.stage, worker.began = None, time.monotonic()
        worker.answer = worker.actor.scan.remote(checkpoint)

    def fetch_ahead(self, worker: WorkerHandle, checkpoint: Checkpoint, most_bytes: int) -> None:
        """Has a worker's node download a checkpoint's files, if no more than `most_bytes` are under way."""
        if self._fetches and (node := self._node(worker)):
            self._fetchers.fetch_ahead(checkpoint, node, most_bytes)

    def fetched_elsewhere(self, worker: WorkerHandle) -> set[str]:
        """The ids of the checkpoints that other nodes than that of a worker were to download."""
        return self._fetchers.elsewhere(self._node(worker))

    def finished(self, wait_s: float) -> Iterator[tuple[WorkerHandle, Any]]:
        """Workers whose scan ended within `wait_s`; each with its Scan, WorkerDied, WorkerFailed, LeaseLost.

        Returns early when a worker has started. Raises NoWorkers where several in a row do not start.
        """
        ray = self._ray
        starting = {w.starting: w for w in self.workers if w.starting is not None}
        running = {w.answer: w for w in self.workers if w.answer is not None}
        awaited = [*running, *starting]
        if not awaited:
            return
        done, _ = ray.wait(awaited, num_returns=1, timeout=wait_s)
        if done:  # with everything else that is done by now
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
                cause = getattr(error, "cause", None)
                is_store = isinstance(cause, StoreError)
                code = ReasonCode.STORE_UNREACHABLE if is_store else ReasonCode.INTERNAL_ERROR
                outcome = WorkerFailed(str(cause or error), code)
                if isinstance(cause, LeaseLost):
                    outcome = cause
            yield worker, outcome

    def _started(self, worker: WorkerHandle) -> None:
        """A worker has started, or has failed to; then it is removed, and `grow` starts another."""
        try:
            self._ray.get(worker.starting)
            there, here = self._ray.get(worker.version), version_reader()(None)
        except self._ray.exceptions.RayError as error:
            with_its_node = WorkerDied(str(error)).with_its_node
            self.failed_to_start(worker, getattr(error, "cause", None) or error, counts=not with_its_node)
        else:
            if there != here:
                raise NoWorkers(
                    f"a node has another version of this program: {there}, and this machine {here}.\n"
                    "Install the same version on every node; docs/cluster.md says how. All recorded rows are "
                    "kept."
                )
            worker.starting, self._failed_starts = None, 0

    def failed_to_start(self, worker: WorkerHandle, error: Exception, *, counts: bool = True) -> None:
        """Removes a worker that did not start. Raises NoWorkers after several in a row that count."""
        self.dismiss(worker)
        self._failed_starts += counts
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise NoWorkers(
                f"{MAX_FAILED_STARTS} workers in a row did not start. The last error: "
                f"{first_line(error, 300)}.\n"
                "Run `scanner doctor` to check what a worker needs. All recorded rows are kept."
            ) from error

    def poll(self) -> None:
        """Asks every busy worker for its stage, and collects the answers to the last call.

        Of workers that are starting it notes when they were first seen to have a process.
        """
        for worker in self.workers:
            if worker.starting is not None and worker.placed is None and self._has_process(worker):
                worker.placed = time.monotonic()
            if worker.answer is None:
                continue
            if worker.asked is not None:
                done, _ = self._ray.wait([worker.asked], timeout=0)
                if not done:
                    continue
                try:
                    worker.stage = self._ray.get(worker.asked)
                except self._ray.exceptions.RayError:
                    worker.stage = None  # `finished` reports the error
            worker.asked, worker.asked_at = worker.actor.stage.remote(), time.monotonic()

    def _has_process(self, worker: WorkerHandle) -> bool:
        """Whether a node has a process for a worker; Ray states none for one that waits for a node."""
        return bool(self._actor(worker).get("Pid"))

    def _node(self, worker: WorkerHandle) -> str:
        """The id of the node that a worker runs on; empty while it waits for one."""
        worker.node = worker.node or str(self._actor(worker).get("Address", {}).get("NodeID", ""))
        return worker.node

    def _actor(self, worker: WorkerHandle) -> dict[str, Any]:
        """What Ray states of a worker. The public API for it needs the dashboard."""
        return self._ray._private.state.actors(worker.actor._actor_id.hex()) or {}

    def dismiss(self, worker: WorkerHandle) -> None:
        """Ends a worker's process and removes the worker.

        Ray sends SIGKILL to a process that does not end by itself within 5 s, such as one that is stopped.
        """
        self._ray.kill(worker.actor)
        worker.answer = None
        self.workers.remove(worker)
