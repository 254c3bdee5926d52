"""Queries of the review desk, and the records that they return. Every query is paged in SQL.

A checkpoint that was scanned under several configurations is one row, with its standing scan
(scanner.store.queries.STANDING_RANK). All functions may be called from any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from scanner.records import Checkpoint, Decision, Scan, Verdict, Word
from scanner.store.queries import STANDING_RANK
from scanner.store.store import Store

PAGE_SIZE = 200  # rows loaded at first, and again each time the cursor reaches the last row

# Strongest evidence first: by `rank` of the verdict, then the least q value, then the greatest similarity.
ORDER = """rank, CASE verdict WHEN 'flagged' THEN q_value END NULLS LAST, best_similarity DESC NULLS LAST"""
LATEST = f"""
    SELECT scan_id, checkpoint_id, verdict, reason, best_similarity, q_value, finished_at,
        coalesce(list_position(['flagged', 'nothing_found', 'skipped', 'failed'], verdict), 5) AS rank
    FROM scans WHERE $verdict <> 'flagged' OR verdict = 'flagged'
    QUALIFY row_number() OVER (PARTITION BY checkpoint_id ORDER BY {STANDING_RANK} DESC) = 1"""
# A flagged scan ranks before every other scan of its checkpoint, so the flagged list needs neither the other
# scans nor the checkpoints table to find its first rows; it reads the checkpoints of those rows only.
BEST_FLAGGED = f"""
    SELECT *, count(*) OVER () AS total FROM latest ORDER BY {ORDER}, checkpoint_id LIMIT $limit"""
BEST = f"""
    SELECT checkpoint_id, latest.* EXCLUDE (checkpoint_id, rank), coalesce(rank, 5) AS rank,
        count(*) OVER () AS total
    FROM checkpoints LEFT JOIN latest USING (checkpoint_id)
    WHERE contains(lower(repo), lower($part)) AND ($verdict = 'all' OR coalesce(verdict, 'to_do') = $verdict)
    ORDER BY {ORDER}, repo, checkpoint_id LIMIT $limit"""
LISTED = f"""
WITH latest AS ({LATEST}
),
best AS MATERIALIZED ({{best}}
),
flags AS MATERIALIZED (SELECT match_id, scan_id FROM matches WHERE flagged),
words AS (
    SELECT
        m.scan_id, count(*) AS flagged_matches,
        count(*) FILTER (d.decision = 'confirm') AS confirmed,
        count(*) FILTER (d.decision = 'dismiss') AS dismissed,
        count(*) FILTER (d.decision = 'unsure') AS unsure
    FROM flags m LEFT JOIN decisions d ON d.subject_id = m.match_id
    WHERE m.scan_id IN (SELECT scan_id FROM best)
    GROUP BY m.scan_id
)
SELECT
    checkpoint_id, c.repo, c.source, c.file, c.kind, c.family, c.base, best.* EXCLUDE (checkpoint_id, rank),
    coalesce(flagged_matches, 0) AS flagged_matches, coalesce(confirmed, 0) AS confirmed,
    coalesce(dismissed, 0) AS dismissed, coalesce(unsure, 0) AS unsure,
    nullif(d.decision, 'withdrawn') AS word, coalesce(d.note, '') AS note
FROM best JOIN checkpoints c USING (checkpoint_id)
LEFT JOIN words USING (scan_id) LEFT JOIN decisions d ON d.subject_id = best.scan_id
ORDER BY {ORDER}, repo, checkpoint_id"""
# A reference is looked up by corpus and id; under several descriptors it is still one file.
MATCHES = """
WITH shown AS (
    SELECT * FROM matches WHERE scan_id = $scan_id
    ORDER BY flagged DESC, similarity DESC, match_id LIMIT $limit
),
owned AS (
    SELECT corpus, reference_id, path, width, height FROM "references"
    WHERE reference_id IN (SELECT reference_id FROM shown)
    QUALIFY row_number() OVER (PARTITION BY corpus, reference_id ORDER BY added_at DESC) = 1
)
SELECT
    m.match_id, m.corpus, m.reference_id, m.similarity, m.null_similarity, m.p_value, m.q_value, m.flagged,
    k.candidate_id, k.seed, k.clique_size, k.clique_similarity, k.image_sha256, k.descriptor,
    r.path AS reference_path, r.width AS reference_width, r.height AS reference_height
FROM shown m
LEFT JOIN candidates k ON k.candidate_id = m.candidate_id AND k.scan_id = m.scan_id
LEFT JOIN owned r ON r.corpus = m.corpus AND r.reference_id = m.reference_id
ORDER BY m.flagged DESC, m.similarity DESC, m.match_id"""
COUNTS = """
SELECT
    count(*) AS total, count(*) FILTER (m.flagged) AS flagged,
    count(*) FILTER (m.flagged AND d.decision <> 'withdrawn') AS decided
