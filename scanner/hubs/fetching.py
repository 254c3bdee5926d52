"""The files of one checkpoint and its base, for as long as a scan needs them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scanner.hubs.base import Source
from scanner.hubs.base_fetcher import BaseFetcher, BaseFiles
from scanner.hubs.cache import DownloadCache, locked
from scanner.records import Checkpoint


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """What a scan loads."""

    weights: Path  # the weight file, or the diffusers folder
    base: BaseFiles


@contextlib.contextmanager
def fetched(
    source: Source, bases: BaseFetcher, checkpoint: Checkpoint, downloads: DownloadCache
) -> Iterator[LocalFiles]:
    """The files of an inspected checkpoint, for as long as the block runs.

    Raises Skipped and Unavailable as `Source.fetch` and `BaseFetcher.fetch` do.
    """
    assert checkpoint.base is not None, "only an inspected checkpoint is fetched"
    with downloads, _scratch(downloads.cache) as into:
        base = bases.fetch(checkpoint.base, downloads)
        yield LocalFiles(source.fetch(checkpoint, into, downloads), base)


@contextlib.contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """A folder for this scan alone.

    Its lock is released when its process ends, so that a later scan removes what a killed process left.
    """
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
