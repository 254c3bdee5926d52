"""`scanner report`: what was found, as a page that can be sent."""

from __future__ import annotations

from pathlib import Path

import click

from scanner.commands.options import store_option
from scanner.errors import ConfigError


@click.command("report")
@click.argument("names", metavar="[CHECKPOINT|MATCH]...", nargs=-1)
@click.option("--flagged", is_flag=True, help="Every checkpoint that is flagged.")
@click.option("--confirmed", is_flag=True, help="Every checkpoint of which a reviewer confirmed something.")
@click.option(
    "-o", "--out", required=True, metavar="FILE.html", type=click.Path(path_type=Path, dir_okay=False),
    help="The page; its data go into FILE.json beside it.",
)  # fmt: skip
@store_option
def command(names: tuple[str, ...], flagged: bool, confirmed: bool, out: Path, store: str) -> None:
    """Write what was found in checkpoints as one HTML page, in plain words and with the evidence.

    A CHECKPOINT is a repository, or the beginning of an id; a MATCH is the beginning of the id of one row of
    evidence, about which the page then is. The page holds its pictures, blurred until they are clicked on,
    and fetches nothing. It and FILE.json are readable by you alone.
    """
    from scanner.report.writing import refuse_others, write_report
    from scanner.store.report_queries import confirmed_targets, flagged_targets, named_target
    from scanner.store.store import Store

    refuse_others(out)  # before anything is read
    opened = Store(store)
    targets = [named_target(opened, name) for name in names]
    targets += flagged_targets(opened) if flagged else []
    targets += confirmed_targets(opened) if confirmed else []
    targets = list(dict.fromkeys(targets))
    if not targets and (flagged or confirmed):
        raise ConfigError(f"nothing in the store is {'flagged' if flagged else 'confirmed'} yet.")
    if not targets:
        raise ConfigError("no checkpoint is named. Name a repository or an id, or use --flagged.")
    twin = write_report(opened, targets, out)
    click.echo(f"{out}: {len(targets):,} of the store's checkpoints; data: {twin}", err=True)
