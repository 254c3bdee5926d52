"""Who scans a checkpoint now, so that two crawls on one store do not scan the same one.

A lease is a small file below STORE/leases/, created under the next number of its key: of several crawls at
once exactly one creates it. It names its holder and the time until which it holds; the holder renews it, and
whoever finds it run out, or its process dead on the same machine, creates the next number. Needs clocks that
agree within a minute.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

from scanner.errors import StoreError
from scanner.records import now
from scanner.store.storage import Storage

LEASE_TTL = timedelta(minutes=5)
CLOCK_SKEW = timedelta(minutes=1)  # by which two machines' clocks may differ
FOLDER = "leases"
NAME = re.compile(r"(?P<key>.+)~(?P<number>\d{6})\.json")


class Leases:
    """The leases of one crawl."""

    def __init__(self, storage: Storage, holder: str, ttl: timedelta = LEASE_TTL) -> None:
        self._storage, self._holder, self._ttl = storage, holder, ttl
        self._held: dict[str, tuple[str, datetime]] = {}  # key -> (its file, when it was written)

    def acquire(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that this crawl may work on: nobody else holds them.

        Raises StoreError where the store does not answer.
        """
        try:
            return self._acquire(keys)
        except OSError as error:
            raise StoreError(f"the store {self._storage.uri} does not answer: {error}.") from error

    def _acquire(self, keys: Iterable[str]) -> set[str]:
        numbers: dict[str, int] = {}
        for name in self._storage.names(FOLDER):
            if match := NAME.fullmatch(name):
                numbers[match["key"]] = max(numbers.get(match["key"], 0), int(match["number"]))
        taken = set()
        for key in keys:
            number = numbers.get(key, 0)
            if number and not self._has_run_out(f"{FOLDER}/{key}~{number:06}.json"):
                continue
            path = f"{FOLDER}/{key}~{number + 1:06}.json"
            if self._storage.create(path, self._content()):
                self._held[key] = path, now()
                taken.add(key)
                if number:
                    self._storage.remove(f"{FOLDER}/{key}~{number:06}.json")
        return taken

    def renew(self) -> None:
        """Writes anew what has held for a third of its time. Called often: a failure is tried again."""
        for key, (path, written) in list(self._held.items()):
            if now() - written > self._ttl / 3:
                with contextlib.suppress(OSError):
                    self._storage.put(path, self._content())
                    self._held[key] = path, now()

    def release(self, keys: Iterable[str] | None = None) -> None:
        """Lets go of those keys, or of all."""
        for key in list(self._held if keys is None else keys):
            path, _ = self._held.pop(key, ("", now()))
            if path:
                with contextlib.suppress(OSError):  # it runs out by itself
                    self._storage.remove(path)

    def _content(self) -> bytes:
        told = {"holder": self._holder, "until": (now() + self._ttl).isoformat(), "machine": _machine(),
                "process": os.getpid()}  # fmt: skip
        return json.dumps(told).encode()

    def _has_run_out(self, path: str) -> bool:
        try:
            told = json.loads(self._storage.read(path))
            if told.get("machine") == _machine() and not _is_alive(int(told["process"])):
                return True
            return now() > datetime.fromisoformat(told["until"]) + CLOCK_SKEW
        except FileNotFoundError:  # given back just now; the next crawl takes it
            return False
        except (ValueError, KeyError, TypeError):
            return True  # nothing of ours


@cache
def _machine() -> str:
    """Where process ids mean the same: this boot of this machine, or of this container."""
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
