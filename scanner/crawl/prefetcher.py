"""An iterator that runs ahead of its reader, in its own thread and by a bounded number of items."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from types import TracebackType

from scanner.hubs import http

WAITING_ITEMS = 1  # that wait to be taken, while the next one is produced


class Prefetcher[T]:
    """Iterates over `items` in a thread of its own; a context manager, and on leaving it the thread ends.

    While the reader does not take what was produced, the thread waits.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._produced: queue.Queue[tuple[T] | None] = queue.Queue(WAITING_ITEMS)  # None: the end
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listing", daemon=True)
        self.ended = False

    def __enter__(self) -> Prefetcher[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            with http.interrupt_waits():
                self._thread.join()

    def take(self, wait_s: float = 0) -> T | None:
        """The next item; None where none was produced within `wait_s`, or all have been taken (`ended`).

        Raises what `items` raised, once, after everything before it has been taken.
        """
        if self.ended:
            return None
        try:
            item = self._produced.get(timeout=wait_s) if wait_s else self._produced.get_nowait()
        except queue.Empty:
            return None
        if item is not None:
            return item[0]
        self.ended = True
        if self._error is not None:
            raise self._error
        return None

    def _run(self) -> None:
        try:
            for item in self._items:
                self._put((item,))
                if self._stopping.is_set():
                    break
        except BaseException as error:  # `take` raises it in the reader's thread
            self._error = error
        self._put(None)

    def _put(self, item: tuple[T] | None) -> None:
        while not self._stopping.is_set():
            try:
                self._produced.put(item, timeout=0.2)
            except queue.Full:
                continue
            return