FROM matches m LEFT JOIN decisions d ON d.subject_id = m.match_id
WHERE m.scan_id = $scan_id"""
HISTORY = """
SELECT decision_id, subject_id, decision, note, reviewer, decided_at FROM all_decisions
WHERE subject_id = $scan_id OR subject_id IN (SELECT match_id FROM matches WHERE scan_id = $scan_id)
ORDER BY decided_at, decision_id"""


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
    file: str
    kind: str
    family: str
    base: str | None
    scan_id: str | None
    verdict: Verdict | None  # None if it has not been scanned
    reason: str | None
    best_similarity: float | None
    q_value: float | None
    finished_at: datetime | None
    flagged_matches: int
    confirmed: int  # of the flagged matches
    dismissed: int
    unsure: int
    word: Word | None  # on the scan as a whole
    note: str
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
class MatchRow:
    """One match of the opened scan, with its candidate, its reference and everything said about it."""

    match_id: str
    corpus: str
    reference_id: str
    similarity: float
    null_similarity: float
    p_value: float
    q_value: float
    flagged: bool
    candidate_id: str | None  # None, like the rest of the candidate, where its row is missing
    seed: int | None
    clique_size: int | None
    clique_similarity: float | None
    image_sha256: str | None
    descriptor: str | None
    reference_path: str | None  # None where the corpus is no longer in the store
    reference_width: int | None
    reference_height: int | None
    history: tuple[Decision, ...] = ()  # oldest first


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """One checkpoint, its scan, and the first page of its matches."""

    checkpoint: Checkpoint
    scan: Scan | None
    found: tuple[MatchRow, ...]
    total: int  # matches of the scan, not only on this page
    flagged: int  # of all its matches
    decided: int  # of the flagged ones
    history: tuple[Decision, ...]  # of the scan as a whole, oldest first


def standing(history: tuple[Decision, ...]) -> Decision | None:
    """The decision that counts: the newest, unless it was withdrawn."""
    newest = history[-1] if history else None
    return None if newest is None or newest.decision is Word.WITHDRAWN else newest


def list_checkpoints(
    store: Store, listing: ListFilter, part: str = "", limit: int = PAGE_SIZE
) -> CheckpointPage:
    """The best `limit` rows of a listing whose repo contains `part`."""
    asked: dict[str, Any] = {"verdict": str(listing), "limit": limit}
    if listing is ListFilter.FLAGGED and not part:
        best = BEST_FLAGGED
    else:
        best, asked["part"] = BEST, part
    rows = tuple(_checkpoint_row(row) for row in store.query(LISTED.format(best=best), asked))
    if best is BEST_FLAGGED and len(rows) < min(limit, rows[0].total if rows else limit):
        # None is flagged, or the row of a scan's checkpoint is gone: a file of a folder was replaced.
        rows = tuple(
            _checkpoint_row(row) for row in store.query(LISTED.format(best=BEST), asked | {"part": part})
        )
    return CheckpointPage(rows, rows[0].total if rows else 0)


def _checkpoint_row(row: dict[str, Any]) -> CheckpointRow:
    verdict = Verdict(row["verdict"]) if row["verdict"] else None
    word = Word(row["word"]) if row["word"] else None
    return CheckpointRow(**{**row, "verdict": verdict, "word": word})


def open_checkpoint(
    store: Store, checkpoint_id: str, scan_id: str | None, limit: int = PAGE_SIZE
) -> OpenedCheckpoint:
    """A checkpoint with its scan, the scan's best `limit` matches and all decisions on them."""
    (checkpoint,) = store.select(Checkpoint, "WHERE checkpoint_id = ?", [checkpoint_id])
    if scan_id is None:
        return OpenedCheckpoint(checkpoint, None, (), 0, 0, 0, ())
    scans = store.select(Scan, "WHERE scan_id = ?", [scan_id])
    history: dict[str, list[Decision]] = {}
    for row in store.query(HISTORY, {"scan_id": scan_id}):
        said = Decision(**{**row, "decision": Word(row["decision"])})
        history.setdefault(said.subject_id, []).append(said)
    found = tuple(
        MatchRow(**row, history=tuple(history.get(row["match_id"], ())))
        for row in store.query(MATCHES, {"scan_id": scan_id, "limit": limit})
    )
    (counts,) = store.query(COUNTS, {"scan_id": scan_id})
    scan = scans[0] if scans else None
    return OpenedCheckpoint(checkpoint, scan, found, **counts, history=tuple(history.get(scan_id, ())))
