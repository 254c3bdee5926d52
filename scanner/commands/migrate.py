"""`scanner migrate`: convert a store of an older version."""

from __future__ import annotations

import click

from scanner.commands.options import store_option


@click.command("migrate")
@click.option(
    "--keep-old", is_flag=True, help="Move the old files to STORE/before-migration instead of removing them."
)
@store_option
def command(keep_old: bool, store: str) -> None:
    """Convert a store from before Delta Lake, in place. Stop crawls that write to it first.

    If the conversion is interrupted, run it again: old files are removed only when every table is converted.
    """
    from scanner.store.compaction import compact
    from scanner.store.migration import migrate
    from scanner.store.store import Store

    for done in migrate(store, keep_old=keep_old):
        click.echo(f"{done.table}: {done.files:,} files converted, {done.rows:,} rows", err=True)
    for _ in compact(Store(store), fewest_parts=1):
        pass
