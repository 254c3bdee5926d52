"""The store: Delta Lake tables in a folder or an object store, queried through in-memory DuckDB views.

Nothing is updated in place: each append is one commit of one file, so a reader never sees half of it and many
processes may write at once. The newest row of a key counts. Images are files named by their content.

    STORE/<table>/_delta_log/                      the commits of a table (scanner.store.delta)
    STORE/<table>/part-<id>.parquet                the rows of one append
    STORE/<table>/compacted-<id>.parquet           the rows of many (scanner.store.compaction)
    STORE/images/<first two hex digits>/<sha256>.png   PNG, or WebP under the same suffix: see `put_image`

Views: one for each table, `all_<table>` with every stored row where the view has only the newest, and those
of scanner.store.decision_views.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from deltalake.exceptions import DeltaError

from finextract.reasons import ReasonCode
from scanner.errors import QueryError, StoreError
from scanner.records import Checkpoint, Record, Scan
from scanner.store.connection import check_question, connect_locked, interruptible
from scanner.store.datafiles import columns_file, is_part, is_readable
from scanner.store.decision_views import DECISION_VIEWS, READS
from scanner.store.delta import LOG, Table
from scanner.store.patience import NO_PATIENCE, Patience, plain
from scanner.store.rows import arrow_rows, rows_of
from scanner.store.storage import FolderStorage, open_storage
from scanner.store.tables import COMPACTED, KEPT, PART, TABLES, record, table_schema, views

LOGGER = logging.getLogger("scanner.store")
MARKER = "scans"  # the table that every store has
DAMAGE = duckdb.IOException, duckdb.InvalidInputException  # what DuckDB raises for a file it cannot read
# What lies in the folder of a store.
NAMES = {
    *TABLES.values(),
    *("images", "leases", "logs", "reports", "base-losses", "orphans.json", "before-migration", "notify"),
}
ATTEMPTS = 5  # of a query: files may be replaced or found damaged while it runs
STREAMED = 10_000  # of a query whose rows are streamed, at once
# Rows that refer to others are read before them: a scan is never seen without its matches.
READ_ORDER = (
    "removals", "decisions", "nights", "scans", "matches", "memberships", "candidates", "references",
    "configs", "listings", "checkpoints",
)  # fmt: skip
assert set(READ_ORDER) == set(TABLES.values())


class Store:
    """An open store. Cheap to open; each thread queries through its own cursor.

    `uri` is a folder, or SCHEME://BUCKET/PREFIX of an object store. One that is `read_only` is left as it is,
    its mode included, and only asked. Raises StoreError where there is no store
    (unless `create`), where it has the format of an older version, or where it cannot be opened.
    """

    def __init__(
        self,
        uri: str | Path,
        *,
        create: bool = False,
        read_only: bool = False,
        patience: Patience = NO_PATIENCE,
    ) -> None:
        self.storage = open_storage(uri, patience)
        self.uri = self.storage.uri
        self.tables = {name: Table(self.storage, name, table_schema(name)) for name in TABLES.values()}
        self._lock = threading.Lock()
        try:
            if not self._is_there():
                if any(name.startswith((PART, COMPACTED)) for name in self.storage.names(MARKER)):
                    raise StoreError(
                        f"the store {self.uri} has the format of an older version.\n"
                        f"Run `scanner migrate --store {self.uri}` to convert it."
                    )
                if not create:
                    raise StoreError(
                        f"there is no store at {self.uri}.\n"
                        "Pass --store DIR, or make one with `scanner corpus add`."
                    )
                self.tables[MARKER].create()
            if not read_only:
                self.storage.restrict(NAMES)
        except (OSError, DeltaError) as error:
            hint = "Check its credentials and AWS_ENDPOINT_URL" if "://" in self.uri else "Name a folder"
            raise StoreError(
                f"the store {self.uri} cannot be opened: {plain(error)}.\n{hint}, or pass another --store."
            ) from error
        self._connection = connect_locked(self.storage)
        self._stamps: dict[str, object] = {}
        self._sql: dict[str, str] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._damaged: set[str] = set()  # paths of data files that cannot be read

    @property
    def root(self) -> Path:
        """The folder of a store that is one."""
        assert isinstance(self.storage, FolderStorage), f"{self.uri} is not a folder"
        return self.storage.root

    def _refresh(self, sql: str) -> None:
        """Updates the views of the tables that a query names and whose files have changed."""
        lowered = sql.lower()
        named = {table for table in READ_ORDER if table in lowered}
        joined = [view for view in DECISION_VIEWS if view in lowered or not named]
        named = (named or set(READ_ORDER)) | (set(READS) if joined else set())
        with self._lock:
            for table in sorted(named, key=READ_ORDER.index):
                stamp, sure = self.storage.stamp(f"{table}/{LOG}")
                if stamp is None and not self._is_there():
                    raise FileNotFoundError(f"{self.uri}/{MARKER} is missing")
                if stamp is not None and self._stamps.get(table) == stamp:
                    continue
                self._names[table] = () if stamp is None else self.tables[table].names()
                self._stamps[table] = stamp if sure else None
                sql = self._views(table)
                if self._sql.get(table) != sql:
                    self._connection.execute(sql)
                    self._sql[table] = sql
            for view in joined:
                sql = f'CREATE OR REPLACE VIEW "{view}" AS {DECISION_VIEWS[view]};'
                self._connection.execute(sql)
                self._sql[view] = "\n".join([*(self._sql[table] for table in READS), sql])

    def _views(self, table: str) -> str:
        paths = (f"{table}/{name}" for name in sorted(self._names[table]))
        files = [path for path in paths if path not in self._damaged]
        parts = [self.storage.address(path) for path in files if is_part(path)]
        compacted = [self.storage.address(path) for path in files if not is_part(path)]
        return views(table, compacted, parts, columns_file(table))

    @property
    def is_damaged(self) -> bool:
        """Whether a query has met data files that cannot be read."""
        return bool(self._damaged)

    def _is_there(self) -> bool:
        return LOG in self.storage.names(MARKER)

    def _set_aside(self) -> bool:
        """Leaves data files that cannot be read out of the views; whether there are new ones.

        Raises StoreError where the store does not answer.
        """
        try:
            return self._is_there() and self._set_damaged_aside()
        except OSError as error:
            raise StoreError(f"the store {self.uri} does not answer: {plain(error)}") from error

    def _set_damaged_aside(self) -> bool:
        with self._lock:
            paths = [f"{table}/{name}" for table, names in self._names.items() for name in names]
            paths = [path for path in paths if path not in self._damaged]
            found = [p for p in paths if not is_readable(self.storage, p)]
            found = found or [p for p in paths if not is_readable(self.storage, p, thoroughly=True)]
            if found:
                LOGGER.warning(
                    "%d data files of the store %s cannot be read, and their rows are missing: %s",
                    len(found), self.uri, ", ".join(found[:10]) + (", ..." if len(found) > 10 else ""),
                )  # fmt: skip
            self._damaged.update(found)
            self._stamps.clear()
            return bool(found)

    def append(self, records: Sequence[Record]) -> None:
        """Writes records, all of one type, as one commit, which appears whole or not at all."""
        if not records:
            return
        self.append_arrow(TABLES[type(records[0])], arrow_rows(records))

    def append_arrow(self, table: str, rows: pa.Table) -> None:
        """Writes rows with the columns of a table as one commit."""
        try:
            self.tables[table].append(rows)
        except (OSError, DeltaError) as error:
            raise StoreError(f"the store {self.uri} cannot be written: {plain(error)}.") from error

    def put_image(self, image: bytes) -> str:
        """Keeps an encoded image; returns its SHA256, by which `image` finds it.

        Candidates are PNGs, copies of references PNGs or WebP. The name of every file ends in .png, so that
        the SHA256 alone finds it; a decoder tells the format by the content.
        """
        sha256 = hashlib.sha256(image).hexdigest()
        try:
            if not self.storage.create(_image(sha256), image):
                self.storage.refresh(_image(sha256), image)  # it may be an orphan that is about to be removed
        except OSError as error:
            raise StoreError(f"the store {self.uri} cannot be written: {plain(error)}.") from error
        return sha256

    def image(self, sha256: str) -> bytes:
        """The image with that SHA256, encoded. Raises OSError, FileNotFoundError where it is gone."""
        return self.storage.read(_image(sha256))

    def query(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """Rows of a query over the views, as dictionaries. `"references"` is an SQL word: quote it."""
        return rows_of(self.query_arrow(sql, parameters))

    def query_arrow(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> pa.Table:
        """Rows of a query over the views, as an Arrow table.

        Raises QueryError for a statement that does more than read, or that reads more than the store.
        """
        check_question(sql)
        return self.storage.patience(lambda: self._query_arrow(sql, parameters))

    def _query_arrow(self, sql: str, parameters: Sequence[Any] | dict[str, Any]) -> pa.Table:
        for attempt in range(ATTEMPTS):
            try:
                with interruptible():
                    self._refresh(sql)
                    with self._connection.cursor() as cursor:
                        return cursor.execute(sql, parameters).to_arrow_table()
            except duckdb.PermissionException as error:
                raise QueryError(
                    f"{plain(error)}.\nA query reads the store's own files: no other file, address, "
                    "database or extension."
                ) from error
            except (duckdb.Error, OSError, DeltaError) as error:
                # A damaged page raises the base class itself; a mistake in the SQL one of its subclasses.
                if isinstance(error, duckdb.Error) and not (
                    type(error) is duckdb.Error or isinstance(error, DAMAGE)
                ):
                    raise QueryError(str(error).strip()) from error
                self._stamps.clear()  # files may have been replaced and deleted since the views were made
                if (attempt and not self._set_aside()) or attempt == ATTEMPTS - 1:
                    raise StoreError(f"the store {self.uri} cannot be read: {plain(error)}") from error
        raise AssertionError("the last attempt returns or raises")

    def stream(
        self, sql: str, parameters: Sequence[Any] | dict[str, Any] = (), *, rows: int = STREAMED
    ) -> Iterator[pa.Table]:
        """Rows of a query over the views, as Arrow tables of up to `rows` rows; never all of them at once.

        Raises StoreError where the store cannot be read to the end. What was given by then is right.
        """
        began = False
        for attempt in range(ATTEMPTS):
            try:
                with interruptible():
                    self._refresh(sql)
                    with self._connection.cursor() as cursor:
                        for batch in cursor.execute(sql, parameters).to_arrow_reader(rows):
                            began = True
                            yield pa.Table.from_batches([batch])
                return
            except (duckdb.Error, pa.ArrowException, OSError, DeltaError) as error:
                self._stamps.clear()
                if began or (attempt and not self._set_aside()) or attempt == ATTEMPTS - 1:
                    raise StoreError(f"the store {self.uri} cannot be read: {plain(error)}") from error

    def current_views(self, table: str) -> str:
        """The SQL of the views of a table's current files. Raises StoreError."""
        try:
            self._refresh(table)
            return self._sql[table]
        except (OSError, DeltaError, duckdb.Error) as error:
            raise StoreError(f"the store {self.uri} cannot be read: {plain(error)}.") from error

    def stamp(self) -> tuple[object, ...]:
        """A value that differs after any process has written to the store; cheap to compute."""
        try:
            return tuple(self.storage.stamp(f"{table}/{LOG}")[0] for table in TABLES.values())
        except OSError as error:
            raise StoreError(f"the store {self.uri} cannot be read: {plain(error)}.") from error

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
        """The scans that count of those checkpoints under a configuration; quick, though many are written."""
        found = self.query(
            "SELECT * FROM all_scans WHERE config_id = ? AND checkpoint_id IN "
            "(SELECT unnest(string_split(?, ' '))) "
            f"QUALIFY row_number() OVER (PARTITION BY checkpoint_id ORDER BY {KEPT['scans'][0][1]}) = 1",
            [config_id, " ".join(ids)],
        )
        return [record(Scan, row) for row in found]

    def scans_with_ids(self, scan_ids: Sequence[str]) -> list[Scan]:
        """The scans with those ids; quick, though many may be written."""
        found = self.query(
            "SELECT * FROM all_scans WHERE scan_id IN (SELECT unnest(string_split(?, ' ')))",
            [" ".join(scan_ids)],
        )
        return [record(Scan, row) for row in found]

    def finished(self, config_id: str) -> set[str]:
        """Ids of the checkpoints that a worker came to a verdict on; `failed` is none."""
        return self._ids("config_id = ? AND verdict <> 'failed' AND stage <> 'inspect'", config_id)

    def ruled_out(self, config_id: str) -> set[str]:
        """Ids of the checkpoints that inspection ruled out."""
        return self._ids("config_id = ? AND verdict = 'skipped' AND stage = 'inspect'", config_id)

    def quarantined(self, config_id: str) -> set[str]:
        """Ids of the checkpoints whose worker died, or took too long; they may be the cause."""
        suspect = f"(stage = 'worker' OR reason_code = '{ReasonCode.TIMED_OUT}')"
        return self._ids(f"config_id = ? AND verdict = 'failed' AND {suspect}", config_id)

    def _ids(self, where: str, config_id: str) -> set[str]:
        ids = self.query_arrow(f"SELECT checkpoint_id FROM scans WHERE {where}", [config_id])
        return set(ids.column(0).to_pylist())


def _image(sha256: str) -> str:
    return f"images/{sha256[:2]}/{sha256}.png"
