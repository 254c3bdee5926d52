"""The store: immutable Parquet parts in a folder or an object store, asked through in-memory DuckDB views.

Nothing is updated in place: every write is a new part that appears whole or not at all, so a reader never
sees half a part and many processes may write at once. The newest row wins. Images are files named by content.

    STORE/<table>/part-<id>.parquet                what was written at once
    STORE/<table>/compacted-<n>-<id>.parquet       what many parts were made into (scanner.store.compaction)
    STORE/<table>/compacted-<n>.json               the newest one names that file, and the parts it stands for
    STORE/images/<first two hex digits>/<sha256>.png

Views: one a table, and `all_<table>` with every stored row where the view keeps only the newest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from scanner.errors import QueryError, StoreError
from scanner.records import Checkpoint, Record, Scan, new_id
from scanner.store.storage import FolderStorage, open_storage
from scanner.store.tables import TABLES, arrow_schema, record, views

EXPORTS = ("parquet", "csv", "json", "duckdb")
MANIFEST = re.compile(r"compacted-(\d{6})\.json")


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one table that count."""

    number: int  # of the newest compaction; 0 for none
    compacted: str | None
    parts: tuple[str, ...]  # that it does not stand for
    replaced: tuple[str, ...]  # that it stands for, and older compactions: nobody reads them any more


