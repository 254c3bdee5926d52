"""`scanner compact`: fewer and larger files in the store."""

from __future__ import annotations

import click

from scanner.commands.options import store_option


@click.command("compact")
@store_option
def command(store: str) -> None:
    """Rewrite the many small files that crawls write as few large ones; safe while others read and write.

    Files that were replaced more than an hour ago are deleted.
    """
    from scanner.store.compaction import compact
    from scanner.store.store import Store

    files = 0
    for done in compact(Store(store)):
        files += done.files
        if done.files:
            click.echo(f"{done.table}: {done.files:,} files compacted, {done.rows:,} rows", err=True)
    if not files:
        click.echo("Nothing to do: no table has more than one new file.", err=True)
