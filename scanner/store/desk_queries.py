"""Queries of the review desk, and the records that they return. Every query is paged in SQL.

A checkpoint that was scanned under several configurations is one row, with its standing scan
(scanner.store.queries.STANDING_RANK). All functions may be called from any thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from finextract.reasons import ReasonCode
from scanner.records import (
    Checkpoint,
    Decision,
    Examination,
    Ground,
    Match,
    Membership,
    ReviewDecision,
    Scan,
    Verdict,
)
from scanner.store.decisions import STANDING_DECISIONS
from scanner.store.grounds import GROUNDS, STRONGEST, grounds_of
from scanner.store.queries import STANDING_RANK
from scanner.store.store import Store
from scanner.store.tables import record

PAGE_SIZE = 200  # rows loaded at first, and again each time the cursor reaches the last row

# Strongest evidence first. Skipped and failed checkpoints are grouped by their reason code, the largest group
# first. Of flags on equal evidence the newest comes first: the flagged list is read without the repos' names.
NEWEST = "CASE WHEN verdict = 'flagged' THEN finished_at END DESC NULLS LAST"
ORDER = f"{STRONGEST}, group_size DESC, reason_code, {NEWEST}"
LATEST = f"""
    SELECT scan_id, checkpoint_id, verdict, reason, reason_code, best_similarity, q_value, finished_at,
        {GROUNDS} AS grounds, examined, membership_q
    FROM scans WHERE {{which}}
    QUALIFY row_number() OVER (PARTITION BY checkpoint_id ORDER BY {STANDING_RANK} DESC) = 1"""
# `flags`: flagged matches, and trained-on memberships of references without a flagged match.
FLAGS = """
matched AS MATERIALIZED (
    SELECT match_id AS subject_id, scan_id, corpus, reference_id FROM matches WHERE flagged
),
trained AS MATERIALIZED (
    SELECT membership_id AS subject_id, scan_id, corpus, reference_id FROM memberships WHERE trained_on
),
flags AS (
    FROM matched WHERE {which}
    UNION ALL
    FROM (FROM trained ANTI JOIN matched USING (scan_id, corpus, reference_id)) WHERE {which}
)"""
# A flagged scan ranks before every other scan of its checkpoint, so the flagged list needs neither the other
# scans nor the checkpoints table to find its rows; it reads the checkpoints of the page's rows only.
FLAGGED = f"""
WITH latest AS ({LATEST.format(which="verdict = 'flagged'")}
),
best AS MATERIALIZED (
    SELECT *, count(*) OVER () AS total, 0 AS group_size
    FROM latest ORDER BY {ORDER}, checkpoint_id LIMIT $limit OFFSET $offset
),
{FLAGS.format(which="scan_id IN (SELECT scan_id FROM best)")},
standing AS ({STANDING_DECISIONS}
),
flag_counts AS (
    SELECT
        scan_id, count(*) AS flags,
        count(*) FILTER (d.decision = 'confirm') AS confirmed,
        count(*) FILTER (d.decision = 'dismiss') AS dismissed,
        count(*) FILTER (d.decision = 'unsure') AS unsure
    FROM flags LEFT JOIN standing d USING (subject_id) GROUP BY scan_id
)
SELECT
    checkpoint_id, c.repo, c.source, c.revision, c.file, c.kind, c.family, c.base,
    best.* EXCLUDE (checkpoint_id, group_size),
    coalesce(flags, 0) AS flags, coalesce(confirmed, 0) AS confirmed,
    coalesce(dismissed, 0) AS dismissed, coalesce(unsure, 0) AS unsure,
    d.decision, coalesce(d.note, '') AS note
FROM best JOIN checkpoints c USING (checkpoint_id)
LEFT JOIN flag_counts USING (scan_id) LEFT JOIN standing d ON d.subject_id = best.scan_id
ORDER BY {ORDER}, checkpoint_id"""
# What a scan found: in each row a match, a membership, or a flagged match with its reference's membership.
FOUND = """
    SELECT
        coalesce(m.match_id, t.membership_id) AS subject_id, coalesce(m.corpus, t.corpus) AS corpus,
        coalesce(m.reference_id, t.reference_id) AS reference_id, m AS match, t AS membership,
        coalesce(m.flagged, false) AS gives_back, coalesce(t.trained_on, false) AS trained_on
    FROM (FROM matches WHERE scan_id = $scan_id) m
    FULL JOIN (FROM memberships WHERE scan_id = $scan_id) t
        ON t.corpus = m.corpus AND t.reference_id = CASE WHEN m.flagged THEN m.reference_id END"""
EVIDENCE = f"""
WITH found AS ({FOUND})
FROM found
ORDER BY gives_back OR trained_on DESC, match.similarity DESC NULLS LAST, membership.q_value,
    membership.p_value, subject_id
