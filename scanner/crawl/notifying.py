"""Tells a command or a webhook of each new flag, in a thread of its own that never holds up the crawl.

Each new flag is told at least once, however often crawls are interrupted: what the store has since flags are
told and no mark says was delivered is sent when the next crawl begins. The crawl's events only say sooner
where to look, so an event may be lost.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scanner.crawl.delivery import DeliveryFailed, Notify, deliver
from scanner.crawl.messages import flag_message, id_of
from scanner.crawl.outbox import Outbox
from scanner.crawl.progress import Observer, Observers, Progress
from scanner.errors import StoreError
from scanner.hubs.http import Interrupted
from scanner.records import Checkpoint, Scan, Verdict
from scanner.store.flag_queries import NewFlag, found_in, new_flags_among, new_flags_since
from scanner.store.store import Store
from scanner.text import first_line
from scanner.wording import count

EVENTS = 10_000  # flags that wait for the thread; further ones are found in the store
FIRST_PAUSE_S, LONGEST_PAUSE_S = 15.0, 600.0  # after a failed delivery
END_S, INTERRUPTED_S = 30.0, 2.0  # that the end of a crawl waits for deliveries
ABANDONED_S = 1.0  # for a command to be ended
INTERRUPTED_PAUSE_S = 0.2  # while requests are interrupted
LAST_FAILURES = 3  # at the end of a crawl, before the rest is left to the next one
NEXT = "The next crawl sends it again, or `scanner notify` now."


@dataclass
class Told:
    """How many messages were delivered, and wait."""

    delivered: int = 0
    waiting: int = 0
    problem: str = ""  # why the last failed delivery failed


class Notifier(Observer):
    """Observes a crawl, and tells of its flags; a context manager around it.

    `tell` gets sentences for people, from the thread too.
    """

    def __init__(self, notify: Notify, store: Store, holder: str, tell: Callable[[str], None]) -> None:
        self.told = Told()
        self._notify, self._store, self._tell = notify, store, tell
        self._outbox = Outbox(store.storage, holder)
        self._events: queue.Queue[str | None] = queue.Queue(EVENTS)
        self._lost = True  # whether flags may be in the store that no event told: at first, all of them
        self._mine: deque[str] = deque()  # messages that this crawl delivers, in order
        self._ending, self._abandoned = threading.Event(), threading.Event()
        self._pause_s, self._next_try = FIRST_PAUSE_S, 0.0  # monotonic
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)

    def __enter__(self) -> Notifier:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits a while for what is left, and says what was not delivered."""
        if not self._ending.is_set():
            self.end(END_S if kind is None else INTERRUPTED_S)

    def end(self, wait_s: float) -> Told:
        """Ends the thread once all is delivered, or after that time."""
        self._ending.set()
        self._wake()
        self._thread.join(wait_s)
        self._abandoned.set()
        self._thread.join(ABANDONED_S)
        if self._lost or self._thread.is_alive():  # the store did not answer, or a delivery has not ended
            self.told.waiting = max(1, self.told.waiting)
        if self.told.waiting:
            left = count(self.told.waiting, "message")
            why = f": {self.told.problem}" if self.told.problem else ""
            self._tell(f"{left} about flags could not be delivered yet{why}.\n{NEXT}")
        return self.told

    def outcome(self, checkpoint: Checkpoint, scan: Scan, progress: Progress) -> None:
        """A flag is noted; the rest happens in the thread."""
        if scan.verdict is Verdict.FLAGGED:
            try:
                self._events.put_nowait(scan.scan_id)
            except queue.Full:
                self._lost = True

    def _wake(self) -> None:
        try:
            self._events.put_nowait(None)
        except queue.Full:  # then it is awake
            return

    # --- in the thread

    def _run(self) -> None:
        try:
            while not self._abandoned.is_set():
                ending = self._ending.is_set()
                try:
                    self._take_in(self._noted(0 if ending else self._idle_s()))
                    self._send(ending)
                except (OSError, StoreError) as error:
                    self._failed(first_line(error))
                    self._lost = True
                except Interrupted:  # by the end of the listing, or of the crawl
                    self._abandoned.wait(INTERRUPTED_PAUSE_S)
                    continue
                if ending and self._events.empty():
                    return
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self._outbox.close()
        except (OSError, StoreError):  # leases expire by themselves
            return

    def _idle_s(self) -> float | None:
        """How long nothing is to be done, unless a flag comes; None for ever."""
        if self._lost:
            return max(0.0, self._next_try - time.monotonic())
        return max(0.0, self._next_try - time.monotonic()) if self._mine else None

    def _noted(self, wait_s: float | None) -> set[str]:
        """The scans that were flagged meanwhile, after waiting for one."""
        found: set[str] = set()
        try:
            noted = self._events.get(timeout=wait_s) if wait_s != 0 else self._events.get_nowait()
            while True:
                found.update([noted] if noted else [])
                noted = self._events.get_nowait()
        except queue.Empty:
            return found

    def _take_in(self, scan_ids: set[str]) -> None:
        """Keeps a message for each new flag, and claims what earlier crawls left."""
        if self._lost:
            self._lost = False
            flags = new_flags_since(self._store, self._outbox.since())
            self._keep(flags)
            left = self._outbox.claim(set(self._outbox.waiting()) - set(self._mine))
            self._mine.extend(sorted(left))
        if scan_ids:
            self._keep(new_flags_among(self._store, scan_ids))
        self.told.waiting = len(self._mine)

    def _keep(self, flags: list[NewFlag]) -> None:
        by_id = {id_of(flag): flag for flag in flags}
        claimed = self._outbox.claim(by_id.keys() - set(self._mine))
        new = {id_: flag for id_, flag in by_id.items() if id_ in claimed}
        found = found_in(self._store, [flag.scan.scan_id for flag in new.values()])
        for id_, flag in new.items():
            self._outbox.put(id_, flag_message(flag, found[flag.scan.scan_id]))
            self._mine.append(id_)

    def _send(self, ending: bool) -> None:
        """Delivers what waits, until a delivery fails; at the end of the crawl, until some have."""
        failures = 0
        while self._mine and not self._abandoned.is_set():
            if time.monotonic() < self._next_try and not ending:
                return
            id_ = self._mine[0]
            message = self._outbox.read(id_)
            if message is None or not self._outbox.is_mine(id_):  # another crawl has delivered it
                self._mine.popleft()
                continue
            try:
                printed = deliver(self._notify, message, self._abandoned)
            except DeliveryFailed as error:
                self._mine.rotate(-1)  # another message may fare better
                self._failed(str(error))
                failures += 1
                if ending and failures >= min(LAST_FAILURES, len(self._mine)):
                    return
                continue
            self._outbox.delivered(id_)
            self._mine.popleft()
            self._pause_s, self.told.delivered = FIRST_PAUSE_S, self.told.delivered + 1
            self.told.waiting = len(self._mine)
            if printed.strip():
                self._store.storage.put(f"logs/notify/{id_}.log", printed.encode())
        self.told.waiting = len(self._mine)

    def _failed(self, why: str) -> None:
        """A delivery failed: says so if it is another problem than before, and pauses."""
        if why != self.told.problem and not self._ending.is_set():
            self._tell(f"A message about a flag could not be delivered: {why}. It is tried again.")
        self.told.problem = why
        self._next_try = time.monotonic() + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)


@contextmanager
def notifying(notify: Notify | None, store: Store, holder: str, observer: Observer) -> Iterator[Observer]:
    """The observer of a crawl, and beside it a notifier where one is set."""
    if notify is None:
        yield observer
        return
    with Notifier(notify, store, holder, observer.message) as notifier:
        yield Observers(observer, notifier)
