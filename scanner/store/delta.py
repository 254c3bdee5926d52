"""One Delta Lake table of a store: its current files, appends, and the replacement of files.

Data files are written through `Storage` first and committed by `deltalake` afterwards, so a writer that is
killed leaves a file that no reader sees. Knows no DuckDB and no record. Format: the Delta transaction
protocol, https://github.com/delta-io/delta/blob/master/PROTOCOL.md.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from scanner.records import new_id
from scanner.store.storage import Storage

LOG = "_delta_log"
# Every 100 commits the log is summed up in a checkpoint, and entries older than the retention are removed:
# each commit lists the log. A writer commits within seconds after it has read the log; see `Table._check`.
CONFIGURATION: dict[str, str | None] = {
    "delta.checkpointInterval": "100",
    "delta.logRetentionDuration": "interval 5 minutes",
    "delta.deletedFileRetentionDuration": "interval 1 hours",
}
LONGEST_S = 120.0  # of a commit, well below the retention of the log; beyond it the result is checked
ATTEMPTS = 3  # of a commit for which the table cannot be read
COMMIT_S = 600.0  # after which a commit that keeps conflicting fails
RETRIES = 4  # of one commit inside deltalake, before the table is read again after a pause
PAUSE_S = 0.05, 2.0  # the mean of the first pause, and of the longest


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file of a table."""

    name: str
    size_bytes: int
    rows: int


