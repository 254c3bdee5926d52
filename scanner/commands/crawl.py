"""`scanner crawl`: list, scan what has no verdict yet, and say what came out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from scanner.commands.options import store_option
from scanner.commands.output import Listed, outcome_table
from scanner.commands.progress import Terminal
from scanner.config import ScanConfig, default_cache
from scanner.errors import ConfigError
from scanner.fetch import parse_size
from scanner.records import Checkpoint, Prospect, Verdict, new_id
from scanner.store import Store
from scanner.summary import outcomes, sum_up

if TYPE_CHECKING:
    from scanner.planning import Plan
    from scanner.sources.base import Query, Source
    from scanner.worker import Task


QUIET_S = 10.0  # between two words on the limits of one host


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
def command(
    source: str, limit: int, since: str | None, filters: tuple[str, ...], base_model: str | None,
    list_only: bool, dry_run: bool, store: str, corpora: tuple[str, ...], base: str | None,
    max_download: str, cache_size: str, samples_per_image: int, assume_train_images: int, steps: int,
    guidance_scale: float | None, correction: float | None, seed: int, alpha: float, keep_weights: bool,
    allow_pickle: bool, ray_address: str | None, workers: int | None, fail_on_flag: bool, as_json: bool,
) -> int:  # fmt: skip
    """List fine-tuned checkpoints, and scan those that have no verdict yet.

    Can be stopped at any moment: the same command goes on where it stopped.
    """
    from scanner.crew import check_cluster
    from scanner.sources.base import Query, is_repo, local_base, open_source

    for name in (signal.SIGINT, signal.SIGTERM):  # a shell may have SIGINT ignored in the background
        signal.signal(name, _interrupt)
    max_bytes, cache_bytes = parse_size(max_download), parse_size(cache_size)
    asked = open_source(source, base=base, allow_pickle=allow_pickle)
    if base_model is not None and (source != "hf" or not is_repo(base_model)):
        raise ConfigError(f"--base-model {base_model}: it takes OWNER/NAME, and goes with --source hf only.")
    if filters and source.startswith("folder:"):
        raise ConfigError("--filter goes with --source hf and civitai only: a folder has no tags.")
    if ray_address is not None and not (list_only or dry_run):
        check_cluster(ray_address)
    if list_only or dry_run:
        with contextlib.ExitStack() as held:
            if dry_run and not Path(store).is_dir():  # nothing is known yet, and nothing will be written
                store = held.enter_context(tempfile.TemporaryDirectory())
            opened = Store(store, create=True)
            query = Query(limit, _since(since, opened, asked), filters, base_model)
            found = Listed(max_bytes, as_json=as_json)
            _plan(asked, opened, query, None, base, write=not dry_run, tell=found.add)
        found.show(dry_run=dry_run)
        return 3 if found.counts[Prospect.UNAVAILABLE] else 0
    opened = Store(store)
    query = Query(limit, _since(since, opened, asked), filters, base_model)
    from scanner.worker import Task

    config = with_corpora(
        opened,
        ScanConfig(
            guidance_scale=guidance_scale,
            correction=correction,
            samples_per_image=samples_per_image,
            assumed_train_images=assume_train_images,
            steps=steps,
            seed=seed,
            alpha=alpha,
        ),
        list(corpora),
    )
    cores = os.cpu_count() or 1
    task = Task(
        store=opened.uri,
        source=asked.name,
        base=local_base(base),
        config=config,
        run_id=new_id(),
        cache=str(default_cache()),
        max_download=max_bytes,
        cache_bytes=cache_bytes,
        keep_weights=keep_weights,
        allow_pickle=allow_pickle,
        threads=0 if ray_address else max(1, cores // (workers or cores)),
    )
    verdicts, listed = _run(opened, task, asked, query, ray_address, workers)
    rows = [r for r in outcomes(opened, config.config_id) if r["checkpoint_id"] in listed]
    total = sum_up(opened, config.config_id)
    if as_json:
        click.echo(
            json.dumps({"config_id": config.config_id, **total.as_dict(), "checkpoints": rows}, indent=2)
        )
    else:
        outcome_table(rows)
    click.echo(str(total), err=True)
    if total.flagged:
        click.echo(f"Look at what was flagged: finextract-tui --store {opened.uri}", err=True)
    if verdicts[Verdict.FAILED]:
        click.echo("The failed ones are tried again when the same command is run again.", err=True)
    failed = any(row["verdict"] == Verdict.FAILED for row in rows)
    flagged = any(row["verdict"] == Verdict.FLAGGED for row in rows)
    return 3 if failed else 1 if flagged and fail_on_flag else 0


def with_corpora(store: Store, config: ScanConfig, names: list[str]) -> ScanConfig:
    """The configuration with its corpora and the tau that their background gives.

    Raises CorpusError where a named corpus is unknown, or there is no reference or no background.
    """
    from finextract.significance import tau_from_background
    from scanner.corpus import load_corpora
    from scanner.matching import split, warn_if_small

    corpora = load_corpora(store, names, config.descriptor)
    references, background = split(corpora)
    if warning := warn_if_small(sum(len(c.reference_ids) for c in references), len(background), config.alpha):
        click.echo(f"warning: {warning}", err=True)
    return replace(
        config,
        tau=round(tau_from_background(background, config.tau_quantile), 4),
        corpora={c.name: f"{c.role.value}:{c.digest}" for c in sorted(corpora, key=lambda c: c.name)},
    )


def _since(text: str | None, store: Store, source: Source) -> datetime | None:
    """--since as a time, UTC. Raises ConfigError for what is no date."""
    from scanner.planning import last_finished

    if text is None:
        return None
    if text == "last":
        return last_finished(store, source)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--since {text} is no date. Write it as 2026-11-24, or as `last`.") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _plan(
    source: Source, store: Store, query: Query, config_id: str | None, base: str | None, *, write: bool,
    tell: Callable[[Checkpoint], None] = lambda _: None,
) -> Plan:  # fmt: skip
    """Lists and inspects, and tells how far it has come and whom it waits for."""
    from scanner import client
    from scanner.planning import make_plan

    click.echo(f"listing {source.name} (at most {query.limit} entries) ...", err=True)

    def told(plan: Plan) -> None:
        if plan.resumed is not None and plan.listed == plan.resumed.listed:
            began = plan.resumed.started_at.astimezone()
            click.echo(
                f"going on with the listing of {began:%Y-%m-%d %H:%M}, from entry {plan.listed:,}", err=True
            )
        if sys.stderr.isatty():
            click.echo(f"\r{plan.listed} listed, {plan.inspected} inspected ", nl=False, err=True)

    shown: dict[str, float] = {}  # host -> when its limits were last spoken of

    def limited(waiting: client.Waiting) -> None:
        if time.monotonic() - shown.get(waiting.host, -QUIET_S) >= QUIET_S:
            shown[waiting.host] = time.monotonic()
            click.echo(f"\r{waiting}", err=True)

    with client.watched(limited):
        try:
            plan = make_plan(
                source, store, query, config_id=config_id, base_given=base is not None, write=write,
                report=told, tell=tell,
            )  # fmt: skip
        except KeyboardInterrupt:
            click.echo("\nscanner: interrupted. Run the same command again to go on.", err=True)
            sys.exit(130)
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
    if coverage := source.coverage():
        click.echo(f"{source.name}: {coverage}", err=True)
    return plan


def _run(
    store: Store, task: Task, source: Source, query: Query, ray_address: str | None, workers: int | None
) -> tuple[Counter[Verdict], set[str]]:
    """Lists and scans; returns this run's verdicts, and the ids of what was listed."""
    from scanner.engine import crawl

    config = task.config
    store.append([config.row()])  # again where it is known: the newest is the one used last
    plan = _plan(source, store, query, config.config_id, task.base, write=True)
    if not plan.listed:
        click.echo("Nothing was listed. Loosen --since, --filter or --base-model.", err=True)
    todo = plan.todo
    click.echo(
        f"{plan.listed} entries, {len(plan.planned)} checkpoints, "
        f"{len(plan.planned) - len(todo)} finished before, {len(todo)} to do; "
        f"a flag needs similarity >= {config.tau:.2f} and q <= {config.alpha:g}",
        err=True,
    )
    try:
        with Terminal() as terminal:
            verdicts = crawl(
                task, plan, store, address=ray_address, workers=workers, report=terminal.report,
                tick=terminal.tick,
            )  # fmt: skip
    except KeyboardInterrupt:
        click.echo(
            f"\nscanner: interrupted; {sum_up(store, config.config_id)}\n"
            "Run the same command again to go on where it stopped.",
            err=True,
        )
        sys.exit(130)
    return verdicts, set(plan.planned)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
