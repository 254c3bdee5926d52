"""The decision log for the review desk: newest first, paged, of all reviewers or of one; and as a file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from scanner.errors import StoreError
from scanner.records import EventKind, ReviewDecision
from scanner.store.decision_views import EVIDENCE, PLACES
from scanner.store.desk_index import DeskIndex
from scanner.store.store import Store
from scanner.text import first_line

# The events, which may lie in many files, are read once, and only those of the page are joined with what they
# are about.
LOG = f"""
WITH decisions AS MATERIALIZED (FROM main.decisions),
asked AS (
    SELECT *, count(*) OVER () AS total FROM decisions WHERE $reviewer IS NULL OR reviewer = $reviewer
    ORDER BY decided_at DESC, decision_id DESC LIMIT $limit
),
{EVIDENCE.format(events="asked")}
SELECT
    decided_at, reviewer, event, decision, note, withdraws, decision_id,
    decision_id IN (SELECT decision_id FROM standing_events) AS stands,
    CASE WHEN subject_id IN (SELECT scan_id FROM decided_scans) THEN 'checkpoint' ELSE subject END AS subject,
    subject_id, scan_id, corpus, path AS reference_path, grounds, similarity, margin, total
FROM asked JOIN subject_scans USING (subject_id) LEFT JOIN owned USING (corpus, reference_id)
ORDER BY decided_at DESC, decision_id DESC"""
# The checkpoints of these scans: from the desk's copy in memory, and from the store.
IN_COPY = """
SELECT scan_id, checkpoint_id, repo, file, grounds AS scan_grounds
FROM listed WHERE scan_id IN (SELECT unnest($ids))"""
IN_STORE = f"""
WITH subject_scans AS (SELECT unnest($ids) AS scan_id), {PLACES}
SELECT scan_id, checkpoint_id, repo, file, scan_grounds
FROM scanned LEFT JOIN listed USING (checkpoint_id)"""
NOWHERE = {"checkpoint_id": None, "repo": None, "file": None, "scan_grounds": None}
EXPORTED = """
SELECT * FROM decision_log WHERE $reviewer IS NULL OR reviewer = $reviewer ORDER BY decided_at, decision_id"""
REVIEWERS = "SELECT DISTINCT reviewer FROM decisions ORDER BY reviewer"


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event of the log, with what it is about."""

    decided_at: datetime
    reviewer: str
    event: EventKind
    decision: ReviewDecision | None
    note: str
    withdraws: str | None
    decision_id: str
    stands: bool
    subject: str | None  # match, membership or checkpoint; None where its rows are gone
    subject_id: str
    repo: str | None
    file: str | None
    checkpoint_id: str | None
    scan_id: str | None
    corpus: str | None
    reference_path: str | None
    grounds: str | None
    similarity: float | None
    margin: float | None
    total: int  # events that were asked for, not only those on this page


def log_events(index: DeskIndex, limit: int, reviewer: str | None = None) -> list[LogEvent]:
    """Returns the newest events, of all reviewers or of one."""
    rows = index.store.query(LOG, {"limit": limit, "reviewer": reviewer})
    places = _places(index, {row["scan_id"] for row in rows})
    return [_event(row, places.get(row["scan_id"], NOWHERE)) for row in rows]


def _places(index: DeskIndex, scan_ids: set[str]) -> dict[str, dict[str, Any]]:
    """The checkpoint of each scan that is in the store."""
    found: dict[str, dict[str, Any]] = {}
    for ask, sql in ((index.ask_if_new, IN_COPY), (index.store.query, IN_STORE)):
        if left := sorted(scan_ids - found.keys()):
            found |= {row.pop("scan_id"): row for row in ask(sql, {"ids": left}) or ()}
    return found


def _event(row: dict[str, Any], place: dict[str, Any]) -> LogEvent:
    known = dict(place)
    of_scan = known.pop("scan_grounds")
    decision = ReviewDecision(row["decision"]) if row["decision"] else None
    typed = {"event": EventKind(row["event"]), "decision": decision, "grounds": row["grounds"] or of_scan}
    return LogEvent(**row | known | typed)


def reviewers(store: Store) -> list[str]:
    """Returns everybody who ever decided, wrote or withdrew something."""
    return [row["reviewer"] for row in store.query(REVIEWERS)]


def export_log(store: Store, path: Path, reviewer: str | None = None) -> int:
    """Writes the log as JSON lines, oldest first, into a new private file; returns how many events.

    JSON has no formulas that a spreadsheet would run. Raises StoreError where the file exists or cannot be
    written.
    """
    rows = store.query(EXPORTED, {"reviewer": reviewer})
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row, default=_plain, ensure_ascii=True)}\n" for row in rows)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {first_line(error)}.") from error
    return len(rows)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
