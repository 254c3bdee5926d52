"""`scanner compact`: fewer and larger files in the store."""

from __future__ import annotations

import click

from scanner.commands.options import store_option


@click.command("compact")
@click.option("--dry-run", is_flag=True, help="Remove nothing and compact nothing; count the orphans.")
@store_option
def command(dry_run: bool, store: str) -> None:
    """Rewrite the many small files that crawls write as few large ones; safe while others read and write.

    Files that were replaced more than an hour ago are deleted. So is what killed crawls have left for more
    than 24 hours: rows without a scan, images without a row, abandoned leases and temporary files. Losses of
    a base model go when no scan has added to them for 30 days; a scan that needs them computes them again.
    """
    from scanner.store.compaction import compact
    from scanner.store.orphans import collect
    from scanner.store.store import Store

    opened, files = Store(store), 0
    for done in () if dry_run else compact(opened):
        files += done.files
        if done.files:
            click.echo(f"{done.table}: {done.files:,} files compacted, {done.rows:,} rows", err=True)
    if not files and not dry_run:
        click.echo("Nothing to compact: no table has more than one new file.", err=True)
    orphans = collect(opened, dry_run=dry_run)
    click.echo(f"{'Would be removed' if dry_run else 'Removed'}: {orphans}.", err=True)
