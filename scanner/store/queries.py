"""Questions about verdicts: planned = flagged + nothing found + skipped + failed + to do.

The queries of the review desk are in scanner.store.desk_queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from finextract.reasons import ReasonCode
from scanner.records import ConfigRow, Verdict
from scanner.store.store import Store

# A checkpoint that was scanned under several configurations has one standing scan, the one with the greatest
# rank: a flagged scan before every other, a failed scan after every other, and the newest of equals.
# The rank is an integer, which DuckDB compares faster than a struct.
STANDING_RANK = """
    ((CASE verdict WHEN 'flagged' THEN 2 WHEN 'failed' THEN 0 ELSE 1 END)::BIGINT << 60)
    + epoch_us(finished_at)"""
STANDING_VERDICTS = f"""
WITH standing AS (
    SELECT arg_max(verdict, {STANDING_RANK}) AS verdict
    FROM scans SEMI JOIN checkpoints USING (checkpoint_id) GROUP BY checkpoint_id
)
SELECT
    (SELECT count(*) FROM checkpoints) AS planned,
    count(*) FILTER (verdict = 'flagged') AS flagged,
    count(*) FILTER (verdict = 'nothing_found') AS nothing_found,
    count(*) FILTER (verdict = 'skipped') AS skipped,
    count(*) FILTER (verdict = 'failed') AS failed
FROM standing"""


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    """The number of checkpoints with each verdict; each planned checkpoint is counted once."""

    planned: int
    flagged: int
    nothing_found: int
    skipped: int
    failed: int

    @property
    def todo(self) -> int:
        """Planned checkpoints without any verdict."""
        return self.planned - self.flagged - self.nothing_found - self.skipped - self.failed

    def __str__(self) -> str:
        return (
            f"{self.planned} planned = {self.flagged} flagged + {self.nothing_found} nothing found "
            f"+ {self.skipped} skipped + {self.failed} failed + {self.todo} to do"
        )

    def as_dict(self) -> dict[str, int]:
        """For --json."""
        return {**asdict(self), "todo": self.todo}


def latest_config(store: Store) -> str | None:
    """Returns the id of the configuration that was used last; None before the first crawl."""
    rows = store.select(ConfigRow, "ORDER BY created_at DESC LIMIT 1")
    return rows[0].config_id if rows else None


def count_verdicts(
    store: Store, config_id: str | None, *, among: Sequence[str] | None = None
) -> VerdictCounts:
    """Counts the verdicts of one configuration; a checkpoint's verdict is that of the scan that counts.

    `among` restricts the count to these checkpoint ids; by default every listed checkpoint is counted.
    """
    given = {} if among is None else {"among": list(among)}
    chosen = "" if among is None else "WHERE checkpoint_id IN (SELECT unnest($among))"
    (row,) = store.query(f"SELECT count(*) AS planned FROM checkpoints {chosen}", given)
    counts = {
        r["verdict"]: r["n"]
        for r in store.query(
            f"SELECT verdict, count(*) AS n FROM (SELECT * FROM scans WHERE config_id = $config_id) "
            f"SEMI JOIN (SELECT checkpoint_id FROM checkpoints {chosen}) USING (checkpoint_id) "
            "GROUP BY verdict",
            {"config_id": config_id, **given},
        )
    }
    return VerdictCounts(row["planned"], *(counts.get(v, 0) for v in Verdict))


def count_standing_verdicts(store: Store) -> VerdictCounts:
    """Counts the verdicts over all configurations; a checkpoint's verdict is that of its standing scan.

    This is the slowest query of the desk, because it reads the id of every checkpoint.
    """
    (counts,) = store.query(STANDING_VERDICTS)
    return VerdictCounts(**counts)


OUTCOMES = """
SELECT c.checkpoint_id, c.repo, c.kind, coalesce(s.verdict, 'to do') AS verdict, s.best_similarity, s.q_value,
    coalesce(s.reason, c.reason) AS reason
