"""`scanner config`: the effective settings."""

from __future__ import annotations

import json

import click

from scanner import settings
from scanner.commands.output import rows_table
from scanner.text import for_terminal


@click.command("config")
@click.argument("verb", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, verb: str | None, as_json: bool) -> None:
    """Show the value of every option that has one (of VERB), and where it comes from.

    A value comes from scanner.toml, from an environment variable, or is the default.
    """
    file, root = settings.find(), ctx.find_root()
    verbs = root.command.list_commands(root) if isinstance(root.command, click.Group) else []
    if verb is not None and verb not in verbs:
        raise click.exceptions.NoSuchCommand(verb, possibilities=verbs, ctx=root)
    rows = [row for row in settings.effective(root, file) if verb is None or row["verb"].split()[0] == verb]
    if not rows:
        click.echo(f"No option of {verb} has a value or a default.", err=True)
        return
    if as_json:
        click.echo(json.dumps({"file": str(file) if file else None, "settings": rows}, default=str, indent=2))
        return
    names = ("verb", "option", "value", "from")
    rows_table(names, ([for_terminal(str(row[name])) for name in names] for row in rows))
    where = " or ".join(str(place) for place in settings.places())
    click.echo(f"To change a setting, write {where}." if file is None else f"Read from {file}.", err=True)
