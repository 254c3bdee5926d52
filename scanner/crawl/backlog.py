"""Which checkpoint a free worker takes next. Knows no Ray and no store.

Loading a base costs a worker far more than loading what was tuned from it, so a worker stays with its base as
long as there is work for it, and then goes to the base that has the most left for each worker on it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Sequence

from scanner.crawl.planning import Planned


class Schedule:
    """The checkpoints that are left, by base."""

    def __init__(self, todo: Iterable[Planned] = ()) -> None:
        self._queues: dict[str | None, deque[Planned]] = {}
        self._left = 0
        self._on: dict[Hashable, str | None] = {}  # worker -> the base that it took work of last
        for planned in todo:
            self.add(planned)

    def __len__(self) -> int:
        """Checkpoints that are left."""
        return self._left

    def take(self, worker: Hashable, count: int = 1) -> Sequence[Planned]:
        """The next checkpoints for a worker, all of one base; none where none is left."""
        if not self._left:
            return ()
        base = self._on.get(worker)
        if worker not in self._on or base not in self._queues:
            self._on.pop(worker, None)
            base = self._busiest()
        queue = self._queues[base]
        taken = [queue.popleft() for _ in range(min(count, len(queue)))]
        if not queue:
            del self._queues[base]
        self._left -= len(taken)
        self._on[worker] = base
        return taken

    def add(self, planned: Planned) -> None:
        """A checkpoint that is new, or was taken and not done: it comes last of its base."""
        self._queues.setdefault(planned.base, deque()).append(planned)
        self._left += 1

    def forget(self, worker: Hashable) -> None:
        """A worker that is gone."""
        self._on.pop(worker, None)

    def _busiest(self) -> str | None:
        workers = Counter(self._on.values())
        return max(self._queues, key=lambda base: len(self._queues[base]) / (1 + workers[base]))
