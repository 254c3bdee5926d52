"""The store: a folder of immutable Parquet parts, asked through in-memory DuckDB views.

The only room that knows the folder. Nothing is updated in place: every write is a new part, written under a
name that the views do not match and then renamed, so a reader never sees half a part and many processes may
write at once. The newest row wins. Images are files named by content, mode 0600.

    STORE/<table>/part-<id>.parquet      STORE/images/<first two hex digits>/<sha256>.png

Views: one a table, and `all_<table>` with every row ever written where the view keeps only the newest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import types
import typing
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import platformdirs
import pyarrow as pa
import pyarrow.parquet as pq

from scanner.errors import QueryError, StoreError
from scanner.records import (
    Candidate,
    Checkpoint,
    ConfigRow,
    Decision,
    Listing,
    Match,
    Record,
    Reference,
    Scan,
    new_id,
)

R = TypeVar("R", Checkpoint, Listing, Scan, Candidate, Match, Decision, Reference, ConfigRow)

TABLES: dict[type[Any], str] = {
    Checkpoint: "checkpoints",
    Listing: "listings",
    Scan: "scans",
    Candidate: "candidates",
    Match: "matches",
    Decision: "decisions",
    Reference: "references",
    ConfigRow: "configs",
}
# Where one row of a key is kept, and in which order: the first. Several keys hold one after another.
KEPT: dict[str, tuple[tuple[str, str], ...]] = {
    # A file has one row, and files with the same content are one checkpoint: as it was published, if it was.
    "checkpoints": (
        ("source, repo, revision, file", "listed_at DESC"),
        ("checkpoint_id", "starts_with(source, 'folder:'), listed_at DESC"),
    ),
    "listings": (("listing_id", "updated_at DESC"),),
    "scans": (("checkpoint_id, config_id", "finished_at DESC"),),
    "decisions": (("subject_id", "decided_at DESC"),),
    "references": (("corpus, reference_id, descriptor", "added_at DESC"),),
    "configs": (("config_id", "created_at DESC"),),
}
EXPORTS = ("parquet", "csv", "json", "duckdb")
_ARROW: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
    tuple[float, ...]: pa.list_(pa.float32()),
    dict[str, float]: pa.map_(pa.string(), pa.float64()),
    dict[str, str]: pa.map_(pa.string(), pa.string()),
}


def default_store() -> str:
    """Where the store is when nobody says: $FINEXTRACT_STORE, or the user's data folder."""
    return os.environ.get("FINEXTRACT_STORE") or platformdirs.user_data_dir("finextract")


def _arrow_type(annotation: Any) -> pa.DataType:
    if isinstance(annotation, types.UnionType):  # X | None
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return pa.string()
    return _ARROW[annotation]


def arrow_schema(record_type: type[Any]) -> pa.Schema:
    """The Parquet schema of a record's table, one column a field."""
    hints = typing.get_type_hints(record_type)
    return pa.schema([(f.name, _arrow_type(hints[f.name])) for f in dataclasses.fields(record_type)])


