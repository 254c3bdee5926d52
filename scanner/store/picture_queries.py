"""The references that something was found about, for the review desk. Paged in SQL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from scanner.store.decisions import STANDING_DECISIONS
from scanner.store.queries import STANDING_RANK
from scanner.store.store import Store

# Only flagged scans have flagged matches and memberships, and the standing scan of a checkpoint is the newest
# of them if there is one. A flagged match and a membership of the same reference and scan are one finding,
# decided on as the match.
FOUND = f"""
WITH standing AS (
    SELECT scan_id FROM scans WHERE verdict = 'flagged'
    QUALIFY row_number() OVER (PARTITION BY checkpoint_id ORDER BY {STANDING_RANK} DESC) = 1
),
decided AS ({STANDING_DECISIONS}),
given AS MATERIALIZED (
    SELECT match_id, scan_id, corpus, reference_id, similarity
    FROM matches SEMI JOIN standing USING (scan_id) WHERE flagged
),
trained AS MATERIALIZED (
    SELECT membership_id, scan_id, corpus, reference_id
    FROM memberships SEMI JOIN standing USING (scan_id) WHERE trained_on AND reference_id <> ''
),
found AS (
    SELECT corpus, reference_id, similarity, match_id IS NOT NULL AS gives_back,
        membership_id IS NOT NULL AS trained_on, coalesce(match_id, membership_id) AS subject_id
    FROM given FULL JOIN trained USING (scan_id, corpus, reference_id)
),
counted AS (
    SELECT
        corpus, reference_id, count(*) AS checkpoints, count(*) FILTER (gives_back) AS given_back,
        count(*) FILTER (trained_on) AS trained_on, max(similarity) AS similarity,
        count(*) FILTER (d.decision = 'confirm') AS confirmed, count(d.decision) AS decided
    FROM found LEFT JOIN decided d USING (subject_id) GROUP BY corpus, reference_id
)
SELECT *, count(*) OVER () AS total FROM counted
ORDER BY given_back DESC, trained_on DESC, similarity DESC NULLS LAST, corpus, reference_id LIMIT $limit"""
PATHS = """
SELECT corpus, reference_id, arg_max(path, added_at) AS path, arg_max(image_sha256, added_at) AS image_sha256
FROM "references"
WHERE reference_id IN (SELECT unnest($ids)) GROUP BY corpus, reference_id"""


@dataclass(frozen=True, slots=True)
class FoundPicture:
    """One reference, and in how many checkpoints it was found."""

    corpus: str
    reference_id: str
    path: str | None  # of its file; None where the corpus is no longer in the store
    image_sha256: str | None  # of its copy in the store
    checkpoints: int
    given_back: int  # by so many of them
    trained_on: int
    similarity: float | None  # the highest of a flagged match
    confirmed: int
    decided: int
    total: int  # references that something was found about, not only those on this page

    @property
    def name(self) -> str:
        """The name of the file, or else the id of the reference."""
        return PurePath(self.path).name if self.path else self.reference_id


def found_pictures(store: Store, limit: int) -> list[FoundPicture]:
    """Returns the first references that standing scans found; most often given back first."""
    rows = store.query(FOUND, {"limit": limit})
    ids = sorted({row["reference_id"] for row in rows})
    asked = store.query(PATHS, {"ids": ids}) if ids else []
    files = {(row["corpus"], row["reference_id"]): row for row in asked}
    nothing = {"path": None, "image_sha256": None}
    known = [nothing | files.get((row["corpus"], row["reference_id"]), {}) for row in rows]
    return [FoundPicture(**file | row) for file, row in zip(known, rows, strict=True)]
