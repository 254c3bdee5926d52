"""`scanner corpus`: the reference images that candidates are compared with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from scanner.commands.options import store_option
from scanner.commands.purge import remove_corpus, yes_option
from scanner.errors import ConfigError, CorpusError
from scanner.text import for_terminal
from scanner.units import show_duration

if TYPE_CHECKING:
    from scanner.match.adding import Added
    from scanner.match.sources import Pictures

DEMO = (
    "These pictures are small clip art and emoji: good for trying the program out. They are unlike "
    "photographs and paintings, and a flag of such images that rests on them is no evidence."
)
SHOWN = 5  # images that could not be used; the others are counted
MEANINGS = {
    "reference": "a corpus of references",
    "background": "a background",
    "unseen": "unseen works of the owner",
}


@click.group(name="corpus")
def command() -> None:
    """Add, list and remove corpora: reference images, backgrounds and unseen works."""


BACKGROUND = """What a background must be: images of the same kind as yours (photographs for photographs,
    paintings for paintings) that no checkpoint was trained on and that show none of your images. With N
    images of your own, 20 N of them are needed before a single copied one can be flagged at a level of 5 %; a
    few dozen are enough for "trained on". Works of yours that were never published (--unseen) are better
    still. Good sources are pictures that were published after the checkpoints, such as new ones on Wikimedia
    Commons or in the open collections of museums."""


@command.command(
    help=f"""Embed pictures and store them as the corpus NAME.

    SOURCE is a folder, a picture, a list of paths or addresses (a .txt file with one on each line, or - for
    standard input), a table with a column of them (.csv, .tsv, .jsonl, .parquet; a Parquet column may hold
    the pictures themselves), a WebDataset shard (.tar), or an address. Several may be given. Relative paths
    are relative to the folder of their list.

    Run the command again when a source has changed, or after it was interrupted: only new images are
    embedded, and what an address holds is not downloaded again. The store keeps a copy of each picture, at
    most 1,024 pixels on its longer side, which workers on other machines read.

    {BACKGROUND}
    """
)
@click.argument("name")
@click.argument("sources", metavar="SOURCE...", nargs=-1)
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
@click.option("--column", metavar="NAME", help="The column of a table that names or holds the pictures.")
@click.option("--again", is_flag=True, help="Download again what was stored from an address before.")
@click.option(
    "--allow-private-addresses",
    is_flag=True,
    help="Download from addresses of private networks and of this machine too. A list may come from anybody, "
    "so they are refused without this option.",
)
@click.option(
    "--from-demo",
    is_flag=True,
    help="Add the 400 pictures of clip art and emoji that come with the program as a background. Good for "
    "trying the program, and for clip art. For photographs and paintings it is of another kind, and a "
    "flag that rests on it is no evidence.",
)
@store_option
def add(
    name: str, sources: tuple[str, ...], background: bool, unseen: bool, column: str | None, again: bool,
    allow_private_addresses: bool, from_demo: bool, store: str,
) -> None:  # fmt: skip
    from scanner.crawl.worker import SscdEmbedder
    from scanner.hubs.pictures import PictureDownloads
    from scanner.match.adding import add as add_images
    from scanner.match.duplicates import told_duplicates
    from scanner.match.sources import pictures_of_sources
    from scanner.match.sources.demo import demo_background
    from scanner.records import Role
    from scanner.store.store import Store

    _check(name, sources, background, unseen, from_demo, column)
    role = Role.BACKGROUND if background or from_demo else Role.UNSEEN if unseen else Role.REFERENCE
    with PictureDownloads(allow_private=allow_private_addresses) as download:
        # A wrong source creates no store.
        pictures = (
            demo_background() if from_demo else pictures_of_sources(sources, column=column, download=download)
        )
        opened, embedder = Store(store, create=True), SscdEmbedder()
        done = _shown(add_images(opened, name, pictures, embedder, role, again=again))
    click.echo(
        f"{for_terminal(name)}: {done.added} added, {done.unchanged} unchanged, {len(done.unusable)} not "
        f"usable; {MEANINGS[role]}",
        err=True,
    )
    for told in _told(done, pictures):
        click.echo(for_terminal(f"  {told}"), err=True)
    if from_demo:
        click.echo(f"  {DEMO}", err=True)
    if not done.added:
        return
    try:
        for told in told_duplicates(opened, name, embedder.descriptor):
            click.echo(for_terminal(f"  {told}"), err=True)
    except CorpusError as error:  # the images are stored all the same
        click.echo(for_terminal(f"  Near-duplicates were not looked for: {error}"), err=True)


def _check(
    name: str, sources: tuple[str, ...], background: bool, unseen: bool, from_demo: bool, column: str | None
) -> None:
    """Raises CorpusError or ConfigError for arguments that do not fit together."""
    if not name.isprintable() or not name.strip() or len(name) > 100:
        raise CorpusError("a corpus needs a printable name of at most 100 characters.")
    if background and unseen:
        raise ConfigError(
            "--background and --unseen exclude each other: a background is made of other people's images, "
            "unseen works are your own.\nAdd the two as two corpora."
        )
    if from_demo and (sources or unseen or column):
        raise ConfigError(
            "--from-demo is a background of its own: it takes no SOURCE, no --unseen and no --column."
        )
    if not sources and not from_demo:
        raise click.UsageError(
            "Pass what to add: a folder, a picture, a list, a table, a WebDataset shard or an address."
        )


def _told(done: Added, pictures: Pictures) -> Iterator[str]:
    """What else is to be said of the pictures that were added, a line each."""
    if done.repeated:
        yield (
            "1 is a copy of another and is counted once."
            if done.repeated == 1
            else f"{done.repeated:,} are copies of others and are counted once."
        )
    if done.animated:
        have = "has" if done.animated == 1 else "have"
        yield f"{done.animated} {have} several frames or pages: the first one was taken."
    problems = [*done.unusable, *pictures.problems]
    for label, reason in problems[:SHOWN]:
        yield f"not usable: {label} {reason}"
    if len(problems) > SHOWN:
        yield f"and {len(problems) - SHOWN} more"
    if done.not_downloaded:
        was = "was" if done.not_downloaded == 1 else "were"
        yield f"{done.not_downloaded} {was} not downloaded. The same command tries again."
    if pictures.not_read:
        named = ", ".join(pictures.not_read[:SHOWN]) + (", ..." if len(pictures.not_read) > SHOWN else "")
        yield (
            f"{len(pictures.not_read)} files are of kinds that are not read ({named}). Convert them to PNG "
            "or JPEG, and add those."
        )
    if done.removed:
        yield (
            f"{done.removed} images of the corpus are not in {pictures.named} any more; they stay in the "
            "corpus."
        )


def _shown(progress: Iterator[Added]) -> Added:
    """Runs to the end, with a progress line on a terminal."""
    from scanner.commands.progress import ProgressLine

    began = time.monotonic()
    done: Added | None = None
    try:
        with ProgressLine() as line:
            for done in progress:
                line.update("embedding", done.done, done.found, _status(done, time.monotonic() - began))
    except KeyboardInterrupt:
        kept = f"{done.added:,} images are" if done else "What was added is"
        click.echo(f"Interrupted. {kept} stored. Run the same command again to resume.", err=True)
        raise
    assert done is not None, "adding ends with its result"
    return done


def _status(done: Added, seconds: float) -> str:
    """How many of how many, how fast, and for how long still."""
    parts = [f"{done.done:,}/{done.found:,}"]
    rate = done.added / seconds if seconds > 1 else 0.0
    if rate:
        left = (done.found - done.done) / rate
        parts += [f"{rate:.3g} a second", f"{show_duration(left)} left"]
    return ", ".join(parts)


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
        click.echo("The store has no corpus. Add one with `scanner corpus add NAME SOURCE`.", err=True)
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
