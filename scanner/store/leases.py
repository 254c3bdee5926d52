"""Leases: which crawl scans a checkpoint, so that two crawls on one store do not scan the same one.

A lease is a small file in STORE/leases/, created under the next number of its key; of several crawls exactly
one creates it. It states its holder and when it expires. The holder renews it. Another crawl that finds it
expired, or its process dead on the same machine, creates the next number. The machines' clocks must agree
within a minute.
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
CLOCK_SKEW = timedelta(minutes=1)  # the largest difference between two machines' clocks
FOLDER = "leases"
NAME = re.compile(r"(?P<key>.+)~(?P<number>\d{6})\.json")


class Leases:
    """The leases of one crawl."""

    def __init__(self, storage: Storage, holder: str, ttl: timedelta = LEASE_TTL) -> None:
        self._storage, self._holder, self._ttl = storage, holder, ttl
        self._held: dict[str, tuple[str, datetime]] = {}  # key -> (path of its file, when it was written)

    def acquire(self, keys: Iterable[str]) -> set[str]:
        """Takes leases; returns those of the keys that no other crawl holds.

        Raises StoreError if the storage does not answer.
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
            if number and not self._has_expired(f"{FOLDER}/{key}~{number:06}.json"):
                continue
            path = f"{FOLDER}/{key}~{number + 1:06}.json"
            if self._storage.create(path, self._content()):
                self._held[key] = path, now()
                taken.add(key)
                if number:
                    self._storage.remove(f"{FOLDER}/{key}~{number:06}.json")
        return taken

    def renew(self) -> None:
        """Renews each lease that is older than a third of its TTL. A failure is left to the next call."""
        for key, (path, written) in list(self._held.items()):
            if now() - written > self._ttl / 3:
                with contextlib.suppress(OSError):
                    self._storage.put(path, self._content())
                    self._held[key] = path, now()

    def release(self, keys: Iterable[str] | None = None) -> None:
        """Gives up the leases of those keys, or all."""
        for key in list(self._held if keys is None else keys):
            path, _ = self._held.pop(key, ("", now()))
            if path:
                with contextlib.suppress(OSError):  # it expires by itself
                    self._storage.remove(path)

    def _content(self) -> bytes:
        stated = {"holder": self._holder, "until": (now() + self._ttl).isoformat(), "machine": _machine(),
                "process": os.getpid()}  # fmt: skip
        return json.dumps(stated).encode()

    def _has_expired(self, path: str) -> bool:
        try:
            stated = json.loads(self._storage.read(path))
            if stated.get("machine") == _machine() and not _is_alive(int(stated["process"])):
                return True
            return now() > datetime.fromisoformat(stated["until"]) + CLOCK_SKEW
        except FileNotFoundError:  # released just now; the next crawl takes it
            return False
        except (ValueError, KeyError, TypeError):
            return True  # not a lease that we wrote


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
