"""`finextract-tui`: the review desk, where people decide whether a checkpoint reproduces references.

Reads the store while crawls write to it, and writes only decisions.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click
from textual.app import App, SystemCommand
from textual.screen import Screen

from scanner import settings
from scanner.config import default_store
from scanner.errors import ScannerError
from scanner.records import Decision
from scanner.store.compaction import compacting
from scanner.store.desk_index import DeskIndex
from scanner.store.store import Store
from scanner.store.tables import TABLES
from scanner.text import for_terminal_lines
from tui.commands import commands
from tui.keys import EVERYWHERE, bindings
from tui.pictures import PictureWidget, picture_widget
from tui.preferences import Preferences, default_path
from tui.review import Review, reviewer_name
from tui.screens.checkpoint_list import ListScreen
from tui.screens.help import HelpScreen
from tui.screens.log import LogScreen
from tui.screens.overview import OverviewScreen
from tui.screens.pictures import PicturesScreen
from tui.serve import serve_desk
from tui.session import Session
from tui.themes import Repaintable, Styles

VIEWS: dict[str, type[OverviewScreen | PicturesScreen | LogScreen]] = {
    "overview": OverviewScreen,
    "pictures": PicturesScreen,
    "log": LogScreen,
}
COMPACTED_S = 30.0  # between two looks whether there are many files of decisions
DECISION_FILES = 50  # that are made one
REFRESH_S = 3.0  # between two checks whether the store has changed, which cost a few file status calls


class DeskApp(App[None]):
    """The application: opens the first screen. Everything else is in the screens."""

    TITLE = "finextract"
    CSS_PATH = "desk.tcss"
    BINDINGS = bindings(EVERYWHERE)
    NOTIFICATION_TIMEOUT = 6

    def __init__(
        self,
        store: Store,
        reviewer: str,
        refresh_s: float = REFRESH_S,
        *,
        read_only: bool = False,
        preferences: Preferences | None = None,
        picture_widget: PictureWidget | None = None,
    ) -> None:
        super().__init__()
        self.picture_widget = picture_widget  # of the terminal; None = images are drawn as cells
        self.session = Session(
            store, DeskIndex(store), Review(store, reviewer, read_only=read_only), refresh_s
        )
        self.preferences = preferences
        self.styles_of_words = Styles(self.console)
        self.styles_of_words.use(self.get_css_variables())
        chosen = preferences.theme() if preferences else None
        self.kept_theme = chosen if chosen in self.available_themes else self.theme
        self.theme = self.kept_theme

    def get_default_screen(self) -> Screen[None]:
        """The list of checkpoints."""
        return ListScreen(self.session)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """What the command palette offers."""
        return commands(self, screen)

    def watch_theme(self, theme: str) -> None:
        """Draws every screen in the colours of a theme, and keeps its name for the next run."""
        self.styles_of_words.use(self.get_css_variables())
        for screen in self.screen_stack if self.is_running else ():
            if isinstance(screen, Repaintable):
                screen.repaint()
        if self.preferences and theme != self.kept_theme:
            self.kept_theme = theme
            self.preferences.keep_theme(theme)

    def action_view(self, name: str) -> None:
        """Opens a screen above the list in the place of the one that is open, or returns to the list."""
        while len(self.screen_stack) > 1:
            self.pop_screen()
        if name in VIEWS:
            self.push_screen(VIEWS[name](self.session))

    def action_help(self) -> None:
        """Shows all keys."""
        self.push_screen(HelpScreen())


def compacting_decisions(store: Store) -> AbstractContextManager[None]:
    """Makes one file of the many of a long review, each of which holds one decision, in the background."""
    return compacting(store.uri, [TABLES[Decision]], fewest_parts=DECISION_FILES, interval_s=COMPACTED_S)


def spare_modules() -> None:
    """Leaves the objects of the imported modules out of this process's garbage collections.

    Textual makes so much garbage that Python walks through all objects every few keys. Without these that
    takes a third less time.
    """
    gc.collect()
    gc.freeze()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--store", metavar="DIR", envvar="FINEXTRACT_STORE",
    help="The store to review.  [default: $FINEXTRACT_STORE, or `store` in scanner.toml]",
)  # fmt: skip
@click.option(
    "--read-only", is_flag=True, help="Only look: nothing is decided, and nothing is written into the store."
)
@click.option("--serve", is_flag=True, help="Show the desk in a browser on this machine.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="The port of --serve."
)
@click.version_option(package_name="finextract-scanner")
@click.pass_context
def main(context: click.Context, store: str | None, read_only: bool, serve: bool, port: int) -> None:
    """Review flagged checkpoints: compare candidates with references, and decide.

    Decisions are recorded under the name in $FINEXTRACT_REVIEWER, or else your login name. Press ? to see
    all keys.
    """
    try:
        option = next(p for p in context.command.params if isinstance(p, click.Option) and p.name == "store")
        opened = Store(store or settings.top_level(option) or default_store(), read_only=read_only)
        if serve:
            serve_desk(opened.uri, port, read_only=read_only)
            return
    except ScannerError as error:
        click.echo(for_terminal_lines(f"finextract-tui: error: {error}"), err=True)
        sys.exit(2)
    spare_modules()
    desk = DeskApp(
        opened, reviewer_name(), read_only=read_only, preferences=Preferences(default_path()),
        picture_widget=picture_widget(),
    )  # fmt: skip
    with nullcontext() if read_only else compacting_decisions(opened):
        desk.run()
