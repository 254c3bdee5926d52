"""One attempt at a checkpoint, while it runs: its stages with their seconds, and the row of its scan."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finextract.reasons import ReasonCode
from scanner.config import ScanConfig
from scanner.crawl.logs import LOGGER
from scanner.errors import StoreError
from scanner.records import Checkpoint, Scan, Verdict, new_id, now
from scanner.text import first_line, printable


class Attempt:
    """What is known of a scan while it runs; `end` returns its row."""

    def __init__(self, checkpoint: Checkpoint, config: ScanConfig, run_id: str) -> None:
        self.scan_id, self.checkpoint_id = new_id(), checkpoint.checkpoint_id
        self.stage, self.entered = "fetch", time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.facts: dict[str, Any] = {}
        self._checkpoint, self._config, self._run_id, self._started = checkpoint, config, run_id, now()

    @contextmanager
    def enter(self, stage: str) -> Iterator[None]:
        """Measures the seconds of a stage, without those of a stage inside it."""
        self.stage, self.entered = stage, time.perf_counter()
        LOGGER.info("%s ...", stage)
        start = self.entered
        before = sum(self.seconds.values())
        try:
            yield
        finally:
            inner = sum(self.seconds.values()) - before
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start - inner

    def end(self, verdict: Verdict, reason: str, reason_code: ReasonCode | None = None) -> Scan:
        """Returns the scan's row; a skipped or failed one has a reason code."""
        config = self._config
        return Scan(
            scan_id=self.scan_id,
            checkpoint_id=self._checkpoint.checkpoint_id,
            config_id=config.config_id,
            run_id=self._run_id,
            verdict=verdict,
            reason=reason,
            reason_code=reason_code,
            stage=self.stage,
            started_at=self._started,
            finished_at=now(),
            tau=config.tau,
            alpha=config.alpha,
            seed=config.seed,
            seconds={stage: round(s, 3) for stage, s in self.seconds.items()},
            **self.facts,
        )


def sentence_of(error: Exception, stage: str) -> str:
    """Such an error as a reason: what happened in which stage, and what can be done."""
    code = reason_code_of(error)
    if code is ReasonCode.OUT_OF_MEMORY:
        return f"the memory was not enough (stage {stage}). Use fewer --workers, or a larger machine."
    if isinstance(error, OSError) and error.strerror:
        place = printable(str(error.filename or "a file"), 200)
        remedy = "Make room there" if code is ReasonCode.NO_SPACE else "Check it"
        what = f"{place} could not be used: {first_line(error)} (stage {stage})"
        return f"{what}. {remedy}; the next crawl tries again."
    if isinstance(error, StoreError):
        return str(error)
    shown = f"{type(error).__name__}: {first_line(error, 300)}"
    return f"error of this program in the stage {stage}: {shown}. Its log says where."


def reason_code_of(error: Exception) -> ReasonCode:
    """The reason code of an error that no part of the program raised on purpose."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, by its name
        return ReasonCode.OUT_OF_MEMORY
    if isinstance(error, StoreError):
        return ReasonCode.STORE_UNREACHABLE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ReasonCode.NO_SPACE
    return ReasonCode.INTERNAL_ERROR


def versions() -> dict[str, str]:
    """The versions of the libraries that shape a result."""
    from importlib.metadata import version

    names = ("finextract-scanner", "torch", "diffusers", "transformers", "onnxruntime", "open_clip_torch")
    return {name: version(name) for name in names}
