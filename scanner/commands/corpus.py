"""`scanner corpus`: the images that a scan looks for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scanner.commands.options import store_option
from scanner.errors import CorpusError

if TYPE_CHECKING:
    from scanner.match.corpus import Added

SHOWN = 5  # images that were left out; the rest is counted


@click.group(name="corpus")
def command() -> None:
    """Add and list the images to look for."""


@command.command()
@click.argument("name")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--background", is_flag=True, help="Images nothing was trained on: the null that a flag is held against."
)
@store_option
def add(name: str, folder: Path, background: bool, store: str) -> None:
    """Read the images below DIR and keep their embeddings as the corpus NAME.

    Run it again when DIR has changed: only new images are read.
    """
    from scanner.commands.output import plain
    from scanner.crawl.worker import Embedder
    from scanner.match.corpus import add as add_images
    from scanner.match.corpus import image_files
    from scanner.records import Role
    from scanner.store.store import Store

    if not name.isprintable() or not name.strip() or len(name) > 100:
        raise CorpusError("a corpus needs a printable name of at most 100 characters.")
    image_files(folder)  # a wrong folder makes no store
    opened = Store(store, create=True)
    role = Role.BACKGROUND if background else Role.REFERENCE
    done = _shown(add_images(opened, name, folder, Embedder(), role))
    click.echo(
        f"{name}: {done.added} added, {done.unchanged} unchanged, {len(done.left_out)} left out; "
        + ("a background" if background else "images to look for"),
        err=True,
    )
    if done.repeated:
        click.echo(f"  {done.repeated} are copies of others and count once.", err=True)
    for path, reason in list(done.left_out.items())[:SHOWN]:
        click.echo(plain(f"  left out: {path.relative_to(folder)} {reason}"), err=True)
    if len(done.left_out) > SHOWN:
        click.echo(f"  and {len(done.left_out) - SHOWN} more", err=True)
    if done.removed:
        click.echo(
            f"  {done.removed} of its images are not in {folder} any more; they stay in the corpus.", err=True
        )


def _shown(progress: Iterator[Added]) -> Added:
    """Runs to the end, with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console) if console.is_terminal else None
    with bar or contextlib.nullcontext():
        task = bar.add_task("embedding") if bar else None
        for done in progress:
            if bar is not None and task is not None:
                seen = done.added + done.unchanged + done.repeated + len(done.left_out)
                bar.update(task, total=done.found, completed=seen)
    return done


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@store_option
def list_(as_json: bool, store: str) -> None:
    """Show the corpora of the store."""
    from scanner.match.corpus import summaries
    from scanner.store.store import Store

    rows = summaries(Store(store))
    if as_json:
        click.echo(json.dumps(rows, default=lambda time: time.isoformat(), indent=2))
        return
    if not rows:
        click.echo("No corpus yet. Make one with `scanner corpus add NAME DIR`.", err=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("corpus", "role", "images", "descriptor", box=None, pad_edge=False)
    for row in rows:
        table.add_row(str(row["name"]), str(row["role"]), str(row["images"]), ", ".join(row["descriptors"]))  # type: ignore[arg-type]
    Console(markup=False, highlight=False).print(table)