class Store:
    """An open store. Cheap to open; each thread asks through its own cursor.

    Raises StoreError where the folder is missing (unless `create`), or cannot be written.
    """

    def __init__(self, uri: str | Path, *, create: bool = False) -> None:
        self.root = Path(str(uri).removeprefix("file://")).expanduser().absolute()
        if "://" in str(uri) and not str(uri).startswith("file://"):
            raise StoreError(
                f"the store {uri} is not a folder. Only folders can be stores so far: pass --store DIR."
            )
        if create:
            self._create()
        elif not (self.root / "scans").is_dir():
            raise StoreError(
                f"there is no store at {self.root}.\nPass --store DIR, or make one with `scanner corpus add`."
            )
        elif not all((self.root / table).is_dir() for table in TABLES.values()):
            self._create()  # of an older version
        self._connection = duckdb.connect(":memory:")
        self._connection.execute("SET TimeZone = 'UTC'")
        for table in TABLES.values():
            self._connection.execute(self._view(table))

    def _create(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.root / "images").mkdir(exist_ok=True, mode=0o700)
            for record_type, table in TABLES.items():
                folder = self.root / table
                folder.mkdir(exist_ok=True, mode=0o700)
                # An empty part tells the columns, so a view stands before the first row does and a store
                # written by an older version still has every column.
                schema = arrow_schema(record_type)
                digest = hashlib.sha256(str(schema).encode()).hexdigest()[:12]
                part = folder / f"part-schema-{digest}.parquet"
                if not part.exists():
                    self._write_part(schema.empty_table(), part)
        except OSError as error:
            raise StoreError(
                f"the store {self.root} cannot be written: {error.strerror}. Pass --store DIR."
            ) from error

    def _view(self, table: str) -> str:
        glob = str(self.root / table / "part-*.parquet").replace("'", "''")
        rows = f"SELECT * FROM read_parquet('{glob}', union_by_name = true)"
        if table not in KEPT:
            return f'CREATE VIEW "{table}" AS {rows}'
        kept = f'"all_{table}"'
        for key, order in KEPT[table]:
            kept = (
                f"(SELECT * FROM {kept} QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {order}) = 1)"
            )
        return f'CREATE VIEW "all_{table}" AS {rows};\nCREATE VIEW "{table}" AS SELECT * FROM {kept}'

    @staticmethod
    def _write_part(table: pa.Table, part: Path) -> None:
        hidden = part.with_name(f".{part.name}.{new_id()}")
        pq.write_table(table, hidden, compression="zstd")
        hidden.chmod(0o600)
        os.replace(hidden, part)

    def append(self, records: Sequence[Record]) -> None:
        """Writes records, all of one type, as one part that appears whole or not at all."""
        if not records:
            return
        record_type = type(records[0])
        rows = [{f.name: getattr(r, f.name) for f in dataclasses.fields(record_type)} for r in records]
        table = pa.Table.from_pylist(rows, schema=arrow_schema(record_type))
        try:
            self._write_part(table, self.root / TABLES[record_type] / f"part-{new_id()}.parquet")
        except OSError as error:
            raise StoreError(f"the store {self.root} cannot be written: {error.strerror}.") from error

    def put_image(self, png: bytes) -> str:
        """Keeps an encoded PNG; returns its SHA256, by which `image_path` finds it."""
        sha256 = hashlib.sha256(png).hexdigest()
        path = self.image_path(sha256)
        if not path.exists():
            path.parent.mkdir(exist_ok=True, mode=0o700)
            hidden = path.with_name(f".{path.name}.{new_id()}")
            hidden.touch(mode=0o600)
            hidden.write_bytes(png)
            os.replace(hidden, path)
        return sha256

    def image_path(self, sha256: str) -> Path:
        """Where an image of that SHA256 is, or would be."""
        return self.root / "images" / sha256[:2] / f"{sha256}.png"

    def query(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """Rows of a query over the views, as dictionaries. `"references"` is an SQL word: quote it."""
        rows: list[dict[str, Any]] = self.query_arrow(sql, parameters).to_pylist(maps_as_pydicts="strict")
        return rows

    def query_arrow(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> pa.Table:
        """Rows of a query over the views, as an Arrow table."""
        with self._connection.cursor() as cursor:
            cursor.execute("SET TimeZone = 'UTC'")
            try:
                return cursor.execute(sql, parameters).to_arrow_table()
            except (duckdb.IOException, duckdb.InvalidInputException) as error:
                raise StoreError(f"the store {self.root} cannot be read: {error}") from error
            except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException) as error:
                raise QueryError(str(error).strip()) from error

    def export(self, table: str, path: Path, form: str) -> int:
        """Writes the rows of a view to one file, readable by its owner alone; gives back how many.

        `form` is "parquet", "csv" or "json" (one object a line); "duckdb" makes a table of that name in a
        database file. Raises StoreError where it cannot be written.
        """
        assert form in EXPORTS, form
        name, target = table.replace('"', '""'), str(path).replace("'", "''")
        try:
            with self._connection.cursor() as cursor:
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

    def stamp(self) -> tuple[int, ...]:
        """Differs whenever a part was added, by whatever process; cheap to ask for news."""
        try:
            return tuple((self.root / table).stat().st_mtime_ns for table in TABLES.values())
        except OSError as error:
            raise StoreError(f"the store {self.root} cannot be read: {error.strerror}.") from error

    def select(self, record_type: type[R], clause: str = "", parameters: Sequence[Any] = ()) -> list[R]:
        """The newest records of a type; `clause` is what follows FROM: WHERE, ORDER BY, LIMIT."""
        columns = ", ".join(f'"{f.name}"' for f in dataclasses.fields(record_type))
        rows = self.query(f'SELECT {columns} FROM "{TABLES[record_type]}" {clause}', parameters)
        return [_record(record_type, row) for row in rows]

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
        return [_record(Checkpoint, row) for row in rows]

    def finished(self, config_id: str) -> set[str]:
        """Ids of the checkpoints that need no scan under this configuration; `failed` ones do.

        So do those that inspection once ruled out and now does not: a gate was opened, a token given.
        """
        rows = self.query(
            "SELECT checkpoint_id FROM scans WHERE config_id = ? AND verdict <> 'failed' AND NOT "
            "(verdict = 'skipped' AND stage = 'inspect' AND checkpoint_id IN "
            "(SELECT checkpoint_id FROM checkpoints WHERE prospect = 'ready'))",
            [config_id],
        )
        return {row["checkpoint_id"] for row in rows}


def _record[T](record_type: type[T], row: dict[str, Any]) -> T:
    hints = typing.get_type_hints(record_type)
    return record_type(**{name: _from_arrow(row[name], hint) for name, hint in hints.items()})


def _from_arrow(value: Any, annotation: Any) -> Any:
    if value is None:
        return None
    if isinstance(annotation, types.UnionType):  # X | None
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return annotation(value)
    if annotation == tuple[float, ...]:
        return tuple(value)
    return value
