"""A column of a Parquet file: paths, addresses, or the pictures themselves, as data sets are often shared."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scanner.errors import CorpusError
from scanner.match.sources.base import MAX_BYTES, Download, Item, Pictures, item_of, place_of, readable
from scanner.match.sources.lists import chosen_column

ROWS = 32  # of pictures that are in memory at once


def parquet_pictures(file: Path, column: str | None, download: Download | None) -> Pictures:
    """The pictures that a column of a Parquet file names or holds. Raises CorpusError.

    The column holds text, or binary content, or records with the fields `bytes` and `path`.
    """
    try:
        with pq.ParquetFile(file) as opened:
            schema, rows = opened.schema_arrow, opened.metadata.num_rows
            name = chosen_column(file, schema.names, column)
            kind = schema.field(name).type
            if not _is_text(kind):
                content = _content_path(file, name, kind)
                reader = _Reader(file, content)
                place = place_of(file)
                items = tuple(
                    Item(f"{place}#{row}", f"row {row + 1} of {file.name}", partial(reader.read, row))
                    for row in range(rows)
                )
                scopes: tuple[str, ...] = (f"{place}#",)
            else:
                folder = file.absolute().parent
                entries = opened.read(columns=[name]).column(name).to_pylist()
                items = tuple(
                    item_of(
                        entry or "", folder, download, "" if entry else f"row {number} of {file.name}"
                    )
                    for number, entry in enumerate(entries, 1)
                )  # fmt: skip
                scopes = ()
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{file} cannot be read as Parquet: {readable(str(error))}.") from error
    if not items:
        raise CorpusError(f"{file} names no pictures.")
    return Pictures(str(file), items, scopes)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _content_path(file: Path, name: str, kind: pa.DataType) -> str:
    """The column of Parquet that holds the content of the pictures. Raises CorpusError."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return name
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{name}.bytes"
    raise CorpusError(
        f"the column {name} of {file} holds {kind}, which is neither a path, an address nor a picture.\n"
        "Name another one with --column."
    )


class _Reader:
    """Reads the pictures of a column, one after another, with a few rows in memory."""

    def __init__(self, file: Path, column: str) -> None:
        self._file, self._column = file, column
        self._begin = 0  # the row of the first of the values
        self._values: Any = None  # an Arrow array
        self._batches: Iterator[Any] = iter(())

    def read(self, row: int) -> bytes:
        """The content of a row. Raises CorpusError, OSError."""
        try:
            if row < self._begin or self._values is None:
                opened = pq.ParquetFile(self._file)
                self._batches = opened.iter_batches(ROWS, columns=[self._column])
                self._begin, self._values = 0, None
            while self._values is None or row >= self._begin + len(self._values):
                self._begin += 0 if self._values is None else len(self._values)
                values = next(self._batches).column(0)
                self._values = values.field("bytes") if pa.types.is_struct(values.type) else values
            value = self._values[row - self._begin]
        except StopIteration:
            raise CorpusError("is missing: the file has changed") from None
        except pa.ArrowException as error:
            raise CorpusError(f"cannot be read: {readable(str(error))}") from error
        if not value.is_valid:
            raise CorpusError("has no picture")
        content: bytes = value.as_py()
        if len(content) > MAX_BYTES:
            raise CorpusError(f"is too large: {len(content):,} bytes")
        return content
