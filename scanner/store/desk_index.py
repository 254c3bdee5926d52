"""The rows of the desk's list in memory, so that a million of them are filtered and sorted at once.

The store answers one list at once, the flagged checkpoints with the strongest evidence first
(scanner.store.desk_queries.list_flagged). For every other list this module copies what a list shows into an
in-memory DuckDB of its own: `listed` has a row for each checkpoint, whose `place` is its place in the default
order and `base_place` that of its base model among the bases; `flags` a row for each flagged match or
membership; `decided` what stands for a checkpoint and for its flags.

A copy of a large store takes seconds. So it is made in the background, and a list may be older than the store
(`CheckpointPage.as_of`); decisions are always those of the store.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from finextract.reasons import ReasonCode
from scanner.records import now
from scanner.store.decisions import STANDING_DECISIONS
from scanner.store.desk_filter import UNDECIDED, View, view_sql
from scanner.store.desk_queries import (
    FLAGS,
    LATEST,
    ORDER,
    CheckpointPage,
    StandingReason,
    checkpoint_row,
)
from scanner.store.queries import VerdictCounts, count_verdicts
from scanner.store.rows import rows_of
from scanner.store.store import Store
from scanner.store.tables import TABLES

QUICK_S = 0.25  # a copy that takes less is made whenever a list is asked for
REST = 10  # a copy is not made again before that many times the time that the last one took
READS = ("checkpoints", "scans", "matches", "memberships", "references")  # what a copy is made from
AT_ONCE = 100_000  # rows that are copied at once
GROUP_SIZE = """
    CASE WHEN verdict IN ('skipped', 'failed')
        THEN count(*) OVER (PARTITION BY verdict, latest.reason_code) ELSE 0 END AS group_size"""
LISTED = f"""
WITH latest AS ({LATEST.format(which="true")}
),
bases AS (
    SELECT base, (dense_rank() OVER (ORDER BY lower(base)))::INTEGER AS base_place
    FROM (SELECT DISTINCT base FROM checkpoints)
),
found AS (
    SELECT c.checkpoint_id, c.repo, c.source, c.revision, c.file, c.kind, c.family, c.base, base_place,
        latest.* EXCLUDE (checkpoint_id), {GROUP_SIZE}
    FROM checkpoints c LEFT JOIN latest USING (checkpoint_id) LEFT JOIN bases USING (base)
)
SELECT
    (row_number() OVER (
        ORDER BY {ORDER}, CASE WHEN verdict = 'flagged' THEN '' ELSE repo END, checkpoint_id
    ))::INTEGER AS place,
    * EXCLUDE (group_size)
FROM found"""
# With the picture that the flag is about. A reference has one row for each descriptor, all of the same file.
FLAGGED = f"""
WITH {FLAGS.format(which="true")},
owned AS (
    SELECT corpus, reference_id, path, lower(sha256) AS sha256 FROM "references"
    SEMI JOIN flags USING (corpus, reference_id)
    QUALIFY row_number() OVER (PARTITION BY corpus, reference_id ORDER BY added_at DESC) = 1
)
SELECT subject_id, scan_id, corpus, lower(parse_filename(path)) AS file_name, sha256
FROM flags LEFT JOIN owned USING (corpus, reference_id)"""
DECIDED = """
CREATE OR REPLACE TABLE decided AS
WITH counts AS (
    SELECT
        scan_id, count(*) AS flags,
        count(*) FILTER (s.decision = 'confirm') AS confirmed,
        count(*) FILTER (s.decision = 'dismiss') AS dismissed,
        count(*) FILTER (s.decision = 'unsure') AS unsure,
        bool_or(s.note <> '') AS noted
    FROM flags LEFT JOIN standing s USING (subject_id) GROUP BY scan_id
)
SELECT
    place, coalesce(flags, 0) AS flags, coalesce(confirmed, 0) AS confirmed,
    coalesce(dismissed, 0) AS dismissed, coalesce(unsure, 0) AS unsure,
    s.decision, coalesce(s.note, '') AS note, coalesce(noted, false) OR coalesce(s.note <> '', false) AS noted
