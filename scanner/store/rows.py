"""Records as Arrow rows, and Arrow rows as Python values."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Any

import pyarrow as pa

from scanner.records import Record
from scanner.store.tables import arrow_schema


def arrow_rows(records: Sequence[Record]) -> pa.Table:
    """Records, all of one type, as a table with that type's schema."""
    record_type = type(records[0])
    schema = arrow_schema(record_type)
    columns = [pa.array([getattr(r, f.name) for r in records], f.type) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries."""
    columns = [_values(column) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A column as Python values. Arrow's own way looks for a package of time zones at each time of day."""
    if pa.types.is_timestamp(column.type) and column.type.tz == "UTC":
        naive = column.cast(pa.timestamp(column.type.unit)).to_pylist()
        return [at if at is None else at.replace(tzinfo=UTC) for at in naive]
    values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    return values
