"""`scanner config`: which settings hold."""

from __future__ import annotations

import json

import click

from scanner import settings
from scanner.commands.output import plain, rows_table


@click.command("config")
@click.argument("verb", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, verb: str | None, as_json: bool) -> None:
    """Show the value of every option (of VERB), and whether scanner.toml, the environment or we set it."""
    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    file = settings.find()
    told = settings.read(file) if file else {}
    rows = [r for r in settings.effective(root, told, file) if verb is None or r["verb"].split()[0] == verb]
    if as_json:
        click.echo(json.dumps({"file": str(file) if file else None, "settings": rows}, default=str, indent=2))
        return
    names = ("verb", "option", "value", "from")
    rows_table(names, ([plain(str(row[name])) for name in names] for row in rows))
    where = " or ".join(str(place) for place in settings.places())
    click.echo(f"Settings of your own go into {where}." if file is None else f"Read from {file}.", err=True)
