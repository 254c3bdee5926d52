"""What a store holds, counted for people: verdicts by day, source and family, reasons, and time by stage.

Every number is of standing scans (scanner.store.queries.STANDING_RANK), but for the time, which counts every
attempt. All functions may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

from finextract.reasons import ReasonCode
from scanner.records import Verdict
from scanner.store.desk_index import DeskIndex
from scanner.store.queries import RANKED_AT, STANDING_RANK

# One pass over the checkpoints and their standing scans answers four questions. What is alike is counted
# first. The day of a scan is the day in UTC on which it ended.
COUNTED = """
WITH {standing}
alike AS (
    SELECT verdict, {day}::DATE AS day, source, family, reason_code, count(*) AS number
    FROM {rows} GROUP BY ALL
),
counted AS (
    SELECT * REPLACE (
        split_part(source, ':', 1) AS source,
        CASE WHEN verdict IN ('skipped', 'failed') THEN coalesce(reason_code, '') END AS reason_code)
    FROM alike
)
SELECT
    CASE WHEN grouping(day) = 0 THEN 'day' WHEN grouping(source) = 0 THEN 'source'
        WHEN grouping(family) = 0 THEN 'family' ELSE 'reason' END AS by,
    day, source, family, reason_code, verdict, sum(number)::BIGINT AS count
FROM counted
GROUP BY GROUPING SETS ((day, verdict), (source, verdict), (family, verdict), (reason_code, verdict))"""
# From the desk's copy in memory, and from the store. There the ids of a million checkpoints are compared by
# 64 bits of their hashes, which takes half the time.
IN_COPY = COUNTED.format(standing="", day="finished_at", rows="listed")
IN_STORE = COUNTED.format(
    standing=f"""standing AS (
    SELECT
        hash(checkpoint_id) AS key, max(rank) AS rank,
        arg_max(verdict, rank) AS verdict, arg_max(coalesce(reason_code, ''), rank) AS reason_code
    FROM (SELECT checkpoint_id, verdict, reason_code, {STANDING_RANK} AS rank FROM scans)
    GROUP BY key
),
joined AS (
    SELECT source, family, standing.* FROM checkpoints LEFT JOIN standing ON key = hash(checkpoint_id)
),""",
    day=RANKED_AT.format(rank="rank"),
    rows="joined",
)
SECONDS = """
SELECT entry.key AS stage, sum(entry.value) AS seconds
FROM (SELECT unnest(map_entries(seconds)) AS entry FROM all_scans WHERE seconds IS NOT NULL)
GROUP BY stage HAVING sum(entry.value) > 0 ORDER BY seconds DESC, stage"""
ATTEMPTS = "SELECT count(*) AS attempts FROM all_scans"


@dataclass(frozen=True, slots=True)
class Tally:
    """How many checkpoints of one day, source or family have each verdict; None stands for "to do"."""

    name: str
    counts: dict[Verdict | None, int]

    @property
    def total(self) -> int:
        """All checkpoints."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class ReasonTally:
    """How many checkpoints were skipped or failed for one reason."""

    verdict: Verdict
    reason_code: ReasonCode | None  # None for rows of versions that recorded no code
    count: int


@dataclass(frozen=True, slots=True)
class Overview:
    """What the store holds."""

    total: Tally
    days: tuple[Tally, ...]  # newest first, named 2026-11-23
    sources: tuple[Tally, ...]  # largest first
    families: tuple[Tally, ...]  # largest first
    reasons: tuple[ReasonTally, ...]  # most frequent first
    seconds: dict[str, float]  # by stage, longest first
    attempts: int  # scans, those that were repeated included


def overview(index: DeskIndex) -> Overview:
    """Counts everything in three queries. Raises StoreError where the store cannot be read."""
    store = index.store
    rows = index.ask_if_new(IN_COPY)
    if rows is None:
        rows = store.query(IN_STORE)
    seconds = {row["stage"]: float(row["seconds"]) for row in store.query(SECONDS)}
    (attempts,) = store.query(ATTEMPTS)
    sources = _tallies(rows, "source")
    total: dict[Verdict | None, int] = {}
    for tally in sources:
        for verdict, number in tally.counts.items():
            total[verdict] = total.get(verdict, 0) + number
    days = [tally for tally in _tallies(rows, "day") if tally.name]
    return Overview(
        Tally("all", total),
        tuple(sorted(days, key=lambda tally: tally.name, reverse=True)),
        tuple(sorted(sources, key=_largest)),
        tuple(sorted(_tallies(rows, "family"), key=_largest)),
        tuple(sorted(_reasons(rows), key=lambda reason: (-reason.count, str(reason.reason_code)))),
        seconds,
        int(attempts["attempts"]),
    )


def _largest(tally: Tally) -> tuple[int, str]:
    return -tally.total, tally.name


def _tallies(rows: Iterable[dict[str, Any]], by: str) -> list[Tally]:
    found: dict[str, dict[Verdict | None, int]] = {}
    for row in rows:
        if row["by"] == by:
            value = row[by]
            name = value.isoformat() if isinstance(value, date) else value or ""
            found.setdefault(name, {})[Verdict(row["verdict"]) if row["verdict"] else None] = row["count"]
    return [Tally(name, counts) for name, counts in found.items()]


def _reasons(rows: Iterable[dict[str, Any]]) -> list[ReasonTally]:
    return [
        ReasonTally(
            Verdict(row["verdict"]),
            ReasonCode(row["reason_code"]) if row["reason_code"] else None,
            row["count"],
        )
        for row in rows
        if row["by"] == "reason" and row["reason_code"] is not None
    ]
