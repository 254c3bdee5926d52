"""Files that a stranger may have named, opened without waiting. Imports only the standard library."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device"),
)  # fmt: skip


def kind_of_special_file(path: Path) -> str | None:
    """What a path, its links followed, is instead of a regular file, such as "named pipe"; None for a file.

    Raises OSError where there is nothing.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return None
    return next((name for test, name in _KINDS if test(mode)), "special file")


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file for reading. Raises OSError for anything else: opening a pipe would not return."""
    if (kind := kind_of_special_file(path)) is not None:
        raise OSError(errno.EINVAL, f"it is a {kind} instead of a file", str(path))
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was replaced meanwhile
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file