LIMIT $limit"""
CANDIDATES = """
SELECT
    candidate_id, seed, clique_size, clique_similarity, image_sha256, descriptor, guidance_scale, correction
FROM candidates WHERE scan_id = $scan_id AND candidate_id IN (SELECT unnest($ids))"""
# A reference has one row for each descriptor, all of the same file.
REFERENCES = """
SELECT corpus, reference_id, path, width, height, image_sha256
FROM "references" WHERE reference_id IN (SELECT unnest($ids))
QUALIFY row_number() OVER (PARTITION BY corpus, reference_id ORDER BY added_at DESC) = 1"""
COUNTS = f"""
WITH standing AS ({STANDING_DECISIONS}
),
found AS ({FOUND}
)
SELECT
    count(*) AS total, count(*) FILTER (gives_back OR trained_on) AS flagged,
    count(*) FILTER ((gives_back OR trained_on) AND d.decision IS NOT NULL) AS decided
FROM found LEFT JOIN standing d USING (subject_id)"""
HISTORY = """
WHERE subject_id = $1 OR subject_id IN (SELECT match_id FROM matches WHERE scan_id = $1)
    OR subject_id IN (SELECT membership_id FROM memberships WHERE scan_id = $1)
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
    grounds: tuple[Ground, ...]  # of a flag; empty otherwise
    examined: Examination | None  # None in rows of versions that had no screen
    membership_q: float | None
    flags: int  # flagged matches, and trained-on memberships of references without a flagged match
    confirmed: int  # of the flags
    dismissed: int
    unsure: int
    decision: ReviewDecision | None  # on the scan as a whole; None if undecided
    note: str  # on the scan as a whole
    total: int  # rows that the filter selects, not only those on this page

    @property
    def decided(self) -> int:
        return self.confirmed + self.dismissed + self.unsure

    @property
    def undecided(self) -> bool:
        """Whether it is flagged, and decided neither as a whole nor by a decision on each of its flags."""
        each = self.flags > 0 and self.decided == self.flags
        return self.verdict is Verdict.FLAGGED and self.decision is None and not each


@dataclass(frozen=True, slots=True)
class CheckpointPage:
    """Some rows of a list, one after another."""

    rows: tuple[CheckpointRow, ...]
    total: int  # rows of the whole list
    offset: int = 0  # rows of the list before these
    as_of: datetime | None = None  # when they were read, if the store has changed since


@dataclass(frozen=True, slots=True)
class StandingReason:
    """How many checkpoints of a list were skipped or failed for one reason."""

    reason_code: ReasonCode | None  # None for rows of versions that recorded no code
    count: int


@dataclass(frozen=True, slots=True)
class CandidateImage:
    """The candidate of a match, without its embedding."""

    candidate_id: str
    seed: int
    clique_size: int
    clique_similarity: float
    image_sha256: str
    descriptor: str
    guidance_scale: float | None = None  # None in older rows, whose scan has it
    correction: float | None = None


@dataclass(frozen=True, slots=True)
class ReferenceImage:
    """A reference, without its embedding."""

    path: str
    width: int
    height: int
    image_sha256: str | None  # of its copy in the store


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """What the opened scan found about one reference, or about a corpus as a whole, and its decision log.

    It has a match, a membership, or a flagged match and a membership.
    """

    subject_id: str  # what a decision is about: the match, or without one the membership
    corpus: str
    reference_id: str  # "" for the corpus as a whole
    grounds: tuple[Ground, ...]  # of a flag; empty otherwise
    match: Match | None
    candidate: CandidateImage | None  # None if its row is missing
    membership: Membership | None
    reference: ReferenceImage | None  # None if the corpus is no longer in the store
    history: tuple[Decision, ...] = ()  # all events about the subject, oldest first


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """One checkpoint, its scan, and the first rows of what the scan found."""

    checkpoint: Checkpoint
    scan: Scan | None
    rows: tuple[EvidenceRow, ...]
    total: int  # all rows of the scan
    flagged: int  # flagged rows of the scan
    decided: int  # flagged rows with a decision that stands
    history: tuple[Decision, ...]  # all events about the scan as a whole, oldest first


