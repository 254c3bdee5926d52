"""What a flag rests on, and which flags are new: for programs that are told of flags while a crawl runs.

A flag is new on the grounds on which its checkpoint was not flagged before, under any configuration.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from scanner.records import Checkpoint, Ground, Scan
from scanner.store.grounds import grounds_of_scan
from scanner.store.store import Store
from scanner.store.tables import record

# Of each scan the rows that are flagged, strongest first. A membership of the same reference as a flagged
# match is in the row of the match, as at the review desk.
FOUND = """
WITH given_back AS (FROM matches WHERE flagged AND scan_id IN (SELECT unnest($ids))),
trained AS (FROM memberships WHERE trained_on AND scan_id IN (SELECT unnest($ids))),
owned AS (
    SELECT corpus, reference_id, path FROM "references"
    WHERE reference_id IN (SELECT reference_id FROM given_back UNION ALL SELECT reference_id FROM trained)
    QUALIFY row_number() OVER (PARTITION BY corpus, reference_id ORDER BY added_at DESC) = 1
)
SELECT
    scan_id, CASE WHEN match_id IS NULL THEN 'membership' ELSE 'match' END AS subject,
    coalesce(match_id, membership_id) AS subject_id, match_id, membership_id, candidate_id, corpus,
    reference_id, path AS reference, match_id IS NOT NULL AS gives_back,
    membership_id IS NOT NULL AS trained_on, similarity, needed, null_similarity, m.p_value, m.q_value,
    margin, t.p_value AS membership_p, t.q_value AS membership_q
FROM given_back m FULL JOIN trained t USING (scan_id, corpus, reference_id)
LEFT JOIN owned USING (corpus, reference_id)
ORDER BY scan_id, similarity DESC NULLS LAST, membership_q, subject_id"""
# All flagged scans of the checkpoints that were flagged since a time, or that some scans are about.
FLAGGED_SINCE = """
SELECT * FROM all_scans WHERE verdict = 'flagged' AND checkpoint_id IN (
    SELECT checkpoint_id FROM all_scans WHERE verdict = 'flagged' AND finished_at >= $since)
ORDER BY finished_at, scan_id"""
FLAGGED_AMONG = """
SELECT * FROM all_scans WHERE verdict = 'flagged' AND checkpoint_id IN (
    SELECT checkpoint_id FROM all_scans WHERE scan_id IN (SELECT unnest($ids)))
ORDER BY finished_at, scan_id"""


@dataclass(frozen=True, slots=True)
class NewFlag:
    """A flag with the grounds on which its checkpoint was not flagged before."""

    checkpoint: Checkpoint
    scan: Scan
    new_grounds: tuple[Ground, ...]


def found_in(store: Store, scan_ids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """The flagged rows of each scan as plain values, strongest first. Raises StoreError.

    `reference` is the name of the reference's file, without its folder; null for a corpus as a whole.
    """
    found: dict[str, list[dict[str, Any]]] = {scan_id: [] for scan_id in scan_ids}
    for row in store.query(FOUND, {"ids": list(scan_ids)}) if scan_ids else ():
        given, trained = row.pop("gives_back"), row.pop("trained_on")
        grounds = [Ground.TRAINED_ON] * trained + [Ground.GIVES_BACK] * given
        name = row["reference"] and row["reference"].replace("\\", "/").rpartition("/")[2]
        found[row.pop("scan_id")].append(row | {"reference": name, "grounds": [g.value for g in grounds]})
    return found


def new_flags_since(store: Store, since: datetime) -> list[NewFlag]:
    """The new flags whose scans finished then or later, oldest first. Raises StoreError."""
    scans = [record(Scan, row) for row in store.query(FLAGGED_SINCE, {"since": since})]
    return _new(store, scans, {scan.scan_id for scan in scans if scan.finished_at >= since})


def new_flags_among(store: Store, scan_ids: Collection[str]) -> list[NewFlag]:
    """Those of the scans that are new flags, oldest first. Raises StoreError."""
    rows = store.query(FLAGGED_AMONG, {"ids": list(scan_ids)}) if scan_ids else []
    return _new(store, [record(Scan, row) for row in rows], scan_ids)


def _new(store: Store, scans: Sequence[Scan], wanted: Collection[str]) -> list[NewFlag]:
    """The new flags among the wanted ones of all flagged scans of some checkpoints, which are in order."""
    ids = list({scan.checkpoint_id for scan in scans if scan.scan_id in wanted})
    rows = store.select(Checkpoint, "WHERE checkpoint_id IN (SELECT unnest(?))", [ids]) if ids else []
    checkpoints = {row.checkpoint_id: row for row in rows}
    before: dict[str, set[Ground]] = {}
    flags = []
    for scan in scans:
        known = before.setdefault(scan.checkpoint_id, set())
        new = tuple(ground for ground in grounds_of_scan(scan) if ground not in known)
        known.update(new)
        if new and scan.scan_id in wanted and scan.checkpoint_id in checkpoints:
            flags.append(NewFlag(checkpoints[scan.checkpoint_id], scan, new))
    return flags
