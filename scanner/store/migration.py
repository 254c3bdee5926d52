"""Converts a store of the format before Delta Lake, in place.

In that format a table was a folder of parts (`part-<id>.parquet`), and manifests (`compacted-<n>.json`) named
compacted files and the parts that each one replaced. The new files of a table are written beside the old
ones; the creation of the Delta log then names all of them at once. The table that marks a store comes last,
so a conversion that was interrupted is simply started again. Old files are removed when every table is done.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError

from scanner.config import config_id_of
from scanner.errors import StoreError
from scanner.records import Decision, new_id
from scanner.store.datafiles import columns_file
from scanner.store.decisions import events_from_legacy
from scanner.store.delta import LOG, DataFile, Table, write
from scanner.store.rows import arrow_rows, rows_of
from scanner.store.storage import FolderStorage, Storage, open_storage
from scanner.store.store import MARKER
from scanner.store.tables import COMPACTED, KEPT, TABLES, table_schema

MANIFEST = re.compile(r"compacted-(\d{6})\.json")
RENAMED = {"prospect": "inspection_status", "base_evidence": "base_origin"}
DROPPED = ("counts",)  # a mark of old compacted files
BATCH_FILES = 2000  # that become one file
KEPT_FOLDER = "before-migration"  # of old files that are kept
MEMORY = "1GB"  # of DuckDB


@dataclass(frozen=True, slots=True)
class Migrated:
    """The result for one table."""

    table: str
    files: int  # old ones
    rows: int


def migrate(uri: str, *, keep_old: bool = False) -> Iterator[Migrated]:
    """Converts every table of a store; gives each one's result as it is done.

    Must not run beside a crawl of an older version. With `keep_old` the old files are moved to
    STORE/before-migration. Raises StoreError where there is no store of the old format, or it cannot be
    read or written; the old files are then still complete.
    """
    storage = open_storage(uri)
    try:
        if LOG in storage.names(MARKER):
            raise StoreError(f"the store {storage.uri} has the present format already.")
        if not storage.names(MARKER):
            raise StoreError(f"there is no store at {storage.uri}.\nPass --store DIR.")
        with duckdb.connect(":memory:") as connection, tempfile.TemporaryDirectory() as scratch:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET enable_progress_bar = false")  # it would write to stdout
            connection.execute(f"SET memory_limit = '{MEMORY}'")
            connection.execute("SET temp_directory = $folder", {"folder": f"{scratch}/spilled"})
            storage.attach(connection)
            _register_config_ids(connection, storage)
            old: dict[str, list[str]] = {}
            for table in sorted(TABLES.values(), key=lambda name: name == MARKER):
                names = storage.names(table)
                current = Table(storage, table, table_schema(table)).names() if LOG in names else ()
                old[table] = [n for n in names if n.startswith(("part-", "compacted-")) and n not in current]
                if LOG not in names:  # else an earlier conversion came as far as this
                    yield _migrate(connection, storage, table, names)
        for table, names in old.items():
            for name in names:
                _retire(storage, table, name, keep_old)
    except (OSError, DeltaError, duckdb.Error, pa.ArrowException) as error:
        raise StoreError(f"the store {storage.uri} cannot be converted: {error}.") from error


def old_files(storage: Storage, table: str, names: list[str]) -> list[str]:
    """The data files of a table of the old format that count. Raises OSError."""
    parts = {name for name in names if name.startswith("part-") and name.endswith(".parquet")}
    numbers = sorted(int(match[1]) for name in names if (match := MANIFEST.fullmatch(name)))
    if not numbers:
        return sorted(parts)
    manifest = json.loads(storage.read(f"{table}/compacted-{numbers[-1]:06}.json"))
    return [str(manifest["file"]), *sorted(parts - set(manifest["stands_for"]))]


def _migrate(
    connection: duckdb.DuckDBPyConnection, storage: Storage, table: str, names: list[str]
) -> Migrated:
    files = old_files(storage, table, names)
    added: list[DataFile] = []
    if table == TABLES[Decision]:
        added += _decisions(connection, storage, files)
    else:
        for start in range(0, len(files), BATCH_FILES):
            added += _converted(connection, storage, table, files[start : start + BATCH_FILES])
    Table(storage, table, table_schema(table)).create(added)
    return Migrated(table, len(files), sum(file.rows for file in added))


def _converted(
    connection: duckdb.DuckDBPyConnection, storage: Storage, table: str, files: list[str]
) -> list[DataFile]:
    """Old files as one new file; none where they have no rows."""
    # A table with keys is compacted afterwards, which marks its rows; that of another is left as it is.
    name = f"{'migrated-' if table in KEPT else COMPACTED}{new_id()}.parquet"
    root = storage.root if isinstance(storage, FolderStorage) else None
    with tempfile.TemporaryDirectory(dir=root, prefix=".migration-") as scratch:
        local = Path(scratch) / name
        target = str(local).replace("'", "''")
        sql = _rows(connection, table, [storage.address(f"{table}/{file}") for file in files])
        connection.execute(f"COPY ({sql}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
        rows, size = pq.read_metadata(local).num_rows, local.stat().st_size
        if rows:
            storage.take(f"{table}/{name}", local)
    return [DataFile(name, size, rows)] if rows else []


def _rows(connection: duckdb.DuckDBPyConnection, table: str, paths: list[str]) -> str:
    """The SQL of the rows of old files, with the columns of today."""
    quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in (columns_file(table), *paths))
    source = f"read_parquet([{quoted}], union_by_name = true)"
    there = [str(row[0]) for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]
    old_of = {new: old for old, new in RENAMED.items() if old in there}
    columns = []
    for field in table_schema(table, marks=False):
        value = f'"{field.name}"'
        if field.name in old_of:
            value = f'coalesce("{field.name}", "{old_of[field.name]}")'
        elif field.name == "config_id":
            value = "coalesce((SELECT new FROM config_ids WHERE old = config_id), config_id)"
        columns.append(f'{value} AS "{field.name}"')
    return f"SELECT {', '.join(columns)} FROM {source}"


def _register_config_ids(connection: duckdb.DuckDBPyConnection, storage: Storage) -> None:
    """The table `config_ids`: what each configuration was called, and what it is called now."""
    connection.execute("CREATE TABLE config_ids (old VARCHAR, new VARCHAR)")
    files = old_files(storage, "configs", storage.names("configs"))
    if files:
        quoted = ", ".join(f"'{storage.address(f'configs/{file}')}'" for file in files)
        found = connection.execute(
            f"SELECT DISTINCT config_id, toml FROM read_parquet([{quoted}], union_by_name = true)"
        ).fetchall()
        for old, toml in found:
            connection.execute("INSERT INTO config_ids VALUES (?, ?)", [old, config_id_of(toml)])


def _decisions(connection: duckdb.DuckDBPyConnection, storage: Storage, files: list[str]) -> list[DataFile]:
    if not files:
        return []
    quoted = ", ".join("'" + storage.address(f"decisions/{file}").replace("'", "''") + "'" for file in files)
    legacy = connection.execute(f"SELECT * FROM read_parquet([{quoted}], union_by_name = true)")
    events = events_from_legacy(rows_of(legacy.to_arrow_table()))
    if not events:
        return []
    return [write(storage, TABLES[Decision], f"{COMPACTED}{new_id()}.parquet", arrow_rows(events))]


def _retire(storage: Storage, table: str, name: str, keep: bool) -> None:
    path = f"{table}/{name}"
    if keep and isinstance(storage, FolderStorage):
        storage.take(f"{KEPT_FOLDER}/{path}", storage.root / path)
        return
    if keep:
        storage.put(f"{KEPT_FOLDER}/{path}", storage.read(path))
    storage.remove(path)
