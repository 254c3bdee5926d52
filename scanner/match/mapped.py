"""The embeddings of corpora as files of this machine's cache, which its processes map and none copies.

    CACHE/corpora/<key>/embeddings.npy   float32 [N, D]
    CACHE/corpora/<key>/ids.npy          the reference ids, bytes [N], sorted

A key stands for the ids of a corpus and a descriptor, so a folder never changes. It appears whole, written by
the first process that needs it, and is removed when no process has opened it for `UNUSED_DAYS`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scanner.errors import CorpusError

FOLDER = "corpora"
UNUSED_DAYS = 7
BUILDING = ".building-"  # how the name of a folder begins until it is whole


class Mapped(NamedTuple):
    """The files of a corpus, mapped into this process; they cannot be written to."""

    ids: NDArray[np.bytes_]  # [N], sorted
    embeddings: NDArray[np.float32]  # [N, D]


def find(cache: Path, digest: str, descriptor: str) -> Mapped | None:
    """The files of the corpus with that digest of its ids; None where this machine has none yet."""
    folder = _folder(cache, digest, descriptor)
    try:
        os.utime(folder)
        arrays = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in Mapped._fields)
        return Mapped(*map(np.asarray, arrays))
    except OSError:
        return None


def build(
    cache: Path, digest: str, descriptor: str, ids: NDArray[np.bytes_], rows: Iterable[pa.Table]
) -> Mapped:
    """Writes the files of a corpus, and returns them.

    `rows` have the columns reference_id, embedding and added_at, in any order; of several rows of an id the
    newest counts, and other ids are left out. Raises CorpusError where the files cannot be written.
    """
    target = _folder(cache, digest, descriptor)
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_unused(target.parent)
        scratch = Path(tempfile.mkdtemp(prefix=BUILDING, dir=target.parent))
        try:
            np.save(scratch / "ids.npy", ids)
            _write(scratch / "embeddings.npy", ids, rows)
            try:
                scratch.rename(target)
            except OSError:
                if not target.is_dir():  # otherwise another process was faster
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise CorpusError(
            f"the embeddings of a corpus cannot be kept in {target.parent}: {error.strerror}. "
            "Set FINEXTRACT_CACHE to a folder with enough room."
        ) from error
    mapped = find(cache, digest, descriptor)
    assert mapped is not None, f"{target} was just written"
    return mapped


def _write(path: Path, ids: NDArray[np.bytes_], rows: Iterable[pa.Table]) -> None:
    embeddings: NDArray[np.float32] | None = None
    newest = np.full(len(ids), np.iinfo(np.int64).min)  # when the row of each id was added, microseconds
    for table in rows:
        table = table.sort_by("added_at")  # of equal places, NumPy assigns the last
        found = np.array(table["reference_id"].to_pylist(), ids.dtype)
        added = table["added_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(found), -1)
        places = np.searchsorted(ids, found).clip(max=len(ids) - 1)
        chosen = (ids[places] == found) & (added >= newest[places])
        if embeddings is None:
            shape = (len(ids), vectors.shape[1])
            embeddings = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        embeddings[places[chosen]] = vectors[chosen]
        newest[places[chosen]] = added[chosen]
    if (newest == np.iinfo(np.int64).min).any():
        raise CorpusError("a corpus was changed while it was read. Run the command again.")


def _remove_unused(folder: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 86400
    for path in folder.iterdir():
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path)


def forget(cache: Path, ids: Collection[str]) -> int:
    """Removes the files of every corpus that has one of those references; returns how many corpora."""
    wanted, removed = np.array([i.encode() for i in ids]), 0
    for folder in (cache / FOLDER).glob("*"):
        with suppress(OSError, ValueError):  # another process removes it, or builds it
            if np.isin(np.load(folder / "ids.npy"), wanted).any():
                shutil.rmtree(folder)
                removed += 1
    return removed


def _folder(cache: Path, digest: str, descriptor: str) -> Path:
    return cache / FOLDER / hashlib.sha256(f"{descriptor}\n{digest}".encode()).hexdigest()[:32]
