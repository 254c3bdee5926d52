"""One night: lists every source since the last complete night, then scans what the store has left of each.

A night is identified by its date: a complete one is not repeated, and an interrupted one is resumed. Where a
source cannot be listed, the others are crawled and the night is not complete. Each source is crawled through
scanner.crawl.service; all share one budget.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from scanner.crawl import service
from scanner.crawl.planning import Plan
from scanner.crawl.progress import Budget, Observer
from scanner.crawl.service import CrawlOptions, open_store
from scanner.errors import SourceError
from scanner.records import Checkpoint, Night, Scan, now
from scanner.store.compaction import compact
from scanner.store.orphans import collect
from scanner.store.queries import ReasonCount, count_reasons, shorter
from scanner.store.store import Store
from scanner.text import for_terminal

OVERLAP = timedelta(days=1)  # listed again, because a hub's listing may lag behind its clock


def complete(store: Store, date: str) -> Night | None:
    """The night of a date, if it is complete."""
    rows = store.select(Night, "WHERE date = ? AND finished_at IS NOT NULL", [date])
    return rows[0] if rows else None


def last_complete(store: Store) -> Night | None:
    """The newest complete night."""
    rows = store.select(Night, "WHERE finished_at IS NOT NULL ORDER BY started_at DESC LIMIT 1")
    return rows[0] if rows else None


def run(
    options: CrawlOptions,
    sources: Sequence[str],
    date: str,
    *,
    budget: Budget | None = None,
    observer: Observer | None = None,
    worker_class: type | None = None,
) -> Night:
    """Crawls the sources with the same options, records the night, compacts the store, writes the report.

    `date` (2026-11-24) identifies the night. It is complete if every source could be listed; a complete one
    is returned as it was recorded. Raises what `service.crawl` raises, without SourceError.
    """
    budget, observer = budget or Budget(), observer or Observer()
    store = open_store(options, observer)
    if (done := complete(store, date)) is not None:
        return done
    missed: dict[str, str] = {}  # source -> why it could not be listed
    names: dict[str, str] = {}  # source -> its name in the store
    for source in sources:
        try:
            names[source] = service.open_source(replace(options, source=source)).name
        except SourceError as error:  # such as a folder that does not exist
            missed[source] = str(error)
    config = service.effective_config(options, store, observer)
    before = last_complete(store)
    night = _begin(store, date, sources, config.config_id)
    spent_seconds, spent_bytes = night.worker_seconds, night.downloaded_bytes
    store.append([config.row()])
    listed = 0
    for source in sources:
        if source in missed:
            continue
        since = _since(before, source)
        one = replace(options, source=source, since=since, changed=True)
        try:
            result = service.list_and_inspect(one, observer)
        except SourceError as error:
            missed[source] = str(error)
            continue
        listed += result.listed
        if result.cut_short is not None:
            missed[source] = str(result.cut_short)
    left: set[str] = set()  # ids: two sources may have the same weights
    for source in sources:
        if source in missed:  # every scan of it would fail, and delay the other sources
            continue
        one = replace(options, source=source)
        service.scan_recorded(one, observer, budget=budget, worker_class=worker_class)
        left.update(p.checkpoint_id for p in Plan.of_store(names[source], store, config.config_id).todo)
    night = replace(
        _with_verdicts(night, store),
        finished_at=None if missed else now(),
        recorded_at=now(),
        sources=json.dumps(list(sources)),
        listed=listed,
        missed=json.dumps(missed),
        left=len(left),
        worker_seconds=round(spent_seconds + budget.spent_seconds, 1),
        downloaded_bytes=spent_bytes + budget.spent_bytes,
    )
    store.append([night])
    store.storage.put(f"reports/night-{date}.md", report(store, night).encode())
    for table in compact(store):
        if table.files:
            observer.message(f"{table.table}: {table.files:,} files compacted")
    if orphans := collect(store):
        observer.message(f"removed: {orphans}")
    return night


def _begin(store: Store, date: str, sources: Sequence[str], config_id: str) -> Night:
    """Records that the night has begun, unless an interrupted one of this date is resumed."""
    night = Night(
        date=date, started_at=now(), finished_at=None, sources=json.dumps(list(sources)),
        config_id=config_id, listed=0, verdicts={}, flagged="[]", left=0, worker_seconds=0.0,
        downloaded_bytes=0,
    )  # fmt: skip
    begun = store.select(Night, "WHERE date = ?", [date])
    night = replace(begun[0], finished_at=None, config_id=config_id) if begun else night
    store.append([replace(night, recorded_at=now())])
    return night


def _since(before: Night | None, source: str) -> datetime | None:
    """What changed since then is listed; None for a source that the last complete night did not list."""
    known = before is not None and source in json.loads(before.sources)
    return before.started_at - OVERLAP if before is not None and known else None


def _with_verdicts(night: Night, store: Store) -> Night:
    """The night with its verdicts, and the checkpoints that it flagged for the first time."""
    given = {"config": night.config_id, "since": night.started_at}
    verdicts = store.query(
        "SELECT verdict, count(*) AS n FROM scans WHERE config_id = $config AND finished_at >= $since "
        "GROUP BY verdict ORDER BY verdict",
        given,
    )
    flagged = store.query(
        "SELECT checkpoint_id FROM scans WHERE verdict = 'flagged' AND config_id = $config AND "
        "finished_at >= $since AND checkpoint_id NOT IN "
        "(SELECT checkpoint_id FROM all_scans WHERE verdict = 'flagged' AND finished_at < $since)",
        given,
    )
    return replace(
        night,
        verdicts={row["verdict"]: float(row["n"]) for row in verdicts},
        flagged=json.dumps(sorted(row["checkpoint_id"] for row in flagged)),
    )


def report(store: Store, night: Night) -> str:
    """The report of a night, as Markdown."""
    hours = ((night.finished_at or now()) - night.started_at).total_seconds() / 3600
    counts = ", ".join(f"{n:.0f} {v.replace('_', ' ')}" for v, n in sorted(night.verdicts.items()))
    lines = [
        f"# The night of {night.date}",
        "",
        f"{', '.join(json.loads(night.sources))}: {night.listed:,} entries listed; "
        f"{counts or 'nothing scanned'}; {night.left:,} checkpoints left to do.",
        f"{hours:.1f} hours; workers {night.worker_seconds / 3600:.2f} hours; "
        f"{night.downloaded_bytes / 1e9:.2f} GB of checkpoints downloaded.",
    ]
    missed = json.loads(night.missed or "{}")
    if missed:
        lines += ["", "## Not complete", "", "Run this date again when these sources can be listed:", ""]
        lines += [f"- {_markdown(source)}: {_markdown(why)}" for source, why in missed.items()]
    ids = json.loads(night.flagged)
    if ids:
        lines += ["", "## Flagged for the first time", ""]
        lines += ["A flag is a claim that a person must judge: `finextract-tui`.", ""]
        scans = {s.checkpoint_id: s for s in store.scans_of(night.config_id, ids)}
        rows = store.select(Checkpoint, "WHERE checkpoint_id IN (SELECT unnest(?))", [ids])
        rows.sort(key=lambda c: -(scans[c.checkpoint_id].best_similarity or 0))
        lines += [_flagged(row, scans[row.checkpoint_id]) for row in rows]
    reasons = count_reasons(store, night.config_id, since=night.started_at)
    for verdict, title in (("failed", "Failed, to be retried by the next crawl"), ("skipped", "Skipped")):
        some = [_reason(reason) for reason in reasons if reason.verdict == verdict]
        if some:
            lines += ["", f"## {title}", "", *some]
    return "\n".join(lines) + "\n"


def _reason(reason: ReasonCount) -> str:
    example = f"{reason.repo}: {shorter(reason.reason, reason.repo)}"
    return f"- {reason.count:,} × {_markdown(reason.label)}, for example {_markdown(example)}"


def _flagged(checkpoint: Checkpoint, scan: Scan) -> str:
    evidence = f"similarity {scan.best_similarity or 0:.2f}, q {scan.q_value or 0:.3f}"
    return f"- {_markdown(checkpoint.repo)}: {evidence}; {_markdown(checkpoint.url)}"


def _markdown(text: str) -> str:
    """An untrusted text as one line of Markdown without markup."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c for c in for_terminal(text))
