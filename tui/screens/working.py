"""Whether a screen is already loading what it shows."""

from __future__ import annotations

from textual.screen import Screen


def is_working(screen: Screen[None], group: str) -> bool:
    """Returns whether a worker of a group was started on the screen and has not ended.

    A worker counts from the key that started it on, also before it has run for the first time. So a look at
    the store by the clock never takes its place.
    """
    return any(w.node is screen and w.group == group and not w.is_finished for w in screen.app.workers)
