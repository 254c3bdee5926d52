"""`scanner nightly`: what a scheduler runs once a day."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from datetime import date as Date
from typing import TYPE_CHECKING

import click

from scanner.commands import crawl as crawl_verb
from scanner.commands.options import store_option
from scanner.commands.progress import Terminal
from scanner.errors import ConfigError, SourceError
from scanner.records import Night, Verdict
from scanner.store.store import Store
from scanner.units import parse_size

if TYPE_CHECKING:
    from scanner.crawl.nightly import Shift
    from scanner.crawl.progress import Budget


@click.command("nightly")
@click.option(
    "--source", "sources", multiple=True, metavar="SOURCE",
    help="hf, civitai, or folder:PATH; may be given again.  [default: hf and civitai]",
)  # fmt: skip
@click.option("--date", metavar="DATE", help="The night's date.  [default: today]")
@click.option(
    "--limit", type=click.IntRange(1), default=10_000, show_default=True, help="Listed entries a source."
)
@click.option("--worker-hours", type=click.FloatRange(0, min_open=True), help="Begin no scan beyond that.")
@click.option("--max-bytes", metavar="SIZE", help="Begin no scan beyond that much downloaded: 500GB.")
@store_option
@click.pass_context
def command(
    ctx: click.Context, sources: tuple[str, ...], date: str | None, limit: int, worker_hours: float | None,
    max_bytes: str | None, store: str,
) -> int:  # fmt: skip
    """Crawl every source since the last complete night, and go on with what is left.

    Scans as `scanner crawl` does: its options come from [crawl] in scanner.toml. Run twice for one date, the
    second does nothing, unless a source could not be listed before. Writes a report to STORE/reports/.
    """
    from scanner.crawl import nightly
    from scanner.crawl.progress import Budget
    from scanner.store.compaction import compact

    crawl_verb.catch_signals()
    day = _date(date)
    opened = Store(store)
    done = nightly.complete(opened, day)
    if done is not None:
        click.echo(f"The night of {day} is complete: nothing to do.", err=True)
        return 0
    budget = Budget(
        seconds=math.inf if worker_hours is None else worker_hours * 3600,
        size_bytes=math.inf if max_bytes is None else parse_size(max_bytes),
    )
    shifts, config_id = [], ""
    for source in sources or ("hf", "civitai"):
        try:
            shift, config_id = _shift(ctx, opened, source, limit)
        except SourceError as error:  # a folder that is not there
            shift = _away(source, error)
        shifts.append(shift)
    night = nightly.run(opened, day, config_id, shifts, budget)
    for table in compact(opened):
        if table.files:
            click.echo(f"{table.table}: {table.files:,} files compacted", err=True)
    click.echo(nightly.report(opened, night), nl=False)
    if night.finished_at is None:
        click.echo(f"The night of {day} is not complete: not every source could be listed.", err=True)
        return 2
    return 3 if night.verdicts.get(Verdict.FAILED.value) else 0


def _shift(ctx: click.Context, store: Store, spec: str, limit: int) -> tuple[Shift, str]:
    """One source's part of the night, with the crawl's own options."""
    from scanner.crawl.nightly import OVERLAP, Shift
    from scanner.crawl.planning import plan_of_store
    from scanner.crawl.service import Options, list_and_inspect, scan
    from scanner.hubs.base import Query

    words = ["--source", spec, "--store", store.uri, "--limit", str(limit)]
    given = crawl_verb.command.make_context("crawl", words, parent=ctx.parent).params
    options = replace(Options(**given), list_only=False, dry_run=False)
    source = options.open_source()
    task = options.task(store, source, Terminal())
    config = task.config

    def list_since(before: Night | None) -> int:
        known = before is not None and spec in json.loads(before.sources)
        since = before.started_at - OVERLAP if before is not None and known else None
        query = Query(limit, since, options.filters, options.base_model, changed=True)
        store.append([config.row()])
        with Terminal() as terminal, crawl_verb.interruptible(terminal):
            return list_and_inspect(source, store, query, options.base, write=True, observer=terminal).listed

    def scan_rest(budget: Budget) -> Counter[Verdict]:
        plan = plan_of_store(source.name, store, config.config_id)
        with Terminal() as terminal, crawl_verb.interruptible(terminal, store, config.config_id):
            return scan(store, task, plan, options, budget, observer=terminal)

    def left() -> int:
        return len(plan_of_store(source.name, store, config.config_id).todo)

    return Shift(spec, list_since, scan_rest, left), config.config_id


def _away(spec: str, error: SourceError) -> Shift:
    """The part of a source that cannot even be opened."""
    from scanner.crawl.nightly import Shift

    def enlist(_: Night | None) -> int:
        raise error

    return Shift(spec, enlist, lambda _: None, lambda: 0)


def _date(text: str | None) -> str:
    try:
        return (Date.fromisoformat(text) if text else Date.today()).isoformat()
    except ValueError:
        raise ConfigError(f"--date {text} is no date. Write it as 2026-11-24.") from None
