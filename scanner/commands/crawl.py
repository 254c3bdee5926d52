"""`scanner crawl`: list, scan what has no verdict yet, and say what came out."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from types import FrameType

import click

from scanner.commands.output import outcome_table, plain
from scanner.config import ScanConfig, default_cache
from scanner.fetch import parse_size
from scanner.records import Checkpoint, Scan, Verdict, new_id
from scanner.store import Store, default_store
from scanner.summary import outcomes, sum_up


@click.command("crawl")
@click.option("--source", required=True, metavar="SOURCE", help="hf, or folder:PATH.")
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="Listed entries at most."
)
@click.option(
    "--store", default=default_store, metavar="DIR", help="The store.  [default: $FINEXTRACT_STORE]"
)
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
    help="The base model (or its folder) of checkpoints that tell none; of all in a folder: source.",
)
@click.option(
    "--max-download",
    default="10GB",
    show_default=True,
    metavar="SIZE",
    help="Skip a checkpoint with more to download.",
)
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
@click.option("--ray-address", metavar="ADDRESS", help="A running Ray cluster.  [default: start one here]")
@click.option("--workers", type=click.IntRange(1), help="Scans at once.  [default: one a GPU, or one a core]")
@click.option("--fail-on-flag", is_flag=True, help="Exit with 1 where something was flagged.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def command(
    source: str, limit: int, store: str, corpora: tuple[str, ...], base: str | None, max_download: str,
    samples_per_image: int, assume_train_images: int, steps: int, guidance_scale: float | None,
    correction: float | None, seed: int, alpha: float, keep_weights: bool, ray_address: str | None,
    workers: int | None, fail_on_flag: bool, as_json: bool,
) -> int:  # fmt: skip
    """List fine-tuned checkpoints, and scan those that have no verdict yet.

    Can be stopped at any moment: the same command goes on where it stopped.
    """
    for name in (signal.SIGINT, signal.SIGTERM):  # a shell may have SIGINT ignored in the background
        signal.signal(name, _interrupt)
    opened = Store(store)
    settings = ScanConfig(
        guidance_scale=guidance_scale,
        correction=correction,
        samples_per_image=samples_per_image,
        assumed_train_images=assume_train_images,
        steps=steps,
        seed=seed,
        alpha=alpha,
    )
    max_bytes = parse_size(max_download)
    config = with_corpora(opened, settings, list(corpora))
    verdicts, listed = _run(
        opened, config, source, limit, base, max_bytes, keep_weights, ray_address, workers
    )
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
        click.echo(f"Look at what was flagged: finextract-tui --store {opened.root}", err=True)
    if verdicts[Verdict.FAILED]:
        click.echo("The failed ones are tried again when the same command is run again.", err=True)
    failed = any(row["verdict"] == Verdict.FAILED for row in rows)
    flagged = any(row["verdict"] == Verdict.FLAGGED for row in rows)
    return 3 if failed else 1 if flagged and fail_on_flag else 0


def with_corpora(store: Store, config: ScanConfig, names: list[str]) -> ScanConfig:
    """The configuration with its corpora and the tau that their background gives.

    Raises CorpusError where a named corpus is unknown, or there is no reference or no background.
    """
    from dataclasses import replace

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


def _run(
    store: Store, config: ScanConfig, source_spec: str, limit: int, base: str | None, max_bytes: int,
    keep_weights: bool, ray_address: str | None, workers: int | None,
) -> tuple[Counter[Verdict], set[str]]:  # fmt: skip
    """Lists and scans; returns this run's verdicts, and the ids of what was listed."""
    from scanner.engine import crawl, make_plan
    from scanner.sources.base import local_base, open_source
    from scanner.worker import Task

    source = open_source(source_spec, base=base)
    if config.config_id not in {row["config_id"] for row in store.query("SELECT config_id FROM configs")}:
        store.append([config.row()])
    click.echo(f"listing {source.name} (at most {limit} entries) ...", err=True)
    plan = make_plan(source, store, config.config_id, limit)
    todo = plan.todo
    click.echo(
        f"{plan.listed} entries, {len(plan.planned)} checkpoints, "
        f"{len(plan.planned) - len(todo)} finished before, {len(todo)} to do; "
        f"a flag needs similarity >= {config.tau:.2f} and q <= {config.alpha:g}",
        err=True,
    )
    count = workers or max(1, (os.cpu_count() or 1))
    task = Task(
        store=str(store.root),
        source=source.name,
        base=local_base(base),
        config=config,
        run_id=new_id(),
        cache=str(default_cache()),
        max_download=max_bytes,
        keep_weights=keep_weights,
        threads=0 if ray_address else max(1, (os.cpu_count() or 1) // count),
    )
    try:
        verdicts = crawl(task, plan, store, address=ray_address, workers=workers, report=_report)
    except KeyboardInterrupt:
        click.echo(
            f"\nscanner: interrupted; {sum_up(store, config.config_id)}\n"
            "Run the same command again to go on where it stopped.",
            err=True,
        )
        sys.exit(130)
    return verdicts, set(plan.planned)


def _report(checkpoint: Checkpoint, scan: Scan, done: int, total: int) -> None:
    seconds = (scan.finished_at - scan.started_at).total_seconds()
    line = f"[{done}/{total}] {scan.verdict.value.replace('_', ' '):13} {plain(checkpoint.repo)}"
    if scan.best_similarity is not None and scan.q_value is not None:
        line += f"  best {scan.best_similarity:.2f}, q {scan.q_value:.3f}"
    if scan.reason:
        line += f"  {plain(scan.reason)}"
    click.echo(f"{line}  ({seconds:.0f} s)", err=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
