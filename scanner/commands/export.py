"""`scanner export`: the store's tables as files for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from scanner.commands.options import store_option
from scanner.errors import ConfigError
from scanner.store.decision_views import DECISION_VIEWS
from scanner.store.exports import EXPORTS, export
from scanner.store.store import Store
from scanner.store.tables import TABLES
from scanner.text import first_line

VIEWS = (*TABLES.values(), *DECISION_VIEWS)


@click.command("export")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(EXPORTS), default="parquet", show_default=True)
@click.option(
    "--table", "tables", multiple=True, type=click.Choice(VIEWS), metavar="NAME",
    help=f"A table or view; may be repeated.  [default: {', '.join(VIEWS)}]",
)  # fmt: skip
@store_option
def command(folder: Path, form: str, tables: tuple[str, ...], store: str) -> None:
    """Write the newest rows of the store's tables into DIR: one file a table, or one DuckDB file.

    decision_log is every event of the reviewers with its repo, file and reference; standing_decisions is the
    decision and the note that stand for each match, membership or checkpoint. Both name the grounds:
    trained_on, gives_back, or both. Existing files are replaced. Images are not exported.
    """
    opened = Store(store)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be made a folder: {first_line(error)}. Name a folder for the files."
        ) from error
    for table in tables or VIEWS:
        path = folder / ("finextract.duckdb" if form == "duckdb" else f"{table}.{form}")
        rows = export(opened, table, path, form)
        click.echo(f"{path}: {rows:,} {table}", err=True)
