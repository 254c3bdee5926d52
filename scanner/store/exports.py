"""The store's tables as files for other programs. No other user of the machine can read them at any time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from scanner.errors import StoreError
from scanner.store.connection import connect, interruptible
from scanner.store.store import Store

EXPORTS = ("parquet", "csv", "json", "duckdb")


def export(store: Store, table: str, path: Path, form: str) -> int:
    """Writes the newest rows of a table to one file, and over an existing one; returns how many.

    `form` is "parquet", "csv" or "json" (one object a line); "duckdb" makes a table of that name in a
    database file, beside those that it has. Raises StoreError where the file cannot be written.
    """
    assert form in EXPORTS, form
    views, target = store.current_views(table), str(path).replace("'", "''")
    try:
        with _owner_only(path), interruptible(), connect(store.storage) as connection:
            connection.execute(views)
            if form == "duckdb":
                connection.execute(f"ATTACH '{target}' AS exported")
                made = f'CREATE OR REPLACE TABLE exported."{table}" AS SELECT * FROM "{table}"'
            else:
                header = ", HEADER" if form == "csv" else ""
                made = f"COPY (SELECT * FROM \"{table}\") TO '{target}' (FORMAT {form}{header})"
            rows = connection.execute(made).to_arrow_table().to_pylist()
    except (duckdb.Error, OSError) as error:
        raise StoreError(f"{path} cannot be written: {error}.") from error
    return int(rows[0]["Count"])


@contextmanager
def _owner_only(path: Path) -> Iterator[None]:
    """New files of this process are private meanwhile, and so is the file that is there already."""
    if path.exists():
        path.chmod(0o600)
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
