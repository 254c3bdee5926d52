"""The checkpoints of a crawl that need a worker, and the state of each. Knows no Ray and no store.

    WAITING --take--> CLAIMED --start--> RUNNING --finish--> DONE
       ^                 |                  |
       |                 v                  v
       +--------- HELD_ELSEWHERE         DELAYED, or QUARANTINED
       +------------------------------------+
    QUARANTINED --wake--> WAITING, when nothing else is left

Loading a base takes a worker far longer than loading a checkpoint that was tuned from it. A worker therefore
stays with its base while checkpoints of that base are waiting, and then takes the base that has the most
waiting checkpoints for each worker on it. It takes those of the model families alone that it has a GPU for.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from enum import StrEnum

from scanner.crawl.planning import Planned
from scanner.records import Checkpoint


class State(StrEnum):
    """Where a checkpoint stands in a crawl."""

    WAITING = "waiting"  # for a worker
    CLAIMED = "claimed"  # leased by this crawl, in the queue of a worker
    RUNNING = "running"  # a worker scans it
    DELAYED = "delayed"  # its attempt failed; it is tried again after a pause
    HELD_ELSEWHERE = "held_elsewhere"  # leased by another crawl
    QUARANTINED = "quarantined"  # it may have killed or held up workers: it is tried once, after all others
    DONE = "done"  # it has its verdict


type Group = tuple[str | None, str]  # base and family


class Schedule:
    """Checkpoints by base and family, and the group that each worker took last."""

    def __init__(self, todo: Iterable[Planned] = ()) -> None:
        self._queues: dict[Group, deque[Planned]] = {}
        self._size = 0
        self._families: Counter[str] = Counter()
        self._group_of: dict[Hashable, Group] = {}  # worker -> group
        for planned in todo:
            self.add(planned)

    def __len__(self) -> int:
        return self._size

    def families(self) -> Counter[str]:
        """How many checkpoints of each family are left."""
        return self._families

    def take(
        self, worker: Hashable, count: int = 1, families: Container[str] | None = None
    ) -> Sequence[Planned]:
        """Removes and returns up to `count` checkpoints of one base for a worker; none where none is left.

        Those of `families` alone, where that is given.
        """
        group = self._group_of.get(worker)
        if group not in self._queues or (families is not None and group[1] not in families):
            self._group_of.pop(worker, None)
            group = self._busiest(families)
        if group is None:
            return ()
        queue = self._queues[group]
        taken = [queue.popleft() for _ in range(min(count, len(queue)))]
        if not queue:
            del self._queues[group]
        self._size -= len(taken)
        self._families[group[1]] -= len(taken)
        if not self._families[group[1]]:
            del self._families[group[1]]
        self._group_of[worker] = group
        return taken

    def add(self, planned: Planned) -> None:
        """Adds a checkpoint, the last of its base."""
        self._queues.setdefault((planned.base, planned.family), deque()).append(planned)
        self._size += 1
        self._families[planned.family] += 1

    def forget(self, worker: Hashable) -> None:
        """Removes a worker that has ended."""
        self._group_of.pop(worker, None)

    def _busiest(self, families: Container[str] | None) -> Group | None:
        workers = Counter(self._group_of.values())
        fitting = (group for group in self._queues if families is None or group[1] in families)
        return max(fitting, key=lambda g: len(self._queues[g]) / (1 + workers[g]), default=None)


class Backlog:
    """Every checkpoint that needs a worker is in exactly one state. A worker is any hashable object."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting = Schedule()
        self._queues: dict[Hashable, deque[Checkpoint]] = {}  # worker -> what it has claimed, in order
        self._running: dict[Hashable, Checkpoint] = {}
        self._delayed: list[tuple[float, Planned]] = []  # (time of the clock, checkpoint)
        self._held_elsewhere: list[Planned] = []
        self._quarantined: list[Planned] = []
        self._rows: dict[str, Checkpoint] = {}  # of what this crawl has leased
        self._states: dict[str, State] = {}
        self._counts: Counter[State] = Counter()

    def __getitem__(self, state: State) -> int:
        """How many checkpoints are in a state."""
        return self._counts[state]

    def state(self, checkpoint_id: str) -> State:
        """The state of a checkpoint. Raises KeyError for one that was never added."""
        return self._states[checkpoint_id]

    @property
    def has_more(self) -> bool:
        """Whether any checkpoint may still be given to a worker."""
        return any(
            self._counts[state]
            for state in (State.WAITING, State.DELAYED, State.HELD_ELSEWHERE, State.QUARANTINED)
        )

    def add(self, planned: Planned, *, quarantined: bool = False) -> None:
        """Adds a new checkpoint: WAITING, or QUARANTINED."""
        assert planned.checkpoint_id not in self._states, "a checkpoint is added once"
        if quarantined:
            self._set(planned.checkpoint_id, State.QUARANTINED)
            self._quarantined.append(planned)
        else:
            self._wait(planned)

    def families(self) -> Counter[str]:
        """How many checkpoints of each family are waiting."""
        return self._waiting.families()

    def take(self, worker: Hashable, count: int, families: Container[str] | None = None) -> Sequence[Planned]:
        """Up to `count` waiting checkpoints of one base for a worker, of `families` alone where it is given.

        They are CLAIMED until the caller passes each to `enqueue`, `hold_elsewhere` or `finish`.
        """
        taken = self._waiting.take(worker, count, families)
        for planned in taken:
            self._set(planned.checkpoint_id, State.CLAIMED)
        return taken

    def row(self, checkpoint_id: str) -> Checkpoint | None:
        """The row of a checkpoint that this crawl has leased."""
        return self._rows.get(checkpoint_id)

    def enqueue(self, worker: Hashable, checkpoint: Checkpoint) -> None:
        """Puts a claimed checkpoint last into a worker's queue."""
        self._rows[checkpoint.checkpoint_id] = checkpoint
        self._queues.setdefault(worker, deque()).append(checkpoint)

    def hold_elsewhere(self, planned: Planned) -> None:
        """Another crawl has leased a checkpoint."""
        self._rows.pop(planned.checkpoint_id, None)
        self._set(planned.checkpoint_id, State.HELD_ELSEWHERE)
        self._held_elsewhere.append(planned)

    def queue(self, worker: Hashable) -> Sequence[Checkpoint]:
        """What a worker has claimed and not begun, in order."""
        return self._queues.get(worker, ())

    def running(self, worker: Hashable) -> Checkpoint | None:
        """The checkpoint that a worker scans."""
        return self._running.get(worker)

    def steal(
        self, worker: Hashable, *, keep: Container[str] = (), among: Container[Hashable] | None = None
    ) -> None:
        """Moves the last checkpoint of the longest queue of another worker into this worker's queue.

        So no checkpoint waits for one worker while another is idle. The only claim of a worker that is about
        to begin is left to it, and so is a checkpoint whose id is in `keep`. The other worker is one of
        `among`, where that is given.
        """
        others = [o for o in self._queues if o != worker and (among is None or o in among)]
        longest = max(others, key=lambda other: len(self._queues[other]), default=None)
        if longest is None or len(self._queues[longest]) <= (0 if longest in self._running else 1):
            return
        if self._queues[longest][-1].checkpoint_id not in keep:
            self._queues.setdefault(worker, deque()).append(self._queues[longest].pop())

    def start(self, worker: Hashable) -> Checkpoint:
        """The first checkpoint of a worker's queue is now RUNNING."""
        checkpoint = self._queues[worker].popleft()
        self._set(checkpoint.checkpoint_id, State.RUNNING)
        self._running[worker] = checkpoint
        return checkpoint

    def stop(self, worker: Hashable) -> Checkpoint:
        """A worker's scan has ended; the caller passes the checkpoint to `finish` or `delay`."""
        return self._running.pop(worker)

    def give_back(self, worker: Hashable) -> None:
        """What a worker has claimed and not begun is WAITING again."""
        for checkpoint in self._queues.pop(worker, ()):
            self._wait(Planned.of(checkpoint))

    def forget(self, worker: Hashable) -> None:
        """Removes a worker that has ended; its claims are WAITING again."""
        self.give_back(worker)
        self._waiting.forget(worker)

    def delay(self, checkpoint: Checkpoint, pause_s: float) -> None:
        """A checkpoint is to be tried again, at the earliest after a pause."""
        self._set(checkpoint.checkpoint_id, State.DELAYED)
        self._delayed.append((self._clock() + pause_s, Planned.of(checkpoint)))

    def quarantine(self, checkpoint: Checkpoint) -> None:
        """A checkpoint is to be tried once more, when nothing else is left."""
        self._set(checkpoint.checkpoint_id, State.QUARANTINED)
        self._quarantined.append(Planned.of(checkpoint))

    def finish(self, checkpoint_id: str) -> None:
        """A checkpoint has its verdict."""
        self._rows.pop(checkpoint_id, None)
        self._set(checkpoint_id, State.DONE)

    def wake(self, *, more_to_come: bool) -> None:
        """Moves what may be tried now to WAITING: the delayed whose pause is over.

        The quarantined follow when nothing is waiting, claimed or delayed, and no more is to come from the
        listing.
        """
        at = self._clock()
        due = [planned for when, planned in self._delayed if when <= at]
        left = self._counts[State.WAITING] + self._counts[State.CLAIMED] + self._counts[State.DELAYED]
        if not left and not more_to_come:
            due, self._quarantined = self._quarantined, []
        self._delayed = [(when, planned) for when, planned in self._delayed if when > at]
        for planned in due:
            self._wait(planned)

    def retry_held_elsewhere(self) -> None:
        """What another crawl held is WAITING again: it has a verdict by now, or may be leased."""
        held, self._held_elsewhere = self._held_elsewhere, []
        for planned in held:
            self._wait(planned)

    def _wait(self, planned: Planned) -> None:
        self._set(planned.checkpoint_id, State.WAITING)
        self._waiting.add(planned)

    def _set(self, checkpoint_id: str, state: State) -> None:
        before = self._states.get(checkpoint_id)
        assert before is not State.DONE, f"{checkpoint_id} already has a verdict"
        if before is not None:
            self._counts[before] -= 1
        self._counts[state] += 1
        self._states[checkpoint_id] = state
