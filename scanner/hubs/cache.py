"""The cache of verified downloads, shared by all processes of a machine.

    CACHE/weights/ab/<sha256>        a verified file, stored once; the least recently used is evicted first
    CACHE/weights/ab/<sha256>.part   an unfinished download; the next attempt resumes it
    CACHE/bases/OWNER--NAME/COMMIT/  a base's small files, and links to its weights
    CACHE/scans/<random>/            a checkpoint during its scan; a later scan removes what a killed one left

A file in use is locked, and never evicted; the locks of a process are released when it ends. Sizes are in
bytes. The sources download; this module limits sizes, verifies and evicts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from finextract.reasons import ReasonCode
from scanner.errors import Skipped, Unavailable
from scanner.units import show_size

MAX_DOWNLOAD = 10_000_000_000  # a full checkpoint of SD1's size in float32 with everything is 4 to 8 GB
CACHE_BYTES = 50_000_000_000
SPARE_BYTES = 500_000_000  # that a download leaves free on the disk


class DownloadCache:
    """The cached files of one scan, as a context manager: locked during the scan, then kept or removed."""

    def __init__(
        self,
        cache: Path,
        *,
        max_bytes: int = MAX_DOWNLOAD,
        cache_bytes: int = CACHE_BYTES,
        keep: bool = False,
    ) -> None:
        self.cache, self.max_bytes = cache, max_bytes
        self._budget, self._keep = cache_bytes, keep
        self._held: dict[str, tuple[IO[bytes], bool]] = {}  # SHA256 -> locked file, and whether it stays

    def __enter__(self) -> DownloadCache:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        for sha256, (file, stays) in self._held.items():
            if not stays:
                _remove_unless_used(self._path(sha256), file)
            file.close()
        self._held.clear()

    def get(
        self,
        sha256: str,
        size_bytes: int,
        where: str,
        download: Callable[[Path], None],
        *,
        stays: bool = False,
    ) -> Path:
        """The verified file with that SHA256, downloaded unless it is cached; locked until the block ends.

        `download` resumes a partial file, and raises unless its content is right. With `stays` the file is
        kept for later scans. Raises Skipped where the file is too large, Unavailable where there is no room.
        """
        path = self._path(sha256)
        if sha256 in self._held:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            if (file := _lock(path, fcntl.LOCK_SH)) is not None:
                os.utime(path)
                self._held[sha256] = file, stays or self._keep
                return path
            part = path.with_name(f"{sha256}.part")
            part.touch()
            held = _lock(part, fcntl.LOCK_EX)  # waits for another process that downloads the same file
            if held is None:
                continue
            with held:
                if not path.exists():
                    missing = size_bytes - part.stat().st_size
                    self.make_room(max(missing, 0), size_bytes, where)
                    download(part)
                    part.replace(path)
                else:
                    part.unlink(missing_ok=True)

    def make_room(self, missing: int, size_bytes: int, where: str) -> None:
        """Evicts files until `missing` more bytes fit into the cache.

        Raises Skipped for a file that is too large, Unavailable where the disk, or the files in use, leave
        no room.
        """
        check_room(size_bytes, self.cache, self.max_bytes, where, missing)
        folder = self.cache / "weights"
        folder.mkdir(parents=True, exist_ok=True)
        with locked(self.cache / ".eviction.lock"):
            files = sorted(_stats(folder), key=lambda found: found[1].st_mtime)
            used = sum(stat.st_size for _, stat in files)
            for path, stat in files:
                if used + missing <= self._budget:
                    return
                file = _lock(path, fcntl.LOCK_EX, wait=False)
                if file is not None:
                    with file:
                        path.unlink(missing_ok=True)
                    used -= stat.st_size
            if used + missing > self._budget:
                raise Unavailable(
                    f"{where} needs {show_size(missing)} more in the cache {self.cache}, where all "
                    f"{show_size(used)} are in use and at most {show_size(self._budget)} are allowed. "
                    "Pass a larger --cache-size, or fewer --workers.",
                    ReasonCode.NO_SPACE,
                )

    def _path(self, sha256: str) -> Path:
        return self.cache / "weights" / sha256[:2] / sha256


def _stats(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            yield path, path.stat()


def _lock(path: Path, how: int, *, wait: bool = True) -> IO[bytes] | None:
    """The open and locked file; None where it does not exist, or is in use and `wait` is false."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None


def _remove_unless_used(path: Path, file: IO[bytes]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another scan reads it, and removes it afterwards
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock file against other processes and threads.

    Raises BlockingIOError where it is held already and `wait` is false.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def check_room(size_bytes: int, folder: Path, max_bytes: int, where: str, missing: int | None = None) -> None:
    """Raises Skipped for more than `max_bytes`, Unavailable where the disk has no room for `missing` bytes.

    `missing` is what is still to be downloaded; by default all of `size_bytes`.
    """
    if size_bytes > max_bytes:
        raise Skipped(
            f"{where} is {show_size(size_bytes)}, and at most {show_size(max_bytes)} are fetched. "
            "Pass a larger --max-download.",
            ReasonCode.TOO_LARGE,
        )
    free = shutil.disk_usage(folder).free
    if (size_bytes if missing is None else missing) + SPARE_BYTES > free:
        raise Unavailable(
            f"{where} is {show_size(size_bytes)}, and the disk of {folder} has {show_size(free)} free. "
            "Make room there, or name another cache.",
            ReasonCode.NO_SPACE,
        )


def check_sha256(actual: str, listed: str | None, where: str) -> None:
    """Raises Unavailable where a SHA256 is not the listed one. Without a listed SHA256 any is accepted."""
    if listed is not None and actual != listed:
        raise Unavailable(
            f"{where} is not what was listed: its SHA256 is {actual[:12]}..., not {listed[:12]}.... "
            "It was not opened; the next crawl lists and fetches it again.",
            ReasonCode.CHANGED,
        )