FROM listed LEFT JOIN counts USING (scan_id) LEFT JOIN standing s ON s.subject_id = scan_id
WHERE counts.scan_id IS NOT NULL OR s.subject_id IS NOT NULL"""
PAGE = """
WITH picked AS (
    SELECT place, {key} AS key {source} ORDER BY key {direction} NULLS LAST, place LIMIT $limit OFFSET $offset
)
SELECT listed.* EXCLUDE (place, base_place), coalesce(flags, 0) AS flags, coalesce(confirmed, 0) AS confirmed,
    coalesce(dismissed, 0) AS dismissed, coalesce(unsure, 0) AS unsure, decision, coalesce(note, '') AS note
FROM listed JOIN picked USING (place) LEFT JOIN decided USING (place)
ORDER BY picked.key {direction} NULLS LAST, place"""
# The first undecided row after a row, or of all without one, and how many rows come before it.
NEXT = """
WITH rows AS (SELECT place, checkpoint_id, {key} AS key, {undecided} AS undecided {source}),
here AS (SELECT key, place FROM rows WHERE checkpoint_id = $after),
next AS (
    SELECT r.* FROM rows r LEFT JOIN here h ON true
    WHERE r.undecided AND (h.place IS NULL OR {following})
    ORDER BY r.key {direction} NULLS LAST, r.place LIMIT 1
)
SELECT n.checkpoint_id, (SELECT count(*) FROM rows r, next n WHERE {before}) AS number FROM next n"""


@dataclass(frozen=True, slots=True)
class Found:
    """A row of a list and its place there."""

    checkpoint_id: str
    number: int  # from 0


class DeskIndex:
    """The list's rows of one store in memory. Its methods may be called from any thread.

    Each raises StoreError where the store cannot be read.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._connection = duckdb.connect(":memory:")
        self._connection.execute("SET GLOBAL TimeZone = 'UTC'; SET enable_progress_bar = false")
        self._copying, self._swapping = threading.Lock(), threading.Lock()
        self._content: object = None  # the stamp of what `listed` and `flags` were made from
        self._decisions: object = None  # the stamp of what `decided` was made from
        self._counts: tuple[object, VerdictCounts] | None = None
        self._made_at = now()
        self._took_s = 0.0

    @property
    def is_made(self) -> bool:
        """Whether there is a copy, however old."""
        return self._content is not None

    def is_new(self) -> bool:
        """Returns whether there is a copy that is as new as the store, decisions included."""
        return self.is_made and self.refresh(patient=False)

    def refresh(self, *, patient: bool = True) -> bool:
        """Copies what has changed; returns whether the copy is as new as the store then.

        A copy that takes long is made anew only after a rest, and only for callers that are `patient`.
        """
        stamps = self._stamps()
        decisions = stamps["decisions"]
        content = tuple(stamps[table] for table in READS)
        if content != self._content and self._may_copy(patient):
            self._copy_unless_another_does(content, decisions)
        with self._swapping:
            if decisions != self._decisions:
                self._copy_decisions(decisions)
        return content == self._content

    def _stamps(self) -> dict[str, object]:
        return dict(zip(TABLES.values(), self.store.stamp(), strict=True))

    def _copy_unless_another_does(self, content: object, decisions: object) -> None:
        """Only the first copy of all is waited for, if another thread is making it."""
        if not self._copying.acquire(blocking=self._content is None):
            return
        try:
            if content != self._content:
                self._copy(content, decisions)
        finally:
            self._copying.release()

    def _may_copy(self, patient: bool) -> bool:
        rested = (now() - self._made_at).total_seconds() > REST * self._took_s
        return self._content is None or self._took_s < QUICK_S or (patient and rested)

    def _copy(self, content: object, decisions: object) -> None:
        start, made_at = time.monotonic(), now()
        with self._connection.cursor() as cursor:
            for table, sql in (("listed", LISTED), ("flags", FLAGGED)):
                for number, rows in enumerate(self._stream(sql)):
                    cursor.register("copied", rows)
                    how = f"INSERT INTO new_{table}" if number else f"CREATE OR REPLACE TABLE new_{table} AS"
                    cursor.execute(f"{how} FROM copied")
                    cursor.unregister("copied")
            with self._swapping:
                cursor.begin()
                for table in ("listed", "flags"):
                    cursor.execute(f"DROP TABLE IF EXISTS {table}")
                    cursor.execute(f"ALTER TABLE new_{table} RENAME TO {table}")
                self._write_decisions(cursor)
                cursor.commit()
                self._content, self._decisions = content, decisions
                self._made_at, self._took_s = made_at, time.monotonic() - start

    def _stream(self, sql: str) -> Any:
        """The rows of a query, in tables of many; one table without rows if there are none."""
        empty = True
        for rows in self.store.stream(sql, rows=AT_ONCE):
            empty = False
            yield rows
        if empty:
            yield self.store.query_arrow(f"FROM ({sql}) LIMIT 0")

    def _copy_decisions(self, decisions: object) -> None:
        with self._connection.cursor() as cursor:
            cursor.begin()
            self._write_decisions(cursor)
            cursor.commit()
        self._decisions = decisions

    def _write_decisions(self, cursor: duckdb.DuckDBPyConnection) -> None:
        cursor.register("copied", self.store.query_arrow(STANDING_DECISIONS))
        cursor.execute("CREATE OR REPLACE TABLE standing AS FROM copied")
        cursor.unregister("copied")
        cursor.execute(DECIDED)

    def _ask(self, sql: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        with self._connection.cursor() as cursor:
            answer: pa.Table = cursor.execute(sql, parameters).to_arrow_table()
        return rows_of(answer)

    def counts(self) -> VerdictCounts:
        """Counts the verdicts in the store; once for each state of its checkpoints and scans."""
        stamps = self._stamps()
        counted = stamps["checkpoints"], stamps["scans"]
        if self._counts is None or self._counts[0] != counted:
            self._counts = counted, count_verdicts(self.store)
        return self._counts[1]

    def ask_if_new(self, sql: str, parameters: dict[str, Any] | None = None) -> list[dict[str, Any]] | None:
        """Returns the rows of a query over the copy; None unless there is one as new as the store."""
        return self._ask(sql, parameters or {}) if self.is_new() else None

    def page(self, view: View, offset: int, limit: int) -> CheckpointPage:
        """Returns `limit` rows of a list from `offset` on, and how many the list has."""
        as_of = None if self.refresh(patient=False) else self._made_at
        sql = view_sql(view)
        (counted,) = self._ask(f"SELECT count(*) AS total {sql.source}", sql.parameters)
        given = {**sql.parameters, "limit": limit, "offset": offset}
        question = PAGE.format(key=sql.key, source=sql.source, direction=sql.direction)
        found = self._ask(question, given)
        rows = tuple(checkpoint_row({**row, **counted}) for row in found)
        return CheckpointPage(rows, counted["total"], offset, as_of)

    def next_undecided(self, view: View, after: str | None) -> Found | None:
        """Returns the first undecided row of a list after a checkpoint, or of the whole list for None."""
        self.refresh(patient=False)
        sql = view_sql(view, with_decisions=True)
        question = NEXT.format(
            key=sql.key,
            undecided=UNDECIDED,
            source=sql.source,
            following=sql.before("h", "r"),
            direction=sql.direction,
            before=sql.before("r", "n"),
        )
        found = self._ask(question, {**sql.parameters, "after": after})
        return Found(**found[0]) if found else None

    def reasons(self, view: View) -> list[StandingReason]:
        """Counts the rows of a list of skipped or failed checkpoints by reason code, largest group first."""
        self.refresh(patient=False)
        sql = view_sql(view)
        rows = self._ask(
            f"SELECT reason_code, count(*) AS count {sql.source} GROUP BY reason_code "
            "ORDER BY count DESC, reason_code",
            sql.parameters,
        )
        codes = [(ReasonCode(r["reason_code"]) if r["reason_code"] else None, r["count"]) for r in rows]
        return [StandingReason(code, count) for code, count in codes]

    def values(self, column: str, most: int = 50) -> list[str]:
        """Returns the values of "kind", "base", "source" or "corpus" in the list, the most frequent first."""
        self.refresh(patient=False)
        assert column in ("kind", "base", "source", "corpus")
        rows = self._ask(
            f"SELECT {column} AS value FROM {'flags' if column == 'corpus' else 'listed'} "
            f"WHERE {column} IS NOT NULL GROUP BY value ORDER BY count(*) DESC, value LIMIT $most",
            {"most": most},
        )
        return [row["value"] for row in rows]
