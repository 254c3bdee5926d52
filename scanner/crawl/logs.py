"""One log file for each scan, with its stages and its errors.

It is written line by line into the cache of the node that scans, so a killed process leaves it there,
and moved into the store when the scan ends: STORE/logs/<two hex digits>/<scan_id>.log, readable only by its
owner.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from scanner.store.store import Store
from scanner.text import for_terminal

LOGGER = logging.getLogger("scanner")


class _Lines(logging.Formatter):
    """Times are UTC with milliseconds; untrusted text is made safe for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        lines = "\n".join(map(for_terminal, text.split("\n")))
        return f"{at} {record.levelname:7} {lines}"


def log_path(scan_id: str) -> str:
    """The path of a scan's log in its store."""
    return f"logs/{scan_id[:2]}/{scan_id}.log"


@contextlib.contextmanager
def logged(store: Store, cache: Path, scan_id: str) -> Iterator[logging.Logger]:
    """Everything that is logged below `scanner` meanwhile goes into the log of a scan.

    Where the log cannot be written, the scan goes on without it.
    """
    local = cache / "logs" / f"{scan_id}.log"
    handler: logging.Handler = logging.NullHandler()
    with contextlib.suppress(OSError):
        local.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(local, os.O_CREAT | os.O_WRONLY, 0o600))
        handler = logging.FileHandler(local)
    handler.setFormatter(_Lines())
    LOGGER.addHandler(handler)
    level = LOGGER.level
    LOGGER.setLevel(logging.INFO)
    try:
        yield LOGGER
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        handler.close()
        with contextlib.suppress(OSError):
            store.storage.put(log_path(scan_id), local.read_bytes())
            local.unlink()
