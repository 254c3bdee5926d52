"""How long does the desk take for each key over a store of a million checkpoints?

    python tests/desk_bench.py [--store DIR] [--times N] [--size 120x40]

Opens the real desk in Textual's test driver over a copy of the store of tests/scale.py (made if there is
none) with 500 references and up to 5,000 decisions, presses keys, and measures until the answer is drawn.
Prints a line for each action, the median and the slowest, and which took longer than 300 ms. What the desk
does beside the keys goes on meanwhile. A run with `--checkpoints 10000 --store DIR` tells what drawing costs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual import events

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import scale  # noqa: E402

from scanner.store.desk_filter import Sort  # noqa: E402
from scanner.store.store import Store  # noqa: E402
from tui.app import DeskApp, compacting_decisions, spare_modules  # noqa: E402
from tui.screens.checkpoint import CheckpointScreen  # noqa: E402
from tui.screens.checkpoint_list import ListScreen  # noqa: E402
from tui.widgets.filter_box import FilterBox  # noqa: E402

AIM_MS = 300
FILTERS = ("abc", "undecided", "base:base-1", "kind:lora", "corpus:mine", "image:7.png", "since:2026-11-24")
OPENED = 5  # checkpoints that are opened and decided


class Measured:
    """The desk, and the times of its actions in milliseconds."""

    def __init__(self, app: DeskApp) -> None:
        self.app = app
        self.found: dict[str, list[float]] = {}
        self.action = "open the desk"

    @property
    def list(self) -> ListScreen:
        """The list of checkpoints."""
        screen = self.app.screen_stack[0]
        assert isinstance(screen, ListScreen)
        return screen

    async def key(self, name: str, key: str, done: Callable[[], Any], *, rest: bool = True) -> None:
        """Presses a key and waits until `done` holds and the screen is drawn then."""
        self.action = name
        start = time.perf_counter()
        self.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await self.drawn(done)
        self.found.setdefault(name, []).append(1000 * (time.perf_counter() - start))
        if rest:
            await self.rest()

    async def drawn(self, done: Callable[[], Any]) -> None:
        """Waits until `done` holds, and then for the next time the screen is drawn."""
        end = time.perf_counter() + 60
        while not done():
            if time.perf_counter() > end:
                raise SystemExit(f"{self.action}: nothing happened in a minute.")
            await asyncio.sleep(0.001)
        refreshed = asyncio.Event()
        self.app.screen.call_after_refresh(refreshed.set)
        await refreshed.wait()

    async def rest(self) -> None:
        """Waits until nothing is read any more, so that each action is measured alone."""
        while self.app.workers and any(not worker.is_finished for worker in self.app.workers):
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)

    def is_another_list_or_question(self) -> Callable[[], bool]:
        """Whether the list has changed since now, or a question was asked."""
        before = self.list.page
        return lambda: len(self.app.screen_stack) > 1 or self.list.page is not before

    async def list_key(self, name: str, key: str) -> None:
        """Presses a key that lists other rows."""
        before = self.list.page
        await self.key(name, key, lambda: self.list.page is not before)


async def measure(app: DeskApp, started: float, times: int, size: tuple[int, int]) -> dict[str, list[float]]:
    """Presses everything `times` times."""
    desk = Measured(app)
    async with app.run_test(size=size) as pilot:
        await desk.drawn(lambda: app.screen_stack and desk.list.page)
        desk.found["open the desk, without the imports"] = [1000 * (time.perf_counter() - started)]
        await desk.key("overview, while the copy is made", "2", lambda: _answered(app), rest=False)
        await desk.list_key("list again", "1")
        # Waits for the copy that is being made, or makes one.
        await asyncio.to_thread(desk.list.index.refresh)
        await desk.rest()
        for round_ in range(times):
            for name, key in (("overview", "2"), ("my pictures", "3"), ("log", "4")):
                await desk.key(name, key, lambda: _answered(app))
                await desk.list_key("list again", "1")
            for _ in range(6):
                await desk.list_key("next verdict", "v")
            for _ in Sort:
                await desk.list_key("sort", "s")
                await desk.list_key("reverse", "S")
            page = desk.list.page
            if page and page.total > len(page.rows):
                await desk.list_key("next page", "end")
            for words in FILTERS:
                await pilot.press("slash")
                app.screen.query_one(FilterBox).box.value = words
                await desk.list_key(f"filter {words}", "enter")
                await desk.list_key("filter cleared", "escape")
            await pilot.press(*["down"] * (3 * OPENED * round_))  # to rows without decisions
            await desk.list_key("next undecided", "N")
            for marked in range(OPENED):
                await desk.key("mark", "space", lambda: len(desk.list.marks) > marked)  # noqa: B023
            await desk.key(
                "question before a decision on 5 marks", "d", lambda: len(app.screen_stack) > 1, rest=False
            )
            await desk.list_key("decision on 5 marks", "enter")
            await desk.key("undo", "z", desk.is_another_list_or_question(), rest=False)
            if len(app.screen_stack) > 1:  # unless the row under the cursor has a decision of its own
                await desk.list_key("withdrawal of the 5", "enter")
            await pilot.press("escape")
            await desk.rest()
            for _ in range(OPENED):
                await desk.key("open a checkpoint", "enter", lambda: _opened(app))
                before = app.screen.opened  # type: ignore[attr-defined]
                await desk.key("decide on its first match", "c", lambda: app.screen.opened is not before)  # type: ignore[attr-defined]  # noqa: B023
                await desk.list_key("back to the list", "escape")
                await desk.list_key("decide in the list", "u")
            await desk.key("command palette", "ctrl+p", lambda: len(app.screen_stack) > 1)
            await pilot.press("escape")
            await desk.key("keys", "question_mark", lambda: len(app.screen_stack) > 1)
            await pilot.press("escape")
            await desk.rest()
    return desk.found


def _answered(app: DeskApp) -> bool:
    return getattr(app.screen, "answer", None) is not None


def _opened(app: DeskApp) -> bool:
    return isinstance(app.screen, CheckpointScreen) and app.screen.opened is not None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=TESTS.parent / "build/scale")
    parser.add_argument("--checkpoints", type=int, default=1_000_000, help="of a store that is made")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--size", default="120x40")
    options = parser.parse_args()
    scale.made(options.store, options.checkpoints)
    width, height = (int(number) for number in options.size.split("x"))
    with tempfile.TemporaryDirectory(dir=options.store.parent) as scratch:  # links stay on a disk
        root = scale.reviewed(options.store, Path(scratch))[0].root
        spare_modules()
        started = time.perf_counter()
        store = Store(root)
        with compacting_decisions(store):
            found = asyncio.run(measure(DeskApp(store, "vera", 3.0), started, options.times, (width, height)))
    print(f"{'action':50} {'times':>5} {'median ms':>10} {'slowest ms':>10}")
    for name, taken in found.items():
        print(f"{name:50} {len(taken):5} {sorted(taken)[len(taken) // 2]:10.0f} {max(taken):10.0f}")
    slow = [name for name, taken in found.items() if max(taken) > AIM_MS]
    print(f"{len(slow)} of {len(found)} actions took longer than {AIM_MS} ms once: {', '.join(slow) or '-'}")


if __name__ == "__main__":
    main()