FROM checkpoints c {join} (SELECT * FROM scans WHERE config_id = $config_id {only}) s USING (checkpoint_id)
WHERE {which}
ORDER BY coalesce(s.best_similarity, 0) DESC, c.repo, c.checkpoint_id LIMIT $limit"""


def outcomes(
    store: Store, config_id: str | None, *, among: Sequence[str] | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """Returns each listed checkpoint with its verdict: flagged first, strongest evidence first.

    `among` restricts the rows to these checkpoint ids.
    """
    rows: list[dict[str, Any]] = []
    given = {} if among is None else {"among": list(among)}
    chosen = "true" if among is None else "c.checkpoint_id IN (SELECT unnest($among))"
    for verdict in (*Verdict, None):  # one at a time: a million rows need not be sorted for the first hundred
        left = None if limit is None else limit - len(rows)
        if left == 0:
            break
        if verdict is None:
            asked = OUTCOMES.format(join="LEFT JOIN", only="", which=f"s.verdict IS NULL AND {chosen}")
        else:
            asked = OUTCOMES.format(join="JOIN", only=f"AND verdict = '{verdict}'", which=chosen)
        rows += store.query(asked, {"config_id": config_id, "limit": left, **given})
    return rows


def newest(store: Store, config_id: str | None, limit: int) -> list[dict[str, Any]]:
    """Returns the newest verdicts with the names of their checkpoints, newest first."""
    return store.query(
        "WITH newest AS (SELECT checkpoint_id, verdict, best_similarity, q_value, reason, finished_at "
        "FROM scans WHERE config_id = ? ORDER BY finished_at DESC LIMIT ?) "
        "SELECT n.*, c.repo FROM newest n JOIN checkpoints c USING (checkpoint_id) ORDER BY finished_at DESC",
        [config_id, limit],
    )


def shorter(reason: str, repo: str) -> str:
    """Removes the repository and the file from the start of a reason that is shown beside them."""
    rest = reason.removeprefix(repo)
    return rest.partition(" ")[2] if rest != reason and rest[:1] in ("/", ":", " ") else reason


def reason_label(code: ReasonCode | None) -> str:
    """Returns a reason code in a few words; rows of older versions have no code."""
    return code.label if code else "recorded without a reason code"


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """How many checkpoints were skipped or failed for one reason."""

    verdict: str  # skipped, failed, or without a scan the inspection status: skipped, unavailable
    reason_code: ReasonCode | None  # None for rows of versions that recorded no code
    count: int
    repo: str  # an example
    reason: str  # of the example

    @property
    def label(self) -> str:
        """The reason in a few words."""
        return reason_label(self.reason_code)


REASONS = """
SELECT coalesce(s.verdict, c.inspection_status) AS verdict,
    CASE WHEN s.verdict IS NULL THEN c.reason_code ELSE s.reason_code END AS reason_code,
    count(*) AS count, arg_min(c.repo, c.checkpoint_id) AS repo,
    arg_min(coalesce(s.reason, c.reason), c.checkpoint_id) AS reason
FROM checkpoints c LEFT JOIN (SELECT * FROM scans WHERE config_id = $config_id) s USING (checkpoint_id)
WHERE coalesce(s.verdict, c.inspection_status) IN ('skipped', 'failed', 'unavailable')
    AND (s.finished_at >= $since OR $since IS NULL)
GROUP BY ALL ORDER BY count DESC, verdict, reason_code"""


def count_reasons(
    store: Store, config_id: str | None, *, since: datetime | None = None
) -> list[ReasonCount]:  # fmt: skip
    """Counts the skipped and failed checkpoints of one configuration by reason code, most frequent first.

    A checkpoint without a scan counts with what inspection found. `since` counts only scans that finished
    then or later.
    """
    rows = store.query(REASONS, {"config_id": config_id, "since": since})
    return [
        ReasonCount(**row | {"reason_code": row["reason_code"] and ReasonCode(row["reason_code"])})
        for row in rows
    ]
