"""Queries of the review desk, and the records that they return. Every query is paged in SQL.

A checkpoint that was scanned under several configurations is one row, with its standing scan
(scanner.store.queries.STANDING_RANK). All functions may be called from any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from finextract.reasons import ReasonCode
from scanner.records import Checkpoint, Decision, ReviewDecision, Scan, Verdict
from scanner.store.decisions import STANDING_DECISIONS
from scanner.store.queries import STANDING_RANK
from scanner.store.store import Store

PAGE_SIZE = 200  # rows loaded at first, and again each time the cursor reaches the last row

# Strongest evidence first: by `rank` of the verdict, then the least q value, then the greatest similarity.
# Skipped and failed checkpoints are grouped by their reason code, the largest group first.
ORDER = """rank, CASE verdict WHEN 'flagged' THEN q_value END NULLS LAST, best_similarity DESC NULLS LAST,
    group_size DESC, reason_code"""
GROUP_SIZE = """
    CASE WHEN verdict IN ('skipped', 'failed')
        THEN count(*) OVER (PARTITION BY verdict, latest.reason_code) ELSE 0 END AS group_size"""
LATEST = f"""
    SELECT scan_id, checkpoint_id, verdict, reason, reason_code, best_similarity, q_value, finished_at,
        coalesce(list_position(['flagged', 'nothing_found', 'skipped', 'failed'], verdict), 5) AS rank
    FROM scans WHERE $verdict <> 'flagged' OR verdict = 'flagged'
    QUALIFY row_number() OVER (PARTITION BY checkpoint_id ORDER BY {STANDING_RANK} DESC) = 1"""
# A flagged scan ranks before every other scan of its checkpoint, so the flagged list needs neither the other
# scans nor the checkpoints table to find its first rows; it reads the checkpoints of those rows only.
BEST_FLAGGED = f"""
    SELECT *, count(*) OVER () AS total, 0 AS group_size
    FROM latest ORDER BY {ORDER}, checkpoint_id LIMIT $limit"""
BEST = f"""
    SELECT checkpoint_id, latest.* EXCLUDE (checkpoint_id, rank), coalesce(rank, 5) AS rank,
        count(*) OVER () AS total, {GROUP_SIZE}
    FROM checkpoints LEFT JOIN latest USING (checkpoint_id)
    WHERE contains(lower(repo), lower($part)) AND ($verdict = 'all' OR coalesce(verdict, 'to_do') = $verdict)
    ORDER BY {ORDER}, repo, checkpoint_id LIMIT $limit"""
LISTED = f"""
WITH latest AS ({LATEST}
),
best AS MATERIALIZED ({{best}}
),
flags AS MATERIALIZED (SELECT match_id, scan_id FROM matches WHERE flagged),
standing AS ({STANDING_DECISIONS}
),
flag_counts AS (
    SELECT
        m.scan_id, count(*) AS flagged_matches,
        count(*) FILTER (d.decision = 'confirm') AS confirmed,
        count(*) FILTER (d.decision = 'dismiss') AS dismissed,
        count(*) FILTER (d.decision = 'unsure') AS unsure
    FROM flags m LEFT JOIN standing d ON d.subject_id = m.match_id
    WHERE m.scan_id IN (SELECT scan_id FROM best)
    GROUP BY m.scan_id
)
SELECT
    checkpoint_id, c.repo, c.source, c.revision, c.file, c.kind, c.family, c.base,
    best.* EXCLUDE (checkpoint_id, rank, group_size),
    coalesce(flagged_matches, 0) AS flagged_matches, coalesce(confirmed, 0) AS confirmed,
    coalesce(dismissed, 0) AS dismissed, coalesce(unsure, 0) AS unsure,
    d.decision, coalesce(d.note, '') AS note
FROM best JOIN checkpoints c USING (checkpoint_id)
LEFT JOIN flag_counts USING (scan_id) LEFT JOIN standing d ON d.subject_id = best.scan_id
ORDER BY {ORDER}, repo, checkpoint_id"""
REASONS = f"""
WITH latest AS ({LATEST}
)
SELECT latest.reason_code, count(*) AS count
FROM latest JOIN checkpoints USING (checkpoint_id)
WHERE verdict = $verdict AND contains(lower(repo), lower($part))
GROUP BY latest.reason_code ORDER BY count DESC, latest.reason_code"""
MATCHES = """
SELECT
    match_id, candidate_id AS of_candidate, corpus, reference_id,
    similarity, null_similarity, p_value, q_value, flagged
