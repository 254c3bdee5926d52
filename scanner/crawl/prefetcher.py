"""A listing that runs ahead of who reads it, in a thread of its own and by a bounded number of batches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from types import TracebackType

from scanner.hubs import http

BATCHES = 1  # that wait to be taken; one more is being made


class Prefetcher[T]:
    """What `items` gives, one after another; a context manager, and on leaving it nothing more is asked.

    `items` runs in the thread alone. While nobody takes what it gave, it is not asked for more.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._given: queue.Queue[tuple[T] | None] = queue.Queue(BATCHES)  # None: the end
        self._error: BaseException | None = None
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listing", daemon=True)
        self.ended = False

    def __enter__(self) -> Prefetcher[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if self._thread.is_alive():
            with http.interrupt_waits():
                self._thread.join()

    def take(self, wait_s: float = 0) -> T | None:
        """The next one; None where none is there within `wait_s`, or all have been taken: it has `ended`.

        Raises what `items` raised, once, when all before it has been taken.
        """
        if self.ended:
            return None
        try:
            given = self._given.get(timeout=wait_s) if wait_s else self._given.get_nowait()
        except queue.Empty:
            return None
        if given is not None:
            return given[0]
        self.ended = True
        if self._error is not None:
            raise self._error
        return None

    def _run(self) -> None:
        try:
            for item in self._items:
                self._put((item,))
                if self._left.is_set():
                    break
        except BaseException as error:  # whatever it is, it is the reader's affair
            self._error = error
        self._put(None)

    def _put(self, given: tuple[T] | None) -> None:
        while not self._left.is_set():
            try:
                self._given.put(given, timeout=0.2)
            except queue.Full:
                continue
            return
