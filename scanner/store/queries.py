"""Questions about verdicts: planned = flagged + nothing found + skipped + failed + to do.

The queries of the review desk are in scanner.store.desk_queries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from finextract.reasons import ReasonCode
from scanner.store.grounds import GROUNDS, STRONGEST, grounds_of
from scanner.store.store import Store

# A checkpoint that was scanned under several configurations has one standing scan, the one with the greatest
# rank: a flagged scan before every other, a failed scan after every other, and the newest of equals.
# The rank is an integer, which DuckDB compares faster than a struct.
STANDING_RANK = """
    ((CASE verdict WHEN 'flagged' THEN 2 WHEN 'failed' THEN 0 ELSE 1 END)::BIGINT << 60)
    + epoch_us(finished_at)"""
RANKED_AT = "make_timestamp({rank} & ((1::BIGINT << 60) - 1))"  # when the scan of a rank ended
# The verdicts that count: one scan of each checkpoint, under one configuration or, with NULL, under all.
STANDING = f"""
    SELECT * REPLACE ({GROUNDS} AS grounds) FROM scans WHERE $config_id IS NULL OR config_id = $config_id
    QUALIFY row_number() OVER (PARTITION BY checkpoint_id ORDER BY {STANDING_RANK} DESC) = 1"""
COUNTS = f"""
WITH planned AS (SELECT checkpoint_id FROM checkpoints WHERE {{chosen}}),
standing AS (SELECT verdict FROM ({STANDING}) SEMI JOIN planned USING (checkpoint_id))
SELECT
    (SELECT count(*) FROM planned) AS planned,
    count(*) FILTER (verdict = 'flagged') AS flagged,
    count(*) FILTER (verdict = 'nothing_found') AS nothing_found,
    count(*) FILTER (verdict = 'skipped') AS skipped,
    count(*) FILTER (verdict = 'failed') AS failed
FROM standing"""
COMMIT_DIGITS = 40  # of a full Git commit
CONFIGURATIONS = "SELECT count(DISTINCT config_id) AS n FROM scans"


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    """The number of checkpoints with each verdict; each planned checkpoint is counted once.

    As a text it is the sum that `scanner status`, the review desk and a crawl print, with what it is about.
    """

    planned: int
    flagged: int
    nothing_found: int
    skipped: int
    failed: int
    about: str = field(default="", compare=False)  # "Store", "This crawl", ...

    @property
    def todo(self) -> int:
        """Planned checkpoints without any verdict."""
        return self.planned - self.flagged - self.nothing_found - self.skipped - self.failed

    def __str__(self) -> str:
        return (
            f"{self.about}{': ' if self.about else ''}{self.planned:,} planned = {self.flagged:,} flagged + "
            f"{self.nothing_found:,} nothing found + {self.skipped:,} skipped + {self.failed:,} failed + "
            f"{self.todo:,} to do"
        )

    def as_dict(self) -> dict[str, int]:
        """For --json."""
        counts = {name: number for name, number in asdict(self).items() if name != "about"}
        return {**counts, "todo": self.todo}


def count_verdicts(
    store: Store, config_id: str | None = None, *, among: Sequence[str] | None = None
) -> VerdictCounts:
    """Counts each listed checkpoint once, by its standing verdict under a configuration, or under all.

    `among` restricts the count to the checkpoint ids of a crawl. This is the slowest query of the desk,
    because it reads the id of every checkpoint.
    """
    given = {} if among is None else {"among": list(among)}
    (counts,) = store.query(COUNTS.format(chosen=_chosen(among)), {"config_id": config_id, **given})
    if among is not None:
        about = "This crawl"
    elif config_id is not None:
        about = f"Configuration {config_id[:12]}"
    else:
        (used,) = store.query(CONFIGURATIONS)
        about = f"Store, {used['n']} configurations" if used["n"] > 1 else "Store"
    return VerdictCounts(**counts, about=about)


def _chosen(among: Sequence[str] | None) -> str:
    return "true" if among is None else "checkpoint_id IN (SELECT unnest($among))"


OUTCOMES = f"""
SELECT checkpoint_id, c.source, c.repo, c.revision, c.file, c.kind, coalesce(s.verdict, 'to do') AS verdict,
    s.best_similarity, s.q_value, coalesce(s.reason, c.reason) AS reason,
    s.grounds, s.examined, s.trained_on, s.membership_q
