"""One night: every source since the last complete night, what is left from before, a budget, a summary.

Idempotent for its date: a night that is complete is not begun again, one that was interrupted goes on. A
source that cannot be listed keeps no other from its night, but the night is not complete. Knows no terminal;
how a source is listed and scanned is brought along.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from scanner.crawl.progress import Budget
from scanner.errors import SourceError
from scanner.records import Checkpoint, Night, Scan, now
from scanner.store.store import Store

OVERLAP = timedelta(days=1)  # a hub's listing may lag behind its clock


@dataclass
class Shift:
    """What is done for one source: list and inspect, then scan."""

    source: str
    enlist: Callable[[Night | None], int]  # since that night -> entries listed
    scan: Callable[[Budget], object]
    left: Callable[[], int]  # checkpoints without a verdict


def complete(store: Store, date: str) -> Night | None:
    """The night of that date, if it is complete."""
    rows = store.select(Night, "WHERE date = ? AND finished_at IS NOT NULL", [date])
    return rows[0] if rows else None


def last_complete(store: Store) -> Night | None:
    """The newest complete night."""
    rows = store.select(Night, "WHERE finished_at IS NOT NULL ORDER BY started_at DESC LIMIT 1")
    return rows[0] if rows else None


def run(store: Store, date: str, config_id: str, shifts: Sequence[Shift], budget: Budget) -> Night:
    """Works the shifts off, and records the night; it is complete where each source could be listed.

    Raises what the shifts raise, but SourceError.
    """
    before = last_complete(store)
    night = Night(
        date=date, started_at=now(), finished_at=None, sources=json.dumps([s.source for s in shifts]),
        config_id=config_id, listed=0, verdicts={}, flagged="[]", left=0, worker_seconds=0.0,
        downloaded_bytes=0,
    )  # fmt: skip
    begun = store.select(Night, "WHERE date = ?", [date])
    night = replace(begun[0], finished_at=None) if begun else night
    spent_seconds, spent_bytes = (begun[0].worker_seconds, begun[0].downloaded_bytes) if begun else (0.0, 0)
    store.append([replace(night, recorded_at=now())])
    listed, missed = 0, {}
    for shift in shifts:
        try:
            listed += shift.enlist(before)
        except SourceError as error:
            missed[shift.source] = str(error)
    for shift in shifts:
        if shift.source not in missed:  # its hub is away: what is left of it would fail, and cost the others
            shift.scan(budget)
    since = {"config": config_id, "since": night.started_at}
    verdicts = store.query(
        "SELECT verdict, count(*) AS n FROM scans WHERE config_id = $config AND finished_at >= $since "
        "GROUP BY verdict ORDER BY verdict",
        since,
    )
    flagged = store.query(
        "SELECT checkpoint_id FROM scans WHERE verdict = 'flagged' AND config_id = $config AND "
        "finished_at >= $since AND checkpoint_id NOT IN "
        "(SELECT checkpoint_id FROM all_scans WHERE verdict = 'flagged' AND finished_at < $since)",
        since,
    )
    night = replace(
        night,
        finished_at=None if missed else now(),
        recorded_at=now(),
        sources=json.dumps([s.source for s in shifts]),
        config_id=config_id,
        listed=listed,
        missed=json.dumps(missed),
        verdicts={row["verdict"]: float(row["n"]) for row in verdicts},
        flagged=json.dumps(sorted(row["checkpoint_id"] for row in flagged)),
        left=sum(shift.left() for shift in shifts),
        worker_seconds=round(spent_seconds + budget.spent_seconds, 1),
        downloaded_bytes=spent_bytes + budget.spent_bytes,
    )
    store.append([night])
    store.storage.put(f"reports/night-{date}.md", report(store, night).encode())
    return night


def report(store: Store, night: Night) -> str:
    """The night for people, as Markdown."""
    took = ((night.finished_at or now()) - night.started_at).total_seconds() / 3600
    told = ", ".join(f"{n:.0f} {verdict.replace('_', ' ')}" for verdict, n in sorted(night.verdicts.items()))
    lines = [
        f"# The night of {night.date}",
        "",
        f"{', '.join(json.loads(night.sources))}: {night.listed:,} entries listed; "
        f"{told or 'nothing scanned'}; {night.left:,} checkpoints left to do.",
        f"{took:.1f} hours, of workers {night.worker_seconds / 3600:.2f}; "
        f"{night.downloaded_bytes / 1e9:.2f} GB of checkpoints downloaded.",
    ]
    missed = json.loads(night.missed or "{}")
    if missed:
        lines += ["", "## Not complete", "", "Run it again for this date when these can be listed:", ""]
        lines += [f"- {_plain(source)}: {_plain(why)}" for source, why in missed.items()]
    ids = json.loads(night.flagged)
    if ids:
        lines += ["", "## Flagged for the first time", ""]
        lines += ["A flag is a claim to be judged by a person: `finextract-tui`.", ""]
        scans = {s.checkpoint_id: s for s in store.scans_of(night.config_id, ids)}
        rows = store.select(Checkpoint, "WHERE checkpoint_id IN (SELECT unnest(?))", [ids])
        rows.sort(key=lambda c: -(scans[c.checkpoint_id].best_similarity or 0))
        lines += [_line(row, scans[row.checkpoint_id]) for row in rows]
    failed = store.query(
        "SELECT reason, count(*) AS n FROM scans WHERE verdict = 'failed' AND config_id = ? AND "
        "finished_at >= ? GROUP BY reason ORDER BY n DESC LIMIT 10",
        [night.config_id, night.started_at],
    )
    if failed:
        lines += ["", "## Failed, and tried again next night", ""]
        lines += [f"- {row['n']} times: {_plain(row['reason'])}" for row in failed]
    return "\n".join(lines) + "\n"


def _line(checkpoint: Checkpoint, scan: Scan) -> str:
    told = f"similarity {scan.best_similarity or 0:.2f}, q {scan.q_value or 0:.3f}"
    return f"- {_plain(checkpoint.repo)}: {told}; {_plain(checkpoint.url)}"


def _plain(text: str) -> str:
    """A stranger's text as one line without markup."""
    kept = "".join(c if c.isprintable() else " " for c in text)
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c for c in kept)
