"""A real store, filled as a crawl fills it, and the real app over it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from filled_store import Crawl, Desk, Opener

from scanner.records import (
    Verdict,
)
from scanner.store.store import Store
from tui.app import DeskApp


@pytest.fixture
def crawl(tmp_path: Path) -> Crawl:
    """A store that nothing has been written to."""
    folder = tmp_path / "shoes"
    folder.mkdir()
    return Crawl(Store(tmp_path / "store", create=True), folder)


@pytest.fixture
def filled(crawl: Crawl) -> Crawl:
    """Three flagged checkpoints, and one of every other verdict; 8 planned in all."""
    with crawl.at_once():
        crawl.flagged("anna/weak-shoe", [0.66], 0.031)
        crawl.flagged("ben/strong-shoe", [0.943, 0.871, 0.702, 0.31], 0.004)
        crawl.flagged("cleo/other-shoe", [0.9, 0.8], 0.004)
        crawl.flagged("dora/control", [0.35, 0.31], 0.8)
        pickled = "weights.ckpt is a pickle; only safetensors are opened"
        crawl.scan("eve/pickled", Verdict.SKIPPED, reason=pickled)
        crawl.scan("finn/timeout", Verdict.FAILED, reason="the hub did not answer in 30 s")
        crawl.list("gus/waiting")
        crawl.list("hal/waiting-too")
    return crawl


@pytest.fixture
def desk(crawl: Crawl, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Opens the desk over the store, as a new process would."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    # Textual waits several times after each key until the process does nothing for 20 ms; 5 ms tell as much.
    monkeypatch.setattr("textual._wait.SLEEP_GRANULARITY", 0.005)
    monkeypatch.setattr("textual._wait.SLEEP_IDLE", 0.005 / 20)

    @asynccontextmanager
    async def opened(
        size: tuple[int, int] = (80, 24),
        reviewer: str = "vera",
        refresh_s: float = 60,
        read_only: bool = False,
    ) -> AsyncIterator[Desk]:
        store = Store(crawl.store.root, read_only=read_only)
        app = DeskApp(store, reviewer, refresh_s, read_only=read_only)
        async with app.run_test(size=size) as pilot:
            held = Desk(app, pilot)
            await held.settle()
            yield held

    return opened
