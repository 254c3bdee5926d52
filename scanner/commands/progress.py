"""How the verbs show their progress on stderr: messages that stay, and below them one line with a bar.

The line is drawn on a terminal only, by rich, in all verbs alike. Elsewhere a message about the progress is
printed every minute.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from scanner.commands import output
from scanner.commands.output import marked, verdict_line
from scanner.crawl.logs import log_path
from scanner.crawl.progress import Observer
from scanner.records import Verdict, now
from scanner.text import for_terminal, for_terminal_lines
from scanner.units import show_duration

if TYPE_CHECKING:
    from scanner.crawl.progress import Progress as CrawlProgress
    from scanner.crawl.progress import Running
    from scanner.hubs.http import RateLimitWait
    from scanner.records import Checkpoint, Scan
    from scanner.store.queries import VerdictCounts

LIMIT_S = 10.0  # between two messages about the limits of one host
QUIET_S = 60.0  # between two messages about the progress where there is no terminal
SHOWN_SCANS = 4  # of the running ones
RESUME = "Run the same command again to resume."


class ProgressLine:
    """Messages and a progress line on stderr; a context manager that removes the line in the end."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or output.console(stderr=True)
        self.is_drawn = self._console.is_terminal if console else sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def message(self, text: str | Text) -> None:
        """Prints a message above the line, without the control characters of untrusted text.

        A `Text` has none already.
        """
        shown = Text(for_terminal_lines(text)) if isinstance(text, str) else text
        if self._bar is not None or self._console.is_terminal:
            self._console.print(shown, soft_wrap=True)
        else:
            click.echo(shown.plain, err=True)

    def update(self, description: str, completed: int, total: int | None, status: str) -> None:
        """Draws the line: a word, a bar (which pulses where the total is not known), and a text."""
        if not self.is_drawn:
            return
        if self._bar is None:
            rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
            self._bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=20),
                TextColumn("{task.fields[status]}", markup=False, table_column=rest),
                console=self._console, transient=True, expand=True,
            )  # fmt: skip
            self._task = self._bar.add_task(description, status=status)
            self._bar.start()
        fields: dict[str, Any] = {
            "description": description,
            "completed": completed,
            "status": for_terminal(status),
        }
        self._bar.update(self._task, total=total, **fields)


class Terminal(Observer):
    """Shows the events of a crawl on stderr; a context manager.

    After an interrupt it says how to resume, and exits with 130.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._line = ProgressLine(console)
        self._last_message = time.monotonic()
        self._waiting: RateLimitWait | None = None
        self._limit_shown: dict[str, float] = {}  # host -> when its limits were last printed
        self._running: list[Running] = []  # at the last tick, without what has ended since
        self._scanning = False
        self._counts: VerdictCounts | None = None  # when the crawl was interrupted

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.__exit__()
        if error is not None and self._running:
            click.echo(
                f"Interrupted scans: {for_terminal(', '.join(map(_running, self._running)))}.", err=True
            )
        if isinstance(error, KeyboardInterrupt):
            counts = f". {self._counts}.\n" if self._counts else ". "
            click.echo(f"\nscanner: interrupted{counts}{RESUME}", err=True)
            sys.exit(130)

    def message(self, text: str | Text) -> None:
        """Prints a message that stays."""
        self._line.message(text)
        self._last_message = time.monotonic()

    def rate_limited(self, wait: RateLimitWait) -> None:
        """The line shows a wait while scans run; else a message does, once in a while."""
        self._waiting = wait
        if not self._scanning and time.monotonic() - self._limit_shown.get(wait.host, -LIMIT_S) >= LIMIT_S:
            self._limit_shown[wait.host] = time.monotonic()
            self.message(str(wait))

    def listing_progress(self, listed: int, inspected: int) -> None:
        """Shows how far a listing without scans is."""
        self._line.update("listing", 0, None, f"{listed:,} listed, {inspected:,} inspected")

    def outcome(self, checkpoint: Checkpoint, scan: Scan, progress: CrawlProgress) -> None:
        """Prints a verdict."""
        self._running = [r for r in self._running if r[0].checkpoint_id != checkpoint.checkpoint_id]
        seconds = (scan.finished_at - scan.started_at).total_seconds()
        further = []
        if scan.verdict is Verdict.FAILED and scan.seconds:  # a worker wrote a log
            further.append(f"see {log_path(scan.scan_id)} in the store")
        line = verdict_line(
            checkpoint.repo, scan.verdict, scan.best_similarity, scan.q_value, scan.reason, *further,
            f"({seconds:.0f} s)", grounds=scan.grounds_of_flag, examined=scan.examined,
            membership_q=scan.membership_q,
        )  # fmt: skip
        self.message(marked(f"[{_done(progress)}] {line}", scan.verdict))

    def tick(self, progress: CrawlProgress) -> None:
        """Draws the line anew; without a terminal, prints the progress every minute."""
        self._running, self._scanning = progress.running, True
        total = None if progress.listing else progress.total
        self._line.update("scanning", progress.done, total, self.status(progress))
        if not self._line.is_drawn and time.monotonic() - self._last_message >= QUIET_S:
            self.message(self.status(progress))

    def interrupted(self, counts: VerdictCounts) -> None:
        """Keeps the verdicts for the last message."""
        self._counts = counts

    def status(self, progress: CrawlProgress) -> str:
        """The progress in words: done, rate, time left, verdicts, the running scans, and waits for hubs."""
        elapsed = time.monotonic() - progress.started
        parts = [_done(progress)]
        if progress.done and elapsed > 1:
            rate = progress.done / elapsed
            left = show_duration((progress.total - progress.done) / rate)
            parts.append(f"{rate * 60:.1f}/min" + (f", {left} left" if not progress.listing else ""))
        parts += [f"{progress.listed:,} listed so far"] if progress.listing else []
        parts += [f"{n} {verdict.value.replace('_', ' ')}" for verdict, n in progress.verdicts.items()]
        parts += [f"{progress.elsewhere} held by another crawl"] if progress.elsewhere else []
        parts += [f"{progress.retried} retried"] if progress.retried else []
        if progress.starting:
            parts.append(f"{progress.starting} worker{'s' * (progress.starting > 1)} starting")
        if progress.waiting:
            waits = "worker waits" if progress.waiting == 1 else "workers wait"
            parts.append(f"{progress.waiting} {waits} for a node")
        if progress.running:
            shown = ", ".join(_running(one) for one in progress.running[:SHOWN_SCANS])
            hidden = len(progress.running) - SHOWN_SCANS
            parts.append(f"running: {shown}{f' and {hidden} more' if hidden > 0 else ''}")
        if self._waiting is not None and self._waiting.until > now():
            parts.append(str(self._waiting))
        return for_terminal("; ".join(parts))


def _done(progress: CrawlProgress) -> str:
    """How many of how many are done; "+" while more are being listed."""
    return f"{progress.done}/{progress.total}{'+' if progress.listing else ''}"


def _running(running: Running) -> str:
    """A running scan, its stage, and for how long."""
    checkpoint, stage, seconds = running
    return f"{checkpoint.repo} ({stage} {show_duration(seconds)})"
