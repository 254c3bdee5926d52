"""The store's tables: their columns, which of their rows counts, and the SQL of the views over their files.

Knows no disk and no connection. A table is a compacted file, in which each row that counts is marked, and
the parts that were written since. A view finds the rows that count of the few new ones anew, and takes the
marked ones for all others.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa

from scanner.records import (
    Candidate,
    Checkpoint,
    ConfigRow,
    Decision,
    Listing,
    Match,
    Night,
    Reference,
    Scan,
)

TABLES: dict[type[Any], str] = {
    Checkpoint: "checkpoints",
    Listing: "listings",
    Scan: "scans",
    Candidate: "candidates",
    Match: "matches",
    Decision: "decisions",
    Reference: "references",
    ConfigRow: "configs",
    Night: "nights",
}
# Where one row of a key counts, and in which order: the first. Two keys hold one after another.
KEPT: dict[str, tuple[tuple[str, str], ...]] = {
    # A file has one row, and files with the same content are one checkpoint: as it was published, if it was.
    "checkpoints": (
        ("source, repo, revision, file", "listed_at DESC"),
        ("checkpoint_id", "starts_with(source, 'folder:'), listed_at DESC"),
    ),
    "listings": (("listing_id", "updated_at DESC"),),
    "scans": (("checkpoint_id, config_id", "finished_at DESC"),),
    "references": (("corpus, reference_id, descriptor", "added_at DESC"),),
    "configs": (("config_id", "created_at DESC"),),
    "nights": (("date", "coalesce(recorded_at, finished_at, started_at) DESC"),),
}
# Of these a compaction keeps one row of the first key; of the others all: attempts and reviewers' decisions.
REPLACED = ("checkpoints", "listings", "configs", "nights")
SORTED = {  # a compacted file's order: what is asked for together lies together
    "checkpoints": "checkpoint_id",
    "scans": "verdict, checkpoint_id",
    "candidates": "scan_id",
    "matches": "flagged DESC, scan_id",
    "references": "corpus, reference_id",
}
MARK = "counts"  # the column of a compacted file that marks the rows that count
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


def _arrow_type(annotation: Any) -> pa.DataType:
    if isinstance(annotation, types.UnionType):  # X | None
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return pa.string()
    return _ARROW[annotation]


# Asked for at each write and each row that is read.
_HINTS = {record_type: typing.get_type_hints(record_type) for record_type in TABLES}
_SCHEMAS = {
    record_type: pa.schema([(f.name, _arrow_type(hints[f.name])) for f in dataclasses.fields(record_type)])
    for record_type, hints in _HINTS.items()
}


def arrow_schema(record_type: type[Any]) -> pa.Schema:
    """The Parquet schema of a record's table, one column a field."""
    return _SCHEMAS[record_type]


def record[T](record_type: type[T], row: dict[str, Any]) -> T:
    """A row as its record."""
    return record_type(**{name: _from_arrow(row[name], hint) for name, hint in _HINTS[record_type].items()})


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


def views(table: str, compacted: str | None, parts: Sequence[str], fresh: bool) -> str:
    """The SQL of `table` (the rows that count) and of `all_<table>` (all that are stored).

    `compacted` and `parts` are addresses of files; with `fresh` false the parts hold columns and no row.
    """
    new = f"SELECT * FROM read_parquet([{', '.join(map(_quoted, parts))}], union_by_name = true)"
    stored, counting = new, _counting(table, f"({new})")
    if compacted is not None:
        old = f"read_parquet({_quoted(compacted)})"
        stored = f"SELECT * EXCLUDE ({MARK}) FROM {old} UNION ALL BY NAME {new}"
        if not fresh:
            counting = f"SELECT * EXCLUDE ({MARK}) FROM {old}{f' WHERE {MARK}' if table in KEPT else ''}"
        else:
            counting = _merged(table, old, new)
    return (
        f'CREATE OR REPLACE VIEW "all_{table}" AS {stored};\nCREATE OR REPLACE VIEW "{table}" AS {counting};'
    )


def compacted(table: str) -> str:
    """The SQL of a compacted file's rows, from all that are stored."""
    rows = f'"all_{table}"'
    keys = KEPT.get(table, ())
    if table in REPLACED:
        rows, keys = f"({_first(rows, *keys[0])})", keys[1:]
    mark = " AND ".join(f"row_number() OVER (PARTITION BY {key} ORDER BY {order}) = 1" for key, order in keys)
    order = f" ORDER BY {SORTED[table]}" if table in SORTED else ""
    return f"SELECT *, {mark or 'true'} AS {MARK} FROM {rows}{order}"


def _counting(table: str, rows: str) -> str:
    for key, order in KEPT.get(table, ()):
        rows = f"({_first(rows, key, order)})"
    return f"SELECT * FROM {rows}"


def _first(rows: str, key: str, order: str) -> str:
    return f"SELECT * FROM {rows} QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {order}) = 1"


def _merged(table: str, old: str, new: str) -> str:
    """The marked rows that no new one bears on, and what counts of the others and the new ones."""
    keys = KEPT.get(table, ())
    if not keys:
        return f"SELECT * EXCLUDE ({MARK}) FROM {old} UNION ALL BY NAME {new}"
    key = keys[-1][0]
    touched = f"SELECT {key} FROM fresh"
    if len(keys) == 2:  # a file that has another content now leaves a place in the checkpoint it was of
        touched += f" UNION SELECT {key} FROM {old} SEMI JOIN fresh USING ({keys[0][0]})"
    among = f"SELECT * EXCLUDE ({MARK}) FROM {old} SEMI JOIN touched USING ({key})"
    return (
        f"WITH fresh AS MATERIALIZED ({new}), touched AS MATERIALIZED ({touched}) "
        f"SELECT * EXCLUDE ({MARK}) FROM {old} ANTI JOIN touched USING ({key}) WHERE {MARK} "
        f"UNION ALL BY NAME {_counting(table, f'({among} UNION ALL BY NAME SELECT * FROM fresh)')}"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
