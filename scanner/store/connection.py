"""DuckDB connections of a store, and which statements may be asked of it.

The connection that answers queries opens the store's own files and nothing else: no other file, no address,
no other database and no extension. Its configuration is locked, so no query can change this. See "Securing
DuckDB" in DuckDB's documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from scanner.errors import QueryError
from scanner.store.datafiles import columns_file, scratch
from scanner.store.storage import Storage
from scanner.store.tables import TABLES, quoted

_EXPLAIN = re.compile(r"\A\s*explain\s+(analyze\s+|\([^)]*\)\s*)?", re.IGNORECASE)


def connect(storage: Storage) -> duckdb.DuckDBPyConnection:
    """A database in memory that reads the store, and may open any file: for our own statements alone."""
    connection = duckdb.connect(":memory:")
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")  # it would write to stdout
    storage.attach(connection)
    return connection


def connect_locked(storage: Storage) -> duckdb.DuckDBPyConnection:
    """A database in memory that opens the store's files and nothing else, whatever it is asked."""
    connection = connect(storage)
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute(f"SET temp_directory = {quoted(scratch())}")  # larger results than memory spill there
    connection.execute(f"SET allowed_directories = [{quoted(storage.address(''))}]")
    columns = ", ".join(quoted(columns_file(table)) for table in TABLES.values())
    connection.execute(f"SET allowed_paths = [{columns}]")
    connection.execute("SET python_enable_replacements = false")  # no variables of this program as tables
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def check_question(sql: str) -> None:
    """Raises QueryError unless the text is one statement that only reads (SELECT, DESCRIBE, EXPLAIN, ...)."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise QueryError(str(error).strip()) from error
    if not statements:
        raise QueryError("the query is empty. Example: scanner sql 'SELECT repo FROM checkpoints LIMIT 5'")
    # DuckDB turns PIVOT into a CREATE TYPE without text and a SELECT.
    written = [s for s in statements if s.query or s.type != duckdb.StatementType.CREATE]
    for statement in written:
        if statement.type == duckdb.StatementType.EXPLAIN:
            inner = _EXPLAIN.sub("", statement.query, count=1)
            if inner == statement.query:
                raise QueryError("EXPLAIN must be the first word of the query.")
            check_question(inner)
        elif statement.type != duckdb.StatementType.SELECT:
            raise QueryError(
                f"{statement.type.name.replace('_', ' ')} cannot be run: the store is read only. "
                "A query begins with SELECT, FROM, WITH, DESCRIBE, SUMMARIZE, SHOW or EXPLAIN."
            )
    if len(written) > 1:
        raise QueryError("there is more than one statement. Run one query at a time.")


@contextmanager
def interruptible() -> Iterator[None]:
    """DuckDB raises RuntimeError for Ctrl-C during a query; this raises KeyboardInterrupt instead."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
