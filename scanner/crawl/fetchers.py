"""Downloads ahead of the scans, on the nodes where the scans will run.

Each node has a cache of its own, so a file that another node has downloaded would be downloaded twice. A
fetcher is a Ray actor with a `scanner.crawl.worker.Scanner`; it takes no CPU core and no GPU from the scans.
"""

from __future__ import annotations

from typing import Any

from scanner.crawl.worker import Task
from scanner.records import Checkpoint


class Fetchers:
    """One fetcher for each node that has a worker, from its first download on."""

    def __init__(self, ray: Any, task: Task, worker_class: type) -> None:
        self._ray, self._task, self._worker_class = ray, task, worker_class
        self._actors: dict[str, Any] = {}  # by the id of their node
        self._fetching: dict[Any, tuple[str, int]] = {}  # reference of a download -> its node, its bytes
        self._nodes: dict[str, str] = {}  # id of a checkpoint -> the node that was to download it

    def fetch_ahead(self, checkpoint: Checkpoint, node: str, most_bytes: int) -> None:
        """Has a node download a checkpoint's files, if no more than `most_bytes` are under way there."""
        if self._fetching:
            done, _ = self._ray.wait(list(self._fetching), num_returns=len(self._fetching), timeout=0)
            for reference in done:
                del self._fetching[reference]
        under_way = sum(size for where, size in self._fetching.values() if where == node)
        if checkpoint.checkpoint_id in self._nodes or under_way + checkpoint.size_bytes > most_bytes:
            return
        self._nodes[checkpoint.checkpoint_id] = node
        if node not in self._actors:
            self._actors[node] = self._start(node)
        reference = self._actors[node].fetch_ahead.remote(checkpoint)
        self._fetching[reference] = node, checkpoint.size_bytes

    def elsewhere(self, node: str) -> set[str]:
        """The ids of the checkpoints that other nodes were to download."""
        return {id_ for id_, where in self._nodes.items() if where != node}

    def end(self) -> None:
        """Ends the fetchers."""
        for actor in self._actors.values():
            self._ray.kill(actor)

    def _start(self, node: str) -> Any:
        from_node = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        remote: Any = self._ray.remote(self._worker_class)
        return remote.options(
            num_cpus=0, num_gpus=0, max_restarts=-1, max_task_retries=0, scheduling_strategy=from_node
        ).remote(self._task)
