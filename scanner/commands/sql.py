"""`scanner sql`: query the store in DuckDB's SQL."""

from __future__ import annotations

import csv
import json
import sys
from typing import Any

import click

from scanner.commands.options import store_option
from scanner.commands.output import rows_or_records
from scanner.store.decision_views import DECISION_VIEWS
from scanner.store.rows import rows_of
from scanner.store.store import Store
from scanner.store.tables import TABLES
from scanner.text import for_terminal, for_terminal_lines

VIEWS = ", ".join([*TABLES.values(), *DECISION_VIEWS])


@click.command("sql", help=f'Query the store in DuckDB\'s SQL. Views: {VIEWS} (quote "references").')
@click.argument("query")
@store_option
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True,
    help="How rows are printed. In a table and in CSV control characters are replaced; JSON is exact.",
)  # fmt: skip
def command(query: str, store: str, form: str) -> None:
    answer = Store(store).query_arrow(query)
    names = _unique(answer.column_names)
    rows = rows_of(answer.rename_columns(names))
    if form == "json":
        click.echo(json.dumps(rows, default=str, indent=2))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(map(for_terminal_lines, names))
        writer.writerows([for_terminal_lines(_cell(value)) for value in row.values()] for row in rows)
    elif rows:
        cells = [[for_terminal(_cell(v), limit=sys.maxsize) for v in row.values()] for row in rows]
        rows_or_records(names, cells)
    click.echo(f"{len(rows):,} row{'s' if len(rows) != 1 else ''}", err=True)


def _unique(names: list[str]) -> list[str]:
    """The names of columns, with _2 and so on after a name that an earlier column has."""
    unique: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in unique:
            number += 1
            candidate = f"{name}_{number}"
        unique.append(candidate)
    return unique


def _cell(value: Any) -> str:
    """A value as text for a cell: empty for NULL, JSON for a list or a map."""
    if value is None:
        return ""
    return json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)
