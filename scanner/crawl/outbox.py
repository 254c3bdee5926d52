"""Messages about flags that wait in the store until they are delivered, so that a killed crawl loses none.

    STORE/notify/since.json           since when flags are told
    STORE/notify/waiting/<id>.json    a message that was not delivered yet
    STORE/notify/sent/<id>            that it was

A message is written before it is sent, and its mark after: a crawl that is killed in between sends it again,
under the same id. The lease of a message keeps two crawls from sending it at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from scanner.records import now
from scanner.store.leases import Leases
from scanner.store.removal import WAITING
from scanner.store.storage import Storage

SINCE, SENT = "notify/since.json", "notify/sent"


class Outbox:
    """The messages of one store. Every method may raise OSError or StoreError."""

    def __init__(self, storage: Storage, holder: str) -> None:
        self._storage = storage
        self._leases = Leases(storage, holder)

    def since(self) -> datetime:
        """Since when flags are told: the time at which this was first asked."""
        self._storage.create(SINCE, json.dumps({"since": now().isoformat()}).encode())
        try:
            return datetime.fromisoformat(json.loads(self._storage.read(SINCE))["since"])
        except (ValueError, KeyError, TypeError):  # not ours any more: it begins anew
            self._storage.put(SINCE, json.dumps({"since": now().isoformat()}).encode())
            return now()

    def claim(self, ids: Iterable[str]) -> set[str]:
        """Those of the messages that were not delivered, and that nobody else is delivering."""
        ids = set(ids)
        free = [key for key in map(_key, ids) if key not in self._leases]
        if free:
            self._leases.acquire(free)
        mine = {id_ for id_ in ids if _key(id_) in self._leases}
        sent = set(self._storage.names(SENT)) if mine else set()  # after the leases, or it may be old
        self._leases.release(map(_key, mine & sent))
        return mine - sent

    def put(self, id_: str, message: dict[str, Any]) -> None:
        """Keeps a message that was claimed, unless it waits already."""
        self._storage.create(f"{WAITING}/{id_}.json", json.dumps(message, indent=1).encode())

    def waiting(self) -> list[str]:
        """The ids of all messages that wait."""
        return sorted(name.removesuffix(".json") for name in self._storage.names(WAITING))

    def read(self, id_: str) -> dict[str, Any] | None:
        """A message that waits; None where it does not wait any more, or is none."""
        try:
            message = json.loads(self._storage.read(f"{WAITING}/{id_}.json"))
        except (FileNotFoundError, ValueError):
            return None
        return message if isinstance(message, dict) and message.get("id") == id_ else None

    def delivered(self, id_: str) -> None:
        """Notes that a message was delivered."""
        self._storage.create(f"{SENT}/{id_}", now().isoformat().encode())
        self._storage.remove(f"{WAITING}/{id_}.json")
        self._leases.release([_key(id_)])

    def is_mine(self, id_: str) -> bool:
        """Whether the lease of a message is still this object's."""
        self._leases.renew()
        return _key(id_) in self._leases

    def close(self) -> None:
        """Gives up all leases."""
        self._leases.release()


def _key(id_: str) -> str:
    return f"notify-{id_}"
