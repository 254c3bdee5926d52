"""`scanner crawl`: list, scan what has no verdict yet, and say what came out."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from scanner.commands.options import store_option
from scanner.commands.output import SHOWN_ROWS, ListingSummary, outcome_table
from scanner.commands.progress import Terminal
from scanner.records import InspectionStatus, Verdict
from scanner.store.queries import count_verdicts, outcomes
from scanner.store.store import Store
from scanner.units import parse_size

if TYPE_CHECKING:
    from scanner.crawl.service import Options
    from scanner.hubs.base import Source


@click.command("crawl")
@click.option("--source", required=True, metavar="SOURCE", help="hf, civitai, or folder:PATH.")
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="Listed entries at most."
)
@click.option(
    "--since",
    metavar="DATE",
    help="Published on that day (2026-11-24) or later; `last`: since the last finished listing.",
)
@click.option(
    "--filter", "filters", multiple=True, metavar="TAG",
    help="List by this tag instead of those that find fine-tunes; again: all of them (hf, civitai).",
)  # fmt: skip
@click.option("--base-model", metavar="OWNER/NAME", help="Only what was tuned from this base (hf).")
@click.option("--list-only", is_flag=True, help="List and inspect; download no weights, scan nothing.")
@click.option("--dry-run", is_flag=True, help="List and inspect; write nothing, say what a crawl would do.")
@store_option
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    metavar="NAME",
    help="A corpus to look for, or a background; may be given again.  [default: all]",
)
@click.option(
    "--base",
    metavar="OWNER/NAME",
    help="The base (or its folder or file) of checkpoints that tell none; of all in a folder: source.",
)
@click.option(
    "--max-download",
    default="10GB",
    show_default=True,
    metavar="SIZE",
    help="Skip a checkpoint with more to download.",
)
@click.option(
    "--cache-size", default="50GB", show_default=True, metavar="SIZE",
    help="Downloads kept in all, bases included; the least recently used goes first.",
)  # fmt: skip
@click.option(
    "--samples-per-image",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Samples drawn for each training image that the checkpoint may have.",
)
@click.option(
    "--assume-train-images",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    metavar="N0",
    help="Training images of a checkpoint that does not tell.",
)
@click.option("--steps", type=click.IntRange(1, 1000), default=50, show_default=True, help="Sampling steps.")
@click.option(
    "--guidance-scale",
    type=float,
    metavar="W",
    help="w' of the method.  [default: 3 for full weights, 5 for LoRA]",
)
@click.option(
    "--correction",
    type=float,
    metavar="K",
    help="k of the method.  [default: -0.02 for full weights, 0 for LoRA]",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the first sample."
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.05,
    show_default=True,
    help="False-discovery level of a flag.",
)
@click.option("--keep-weights", is_flag=True, help="Keep downloaded checkpoints after their scan.")
@click.option(
    "--allow-pickle", is_flag=True,
    help="Convert pickled checkpoints that pass every gate, and scan them.",
)  # fmt: skip
@click.option("--ray-address", metavar="ADDRESS", help="A running Ray cluster.  [default: start one here]")
@click.option("--workers", type=click.IntRange(1), help="Scans at once.  [default: one a GPU, or one a core]")
@click.option("--fail-on-flag", is_flag=True, help="Exit with 1 where something was flagged.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def command(**given: Any) -> int:
    """List fine-tuned checkpoints, and scan those that have no verdict yet.

    Can be stopped at any moment: the same command goes on where it stopped.
    """
    from scanner.crawl.service import Options, list_and_scan

    catch_signals()
    options = Options(**given)
    source = options.open_source()
    if options.list_only or options.dry_run:
        return _list(options, source)
    store = Store(options.store)
    query = options.query(store, source)
    with Terminal() as terminal:
        task = options.task(store, source, terminal)
        config_id = task.config.config_id
        store.append([task.config.row()])  # again where it is known: the newest is the one used last
        with interruptible(terminal, store, config_id):
            plan, verdicts = list_and_scan(source, store, query, task, options, terminal)
    if plan.cut_short is not None and not plan.listed:
        raise plan.cut_short
    if not plan.listed:
        click.echo("Nothing was listed. Loosen --since, --filter or --base-model.", err=True)
    planned = list(plan.planned)
    total, here = count_verdicts(store, config_id), count_verdicts(store, config_id, among=planned)
    if options.as_json:
        rows = outcomes(store, config_id, among=planned)
        click.echo(json.dumps({"config_id": config_id, **total.as_dict(), "checkpoints": rows}, indent=2))
    else:
        outcome_table(outcomes(store, config_id, among=planned, limit=SHOWN_ROWS), here.planned)
    click.echo(str(total), err=True)
    if total.flagged:
        click.echo(f"Look at what was flagged: finextract-tui --store {store.uri}", err=True)
    if verdicts[Verdict.FAILED]:
        click.echo("The failed ones are tried again when the same command is run again.", err=True)
    if plan.cut_short is not None:
        raise plan.cut_short
    return 3 if here.failed else 1 if here.flagged and options.fail_on_flag else 0


def _list(options: Options, source: Source) -> int:
    """Lists and inspects alone."""
    from scanner.crawl.service import list_and_inspect

    found = ListingSummary(parse_size(options.max_download), as_json=options.as_json)
    with contextlib.ExitStack() as held:
        place = options.store
        if options.dry_run and "://" not in place and not Path(place).is_dir():
            place = held.enter_context(tempfile.TemporaryDirectory())  # nothing is known, or will be written
        store = Store(place, create=True)
        query = options.query(store, source)
        with Terminal() as terminal, interruptible(terminal):
            terminal.checkpoint_listed = found.add  # type: ignore[method-assign]
            list_and_inspect(source, store, query, options.base, write=not options.dry_run, observer=terminal)
    found.show(dry_run=options.dry_run)
    return 3 if found.counts[InspectionStatus.UNAVAILABLE] else 0


@contextlib.contextmanager
def interruptible(terminal: Terminal, store: Store | None = None, config_id: str = "") -> Iterator[None]:
    """Exits with 130 after an interrupt, and says how to resume."""
    try:
        yield
    except KeyboardInterrupt as error:
        terminal.__exit__(type(error), error, None)
        if store is None:
            click.echo("\nscanner: interrupted. Run the same command again to go on.", err=True)
        else:
            click.echo(
                f"\nscanner: interrupted; {count_verdicts(store, config_id)}\n"
                "Run the same command again to go on where it stopped.",
                err=True,
            )
        sys.exit(130)


def catch_signals() -> None:
    """SIGINT and SIGTERM interrupt; a shell may have SIGINT ignored in the background."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
