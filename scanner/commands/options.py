"""Options that several verbs share."""

from __future__ import annotations

import click

from scanner.config import default_store

store_option = click.option(
    "--store", envvar="FINEXTRACT_STORE", default=default_store, metavar="DIR",
    help="The store.  [default: $FINEXTRACT_STORE, or your data folder]",
)  # fmt: skip
