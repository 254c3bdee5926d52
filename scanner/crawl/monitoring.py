"""The metrics of a crawl: counters and gauges through Ray, which serves them to Prometheus.

Their names begin with `ray_finextract_` there. Only the driver sets them, because it sees every outcome.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanner.crawl.progress import Progress
    from scanner.records import Checkpoint, Scan, Verdict

BOUNDARIES_S = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000]


class CrawlMetrics:
    """The metrics of one crawl. Ray must be connected."""

    def __init__(self, source: str) -> None:
        from ray.util import metrics

        self._tags = {"source": source.partition(":")[0]}
        self._scans = metrics.Counter(
            "finextract_scans", "Checkpoints with a verdict.", ("source", "verdict")
        )
        self._seconds = metrics.Histogram(
            "finextract_stage_seconds", "Seconds that a scan spent in a stage.", BOUNDARIES_S,
            ("source", "stage"),
        )  # fmt: skip
        self._bytes = metrics.Counter(
            "finextract_downloaded_bytes", "Bytes of checkpoints that were downloaded.", ("source",)
        )
        self._retried = metrics.Gauge(
            "finextract_retried", "Attempts of this crawl after the first of a checkpoint.", ("source",)
        )
        self._left = metrics.Gauge(
            "finextract_left", "Checkpoints of this crawl without a verdict.", ("source",)
        )
        self._running = metrics.Gauge(
            "finextract_running", "Checkpoints by the stage of their scan.", ("source", "stage")
        )
        self._stages: set[str] = set()  # that were ever reported

    def count_verdicts(self, verdicts: Counter[Verdict]) -> None:
        """Counts verdicts that were recorded before Ray was connected."""
        for verdict, count in verdicts.items():
            self._scans.inc(count, {**self._tags, "verdict": verdict.value})

    def count_scan(self, checkpoint: Checkpoint, scan: Scan) -> None:
        """Counts the verdict, the stages and the download of a scan."""
        self._scans.inc(1, {**self._tags, "verdict": scan.verdict.value})
        for stage, seconds in scan.seconds.items():
            self._seconds.observe(seconds, {**self._tags, "stage": stage})
        if "fetch" in scan.seconds and checkpoint.size_bytes > 0:
            self._bytes.inc(checkpoint.size_bytes, self._tags)

    def report(self, progress: Progress) -> None:
        """Sets the gauges."""
        self._left.set(progress.total - progress.done, self._tags)
        self._retried.set(progress.retried, self._tags)
        running: Counter[str] = Counter(stage for _, stage, _ in progress.running)
        self._stages |= running.keys()
        for stage in self._stages:
            tags: dict[str, Any] = {**self._tags, "stage": stage}
            self._running.set(running[stage], tags)
