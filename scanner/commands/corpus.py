"""`scanner corpus`: the reference images that candidates are compared with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scanner.commands.options import store_option
from scanner.commands.purge import remove_corpus, yes_option
from scanner.errors import ConfigError, CorpusError
from scanner.text import for_terminal

if TYPE_CHECKING:
    from scanner.match.corpus import Added

SHOWN = 5  # images that could not be used; the others are counted
MEANINGS = {
    "reference": "a corpus of references",
    "background": "a background",
    "unseen": "unseen works of the owner",
}


@click.group(name="corpus")
def command() -> None:
    """Add, list and remove corpora: reference images, backgrounds and unseen works."""


@command.command()
@click.argument("name")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--background",
    is_flag=True,
    help="Images that no checkpoint was trained on: flags are judged against them.",
)
@click.option(
    "--unseen",
    is_flag=True,
    help="Works of yours that were never published, so that no checkpoint was trained on them: flags are "
    "judged against them too.",
)
@store_option
def add(name: str, folder: Path, background: bool, unseen: bool, store: str) -> None:
    """Embed the images below DIR and store them as the corpus NAME.

    Run the command again when DIR has changed: only new images are embedded. The store keeps a copy of each
    picture, at most 1,024 pixels on its longer side, which workers on other machines read.
    """
    from scanner.crawl.worker import SscdEmbedder
    from scanner.match.corpus import add as add_images
    from scanner.match.corpus import image_files, on_both_sides
    from scanner.records import Role
    from scanner.store.store import Store

    if not name.isprintable() or not name.strip() or len(name) > 100:
        raise CorpusError("a corpus needs a printable name of at most 100 characters.")
    if background and unseen:
        raise ConfigError(
            "--background and --unseen exclude each other: a background is made of other people's images, "
            "unseen works are your own.\nAdd the two as two corpora."
        )
    image_files(folder)  # a wrong folder creates no store
    opened = Store(store, create=True)
    role = Role.BACKGROUND if background else Role.UNSEEN if unseen else Role.REFERENCE
    done = _shown(add_images(opened, name, folder, SscdEmbedder(), role))
    click.echo(
        f"{name}: {done.added} added, {done.unchanged} unchanged, {len(done.unusable)} not usable; "
        + MEANINGS[role],
        err=True,
    )
    if done.repeated:
        click.echo(f"  {done.repeated} are copies of others and are counted once.", err=True)
    for path, reason in list(done.unusable.items())[:SHOWN]:
        click.echo(for_terminal(f"  not usable: {path.relative_to(folder)} {reason}"), err=True)
    if len(done.unusable) > SHOWN:
        click.echo(f"  and {len(done.unusable) - SHOWN} more", err=True)
    if done.removed:
        click.echo(
            f"  {done.removed} images of the corpus are not in {folder} any more; they stay in the corpus.",
            err=True,
        )
    for other, images in on_both_sides(opened, name).items():
        click.echo(
            f"  {images} of the images are in {for_terminal(other)} as well. An image cannot be a reference "
            "and a part of the null: it counts as a reference alone.",
            err=True,
        )


def _shown(progress: Iterator[Added]) -> Added:
    """Runs to the end, with a progress line on a terminal."""
    from scanner.commands.progress import ProgressLine

    with ProgressLine() as line:
        for done in progress:
            completed = done.added + done.unchanged + done.repeated + len(done.unusable)
            line.update("embedding", completed, done.found, f"{completed:,}/{done.found:,}")
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
        click.echo("The store has no corpus. Add one with `scanner corpus add NAME DIR`.", err=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("corpus", "role", "images", "descriptor", box=None, pad_edge=False)
    for row in rows:
        cells = (row["name"], row["role"], row["images"], ", ".join(row["descriptors"]))  # type: ignore[arg-type]
        table.add_row(*(for_terminal(str(cell)) for cell in cells))
    Console(markup=False, highlight=False).print(table)


@command.command()
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Remove nothing; tell what would be removed.")
@yes_option
@store_option
def remove(name: str, dry_run: bool, yes: bool, store: str) -> None:
    """Remove a corpus for good, with all that was found about its images.

    Scans that were flagged for it alone are flagged no more. What checkpoints gave back stays: it belongs to
    them, and `scanner purge --checkpoint` removes it.
    """
    from scanner.store.store import Store

    remove_corpus(Store(store), name, yes=yes, dry_run=dry_run)
