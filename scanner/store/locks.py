"""A lock among the processes of one machine, which makes commits wait for each other instead of retrying.

The lock is advisory and only saves work: a Delta commit is correct without it, because of several writers of
the same version exactly one succeeds. A killed process releases it. Uses flock(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

WAIT_S = 60.0  # then the caller goes on without the lock: its holder may be stopped
POLL_S = 0.002, 0.01  # between two attempts


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock of that file for a `with` block, or nothing where the file system has no locks."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(random.uniform(*POLL_S))
            except OSError:  # no locks on this file system
                break
        yield
    finally:
        os.close(descriptor)
