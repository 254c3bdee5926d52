"""The Parquet files of a table: their kinds, whether one can be read, and one without rows."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scanner.store.patience import is_outage
from scanner.store.storage import FolderStorage, Storage
from scanner.store.tables import COMPACTED, CONTESTED, table_schema


def is_part(path: str) -> bool:
    """Whether a data file holds rows as they were appended, by our own writer or by another program."""
    return not path.rpartition("/")[2].startswith((COMPACTED, CONTESTED))


def is_readable(storage: Storage, path: str, *, thoroughly: bool = False) -> bool:
    """Whether a data file exists and has a whole footer; `thoroughly`, whether every value can be read.

    Raises OSError where a bucket does not answer, which says nothing about the file.
    """
    folder = isinstance(storage, FolderStorage)
    try:
        source = storage.address(path) if folder else pa.BufferReader(storage.read(path))
        with pq.ParquetFile(source) as file:
            for group in range(file.num_row_groups) if thoroughly else ():
                file.read_row_group(group)
    except (OSError, pa.ArrowException) as error:
        if not folder and is_outage(error):
            raise
        return False
    return True


@cache
def columns_file(table: str) -> str:
    """The path of a Parquet file without rows that has the columns of a table; for this process alone.

    On Linux the file is in memory, so a process that is killed leaves nothing behind.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table_schema(table).empty_table(), sink)
    content = bytes(sink.getvalue())
    if hasattr(os, "memfd_create"):
        file = os.memfd_create(f"{table}.parquet")
        os.write(file, content)
        return f"/proc/self/fd/{file}"
    path = Path(scratch()) / f"{table}.parquet"
    path.write_bytes(content)
    return str(path)


def scratch() -> str:
    """A folder for temporary files, readable by its owner alone and removed when this process ends."""
    return _scratch().name


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="finextract-", ignore_cleanup_errors=True)
