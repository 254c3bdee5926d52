"""`scanner crawl`: lists a source and scans what has no verdict yet."""

from __future__ import annotations

import json
import signal
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from scanner.commands.options import crawl_options, scan_options, store_option
from scanner.commands.output import (
    CHECKPOINT_FIELDS,
    SHOWN_ROWS,
    listing_as_dict,
    marked_counts,
    outcome_table,
    say,
    show_listing,
)
from scanner.commands.progress import RESUME, Terminal
from scanner.errors import ConfigError
from scanner.hubs.registry import USAGES
from scanner.records import Checkpoint, InspectionStatus, Verdict
from scanner.store.queries import outcomes
from scanner.store.store import Store

if TYPE_CHECKING:
    from scanner.crawl.service import CrawlOptions, CrawlResult


@click.command("crawl")
@click.option("--source", required=True, metavar="SOURCE", help=f"One of: {USAGES}.")
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="The most entries to list."
)
@click.option(
    "--since",
    metavar="DATE",
    help="Published on that day (2026-11-24) or later; `last`: since the last finished listing.",
)
@click.option("--list-only", is_flag=True, help="List and inspect; download no weights and scan nothing.")
@click.option(
    "--dry-run", is_flag=True, help="List and inspect, write nothing, and show what a crawl would do."
)
@store_option
@scan_options()
@click.option("--fail-on-flag", is_flag=True, help="Exit with code 1 if a listed checkpoint is flagged.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.option("--jsonl", is_flag=True, help="Print each verdict as a line of JSON as soon as it is recorded.")
def command(
    list_only: bool, dry_run: bool, fail_on_flag: bool, as_json: bool, jsonl: bool, **given: Any
) -> int:
    """List fine-tuned checkpoints, and scan those that have no verdict yet.

    A crawl can be interrupted at any time: run the same command again to resume it.

    Exit codes: 0 every listed checkpoint has a verdict and none failed; 1 the same, and one is flagged
    (--fail-on-flag); 2 an option cannot be used, or the source could not be listed to its end; 3 some
    checkpoints failed; 130 interrupted; 141 the reader of --jsonl has ended.
    """
    from scanner.crawl.service import crawl

    if jsonl and (as_json or list_only or dry_run):
        raise ConfigError(
            "--jsonl prints verdicts while a crawl scans: --json, --list-only and --dry-run exclude it."
        )
    catch_signals()
    options = crawl_options(given)
    if list_only or dry_run:
        return _list(options, dry_run=dry_run, as_json=as_json)
    if jsonl:
        result = _stream(options)
    else:
        with Terminal() as terminal:
            result = crawl(options, terminal)
    _show(result, Store(options.store), as_json=as_json, jsonl=jsonl)
    if result.cut_short is not None:
        raise result.cut_short
    return 3 if result.counts.failed else 1 if result.counts.flagged and fail_on_flag else 0


def _stream(options: CrawlOptions) -> CrawlResult:
    """Crawls, and writes the lines of --jsonl to stdout."""
    from scanner.commands.feed import Feed, to_stdout
    from scanner.crawl.progress import Observers
    from scanner.crawl.service import crawl

    try:
        with Terminal() as terminal, Feed(to_stdout) as feed:
            result = crawl(options, Observers(terminal, feed))
            feed.ended(result)
    except BrokenPipeError:
        click.echo(f"Nobody reads the lines any more, so the crawl has ended. {RESUME}", err=True)
        raise
    return result


def _show(result: CrawlResult, store: Store, *, as_json: bool, jsonl: bool) -> None:
    """Prints the verdicts of the listed checkpoints to stdout, and the rest to stderr."""
    if not result.listed:
        click.echo("Nothing was listed. Try other values of --since, --filter or --base-model.", err=True)
    ids = result.checkpoint_ids
    if as_json:
        rows = outcomes(store, result.config_id, among=ids)
        shown = {"config_id": result.config_id, **result.counts.as_dict(), "store": result.total.as_dict(),
                 "checkpoints": rows}  # fmt: skip
        click.echo(json.dumps(shown, indent=2))
    elif not jsonl:
        outcome_table(outcomes(store, result.config_id, among=ids, limit=SHOWN_ROWS), result.counts.planned)
    for counts in (result.counts, result.total):
        say(marked_counts(counts), err=True)
    if result.total.flagged:
        click.echo(f"To review what is flagged: finextract-tui --store {store.uri}", err=True)
    if result.verdicts.get(Verdict.FAILED):
        click.echo("Run the same command again to retry the failed checkpoints.", err=True)


def _list(options: CrawlOptions, *, dry_run: bool, as_json: bool) -> int:
    """Lists and inspects only."""
    from scanner.crawl.service import list_and_inspect

    rows: list[dict[str, Any]] = []

    class Listing(Terminal):
        def checkpoint_listed(self, checkpoint: Checkpoint) -> None:
            if as_json or (
                checkpoint.inspection_status is not InspectionStatus.READY and len(rows) < SHOWN_ROWS
            ):
                rows.append({name: getattr(checkpoint, name) for name in CHECKPOINT_FIELDS})

    with Listing() as terminal:
        result = list_and_inspect(options, terminal, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(listing_as_dict(result) | {"checkpoints": rows}, indent=2))
    else:
        show_listing(result, rows, options.max_download, dry_run=dry_run)
    if result.cut_short is not None:
        raise result.cut_short
    return 3 if result.unavailable else 0


def catch_signals() -> None:
    """SIGINT and SIGTERM raise KeyboardInterrupt; a shell may have SIGINT ignored in the background."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
