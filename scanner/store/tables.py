"""The store's tables: their columns, which of their rows counts, and the SQL of the views over their files.

Knows no disk and no connection. Two kinds of data files make up a table: parts, as they were appended, and
compacted files. A compaction marks each row that is the newest of its key (`_newest`), and each row whose key
also occurs in a file that was not compacted with it (`_contested`). A view selects the newest rows among the
keys of the parts and of contested rows, and takes the marked rows of all other keys as they are.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Sequence
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
    Membership,
    Night,
    Reference,
    Removal,
    Scan,
)

TABLES: dict[type[Any], str] = {
    Checkpoint: "checkpoints",
    Listing: "listings",
    Scan: "scans",
    Candidate: "candidates",
    Membership: "memberships",
    Match: "matches",
    Decision: "decisions",
    Reference: "references",
    ConfigRow: "configs",
    Night: "nights",
    Removal: "removals",
}
# A verdict counts before a failed attempt, whichever clock was ahead. A failed scan counts before an older
# skip by inspection, because inspection does not skip that checkpoint any more.
VERDICTS_FIRST = """CASE WHEN verdict = 'failed' AND stage = 'inspect' THEN 2
    WHEN verdict = 'failed' OR stage = 'inspect' THEN 1 ELSE 0 END"""
# Tables of which one row of each key counts: the key, and the order in which the first row counts. Two keys
# apply one after the other.
KEPT: dict[str, tuple[tuple[str, str], ...]] = {
    # One row for each file; then one for each content, a published file before one of a local folder.
    "checkpoints": (
        ("source, repo, revision, file", "listed_at DESC"),
        ("checkpoint_id", "starts_with(source, 'folder:'), listed_at DESC"),
    ),
    "listings": (("listing_id", "updated_at DESC"),),
    "scans": (("checkpoint_id, config_id", f"{VERDICTS_FIRST}, finished_at DESC"),),
    "references": (("corpus, reference_id, descriptor", "added_at DESC"),),
    "configs": (("config_id", "created_at DESC"),),
    "nights": (("date", "coalesce(recorded_at, finished_at, started_at) DESC"),),
}
# Tables of which a compaction keeps the newest row of the first key alone. Of the others it keeps every row.
REPLACED = ("checkpoints", "listings", "configs", "nights")
SORTED = {  # the order of rows in a compacted file: a query then reads few row groups of it
    "checkpoints": "checkpoint_id",
    "scans": "verdict, checkpoint_id",
    "candidates": "scan_id",
    "memberships": "trained_on DESC, scan_id",
    "matches": "flagged DESC, scan_id",
    "references": "corpus, reference_id",
}
PART, COMPACTED, CONTESTED = "part-", "compacted-", "contested-"  # how names of data files begin
NEWEST, SHARED = "_newest", "_contested"  # the columns that a compaction adds to a table with keys
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


# Computed once: they are used for each row that is read.
_HINTS = {record_type: typing.get_type_hints(record_type) for record_type in TABLES}
_SCHEMAS = {
    record_type: pa.schema([(f.name, _arrow_type(hints[f.name])) for f in dataclasses.fields(record_type)])
    for record_type, hints in _HINTS.items()
}
# Fields with a default that may not be None.
_NOT_NULL = {
    record_type: [
        f.name
        for f in dataclasses.fields(record_type)
        if not (f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
        and type(None) not in typing.get_args(_HINTS[record_type][f.name])
    ]
    for record_type in TABLES
}


def _kind(annotation: Any) -> Callable[[Any], Any] | None:
    """What makes a field's value of a column's; None where they are the same."""
    if isinstance(annotation, types.UnionType):  # X | None
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return annotation
    return tuple if annotation == tuple[float, ...] else None


# The fields whose values are not those of their column.
_KINDS = {
    record_type: {name: kind for name, hint in hints.items() if (kind := _kind(hint)) is not None}
    for record_type, hints in _HINTS.items()
}


def arrow_schema(record_type: type[Any]) -> pa.Schema:
    """The Parquet schema of a record's table, one column per field."""
    return _SCHEMAS[record_type]


def table_schema(table: str, *, marks: bool = True) -> pa.Schema:
    """The columns of a table, with those that a compaction adds."""
    schema = _SCHEMAS[next(record_type for record_type, name in TABLES.items() if name == table)]
    if marks and table in KEPT:
        schema = schema.append(pa.field(NEWEST, pa.bool_())).append(pa.field(SHARED, pa.bool_()))
    return schema


def record[T](record_type: type[T], row: dict[str, Any]) -> T:
    """A row of a query as a record.

    A column that is null because the row is older than the column gets the default of its field.
    """
    values = {name: row[name] for name in _HINTS[record_type]}
    for name, kind in _KINDS[record_type].items():
        if values[name] is not None:
            values[name] = kind(values[name])
    for missing in [name for name in _NOT_NULL[record_type] if values[name] is None]:
        del values[missing]
    return record_type(**values)