class Table:
    """One table. Safe to use from several threads; the object is cheap until it is used."""

    def __init__(self, storage: Storage, name: str, schema: pa.Schema) -> None:
        self.name = name
        self._storage, self._schema = storage, schema
        self._reader: DeltaTable | None = None
        self._writer: DeltaTable | None = None
        self._reading, self._writing = threading.Lock(), threading.Lock()

    def names(self) -> tuple[str, ...]:
        """The names of the current data files; none where the table was never written to.

        Raises OSError, DeltaError.
        """
        return self._storage.patience(self._read_names)

    def _read_names(self) -> tuple[str, ...]:
        with self._reading:
            self._reader = self._updated(self._reader)
            if self._reader is None:
                return ()
            return tuple(uri.rpartition("/")[2] for uri in self._reader.file_uris())

    def files(self) -> list[DataFile]:
        """The current data files with their sizes. Raises OSError, DeltaError."""
        with self._writing:
            self._writer = self._updated(self._writer)
            return [] if self._writer is None else _files(self._writer)

    def create(self, added: Sequence[DataFile] = ()) -> None:
        """Makes the table unless there is one, with those files. Raises OSError, DeltaError."""
        self._storage.make(f"{self.name}/{LOG}")
        address, schema = self._storage.address(self.name), Schema.from_arrow(self._schema)
        with suppress(CommitFailedError):  # another process was faster
            try:
                create_table_with_add_actions(
                    address, schema, [_add(file) for file in added], mode="error",
                    configuration=CONFIGURATION, storage_options=self._storage.options,
                )  # fmt: skip
            except DeltaError as error:
                if "already exists" not in str(error):
                    raise

    def append(self, rows: pa.Table) -> None:
        """Adds rows as one file and one commit; exactly once, though the answer to a commit be lost.

        Raises OSError, DeltaError.
        """
        added = write(self._storage, self.name, f"part-{new_id()}.parquet", rows)
        unsure = False  # whether an attempt failed that may have committed the file

        def actions(table: DeltaTable) -> list[AddAction | RemoveAction] | None:
            return None if unsure and _has_committed(table, added.name) else [_add(added)]

        def attempt() -> None:
            nonlocal unsure
            try:
                self._commit(actions, RETRIES)
            except (OSError, DeltaError):
                unsure = True
                raise

        self._storage.patience(attempt)

    def replace(self, removed: Sequence[str], added: DataFile) -> bool:
        """Replaces files by one with the same rows, in one commit.

        False, and nothing changed, where another process has replaced one of them. Raises OSError,
        DeltaError.
        """

        def actions(table: DeltaTable) -> list[AddAction | RemoveAction] | None:
            current = {file.name: file for file in _files(table)}
            if not current.keys() >= set(removed):
                return None
            at = int(time.time() * 1000)
            gone = [RemoveAction(name, False, at, current[name].size_bytes) for name in removed]
            return [_add(added, data_change=False), *gone]

        # Without retries inside deltalake: it compares removed files with those of the other commits loosely,
        # and would let two compactions remove the same file.
        return self._commit(actions, 0)

    def vacuum(self, retention_hours: int) -> int:
        """Deletes data files that no version of the last hours has, those of killed writers included.

        Returns how many. Raises OSError, DeltaError.
        """
        with self._writing:
            self._writer = self._updated(self._writer)
            if self._writer is None:
                return 0
            return len(
                self._writer.vacuum(
                    retention_hours, dry_run=False, enforce_retention_duration=False, full=True
                )
            )

    def erase_replaced(self) -> int:
        """Deletes every file that a commit has replaced, however recently; a reader of one asks again.

        Files that no commit names yet, such as a writer's, stay. Returns how many. Raises OSError,
        DeltaError.
        """
        with self._writing:
            self._writer = self._updated(self._writer)
            if self._writer is None:
                return 0
            return len(self._writer.vacuum(0, dry_run=False, enforce_retention_duration=False))

    def _commit(
        self, actions: Callable[[DeltaTable], list[AddAction | RemoveAction] | None], retries: int
    ) -> bool:
        deadline = time.monotonic() + COMMIT_S
        for attempt in count():
            with self._writing, self._storage.lock(self.name):
                try:
                    began = time.time()
                    table = self._writable()
                    if (made := actions(table)) is None:
                        return False
                    how = CommitProperties(max_commit_retries=retries)
                    table.create_write_transaction(made, "append", table.schema(), commit_properties=how)
                    if time.time() - began > LONGEST_S:
                        self._check(made)
                    return True
                except DeltaError as error:  # another commit was faster, or removed old entries of the log
                    self._writer = None
                    again = isinstance(error, CommitFailedError) or attempt < ATTEMPTS
                    if not again or time.monotonic() > deadline:
                        raise
            time.sleep(random.uniform(0, 2) * min(PAUSE_S[0] * 2**attempt, PAUSE_S[1]))
        raise AssertionError("unreachable")

    def _check(self, made: Sequence[AddAction | RemoveAction]) -> None:
        """After a commit during which the process was stopped: whether it is a version that readers find.

        Its number may have been free because the log's entry of that number was removed.
        """
        self._writer = self._updated(None)
        current = {file.name for file in _files(self._writer)} if self._writer else set()
        if any(isinstance(action, AddAction) and action.path not in current for action in made):
            raise OSError(f"a commit to {self.name} took longer than {LONGEST_S:.0f} s and may be lost")

    def _writable(self) -> DeltaTable:
        """The table as it is now, with every column of the schema."""
        table = self._writer = self._updated(self._writer)
        if table is None:
            self.create()
            table = self._writer = self._updated(None)
            assert table is not None, f"{self.name} was just made"
        there = {field.name for field in table.schema().fields}
        if missing := [field for field in self._schema if field.name not in there]:
            table.alter.add_columns(Schema.from_arrow(pa.schema(missing)).fields)
            table = self._writer = self._updated(None)
            assert table is not None, f"{self.name} was just altered"
        return table

    def _updated(self, table: DeltaTable | None) -> DeltaTable | None:
        if table is not None:
            try:
                table.update_incremental()
                return table
            except DeltaError:  # the log entries that come next were removed: it is read from its checkpoint
                pass
        with suppress(TableNotFoundError):
            return DeltaTable(self._storage.address(self.name), storage_options=self._storage.options)
        return None


def write(storage: Storage, table: str, name: str, rows: pa.Table) -> DataFile:
    """Writes a data file that no commit names yet. Raises OSError."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    content = bytes(sink.getvalue())
    storage.put(f"{table}/{name}", content)
    return DataFile(name, len(content), rows.num_rows)


def _has_committed(table: DeltaTable, name: str) -> bool:
    """Whether a file was committed, though a compaction may have replaced it within the last hour."""
    replaced = table.vacuum(0, dry_run=True, enforce_retention_duration=False)
    return name in (file.name for file in _files(table)) or name in replaced


def _files(table: DeltaTable) -> list[DataFile]:
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = (actions[name].to_pylist() for name in ("path", "size_bytes", "num_records"))
    return [DataFile(*row) for row in zip(*columns, strict=True)]


def _add(file: DataFile, *, data_change: bool = True) -> AddAction:
    stats = json.dumps({"numRecords": file.rows})
    return AddAction(file.name, file.size_bytes, {}, int(time.time() * 1000), data_change, stats)
