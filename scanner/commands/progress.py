"""How a crawl tells what it does: a line for each verdict, and what is running.

On a terminal the last line is a status that is drawn over; elsewhere a sign of life comes every minute.
"""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

from scanner.commands.output import plain, told
from scanner.crawl.logs import log_path
from scanner.crawl.progress import Observer
from scanner.records import Verdict, now
from scanner.units import show_duration

if TYPE_CHECKING:
    from scanner.crawl.progress import Progress, Running
    from scanner.hubs.http import RateLimitWait
    from scanner.records import Checkpoint, Scan

LIMIT_S = 10.0  # between two lines on the limits of one host
QUIET_S = 60.0  # between two signs of life where nobody watches
SHOWN = 4  # of what is running


class Terminal(Observer):
    """stderr, as a context manager; leaves no half line."""

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty()
        self._told = time.monotonic()
        self._waiting: RateLimitWait | None = None
        self._running: list[Running] = []  # at the last tick, less what has ended since
        self._limited: dict[str, float] = {}  # host -> when its limits were last printed
        self._scanning = False

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wipe()
        if error is not None and self._running:
            click.echo(f"Given up: {plain(', '.join(map(_at, self._running)))}.", err=True)

    def rate_limited(self, wait: RateLimitWait) -> None:
        """The status line shows it; while there is none, a line of its own does, once in a while."""
        self._waiting = wait
        if not self._scanning and time.monotonic() - self._limited.get(wait.host, -LIMIT_S) >= LIMIT_S:
            self._limited[wait.host] = time.monotonic()
            self.message(str(wait))

    def listing_progress(self, listed: int, inspected: int) -> None:
        """How far the listing is."""
        if self._watched:
            click.echo(f"\r{listed} listed, {inspected} inspected ", nl=False, err=True)

    def outcome(self, checkpoint: Checkpoint, scan: Scan, progress: Progress) -> None:
        """One verdict."""
        self._running = [r for r in self._running if r[0].checkpoint_id != checkpoint.checkpoint_id]
        seconds = (scan.finished_at - scan.started_at).total_seconds()
        more = []
        if scan.verdict is Verdict.FAILED and scan.seconds:  # a worker was at it
            more.append(f"see {log_path(scan.scan_id)} in the store")
        line = told(
            checkpoint.repo, scan.verdict, scan.best_similarity, scan.q_value, scan.reason, *more,
            f"({seconds:.0f} s)",
        )  # fmt: skip
        self.message(f"[{_of_all(progress)}] {line}")

    def message(self, text: str) -> None:
        """A line that stays."""
        self._wipe()
        click.echo(text, err=True)
        self._told = time.monotonic()

    def tick(self, progress: Progress) -> None:
        """How far it is: drawn over on a terminal, now and then elsewhere."""
        self._running, self._scanning = progress.running, True
        if self._watched:
            width = shutil.get_terminal_size().columns - 1
            click.echo(f"\r\033[K{self.line(progress)[:width]}", nl=False, err=True)
        elif time.monotonic() - self._told >= QUIET_S:
            self._told = time.monotonic()
            click.echo(self.line(progress), err=True)

    def line(self, progress: Progress) -> str:
        """The status line: done, rate, time left, verdicts, what is running and for how long, who limits."""
        took = time.monotonic() - progress.started
        parts = [_of_all(progress)]
        if progress.done and took > 1:
            rate = progress.done / took
            left = show_duration((progress.total - progress.done) / rate)
            parts.append(f"{rate * 60:.1f}/min" + (f", {left} left" if not progress.listing else ""))
        parts += [f"{progress.listed:,} listed so far"] if progress.listing else []
        parts += [f"{n} {verdict.value.replace('_', ' ')}" for verdict, n in progress.verdicts.items()]
        parts += [f"{progress.elsewhere} with another crawl"] if progress.elsewhere else []
        parts += [f"{progress.retried} tried again"] if progress.retried else []
        running = [_at(one) for one in progress.running]
        if progress.starting:
            parts.append(f"{progress.starting} worker{'s' * (progress.starting > 1)} starting")
        if running:
            more = f" and {len(running) - SHOWN} more" if len(running) > SHOWN else ""
            parts.append(f"at {', '.join(running[:SHOWN])}{more}")
        if self._waiting is not None and self._waiting.until > now():
            parts.append(str(self._waiting))
        return plain("; ".join(parts))

    def _wipe(self) -> None:
        if self._watched:
            click.echo("\r\033[K", nl=False, err=True)


def _of_all(progress: Progress) -> str:
    """How many are done, and of how many; "+" while more are being listed."""
    return f"{progress.done}/{progress.total}{'+' if progress.listing else ''}"


def _at(running: Running) -> str:
    """What is running, at which stage, and for how long."""
    checkpoint, stage, seconds = running
    return f"{checkpoint.repo} ({stage} {show_duration(seconds)})"
