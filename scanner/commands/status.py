"""`scanner status`: the sum of the verdicts, and each checkpoint's."""

from __future__ import annotations

import json

import click

from scanner.commands.options import store_option
from scanner.commands.output import outcome_table
from scanner.errors import ConfigError
from scanner.store import Store
from scanner.summary import latest_config, outcomes, sum_up


@click.command("status")
@store_option
@click.option("--config", "config_id", metavar="ID", help="A configuration.  [default: the last one used]")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the sum alone.")
def command(store: str, config_id: str | None, as_json: bool, quiet: bool) -> None:
    """Show how many checkpoints have which verdict."""
    opened = Store(store)
    known = [c["config_id"] for c in opened.query("SELECT config_id FROM configs ORDER BY created_at DESC")]
    if config_id is not None and config_id not in known:
        told = ", ".join(known[:10]) or "none yet"
        raise ConfigError(f"--config {config_id} is no configuration of this store. It has: {told}.")
    config_id = config_id or latest_config(opened)
    total = sum_up(opened, config_id)
    rows = [] if quiet else outcomes(opened, config_id)
    if as_json:
        click.echo(json.dumps({"config_id": config_id, **total.as_dict(), "checkpoints": rows}, indent=2))
        return
    if rows:
        outcome_table(rows)
    click.echo(str(total))
