"""`scanner sql`: query the store in DuckDB's SQL."""

from __future__ import annotations

import csv
import json
import sys
from typing import Any

import click

from scanner.commands.options import store_option
from scanner.commands.output import rows_table
from scanner.store.store import Store
from scanner.store.tables import TABLES
from scanner.text import for_terminal

VIEWS = ", ".join(TABLES.values())


@click.command("sql", help=f'Query the store in DuckDB\'s SQL. Views: {VIEWS} (quote "references").')
@click.argument("query")
@store_option
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True,
    help="How rows are printed.",
)  # fmt: skip
def command(query: str, store: str, form: str) -> None:
    rows = Store(store).query(query)
    if form == "json":
        click.echo(json.dumps(rows, default=str, indent=2))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(rows[0] if rows else [])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)
    elif rows:
        cells = ([for_terminal(_cell(v), limit=sys.maxsize) for v in row.values()] for row in rows)
        rows_table(list(rows[0]), cells)
    click.echo(f"{len(rows):,} row{'s' if len(rows) != 1 else ''}", err=True)


def _cell(value: Any) -> str:
    """A value as text for a cell: empty for NULL, JSON for a list or a map."""
    if value is None:
        return ""
    return json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)