def views(table: str, compacted: Sequence[str], parts: Sequence[str], columns: str) -> str:
    """The SQL of the views `table` (the rows that count) and `all_<table>` (every stored row).

    `compacted` and `parts` are addresses of files. `columns` is a file without rows that has the columns of
    `table_schema`, so that a column exists although no file has it yet.
    """
    keys = KEPT.get(table, ())
    hidden = f"* EXCLUDE ({NEWEST}, {SHARED})" if keys else "*"
    old, new = _files([columns, *compacted]), f"SELECT {hidden} FROM {_files([columns, *parts])}"
    shared = [path for path in compacted if path.rpartition("/")[2].startswith(CONTESTED)]
    if not compacted:
        stored, counting = new, _counting(table, f"({new})")
    elif not keys:
        stored = counting = f"SELECT * FROM {_files([columns, *compacted, *parts])}"
    else:
        stored = f"SELECT {hidden} FROM {_files([columns, *compacted, *parts])}"
        counting = f"SELECT {hidden} FROM {old} WHERE {NEWEST}"
        if parts or shared:
            counting = _merged(table, old, new, shared)
    return (
        f'CREATE OR REPLACE VIEW "all_{table}" AS {stored};\nCREATE OR REPLACE VIEW "{table}" AS {counting};'
    )


def compaction(table: str, files: Sequence[str], others: Sequence[str], columns: str) -> str:
    """The SQL of a compacted file's rows: those of `files`, while `others` stay as they are."""
    order = f" ORDER BY {SORTED[table]}" if table in SORTED else ""
    keys = KEPT.get(table, ())
    if not keys:
        return f"SELECT * FROM {_files([columns, *files])}{order}"
    rows = f"(SELECT * EXCLUDE ({NEWEST}, {SHARED}) FROM {_files([columns, *files])})"
    if table in REPLACED:
        rows = f"({_first(rows, *keys[0])})"
    marked = keys[1:] if table in REPLACED else keys
    newest = " AND ".join(f"row_number() OVER (PARTITION BY {key} ORDER BY {by}) = 1" for key, by in marked)
    shared = " OR ".join(
        f"coalesce(({key}) IN (SELECT ({key}) FROM {_files([columns, *others])}), true)" for key, _ in keys
    )
    return (
        f"SELECT *, {newest or 'true'} AS {NEWEST}, {f'({shared})' if others else 'false'} AS {SHARED} "
        f"FROM {rows}{order}"
    )


def _counting(table: str, rows: str) -> str:
    for key, order in KEPT.get(table, ()):
        rows = f"({_first(rows, key, order)})"
    return f"SELECT * FROM {rows}"


def _first(rows: str, key: str, order: str) -> str:
    return f"SELECT * FROM {rows} QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {order}) = 1"


def _merged(table: str, old: str, new: str, shared: Sequence[str]) -> str:
    """The marked rows of uncontested keys, and the newest rows of all other keys."""
    keys = KEPT[table]
    key, every = keys[-1][0], ", ".join(dict.fromkeys(", ".join(k for k, _ in keys).split(", ")))
    changed = f"SELECT {every} FROM fresh"
    if shared:
        changed += f" UNION ALL SELECT {every} FROM {_files(shared)} WHERE {SHARED}"
    touched = f"SELECT {key} FROM changed"
    if len(keys) == 2:  # a file whose content has changed no longer counts for the checkpoint that it was
        touched += f" UNION SELECT {key} FROM {old} SEMI JOIN changed USING ({keys[0][0]})"
    hidden = f"* EXCLUDE ({NEWEST}, {SHARED})"
    among = f"SELECT {hidden} FROM {old} SEMI JOIN touched USING ({key})"
    return (
        f"WITH fresh AS MATERIALIZED ({new}), changed AS MATERIALIZED ({changed}), "
        f"touched AS MATERIALIZED ({touched}) "
        f"SELECT {hidden} FROM {old} ANTI JOIN touched USING ({key}) WHERE {NEWEST} "
        f"UNION ALL BY NAME {_counting(table, f'({among} UNION ALL BY NAME SELECT * FROM fresh)')}"
    )


def _files(paths: Sequence[str]) -> str:
    return f"read_parquet([{', '.join(map(quoted, paths))}], union_by_name = true)"


def quoted(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def among(column: str, values: Iterable[str]) -> str:
    """The SQL condition that a column is one of some ids, of which none has a space."""
    if not (listed := " ".join(values)):
        return "false"
    return f"{column} IN (SELECT unnest(string_split({quoted(listed)}, ' ')))"