class Store:
    """An open store. Cheap to open; each thread asks through its own cursor.

    `uri` is a folder, or SCHEME://BUCKET/PREFIX of an object store. Raises StoreError where there is none
    (unless `create`), or it cannot be written.
    """

    def __init__(self, uri: str | Path, *, create: bool = False) -> None:
        self.storage = open_storage(uri)
        self.uri = self.storage.uri
        self._lock = threading.Lock()
        self._manifests: dict[str, dict[str, Any]] = {}
        try:
            there = {table: self.storage.names(table) for table in TABLES.values()}
            if not create and not there["scans"]:
                raise StoreError(
                    f"there is no store at {self.uri}.\n"
                    "Pass --store DIR, or make one with `scanner corpus add`."
                )
            self._create(there)
        except OSError as error:
            raise StoreError(
                f"the store {self.uri} cannot be written: {_brief(error)}. Pass --store DIR."
            ) from error
        self._connection = duckdb.connect(":memory:")
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute("SET parquet_metadata_cache = true")
        self.storage.attach(self._connection)
        self._stamps: dict[str, object] = {}
        self._sql: dict[str, str] = {}

    @property
    def root(self) -> Path:
        """The folder of a store that is one."""
        assert isinstance(self.storage, FolderStorage), f"{self.uri} is no folder"
        return self.storage.root

    def _create(self, there: dict[str, list[str]]) -> None:
        """Writes what is missing: an empty part a table.

        It tells the columns, so a view stands before the first row does, and a store that an older version
        wrote still has every column.
        """
        for record_type, table in TABLES.items():
            schema = arrow_schema(record_type)
            name = f"part-schema-{hashlib.sha256(str(schema).encode()).hexdigest()[:12]}.parquet"
            if name not in there[table]:
                self.storage.put(f"{table}/{name}", _parquet(schema.empty_table()))

    def files(self, table: str) -> Files:
        """The files of a table as they are now. Raises OSError."""
        names = self.storage.names(table)
        numbers = sorted(int(m[1]) for name in names if (m := MANIFEST.fullmatch(name)))
        parts = {name for name in names if name.startswith("part-") and name.endswith(".parquet")}
        if not numbers:
            return Files(0, None, tuple(sorted(parts)), ())
        manifest = self._manifest(f"{table}/compacted-{numbers[-1]:06}.json")
        current, covered = str(manifest["file"]), set(manifest["stands_for"])
        older = {n for n in names if n.startswith("compacted-") and n[10:16] < f"{numbers[-1]:06}"}
        return Files(
            numbers[-1], current, tuple(sorted(parts - covered)), tuple(sorted(older | (parts & covered)))
        )

    def _manifest(self, path: str) -> dict[str, Any]:
        if path not in self._manifests:
            self._manifests[path] = json.loads(self.storage.read(path))
        return self._manifests[path]

    def _views(self, table: str, files: Files) -> str:
        address = self.storage.address
        return views(
            table,
            address(f"{table}/{files.compacted}") if files.compacted else None,
            [address(f"{table}/{part}") for part in files.parts],
            any(not part.startswith("part-schema-") for part in files.parts),
        )

    def _refresh(self) -> None:
        """Makes the views of the tables anew whose files have changed."""
        with self._lock:
            for table in TABLES.values():
                stamp, sure = self.storage.stamp(table)
                if self._stamps.get(table) == stamp:
                    continue
                self._stamps[table] = stamp if sure else None
                sql = self._views(table, self.files(table))
                if self._sql.get(table) != sql:
                    self._connection.execute(sql)
                    self._sql[table] = sql

    def copy(self, sql: str, path: Path, files: Files, table: str, rows_in_a_group: int) -> int:
        """Writes the rows of a query over those files of a table as Parquet; gives back how many.

        Raises duckdb.Error.
        """
        target = str(path).replace("'", "''")
        with _interruptible(), duckdb.connect(":memory:") as connection:
            connection.execute("SET TimeZone = 'UTC'")
            self.storage.attach(connection)
            connection.execute(self._views(table, files))
            form = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {rows_in_a_group}"
            made = connection.execute(f"COPY ({sql}) TO '{target}' ({form})")
            return int(made.to_arrow_table().to_pylist()[0]["Count"])

    def append(self, records: Sequence[Record]) -> None:
        """Writes records, all of one type, as one part that appears whole or not at all."""
        if not records:
            return
        record_type = type(records[0])
        rows = [{f.name: getattr(r, f.name) for f in dataclasses.fields(record_type)} for r in records]
        table = pa.Table.from_pylist(rows, schema=arrow_schema(record_type))
        try:
            self.storage.put(f"{TABLES[record_type]}/part-{new_id()}.parquet", _parquet(table))
        except OSError as error:
            raise StoreError(f"the store {self.uri} cannot be written: {_brief(error)}.") from error

    def put_image(self, png: bytes) -> str:
        """Keeps an encoded PNG; returns its SHA256, by which `image` finds it."""
        sha256 = hashlib.sha256(png).hexdigest()
        try:
            self.storage.create(_image(sha256), png)
        except OSError as error:
            raise StoreError(f"the store {self.uri} cannot be written: {_brief(error)}.") from error
        return sha256

    def image(self, sha256: str) -> bytes:
        """The PNG with that SHA256. Raises OSError, FileNotFoundError where it is not there any more."""
        return self.storage.read(_image(sha256))

    def query(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """Rows of a query over the views, as dictionaries. `"references"` is an SQL word: quote it."""
        table = self.query_arrow(sql, parameters)
        columns = [_values(column) for column in table.columns]
        return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]

    def query_arrow(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> pa.Table:
        """Rows of a query over the views, as an Arrow table."""
        for attempt in range(3):
            try:
                with _interruptible():
                    self._refresh()
                    with self._connection.cursor() as cursor:
                        cursor.execute("SET TimeZone = 'UTC'")
                        return cursor.execute(sql, parameters).to_arrow_table()
            except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException) as error:
                raise QueryError(str(error).strip()) from error
            except (duckdb.IOException, duckdb.InvalidInputException, OSError) as error:
                if attempt == 2:  # not a file that a compaction has removed just now
                    raise StoreError(f"the store {self.uri} cannot be read: {_brief(error)}") from error
                self._stamps.clear()
            except duckdb.Error as error:
                raise QueryError(str(error).strip()) from error
        raise AssertionError("the last attempt returns or raises")

    def export(self, table: str, path: Path, form: str) -> int:
        """Writes the rows of a view to one file, readable by its owner alone; gives back how many.

        `form` is "parquet", "csv" or "json" (one object a line); "duckdb" makes a table of that name in a
        database file. Raises StoreError where it cannot be written.
        """
        assert form in EXPORTS, form
        name, target = table.replace('"', '""'), str(path).replace("'", "''")
        try:
            self._refresh()
            with _interruptible(), self._connection.cursor() as cursor:
                cursor.execute("SET TimeZone = 'UTC'")
                if form == "duckdb":
                    cursor.execute(f"ATTACH '{target}' AS exported")
                    try:
                        made = f'CREATE OR REPLACE TABLE exported."{name}" AS SELECT * FROM "{name}"'
                        rows = cursor.execute(made).to_arrow_table().to_pylist()
                    finally:
                        cursor.execute("DETACH exported")
                else:
                    header = ", HEADER" if form == "csv" else ""
                    copied = f"COPY (SELECT * FROM \"{name}\") TO '{target}' (FORMAT {form}{header})"
                    rows = cursor.execute(copied).to_arrow_table().to_pylist()
            path.chmod(0o600)
        except (duckdb.Error, OSError) as error:
            raise StoreError(f"{path} cannot be written: {error}.") from error
        return int(rows[0]["Count"])

    def stamp(self) -> tuple[object, ...]:
        """Differs whenever a part was added, by whatever process; cheap to ask for news."""
        try:
            return tuple(self.storage.stamp(table)[0] for table in TABLES.values())
        except OSError as error:
            raise StoreError(f"the store {self.uri} cannot be read: {_brief(error)}.") from error

    def select[R: Record](
        self, record_type: type[R], clause: str = "", parameters: Sequence[Any] = ()
    ) -> list[R]:
        """The newest records of a type; `clause` is what follows FROM: WHERE, ORDER BY, LIMIT."""
        columns = ", ".join(f'"{f.name}"' for f in dataclasses.fields(record_type))
        rows = self.query(f'SELECT {columns} FROM "{TABLES[record_type]}" {clause}', parameters)
        return [record(record_type, row) for row in rows]

    def placed(self, source: str, places: Sequence[tuple[str, str, str]]) -> list[Checkpoint]:
        """The checkpoints at some (repo, revision, file) of a source."""
        if not places:
            return []
        found = self.query(
            "SELECT * EXCLUDE (n) FROM (SELECT *, row_number() OVER (PARTITION BY repo, revision, file "
            "ORDER BY listed_at DESC) AS n FROM all_checkpoints WHERE source = ? AND list_contains(?, repo)) "
            "WHERE n = 1",
            [source, [repo for repo, _, _ in places]],
        )
        wanted = set(places)
        rows = [row for row in found if (row["repo"], row["revision"], row["file"]) in wanted]
        return [record(Checkpoint, row) for row in rows]

    def of_source(self, source: str, ids: Sequence[str]) -> list[Checkpoint]:
        """The checkpoints with those ids, as that source published them."""
        found = self.query(
            "SELECT * EXCLUDE (n) FROM (SELECT *, row_number() OVER (PARTITION BY checkpoint_id "
            "ORDER BY listed_at DESC) AS n FROM all_checkpoints WHERE source = ? AND checkpoint_id IN "
            "(SELECT unnest(string_split(?, ' ')))) WHERE n = 1",
            [source, " ".join(ids)],
        )
        return [record(Checkpoint, row) for row in found]

    def scans_of(self, config_id: str, ids: Sequence[str]) -> list[Scan]:
        """The newest scans of those checkpoints under a configuration; quick, though many may be written."""
        found = self.query(
            "SELECT * FROM all_scans WHERE config_id = ? AND checkpoint_id IN "
            "(SELECT unnest(string_split(?, ' '))) "
            "QUALIFY row_number() OVER (PARTITION BY checkpoint_id ORDER BY finished_at DESC) = 1",
            [config_id, " ".join(ids)],
        )
        return [record(Scan, row) for row in found]

    def finished(self, config_id: str) -> set[str]:
        """Ids of the checkpoints that a worker came to a verdict on; `failed` is none."""
        return self._ids("config_id = ? AND verdict <> 'failed' AND stage <> 'inspect'", config_id)

    def ruled_out(self, config_id: str) -> set[str]:
        """Ids of the checkpoints that inspection ruled out."""
        return self._ids("config_id = ? AND verdict = 'skipped' AND stage = 'inspect'", config_id)

    def quarantined(self, config_id: str) -> set[str]:
        """Ids of the checkpoints whose workers died, as often as was tried: they may be why."""
        return self._ids("config_id = ? AND verdict = 'failed' AND stage = 'worker'", config_id)

    def _ids(self, where: str, config_id: str) -> set[str]:
        ids = self.query_arrow(f"SELECT checkpoint_id FROM scans WHERE {where}", [config_id])
        return set(ids.column(0).to_pylist())


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A column as Python values. Arrow's own way looks for a package of time zones at each time of day."""
    if pa.types.is_timestamp(column.type) and column.type.tz == "UTC":
        naive = column.cast(pa.timestamp(column.type.unit)).to_pylist()
        return [at if at is None else at.replace(tzinfo=UTC) for at in naive]
    values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    return values


@contextmanager
def _interruptible() -> Iterator[None]:
    """DuckDB makes an error of its own of a signal that comes while it is asked; here it is one again."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


def _image(sha256: str) -> str:
    return f"images/{sha256[:2]}/{sha256}.png"


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _brief(error: BaseException) -> str:
    """An error's first line, without the number and the name that Python puts around it."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (told.strip().splitlines() or [type(error).__name__])[0]
