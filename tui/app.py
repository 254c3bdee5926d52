"""`finextract-tui`: the review desk, where people judge whether a checkpoint gives back pictures.

Reads the store while a crawl writes it, and writes nothing but decisions.
"""

from __future__ import annotations

import sys

import click
from textual.app import App
from textual.screen import Screen

from scanner.config import default_store
from scanner.errors import ScannerError
from scanner.store.store import Store
from tui.keys import EVERYWHERE, bindings
from tui.review import Review, reviewer_name
from tui.screens.help import HelpScreen
from tui.screens.listing import ListScreen

REFRESH_S = 3.0  # between two looks at the store; asking whether it changed costs a few stat calls


class DeskApp(App[None]):
    """Holds the open store and this session's review; everything else is on its screens."""

    TITLE = "finextract"
    CSS_PATH = "desk.tcss"
    BINDINGS = bindings(EVERYWHERE)
    ENABLE_COMMAND_PALETTE = False
    NOTIFICATION_TIMEOUT = 6

    def __init__(self, store: Store, reviewer: str, refresh_s: float = REFRESH_S) -> None:
        super().__init__()
        self.store = store
        self.review = Review(store, reviewer)
        self.refresh_s = refresh_s

    def get_default_screen(self) -> Screen[None]:
        """The list, which nothing lies beneath."""
        return ListScreen()

    def action_help(self) -> None:
        """All keys."""
        self.push_screen(HelpScreen())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--store", "store_uri", metavar="DIR", help="The store to review. [default: $FINEXTRACT_STORE]")
@click.version_option(package_name="finextract-scanner")
def main(store_uri: str | None) -> None:
    """Review what a crawl has flagged: look at candidates beside references, and decide.

    Decisions are recorded under $FINEXTRACT_REVIEWER, or your login name. ? shows the keys.
    """
    try:
        store = Store(store_uri or default_store())
    except ScannerError as error:
        click.echo(f"finextract-tui: error: {error}", err=True)
        sys.exit(2)
    DeskApp(store, reviewer_name()).run()
