"""Leases: which crawl scans a checkpoint, so that two crawls on one store do not scan the same one.

A lease is a small file in STORE/leases/, created under the next number of its key; of several crawls exactly
one creates it. It states its holder and when it expires. The holder renews it by creating the next number
too, so a crawl that was stopped cannot renew what another has taken over meanwhile. Another crawl that finds
a lease expired, or its process dead on the same machine, creates the next number. The machines' clocks must
agree within a minute. `Leases.confirm` is asked just before a verdict is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from scanner.errors import StoreError
from scanner.records import now
from scanner.store.storage import Storage
from scanner.text import first_line

LEASE_TTL = timedelta(minutes=5)
CLOCK_SKEW = timedelta(minutes=1)  # the largest difference between two machines' clocks
FOLDER = "leases"
NAME = re.compile(r"(?P<key>.+)~(?P<number>\d{6})\.json")


def leases_of(storage: Storage, checkpoint_id: str) -> list[str]:
    """The paths of a checkpoint's leases, under any configuration. Raises OSError."""
    return [f"{FOLDER}/{name}" for name in storage.names(FOLDER) if name.startswith(f"{checkpoint_id}-")]


class LeaseLost(Exception):
    """Another crawl has taken over the checkpoint; nothing was written."""


def lease_key(checkpoint_id: str, config_id: str) -> str:
    """The key of the lease for a scan of a checkpoint with a configuration."""
    return f"{checkpoint_id}-{config_id}"


class Leases:
    """The leases of one crawl. `holder` is its run's id, `clock` returns the time, UTC.

    The crawl's workers have objects of their own, with the same holder, which only `confirm`.
    """

    def __init__(
        self, storage: Storage, holder: str, ttl: timedelta = LEASE_TTL, clock: Callable[[], datetime] = now
    ) -> None:
        self._storage, self._holder, self._ttl, self._clock = storage, holder, ttl, clock
        self._held: dict[str, tuple[int, datetime]] = {}  # key -> (its number, when that was written)

    def __contains__(self, key: str) -> bool:
        """Whether this object took the lease and has not noticed its loss; asks no storage."""
        return key in self._held

    def acquire(self, keys: Iterable[str]) -> set[str]:
        """Takes leases; returns those of the keys that no other crawl holds.

        Raises StoreError if the storage does not answer.
        """
        try:
            numbers, taken, fresh = self._numbers(), set(), []
            for key in keys:
                if not (found := numbers.get(key)):
                    fresh.append(key)
                elif self.is_free(_path(key, max(found))) and self._create(key, max(found) + 1, found):
                    taken.add(key)
            return taken | self._create_all(fresh)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> StoreError:
        return StoreError(f"the store {self._storage.uri} cannot be used: {first_line(error)}.")

    def renew(self) -> None:
        """Renews each lease that is older than a third of its TTL, and forgets those that were taken over.

        A storage that does not answer is left to the next call.
        """
        due = [key for key, (_, at) in self._held.items() if self._clock() - at > self._ttl / 3]
        with contextlib.suppress(OSError):
            numbers = self._numbers() if due else {}
            for key in due:
                found = numbers.get(key, [])
                if not self._is_mine(key, found) or not self._create(key, max(found) + 1, found):
                    del self._held[key]

    def confirm(self, key: str) -> bool:
        """Whether this holder has the lease. One that has expired, and that nobody took, is renewed first.

        Raises StoreError if the storage does not answer.
        """
        try:
            found = self._numbers().get(key, [])
            stated = self._stated(key, found)
            if stated is not None and stated.get("holder") == self._holder:
                if self._clock() <= datetime.fromisoformat(stated["until"]):
                    return True
                if self._create(key, max(found) + 1, found):
                    return True
        except OSError as error:
            raise self._unusable(error) from error
        self._held.pop(key, None)
        return False

    def release(self, keys: Iterable[str] | None = None) -> None:
        """Gives up the leases of those keys, or all."""
        for key in list(self._held if keys is None else keys):
            number, _ = self._held.pop(key, (0, None))
            if number:
                with contextlib.suppress(OSError):  # it expires by itself
                    self._storage.remove(_path(key, number))

    def _numbers(self) -> dict[str, list[int]]:
        numbers: dict[str, list[int]] = {}
        for name in self._storage.names(FOLDER):
            if match := NAME.fullmatch(name):
                numbers.setdefault(match["key"], []).append(int(match["number"]))
        return numbers

    def _create(self, key: str, number: int, before: Collection[int]) -> bool:
        """Takes or renews a lease, and removes its files of lower numbers; False if another was faster."""
        content, path = self._content(), _path(key, number)
        if not self._storage.create(path, content) and not self._has_written(path, content):
            return False
        self._held[key] = number, self._clock()
        for old in before:
            self._storage.remove(_path(key, old))
        return True

    def _create_all(self, keys: Sequence[str]) -> set[str]:
        """Takes leases that nobody holds: thousands in one call, which costs little for each."""
        content, taken = self._content(), set()
        created = self._storage.create_all([_path(key, 1) for key in keys], content)
        for key in keys:
            if _path(key, 1) in created or self._has_written(_path(key, 1), content):
                self._held[key] = 1, self._clock()
                taken.add(key)
        return taken

    def _has_written(self, path: str, content: bytes) -> bool:
        """Whether this object wrote a file whose first answer was lost, so that a repetition found it."""
        with contextlib.suppress(FileNotFoundError):
            return self._storage.read(path) == content
        return False

    def _content(self) -> bytes:
        until = (self._clock() + self._ttl).isoformat()
        stated = {"holder": self._holder, "until": until, "machine": _machine(), "process": os.getpid()}
        return json.dumps(stated).encode()

    def _is_mine(self, key: str, found: Collection[int]) -> bool:
        stated = self._stated(key, found)
        return stated is not None and stated.get("holder") == self._holder

    def _stated(self, key: str, found: Collection[int]) -> dict[str, Any] | None:
        """What the newest of a lease's files states; None where there is none that we wrote."""
        try:
            stated = json.loads(self._storage.read(_path(key, max(found, default=0))))
        except (FileNotFoundError, ValueError):
            return None
        return stated if isinstance(stated, dict) else None

    def is_free(self, path: str) -> bool:
        """Whether the lease has expired, or its process has ended on this machine."""
        try:
            stated = json.loads(self._storage.read(path))
            if stated.get("machine") == _machine() and not _is_alive(int(stated["process"])):
                return True
            return self._clock() > datetime.fromisoformat(stated["until"]) + CLOCK_SKEW
        except FileNotFoundError:  # renewed or released just now
            return False
        except (AttributeError, ValueError, KeyError, TypeError):
            return True  # not a lease that we wrote


def _path(key: str, number: int) -> str:
    return f"{FOLDER}/{key}~{number:06}.json"


@cache
def _machine() -> str:
    """Identifies the process ids' namespace: this boot of this machine, or this container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            os.readlink("/proc/self/ns/pid"),
        ]
    return " ".join(parts)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
