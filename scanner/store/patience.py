"""How long a store that does not answer is asked again: a bucket that is away, a network disk that hangs.

A missing bucket or permission, a full disk and the like do not pass, and are raised at once. Knows no table
and no kind of storage.
"""

from __future__ import annotations

import errno
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Concatenate, Protocol

import duckdb
from deltalake.exceptions import DeltaError

from scanner.errors import StoreError
from scanner.text import first_line

CRAWL_S = 600.0  # for one operation of a crawl
FIRST_S, LONGEST_S = 1.0, 30.0  # between two attempts
ERRORS = OSError, DeltaError, duckdb.Error, StoreError
OUTAGES = {errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN,
           errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN}  # fmt: skip
# As delta-rs states them, and DuckDB for the errors of fsspec: a request without an answer, a status of 5xx.
TOLD = re.compile(
    r"HTTP error|status code.{0,60}?\b(?:5\d\d|429|408) [A-Z]|(?:Endpoint|Timeout|Closed|Payload)\w*Error: "
    rf"|ConnectionError: |\[Errno (?:{'|'.join(map(str, sorted(OUTAGES)))})\]",
    re.DOTALL,
)
_DRAWN = re.compile(r"\x1b\[\d+m|↳")  # in the messages of delta-rs


class Patience:
    """Repeats operations on a store that does not answer, each for up to `seconds`; 0 for never.

    `on_wait` gets a sentence when a wait begins, at most once a minute, from any thread.
    """

    def __init__(self, seconds: float = 0.0, on_wait: Callable[[str], None] = lambda _: None) -> None:
        self.seconds, self._on_wait = seconds, on_wait
        self._told = -60.0  # monotonic seconds
        self._over = threading.Event()

    def __call__[T](self, operation: Callable[[], T]) -> T:
        """The result of an operation, which may be repeated."""
        began = time.monotonic()
        while True:
            try:
                return operation()
            except ERRORS as error:
                if not is_outage(error) or not self._wait(error, time.monotonic() - began):
                    raise

    def give_up(self) -> None:
        """Ends every wait, in all threads; from now on nothing is repeated."""
        self._over.set()

    def _wait(self, error: Exception, elapsed: float) -> bool:
        if elapsed >= self.seconds or self._over.is_set():
            return False
        if time.monotonic() - self._told >= 60:
            self._told = time.monotonic()
            self._on_wait(
                f"the store does not answer: {plain(error)}\n"
                f"It is asked again for up to {self.seconds / 60:.0f} minutes."
            )
        pause = random.uniform(0.5, 1) * min(LONGEST_S, max(FIRST_S, elapsed))
        return not self._over.wait(min(pause, self.seconds - elapsed))


NO_PATIENCE = Patience()


class Patient(Protocol):
    """What has a patience."""

    patience: Patience


def repeated[S: Patient, **P, T](
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], T]:
    """A method that may be repeated while the store does not answer."""

    def repeating(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.patience(lambda: method(self, *args, **kwargs))

    repeating.__doc__ = method.__doc__
    return repeating


def is_outage(error: BaseException | None) -> bool:
    """Whether an error of a storage, of delta-rs or of DuckDB, or its cause, may pass by itself."""
    if error is None:
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in OUTAGES
    return TOLD.search(str(error)) is not None or is_outage(error.__cause__)


def plain(error: Exception) -> str:
    """An error in one line; delta-rs draws its messages as trees."""
    if "↳" not in str(error):
        return first_line(error)
    return " ".join(_DRAWN.sub(" ", str(error)).split())[:300]