FROM checkpoints c LEFT JOIN ({STANDING}) s USING (checkpoint_id) WHERE {{chosen}}
ORDER BY {STRONGEST}, c.repo, checkpoint_id
LIMIT $limit"""


def outcomes(
    store: Store,
    config_id: str | None = None,
    *,
    among: Sequence[str] | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Returns each listed checkpoint with its verdict: flagged first, strongest evidence first.

    The verdict is the standing one under a configuration, or under all. `among` restricts the rows to these
    checkpoint ids. `grounds` of a row is a list.
    """
    given = {} if among is None else {"among": list(among)}
    asked = OUTCOMES.format(chosen=_chosen(among))
    rows = store.query(asked, {"config_id": config_id, "limit": limit, **given})
    return [row | {"grounds": list(grounds_of(row["grounds"]))} for row in rows]


def names_in_list(rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """Returns the names by which the checkpoints of a list can be told apart, in the order of the rows.

    Each row is (source, repo, revision, file). A name is the repo; where several rows have the same repo,
    what they differ in follows: `OWNER/NAME@REVISION FILE (SOURCE)`, a commit shortened to 8 digits.
    """
    rows = list(rows)
    alike: dict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
    for row in rows:
        alike[row[1]].append(row)
    names = []
    for source, repo, revision, file in rows:
        sources, _, revisions, files = map(set, zip(*alike[repo], strict=True))
        name = repo
        if len(revisions) > 1:
            name += f"@{revision[:8] if len(revision) == COMMIT_DIGITS else revision}"
        if len(files) > 1:
            name += f" {file or 'the whole repo'}"
        names.append(f"{name} ({source})" if len(sources) > 1 else name)
    return names


def newest(store: Store, config_id: str | None, limit: int) -> list[dict[str, Any]]:
    """Returns the newest verdicts, of one configuration or of all, with the names of their checkpoints.

    `grounds` of a row is a list.
    """
    rows = store.query(
        "WITH newest AS (SELECT checkpoint_id, verdict, best_similarity, q_value, reason, finished_at, "
        f"{GROUNDS} AS grounds, examined, membership_q "
        "FROM scans WHERE $config_id IS NULL OR config_id = $config_id "
        "ORDER BY finished_at DESC LIMIT $limit) "
        "SELECT n.*, c.repo FROM newest n JOIN checkpoints c USING (checkpoint_id) ORDER BY finished_at DESC",
        {"config_id": config_id, "limit": limit},
    )
    return [row | {"grounds": list(grounds_of(row["grounds"]))} for row in rows]


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


REASONS = f"""
SELECT coalesce(s.verdict, c.inspection_status) AS verdict,
    CASE WHEN s.verdict IS NULL THEN c.reason_code ELSE s.reason_code END AS reason_code,
    count(*) AS count, arg_min(c.repo, c.checkpoint_id) AS repo,
    arg_min(coalesce(s.reason, c.reason), c.checkpoint_id) AS reason
FROM checkpoints c LEFT JOIN ({STANDING}) s USING (checkpoint_id)
WHERE coalesce(s.verdict, c.inspection_status) IN ('skipped', 'failed', 'unavailable')
    AND (s.finished_at >= $since OR $since IS NULL)
GROUP BY ALL ORDER BY count DESC, verdict, reason_code"""


def count_reasons(
    store: Store, config_id: str | None = None, *, since: datetime | None = None
) -> list[ReasonCount]:  # fmt: skip
    """Counts the skipped and failed checkpoints by reason code, most frequent first: those whose verdict
    stands under one configuration, or under all.

    A checkpoint without a scan counts with what inspection found. `since` counts only scans that finished
    then or later.
    """
    rows = store.query(REASONS, {"config_id": config_id, "since": since})
    return [
        ReasonCount(**row | {"reason_code": row["reason_code"] and ReasonCode(row["reason_code"])})
        for row in rows
    ]