FROM matches WHERE scan_id = $scan_id
ORDER BY flagged DESC, similarity DESC, match_id LIMIT $limit"""
CANDIDATES = """
SELECT candidate_id, seed, clique_size, clique_similarity, image_sha256, descriptor
FROM candidates WHERE scan_id = $scan_id AND candidate_id IN (SELECT unnest($ids))"""
# A reference has one row for each descriptor, all of the same file.
REFERENCES = """
SELECT corpus, reference_id, path AS reference_path, width AS reference_width, height AS reference_height
FROM "references" WHERE reference_id IN (SELECT unnest($ids))
QUALIFY row_number() OVER (PARTITION BY corpus, reference_id ORDER BY added_at DESC) = 1"""
MATCH_COUNTS = f"""
WITH standing AS ({STANDING_DECISIONS}
)
SELECT
    count(*) AS total, count(*) FILTER (m.flagged) AS flagged,
    count(*) FILTER (m.flagged AND d.decision IS NOT NULL) AS decided
FROM matches m LEFT JOIN standing d ON d.subject_id = m.match_id
WHERE m.scan_id = $scan_id"""
HISTORY = """
WHERE subject_id = ? OR subject_id IN (SELECT match_id FROM matches WHERE scan_id = ?)
ORDER BY decided_at, decision_id"""


_NO_CANDIDATE = dict.fromkeys(
    ("candidate_id", "seed", "clique_size", "clique_similarity", "image_sha256", "descriptor")
)
_NO_REFERENCE = dict.fromkeys(("reference_path", "reference_width", "reference_height"))


class ListFilter(StrEnum):
    """Which checkpoints the list shows: those with one verdict, all, or those without a verdict."""

    FLAGGED = "flagged"
    ALL = "all"
    NOTHING_FOUND = "nothing_found"
    SKIPPED = "skipped"
    FAILED = "failed"
    TO_DO = "to_do"

    def shifted(self, step: int) -> ListFilter:
        """Returns the filter `step` places after this one; the first follows the last."""
        filters = list(ListFilter)
        return filters[(filters.index(self) + step) % len(filters)]


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """One checkpoint in the list, with its standing scan, if any, and the decisions on it."""

    checkpoint_id: str
    repo: str
    source: str
    revision: str
    file: str
    kind: str
    family: str
    base: str | None
    scan_id: str | None
    verdict: Verdict | None  # None if it has not been scanned
    reason: str | None
    reason_code: ReasonCode | None
    best_similarity: float | None
    q_value: float | None
    finished_at: datetime | None
    flagged_matches: int
    confirmed: int  # of the flagged matches
    dismissed: int
    unsure: int
    decision: ReviewDecision | None  # on the scan as a whole; None if undecided
    note: str  # on the scan as a whole
    total: int  # rows that the filter selects, not only those on this page

    @property
    def decided(self) -> int:
        return self.confirmed + self.dismissed + self.unsure


@dataclass(frozen=True, slots=True)
class CheckpointPage:
    """The first rows of the list."""

    rows: tuple[CheckpointRow, ...]
    total: int


@dataclass(frozen=True, slots=True)
class StandingReason:
    """How many checkpoints of a list were skipped or failed for one reason."""

    reason_code: ReasonCode | None  # None for rows of versions that recorded no code
    count: int


@dataclass(frozen=True, slots=True)
class MatchRow:
    """One match of the opened scan, with its candidate, its reference and its decision log."""

    match_id: str
    corpus: str
    reference_id: str
    similarity: float
    null_similarity: float
    p_value: float
    q_value: float
    flagged: bool
    candidate_id: str | None  # None, like the rest of the candidate, if its row is missing
    seed: int | None
    clique_size: int | None
    clique_similarity: float | None
    image_sha256: str | None
    descriptor: str | None
    reference_path: str | None  # None if the corpus is no longer in the store
    reference_width: int | None
    reference_height: int | None
    history: tuple[Decision, ...] = ()  # all events about the match, oldest first


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """One checkpoint, its scan, and the first matches of the scan."""

    checkpoint: Checkpoint
    scan: Scan | None
    matches: tuple[MatchRow, ...]
    total: int  # all matches of the scan
    flagged: int  # flagged matches of the scan
    decided: int  # flagged matches with a decision that stands
    history: tuple[Decision, ...]  # all events about the scan as a whole, oldest first


def list_checkpoints(
    store: Store, shown: ListFilter, part: str = "", limit: int = PAGE_SIZE
) -> CheckpointPage:
    """Returns the first `limit` checkpoints of a list, strongest evidence first.

    `part` restricts the list to repos that contain it, in upper or lower case.
    """
    parameters: dict[str, Any] = {"verdict": str(shown), "limit": limit}
    if shown is ListFilter.FLAGGED and not part:
        best = BEST_FLAGGED
    else:
        best, parameters["part"] = BEST, part
    rows = tuple(_checkpoint_row(row) for row in store.query(LISTED.format(best=best), parameters))
    if best is BEST_FLAGGED and len(rows) < min(limit, rows[0].total if rows else limit):
        # Fewer rows than expected: nothing is flagged, or a scan's checkpoint is no longer listed.
        parameters["part"] = part
        rows = tuple(_checkpoint_row(row) for row in store.query(LISTED.format(best=BEST), parameters))
    return CheckpointPage(rows, rows[0].total if rows else 0)


def count_standing_reasons(store: Store, verdict: Verdict, part: str = "") -> list[StandingReason]:
    """Counts the checkpoints whose standing scan has a verdict by reason code, largest group first.

    `part` restricts the count to repos that contain it.
    """
    rows = store.query(REASONS, {"verdict": str(verdict), "part": part})
    codes = [(ReasonCode(row["reason_code"]) if row["reason_code"] else None, row["count"]) for row in rows]
    return [StandingReason(code, count) for code, count in codes]


def _checkpoint_row(row: dict[str, Any]) -> CheckpointRow:
    verdict = Verdict(row["verdict"]) if row["verdict"] else None
    decision = ReviewDecision(row["decision"]) if row["decision"] else None
    code = ReasonCode(row["reason_code"]) if row["reason_code"] else None
    return CheckpointRow(**{**row, "verdict": verdict, "reason_code": code, "decision": decision})


def open_checkpoint(
    store: Store, checkpoint_id: str, scan_id: str | None, limit: int = PAGE_SIZE
) -> OpenedCheckpoint:
    """Returns a checkpoint with its scan and the `limit` strongest matches, with their decision logs."""
    (checkpoint,) = store.select(Checkpoint, "WHERE checkpoint_id = ?", [checkpoint_id])
    if scan_id is None:
        return OpenedCheckpoint(checkpoint, None, (), 0, 0, 0, ())
    scans = store.select(Scan, "WHERE scan_id = ?", [scan_id])
    history: dict[str, list[Decision]] = {}
    for event in store.select(Decision, HISTORY, [scan_id, scan_id]):
        history.setdefault(event.subject_id, []).append(event)
    matches = tuple(
        MatchRow(**row, history=tuple(history.get(row["match_id"], ())))
        for row in _matches(store, scan_id, limit)
    )
    (counts,) = store.query(MATCH_COUNTS, {"scan_id": scan_id})
    scan = scans[0] if scans else None
    return OpenedCheckpoint(checkpoint, scan, matches, **counts, history=tuple(history.get(scan_id, ())))


def _matches(store: Store, scan_id: str, limit: int) -> list[dict[str, Any]]:
    """The fields of the matches, each with those of its candidate and its reference.

    Candidates and references are asked for by the ids that the matches name: a join would read all of them.
    """
    matches = store.query(MATCHES, {"scan_id": scan_id, "limit": limit})
    if not matches:
        return []
    ids = sorted({row["of_candidate"] for row in matches})
    found = store.query(CANDIDATES, {"scan_id": scan_id, "ids": ids})
    candidates = {row["candidate_id"]: row for row in found}
    found = store.query(REFERENCES, {"ids": sorted({row["reference_id"] for row in matches})})
    references = {(row["corpus"], row["reference_id"]): row for row in found}
    rows = []
    for match in matches:
        candidate = candidates.get(match.pop("of_candidate"), _NO_CANDIDATE)
        reference = references.get((match["corpus"], match["reference_id"]), _NO_REFERENCE)
        rows.append({**match, **candidate, **reference})
    return rows
