"""What happens to a crawl of tests/reliability.py, chosen by the seed, and what goes on beside it."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
from faults.scene import NODE, SCANNER, Place

from finextract.errors import FinextractError
from scanner.errors import ScannerError
from scanner.records import ReviewDecision
from scanner.store.store import Store
from tui.review import Review, Subject

PACE_S = (4.0, 9.0)  # between two disturbances, at least and at most
HUB_AWAY_S = (1.0, 12.0)
FROZEN_S = (5.0, 60.0)
STORE_AWAY_S = (5.0, 30.0)
DISK_FULL_S = (3.0, 12.0)
BESIDE_S = 3.0  # between two compactions, and between two decisions


class Outage:
    """A plan of a hub: it answers 503 during an outage."""

    def __init__(self) -> None:
        self.away = False

    def fault(self, request: str) -> str | None:
        return "503" if self.away else None


class Disturbing:
    """What happens to a cluster, its hub and its store, one thing after another; by the seed.

    Each kind of trouble comes once, in an order of the seed, before any comes again. `most` bounds all
    troubles but the deaths of drivers, of which there are `deaths` within `span_s` seconds.
    """

    def __init__(
        self, rng: random.Random, running: Any, outage: Outage, place: Place, span_s: float, *, deaths: int,
        most: int,
    ) -> None:  # fmt: skip
        self._rng, self._running, self._left = rng, running, most
        self.happened: Counter[str] = Counter()
        now = time.monotonic()
        self._deaths = sorted(now + rng.uniform(0.1, 0.9) * span_s for _ in range(deaths))
        self._next = now + rng.uniform(*PACE_S)
        self._ends: list[tuple[float, Callable[[], object]]] = []  # of what goes on: when, and how
        self._kinds: dict[str, Callable[[], bool]] = {
            "worker killed": self._kill, "node removed": self._remove_node, "worker frozen": self._freeze,
            "hub away": lambda: self._during(HUB_AWAY_S, *_switch(outage)),
        }  # fmt: skip
        for name, (begin, end) in place.troubles.items():
            span = DISK_FULL_S if name == "disk full" else STORE_AWAY_S
            self._kinds[name] = lambda s=span, b=begin, e=end: self._during(s, b, e)  # type: ignore[misc]
        self._order = rng.sample(sorted(self._kinds), len(self._kinds))

    def go_on(self, drivers: list[subprocess.Popen[bytes]]) -> None:
        """Does what is due."""
        now = time.monotonic()
        if self._deaths and now > self._deaths[0] and (alive := [d for d in drivers if d.poll() is None]):
            self._deaths.pop(0)
            self._rng.choice(alive).send_signal(signal.SIGKILL)
            self.happened["driver killed"] += 1
        self._end(now)
        if self._left and now > self._next:
            self._next = now + self._rng.uniform(*PACE_S)
            chosen = self._order[0] if self._order else self._rng.choice(sorted(self._kinds))
            if self._kinds[chosen]():
                self.happened[chosen] += 1
                self._left -= 1
                self._order = self._order[1:]

    def end(self) -> None:
        """Ends what still goes on."""
        self._left, self._deaths = 0, []
        self._end(float("inf"))

    def _end(self, now: float) -> None:
        for at, end in [due for due in self._ends if due[0] <= now]:
            end()
            self._ends.remove((at, end))

    def _during(
        self, span: tuple[float, float], begin: Callable[[], object], end: Callable[[], object]
    ) -> bool:
        """Begins something that ends after a time, unless something of the kind still goes on."""
        if any(going is end for _, going in self._ends):
            return False
        begin()
        self._ends.append((time.monotonic() + self._rng.uniform(*span), end))
        return True

    def _kill(self) -> bool:
        if not (alive := scanners()):
            return False
        self._rng.choice(alive).kill()
        return True

    def _remove_node(self) -> bool:
        nodes = sorted(self._running.worker_nodes, key=lambda node: str(node.node_id))
        if len(nodes) < 2:
            return False
        self._running.remove_node(self._rng.choice(nodes), allow_graceful=False)
        return self._during(PACE_S, lambda: None, lambda: self._running.add_node(**NODE))

    def _freeze(self) -> bool:
        """Stops a worker for a time that may be longer than the crawl waits for its answer."""
        if not (alive := scanners()):
            return False
        frozen = self._rng.choice(alive)

        def resume() -> None:
            with contextlib.suppress(psutil.NoSuchProcess):
                frozen.resume()

        return self._during(FROZEN_S, frozen.suspend, resume)


def _switch(outage: Outage) -> tuple[Callable[[], object], Callable[[], object]]:
    return (lambda: setattr(outage, "away", True)), (lambda: setattr(outage, "away", False))


def scanners() -> list[psutil.Process]:
    """The cluster's worker processes that hold a scanner."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::Scanner" in " ".join(process.cmdline()):
                found.append(process)
    return found


class Beside(threading.Thread):
    """Calls `act` again and again until the block ends."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._over = threading.Event()

    def act(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        while not self._over.wait(BESIDE_S):
            self.act()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self.join()


class Compacting(Beside):
    """`scanner compact`, again and again, as another person or a timer runs it."""

    def __init__(self, store: str) -> None:
        super().__init__("compacting")
        self._store, self.exits, self.tracebacks = store, Counter[int](), list[str]()

    def act(self) -> None:
        command = [SCANNER, "compact", "--store", self._store]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.exits[done.returncode] += 1
        if "Traceback" in done.stderr:
            self.tracebacks.append(f"compact: {done.stderr.splitlines()[-1]}")


class Deciding(Beside):
    """A reviewer, who decides about scans and matches as they appear, and withdraws some decisions."""

    def __init__(self, store: str, rng: random.Random) -> None:
        super().__init__("deciding")
        self._store, self._rng = store, rng
        self.recorded: list[str] = []  # the ids of events that the reviewer saw recorded
        self.refused = 0  # attempts that ended with a message
        self.errors: list[str] = []  # attempts that ended otherwise
        self._review: Review | None = None

    def act(self) -> None:
        try:
            store = Store(self._store)
            self._review = self._review or Review(store, "vera")
            self._review.store = store
            rows = store.query("SELECT scan_id AS id FROM scans UNION ALL SELECT match_id FROM matches")
            if not rows:
                return
            subject = Subject(self._rng.choice(rows)["id"], "one")
            decided = self._rng.choice(list(ReviewDecision))
            done = self._review.decide(subject, decided)
            self.recorded.append(done.event.decision_id)
            if self._rng.random() < 0.3:
                self.recorded.append(self._review.annotate(subject, "to be asked").event.decision_id)
            if self._rng.random() < 0.3 and (events := self._review.to_withdraw(subject)):
                self.recorded.append(self._review.withdraw(events)[0].event.decision_id)
        except (ScannerError, FinextractError):
            self.refused += 1
        except Exception as error:  # a reviewer would have seen a traceback
            self.errors.append(f"{type(error).__name__}: {error}")
