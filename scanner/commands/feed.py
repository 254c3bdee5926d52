"""The lines of `scanner crawl --jsonl`: each verdict as it is recorded, for another program.

A thread of its own writes them, so that a slow reader does not hold up the crawl, and asks the store what a
flag rests on. Each line is flushed.
"""

from __future__ import annotations

import io
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from scanner.crawl.messages import FORMAT, PROGRAM, verdict_of
from scanner.crawl.progress import Observer
from scanner.errors import ConfigError, StoreError
from scanner.records import Checkpoint, Scan, Verdict
from scanner.store.flag_queries import found_in
from scanner.store.store import Store
from scanner.text import first_line

if TYPE_CHECKING:
    from scanner.crawl.progress import Progress, Run
    from scanner.crawl.service import CrawlResult
    from scanner.store.queries import VerdictCounts

INTERRUPTED_S = 2.0  # that the last lines of a crawl that did not end by itself may take
TOGETHER = 1000  # lines that are written at once, where so many wait


def to_stdout(text: str) -> None:
    """Writes to stdout past its buffer, whose lock a thread that waits for its reader would hold at exit."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, io.UnsupportedOperation):  # replaced by a caller
        click.echo(text, nl=False)
        return
    left = memoryview(text.encode())
    while left:
        left = left[os.write(number, left) :]


class Feed(Observer):
    """Observes a crawl and writes its lines; a context manager, which in the end writes what is left.

    `write` gets whole lines. Where it raises OSError the crawl is ended: by BrokenPipeError if nobody reads
    any more, else by ConfigError.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._store: Store | None = None
        self._run_id = ""
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._lines.put(None)
        self._thread.join(None if kind is None else INTERRUPTED_S)
        if kind is None:
            self._check()

    def begun(self, run: Run) -> None:
        """The first line says what the crawl is."""
        self._store, self._run_id = Store(run.store), run.run_id
        self._lines.put({
            "event": "begun", "format": FORMAT, "program": PROGRAM, "run_id": run.run_id,
            "config_id": run.config_id, "source": run.source, "store": run.store,
        })  # fmt: skip

    def outcome(self, checkpoint: Checkpoint, scan: Scan, progress: Progress) -> None:
        """A verdict; one that another crawl recorded meanwhile has another run_id."""
        self._check()
        self._lines.put({"event": "verdict", **verdict_of(checkpoint, scan)})

    def tick(self, progress: Progress) -> None:
        """Ends the crawl where the lines cannot be written."""
        self._check()

    def interrupted(self, counts: VerdictCounts) -> None:
        """The last line of a crawl that was interrupted."""
        self._lines.put({"event": "interrupted", "run_id": self._run_id, **counts.as_dict()})

    def ended(self, result: CrawlResult) -> None:
        """The last line."""
        cut_short = None if result.cut_short is None else str(result.cut_short)
        self._lines.put({
            "event": "ended", "run_id": self._run_id, "listed": result.listed, "cut_short": cut_short,
            **result.counts.as_dict(), "store": result.total.as_dict(),
        })  # fmt: skip

    def _check(self) -> None:
        if isinstance(self._error, BrokenPipeError):
            raise BrokenPipeError(str(self._error))
        if self._error is not None:
            raise ConfigError(
                f"the lines of --jsonl cannot be written: {first_line(self._error)}.\nAll recorded rows are "
                "kept. Run the same command again to resume."
            )

    # --- in the thread

    def _run(self) -> None:
        ended = False
        while not ended:
            lines, ended = self._waiting()
            if self._error is None and lines:
                self._complete([line for line in lines if line.get("verdict") == Verdict.FLAGGED])
                try:
                    self._write("".join(json.dumps(line) + "\n" for line in lines))
                except OSError as error:
                    self._error = error

    def _waiting(self) -> tuple[list[dict[str, Any]], bool]:
        """What waits to be written, and whether it is the last."""
        lines = [self._lines.get()]
        while lines[-1] is not None and len(lines) < TOGETHER and not self._lines.empty():
            lines.append(self._lines.get())
        return [line for line in lines if line is not None], lines[-1] is None

    def _complete(self, flagged: list[dict[str, Any]]) -> None:
        """Adds what flags rest on; null where the store does not answer."""
        found: dict[str, list[dict[str, Any]]] | None = None
        if flagged and self._store is not None:
            try:
                found = found_in(self._store, [line["scan_id"] for line in flagged])
            except StoreError:
                found = None
        for line in flagged:
            line["found"] = None if found is None else found[line["scan_id"]]
