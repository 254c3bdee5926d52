"""Many small parts of a table made into one file, while others read and write.

The new file is written first. What makes it count is a manifest that names it and the parts it stands for,
created under the next number: of two compactions at once one wins, and the other's file is removed. A reader
sees either the parts or the file, never both and never neither. What nobody reads any more is removed after
a grace, in which a reader that had looked before is done.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb

from scanner.errors import StoreError
from scanner.records import new_id
from scanner.store.storage import FolderStorage
from scanner.store.store import Files, Store
from scanner.store.tables import TABLES, compacted

TIDY_S = 60.0  # between two looks at a store that a crawl writes to
TIDY_PARTS = 1000  # of a table: every question opens them all
GRACE_S = 10.0  # a reader lists a table's files and opens them within it
FEWEST_PARTS = 2  # written since: fewer are left
ROWS_IN_A_GROUP = 20_000


@dataclass(frozen=True, slots=True)
class Compacted:
    """What became of one table."""

    table: str
    parts: int  # that were made into the file; 0 where there were too few
    rows: int  # of the file


@contextmanager
def tidied(uri: str) -> Iterator[None]:
    """Compacts the tables of a store whenever they have come to many parts, in a thread of its own."""
    over = threading.Event()

    def tidy() -> None:
        while not over.wait(TIDY_S):
            with suppress(StoreError, OSError):  # the crawl meets the same, and tells
                for _ in compact(Store(uri), fewest_parts=TIDY_PARTS):
                    pass

    thread = threading.Thread(target=tidy, name="tidy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def compact(
    store: Store, *, fewest_parts: int = FEWEST_PARTS, grace_s: float | None = None
) -> Iterator[Compacted]:
    """Compacts every table that has so many parts, then removes what was replaced, now or by an earlier run.

    Raises StoreError where the store cannot be read or written; what was there stays.
    """
    done = [_compact(store, table, fewest_parts) for table in TABLES.values()]
    yield from done
    if any(c.parts for c in done) or any(_files(store, table).replaced for table in TABLES.values()):
        time.sleep(GRACE_S if grace_s is None else grace_s)
        for table in TABLES.values():
            for name in _files(store, table).replaced:
                store.storage.remove(f"{table}/{name}")


def _compact(store: Store, table: str, fewest_parts: int) -> Compacted:
    files = _files(store, table)
    parts = [part for part in files.parts if not part.startswith("part-schema-")]
    if len(parts) < fewest_parts:
        return Compacted(table, 0, 0)
    name = f"compacted-{files.number + 1:06}-{new_id()}.parquet"
    stands_for = sorted({*parts, *(n for n in files.replaced if n.startswith("part-"))})
    folder = store.storage.root if isinstance(store.storage, FolderStorage) else None
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".compaction-") as scratch:
            local = Path(scratch) / name
            rows = store.copy(compacted(table), local, files, table, ROWS_IN_A_GROUP)
            store.storage.take(f"{table}/{name}", local)
        manifest = json.dumps({"file": name, "stands_for": stands_for, "rows": rows}).encode()
        if not store.storage.create(f"{table}/compacted-{files.number + 1:06}.json", manifest):
            store.storage.remove(f"{table}/{name}")  # another compaction was faster
            return Compacted(table, 0, 0)
    except (OSError, duckdb.Error) as error:
        raise StoreError(f"the store {store.uri} cannot be compacted: {error}.") from error
    return Compacted(table, len(parts), rows)


def _files(store: Store, table: str) -> Files:
    try:
        return store.files(table)
    except OSError as error:
        raise StoreError(f"the store {store.uri} cannot be read: {error}.") from error
