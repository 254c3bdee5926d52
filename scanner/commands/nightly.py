"""`scanner nightly`: what a scheduler runs once a day."""

from __future__ import annotations

import math
from datetime import date as Date
from typing import Any

import click

from scanner.commands.crawl import catch_signals
from scanner.commands.options import SIZE, crawl_options, scan_options, store_option
from scanner.commands.progress import Terminal
from scanner.errors import ConfigError
from scanner.hubs.registry import NIGHTLY, USAGES
from scanner.records import Verdict
from scanner.store.store import Store


@click.command("nightly")
@click.option(
    "--source", "sources", multiple=True, metavar="SOURCE", default=NIGHTLY,
    help=f"One of: {USAGES}. May be given several times.  [default: {' and '.join(NIGHTLY)}]",
)  # fmt: skip
@click.option("--date", metavar="DATE", help="The date of the night, 2026-11-24.  [default: today]")
@click.option(
    "--limit", type=click.IntRange(1), default=10_000, show_default=True,
    help="The most entries to list of each source.",
)  # fmt: skip
@click.option(
    "--worker-hours", type=click.FloatRange(0, min_open=True),
    help="Begin no further scan when all workers together have worked this long.",
)  # fmt: skip
@click.option(
    "--max-bytes", metavar="SIZE", type=SIZE,
    help="Begin no further scan when this much has been downloaded: 500GB.",
)  # fmt: skip
@store_option
@scan_options(hidden=True)
def command(
    sources: tuple[str, ...], date: str | None, limit: int, worker_hours: float | None,
    max_bytes: int | None, **given: Any,
) -> int:  # fmt: skip
    """Crawl all sources since the last complete night, and scan what earlier nights left.

    The options of a scan are those of `scanner crawl`, from the command line or from [crawl] in
    scanner.toml. A complete night is not repeated: a second run with its date does nothing. Writes a report
    to STORE/reports/.

    Exit codes: 0 complete and nothing failed; 2 an option cannot be used, or a source could not be listed;
    3 complete, some checkpoints failed; 130 interrupted.
    """
    from scanner.crawl import nightly
    from scanner.crawl.progress import Budget

    catch_signals()
    day = _date(date)
    options = crawl_options(given, source=sources[0], limit=limit)
    store = Store(options.store)
    if nightly.complete(store, day) is not None:
        click.echo(f"The night of {day} is complete: nothing to do.", err=True)
        return 0
    budget = Budget(
        seconds=math.inf if worker_hours is None else worker_hours * 3600,
        size_bytes=math.inf if max_bytes is None else max_bytes,
    )
    with Terminal() as terminal:
        night = nightly.run(options, sources, day, budget=budget, observer=terminal)
    click.echo(nightly.report(store, night), nl=False)
    if night.finished_at is None:
        click.echo(f"The night of {day} is not complete: a source could not be listed.", err=True)
        return 2
    return 3 if night.verdicts.get(Verdict.FAILED.value) else 0


def _date(text: str | None) -> str:
    try:
        return (Date.fromisoformat(text) if text else Date.today()).isoformat()
    except ValueError:
        raise ConfigError(f"--date {text} is not a date. Write it as 2026-11-24.") from None