def list_flagged(store: Store, offset: int = 0, limit: int = PAGE_SIZE) -> CheckpointPage | None:
    """Returns `limit` flagged checkpoints from `offset` on, strongest evidence first, without an index.

    Returns None where it cannot: nothing is flagged, or a scan's checkpoint is no longer listed.
    """
    found = store.query(FLAGGED, {"offset": offset, "limit": limit})
    rows = tuple(checkpoint_row(row) for row in found)
    if not rows or len(rows) < min(limit, rows[0].total - offset):
        return None
    return CheckpointPage(rows, rows[0].total, offset)


def checkpoint_row(row: dict[str, Any]) -> CheckpointRow:
    """Returns a row of a query as a record."""
    verdict = Verdict(row["verdict"]) if row["verdict"] else None
    decision = ReviewDecision(row["decision"]) if row["decision"] else None
    code = ReasonCode(row["reason_code"]) if row["reason_code"] else None
    examined = Examination(row["examined"]) if row["examined"] else None
    known = {"verdict": verdict, "decision": decision, "reason_code": code, "examined": examined}
    return CheckpointRow(**row | known | {"grounds": grounds_of(row["grounds"])})


def open_checkpoint(
    store: Store, checkpoint_id: str, scan_id: str | None, limit: int = PAGE_SIZE
) -> OpenedCheckpoint:
    """Returns a checkpoint with its scan and the `limit` strongest rows of evidence, with their logs."""
    (checkpoint,) = store.select(Checkpoint, "WHERE checkpoint_id = ?", [checkpoint_id])
    if scan_id is None:
        return OpenedCheckpoint(checkpoint, None, (), 0, 0, 0, ())
    scans = store.select(Scan, "WHERE scan_id = ?", [scan_id])
    history: dict[str, list[Decision]] = {}
    for event in store.select(Decision, HISTORY, [scan_id]):
        history.setdefault(event.subject_id, []).append(event)
    rows = tuple(
        replace(row, history=tuple(history.get(row.subject_id, ())))
        for row in _evidence(store, scan_id, limit)
    )
    (counts,) = store.query(COUNTS, {"scan_id": scan_id})
    scan = scans[0] if scans else None
    return OpenedCheckpoint(checkpoint, scan, rows, **counts, history=tuple(history.get(scan_id, ())))


def strongest_evidence(store: Store, scan_id: str) -> EvidenceRow | None:
    """Returns the first row of what a scan found, without its log; None if it found nothing."""
    return next(iter(_evidence(store, scan_id, 1)), None)


def _evidence(store: Store, scan_id: str, limit: int) -> list[EvidenceRow]:
    """The rows of a scan, each with its candidate and its reference, and without its log.

    Candidates and references are asked for by the ids that the rows name: a join would read all of them.
    """
    found = store.query(EVIDENCE, {"scan_id": scan_id, "limit": limit})
    ids = sorted({row["match"]["candidate_id"] for row in found} - {None})
    asked = store.query(CANDIDATES, {"scan_id": scan_id, "ids": ids}) if ids else []
    candidates = {row["candidate_id"]: CandidateImage(**row) for row in asked}
    ids = sorted({row["reference_id"] for row in found} - {""})
    asked = store.query(REFERENCES, {"ids": ids}) if ids else []
    references = {
        (row.pop("corpus"), row.pop("reference_id")): ReferenceImage(**row) for row in asked
    }  # fmt: skip
    return [
        EvidenceRow(
            row["subject_id"],
            row["corpus"],
            row["reference_id"],
            (Ground.TRAINED_ON,) * row["trained_on"] + (Ground.GIVES_BACK,) * row["gives_back"],
            record(Match, row["match"]) if row["match"]["match_id"] else None,
            candidates.get(row["match"]["candidate_id"]),
            record(Membership, row["membership"]) if row["membership"]["membership_id"] else None,
            references.get((row["corpus"], row["reference_id"])),
        )
        for row in found
    ]
