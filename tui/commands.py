"""What the command palette offers: every key of the screen, by its sentence, and the saved filters."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from textual.app import App, SystemCommand
from textual.binding import ActiveBinding
from textual.screen import Screen

from scanner.errors import ConfigError
from scanner.text import for_terminal
from tui import saved_filters
from tui.keys import GROUPS
from tui.screens.list_views import ListViews
from tui.screens.saved_filters import described


def commands(app: App[Any], screen: Screen[Any]) -> Iterable[SystemCommand]:
    """Returns the commands for a screen, over which the palette is opened."""
    active = {one.binding.id: one for one in screen.active_bindings.values()}
    for keys in GROUPS.values():
        for key in keys:
            if key.id in active and key.action != "command_palette":
                yield _command(app, key.sentence, key.label, active[key.id])
    if not isinstance(screen, ListViews):
        return
    try:
        saved = saved_filters.load()
    except ConfigError:
        return  # `f` says what is wrong with the file
    for one in saved:
        name = for_terminal(one.name, saved_filters.LONGEST_NAME)
        yield SystemCommand(f"Saved filter: {name}", described(one).plain, partial(screen.use, one))


def _command(app: App[Any], sentence: str, label: str, active: ActiveBinding) -> SystemCommand:
    shown = app.get_key_display(active.binding)
    run = partial(app.run_action, active.binding.action, active.node)
    return SystemCommand(sentence, f"{label}, key {shown}", run)
