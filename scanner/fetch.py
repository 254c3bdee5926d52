"""A checkpoint and its base as verified local files, and away again after the scan.

    CACHE/bases/...           bases, downloaded once and kept
    CACHE/checkpoints/<id>/   checkpoints that are kept
    CACHE/scans/<random>/     checkpoints under scan; what a killed process left goes with the next scan

Sizes are bytes. Knows no hub: the sources download, this module caps, checks and clears.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scanner.errors import ConfigError, Skipped, Unavailable
from scanner.records import Checkpoint
from scanner.sources.base import Source

MAX_DOWNLOAD = 10_000_000_000  # a full checkpoint of SD1's size in float32 with everything is 4 to 8 GB
SPARE_BYTES = 500_000_000  # that a download leaves free on the disk
_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a scan loads."""

    weights: Path  # the weight file, or the diffusers folder
    base: Path  # the base's diffusers folder


@contextlib.contextmanager
def fetched(
    source: Source, checkpoint: Checkpoint, cache: Path, *, keep: bool = False, max_bytes: int = MAX_DOWNLOAD
) -> Iterator[Fetched]:
    """The files of an inspected checkpoint, for as long as the block runs.

    Raises Skipped and Unavailable as the source's `fetch` and `fetch_base` do.
    """
    assert checkpoint.base is not None, "only an inspected checkpoint is fetched"
    base = source.fetch_base(checkpoint.base, cache, max_bytes)
    with _kept(cache, checkpoint) if keep else _scratch(cache) as into:
        yield Fetched(source.fetch(checkpoint, into, max_bytes), base)


@contextlib.contextmanager
def _kept(cache: Path, checkpoint: Checkpoint) -> Iterator[Path]:
    folder = cache / "checkpoints" / checkpoint.checkpoint_id
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        yield folder


@contextlib.contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """A folder of this scan's own. Its lock falls with its process, so that the next scan may clear it."""
    scans = cache / "scans"
    scans.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with locked(cache / ".scans.lock"):
            for left in scans.iterdir():
                with contextlib.suppress(BlockingIOError, OSError), locked(left / ".lock", wait=False):
                    shutil.rmtree(left, ignore_errors=True)
            name = held.enter_context(tempfile.TemporaryDirectory(dir=scans, ignore_cleanup_errors=True))
            held.enter_context(locked(Path(name) / ".lock"))
        yield Path(name)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock file against other processes and threads; without `wait` raises BlockingIOError."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def parse_size(text: str) -> int:
    """Bytes of a size such as "2GB", "500MB", "1.5 GiB" or "1000". Raises ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(
            f"{text} is no size. Write a number of bytes, or one with a unit: 500MB, 2GB, 1.5GiB."
        )
    return int(float(match[1]) * _UNITS[match[2]])


def show_size(size_bytes: int) -> str:
    """A size for people: "1.9 GB"."""
    value, unit = float(size_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"


def check_room(size_bytes: int, folder: Path, max_bytes: int, where: str) -> None:
    """Raises Skipped for more than the cap, Unavailable for more than the disk has to spare."""
    if size_bytes > max_bytes:
        raise Skipped(
            f"{where} is {show_size(size_bytes)}, and at most {show_size(max_bytes)} are fetched. "
            "Pass a larger --max-download."
        )
    free = shutil.disk_usage(folder).free
    if size_bytes + SPARE_BYTES > free:
        raise Unavailable(
            f"{where} is {show_size(size_bytes)}, and the disk of {folder} has {show_size(free)} free. "
            "Make room there, or name another cache."
        )


def sha256_of(path: Path) -> str:
    """The SHA256 of a file, 64 hex digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(actual: str, listed: str | None, where: str) -> None:
    """Raises Unavailable where bytes are not those that were listed. Without a listed SHA256 all pass."""
    if listed is not None and actual != listed:
        raise Unavailable(
            f"{where} is not what was listed: its SHA256 is {actual[:12]}..., listed was {listed[:12]}.... "
            "It was not opened; the next crawl lists and fetches it again."
        )
