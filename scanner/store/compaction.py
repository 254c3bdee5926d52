"""Compaction: many small data files of a table are rewritten as one, while others read and write.

A file is rewritten together with all that are not much larger, so each row is rewritten a few times however
often compaction runs, and a file of `LARGE_BYTES` never again. The new file and the removal of the old ones
are one commit; of two compactions at once one wins and the other removes its file. Vacuum deletes replaced
files after `RETENTION_HOURS`: a reader looks for new files at the beginning of each query, so it needs a
replaced file for as long as one query runs.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
from deltalake.exceptions import DeltaError

from scanner.errors import StoreError
from scanner.records import new_id
from scanner.store.datafiles import columns_file, is_part, is_readable
from scanner.store.delta import DataFile
from scanner.store.storage import SCRATCH, FolderStorage
from scanner.store.store import Store
from scanner.store.tables import COMPACTED, CONTESTED, KEPT, TABLES, compaction, quoted

FEWEST_PARTS = 2  # of a table, before it is compacted at all
RETENTION_HOURS = 1
LARGE_BYTES = 100_000_000  # a file of that size is never rewritten
BATCH_BYTES = 200_000_000  # that are rewritten at once
TIER = 4  # a file is rewritten with smaller ones that together have at least this fraction of its size
ROWS_IN_A_GROUP = 20_000
# Memory and threads of DuckDB, which sorts on disk beyond it; the second pair is used if the first fails.
LIMITS = ("1GB", 2), ("1400MB", 1)


@dataclass(frozen=True, slots=True)
class Compacted:
    """The result for one table."""

    table: str
    files: int  # that were replaced; 0 where there were too few
    rows: int  # of the new files


@contextmanager
def compacting(
    uri: str,
    tables: Collection[str] = tuple(TABLES.values()),
    *,
    fewest_parts: int,
    interval_s: float,
) -> Iterator[None]:
    """Looks every `interval_s` in a thread of its own for tables with so many parts, and compacts them.

    What cannot be compacted is left as it is: who writes to the store meets the same error and reports it.
    """
    over = threading.Event()

    def work() -> None:
        while not over.wait(interval_s):
            with suppress(StoreError):
                for _ in compact(Store(uri), tables, fewest_parts=fewest_parts):
                    pass

    thread = threading.Thread(target=work, name="compaction", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def compact(
    store: Store,
    tables: Collection[str] = tuple(TABLES.values()),
    *,
    fewest_parts: int = FEWEST_PARTS,
    retention_hours: int = RETENTION_HOURS,
) -> Iterator[Compacted]:
    """Compacts each table that has so many parts, then deletes files that were replaced long enough ago.

    Raises StoreError where the store cannot be read or written; every row stays.
    """
    for table in tables:
        try:
            done = _compact(store, table, fewest_parts)
            if done.files or fewest_parts <= FEWEST_PARTS:
                store.tables[table].vacuum(retention_hours)
        except (OSError, DeltaError, duckdb.Error) as error:
            raise StoreError(f"the store {store.uri} cannot be compacted: {error}.") from error
        yield done


def _compact(store: Store, table: str, fewest_parts: int) -> Compacted:
    files = rows = 0
    current = store.tables[table].files()
    damaged: set[str] = set()
    for batch in batches(current, fewest_parts):
        names = [file.name for file in batch]
        try:
            made = rewrite(store, table, names, damaged=damaged)
        except duckdb.Error:
            damaged = {f.name for f in current if not _is_whole(store, table, f.name)}
            if not damaged:
                raise
            made = rewrite(store, table, names, damaged=damaged)
        files += len(batch) if made is not None else 0
        rows += made or 0
    return Compacted(table, files, rows)


def _is_whole(store: Store, table: str, name: str) -> bool:
    return is_readable(store.storage, f"{table}/{name}", thoroughly=True)


def batches(files: Sequence[DataFile], fewest_parts: int) -> list[list[DataFile]]:
    """The files to rewrite, in groups of at most `BATCH_BYTES` that become one file each."""
    parts = [file for file in files if is_part(file.name)]
    if len(parts) < fewest_parts:
        return []
    chosen, size = parts, sum(file.size_bytes for file in parts)
    for file in sorted((f for f in files if not is_part(f.name)), key=lambda f: f.size_bytes):
        if file.size_bytes < LARGE_BYTES and file.size_bytes <= TIER * size:
            chosen, size = [*chosen, file], size + file.size_bytes
    groups: list[list[DataFile]] = [[]]
    size = 0
    for file in chosen:
        if groups[-1] and size + file.size_bytes > BATCH_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.size_bytes
    return [group for group in groups if len(group) > 1 or is_part(group[0].name)]


def rewrite(
    store: Store, table: str, names: Sequence[str], *, damaged: Collection[str] = (), where: str = "true"
) -> int | None:
    """Replaces files, without the damaged ones, by one with those of their rows for which `where` holds.

    Returns the number of its rows; None where another process was faster, and nothing changed.
    """
    storage = store.storage
    names = [name for name in names if name not in damaged]
    current = {file.name for file in store.tables[table].files()}.difference(damaged)
    if not names or not current >= set(names):
        return None
    others = sorted(current - set(names)) if table in KEPT else []
    name = f"{CONTESTED if others else COMPACTED}{new_id()}.parquet"
    at = [[storage.address(f"{table}/{n}") for n in group] for group in (names, others)]
    sql = compaction(table, at[0], at[1], columns_file(table))
    folder = storage.root if isinstance(storage, FolderStorage) else None
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
        local = Path(scratch) / name
        for memory, threads in LIMITS:
            try:
                rows = _copy(store, f"SELECT * FROM ({sql}) WHERE {where}", local, memory, threads)
                break
            except duckdb.OutOfMemoryException:
                if (memory, threads) == LIMITS[-1]:
                    raise
        size = local.stat().st_size
        storage.take(f"{table}/{name}", local)
    if store.tables[table].replace(names, DataFile(name, size, rows)):
        return rows
    storage.remove(f"{table}/{name}")
    return None


def remove_rows(store: Store, table: str, condition: str, *, dry_run: bool = False) -> int:
    """Rewrites the data files that hold rows for which an SQL condition is true, without these rows.

    Returns the number of these rows; a file that another process replaced meanwhile is left as it is.
    Raises OSError, DeltaError, duckdb.Error, StoreError.
    """
    addresses = {store.storage.address(f"{table}/{f.name}"): f.name for f in store.tables[table].files()}
    if not addresses:
        return 0
    listed = ", ".join(quoted(address) for address in [*addresses, columns_file(table)])
    found = store.query(
        f"SELECT filename, count(*) AS n FROM read_parquet([{listed}], union_by_name = true, "
        f"filename = true) WHERE {condition} GROUP BY filename"
    )
    kept, removed = f"NOT coalesce({condition}, false)", 0
    for row in found:
        if dry_run or rewrite(store, table, [addresses[row["filename"]]], where=kept) is not None:
            removed += row["n"]
    return removed


def _copy(store: Store, sql: str, target: Path, memory: str, threads: int) -> int:
    """Writes the rows of a query as Parquet; gives their number."""
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")  # it would write to stdout
        connection.execute(f"SET memory_limit = '{memory}'")
        connection.execute(f"SET threads = {threads}")
        connection.execute("SET temp_directory = $folder", {"folder": f"{target.parent}/spilled"})
        store.storage.attach(connection)
        quoted = str(target).replace("'", "''")
        form = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROWS_IN_A_GROUP}"
        made = connection.execute(f"COPY ({sql}) TO '{quoted}' ({form})").to_arrow_table()
    return int(made.to_pylist()[0]["Count"])
