"""`scanner compact`: fewer and larger files in the store."""

from __future__ import annotations

import click

from scanner.commands.options import store_option


@click.command("compact")
@store_option
def command(store: str) -> None:
    """Make the many small files that crawls write into one a table; safe while others read and write."""
    from scanner.store.compaction import compact
    from scanner.store.store import Store

    parts = 0
    for done in compact(Store(store)):
        parts += done.parts
        if done.parts:
            click.echo(f"{done.table}: {done.parts:,} parts made into one, {done.rows:,} rows", err=True)
    if not parts:
        click.echo("Nothing to do: no table has more than one new part.", err=True)
