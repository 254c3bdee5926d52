"""The outcome of each checkpoint of a crawl: exactly one row, or another attempt.

A checkpoint that inspection skipped gets its row at once, without a worker. So does one whose samples are in
the store under a configuration that samples alike: its candidates are compared again. An attempt that failed
for a reason outside the checkpoint (a dead worker, a hub or a store that does not answer, a deadline) is
repeated up to `ATTEMPTS` times. A checkpoint whose scan took too long is tried once more, when nothing else
is left. The loss of a node does not count as an attempt, up to `NODES_LOST` times.
Knows no Ray.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import batched

from finextract.reasons import ReasonCode
from scanner.crawl.backlog import State
from scanner.crawl.deadlines import DeadlinePassed
from scanner.crawl.monitoring import CrawlMetrics
from scanner.crawl.planning import Plan, Planned
from scanner.crawl.pool import WorkerDied, WorkerFailed
from scanner.crawl.progress import Budget, Observer, Progress
from scanner.crawl.worker import Task
from scanner.records import Checkpoint, InspectionStatus, Scan, Verdict, new_id, now
from scanner.store.leases import LeaseLost, Leases, lease_key
from scanner.store.store import Store
from scanner.text import first_line

ATTEMPTS = 3  # at a checkpoint
NODES_LOST = 20  # while a checkpoint was scanned, before further losses count as attempts
ROWS = 200  # read or written together
ALONE_S = 30.0  # for which a crawl waits for another one that records what inspection skipped
PAUSE_S = 5.0  # before the second attempt; twice as long before the third


Outcome = Scan | WorkerDied | WorkerFailed | LeaseLost  # of one attempt


class Outcomes:
    """Records outcomes, and counts them in `progress` and `budget`."""

    def __init__(self, task: Task, plan: Plan, store: Store, budget: Budget, observer: Observer) -> None:
        self._task, self._plan, self._store, self._observer = task, plan, store, observer
        self._config_id = task.config.config_id
        self._attempts: Counter[str] = Counter()
        self._nodes_lost: Counter[str] = Counter()
        self.leases = Leases(store.storage, task.run_id)
        self.budget = budget
        self.progress = Progress()
        self.metrics: CrawlMetrics | None = None  # once Ray is running

    # --- without a worker

    def record_skipped(self, skipped: Sequence[Planned]) -> None:
        """Writes the rows of what inspection skipped, unless another crawl has written them meanwhile."""
        for batch in batched(skipped, ROWS):
            ids = [p.checkpoint_id for p in batch]
            rows = {row.checkpoint_id: row for row in self._store.of_source(self._task.source, ids)}
            with self._alone():
                recorded = {scan.checkpoint_id: scan for scan in self._recorded_elsewhere(ids)}
                scans = [_not_ready(self._task, row) for id_, row in rows.items() if id_ not in recorded]
                self._store.append(scans)
            for scan in (*recorded.values(), *scans):
                self._count(rows[scan.checkpoint_id], scan)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lets one crawl at a time record what inspection skipped; their rows have no lease of their own.

        Waits for another crawl for up to `ALONE_S`: should both record a row then, the rows say the same.
        """
        key, until = lease_key("inspected", self._config_id), time.monotonic() + ALONE_S
        while not self.leases.acquire([key]) and time.monotonic() < until:
            time.sleep(0.1)
        try:
            yield
        finally:
            self.leases.release([key])

    # --- with a worker

    def lease(
        self, planned: Sequence[Planned]
    ) -> tuple[list[Checkpoint], list[Planned], list[str]]:  # fmt: skip
        """Leases checkpoints for this crawl.

        Returns the rows of those that it got, those that another crawl holds, and the ids of those that need
        no scan: another crawl has finished them meanwhile, which is counted, or their rows were removed.
        """
        held = self.leases.acquire(self._key(p.checkpoint_id) for p in planned)
        elsewhere = [p for p in planned if self._key(p.checkpoint_id) not in held]
        ids = [p.checkpoint_id for p in planned if self._key(p.checkpoint_id) in held]
        rows = (
            {row.checkpoint_id: row for row in self._store.of_source(self._task.source, ids)} if ids else {}
        )
        finished = [id_ for id_ in ids if id_ not in rows]
        for scan in self._recorded_elsewhere(list(rows)):
            self.close(rows.pop(scan.checkpoint_id), scan)
            finished.append(scan.checkpoint_id)
        return list(rows.values()), elsewhere, finished

    def allow_one_attempt(self, planned: Planned) -> None:
        """A quarantined checkpoint is tried once more."""
        self._attempts[planned.checkpoint_id] = ATTEMPTS - 1

    def is_leased(self, checkpoint: Checkpoint) -> bool:
        """Whether this crawl has the lease of a checkpoint, as far as it has noticed."""
        return self._key(checkpoint.checkpoint_id) in self.leases

    def settle(self, checkpoint: Checkpoint, outcome: Outcome) -> tuple[State, float]:
        """Records an outcome, or decides on another attempt.

        Returns the checkpoint's new state: DONE; HELD_ELSEWHERE; QUARANTINED; or DELAYED, with the pause in
        seconds.
        """
        id_ = checkpoint.checkpoint_id
        if not isinstance(outcome, Scan):
            # A worker may have died after it wrote its row.
            written = self._store.select(
                Scan, "WHERE checkpoint_id = ? AND run_id = ? AND verdict <> 'failed'",
                [checkpoint.checkpoint_id, self._task.run_id],
            )  # fmt: skip
            if written:
                outcome = written[0]
        if isinstance(outcome, Scan) and outcome.verdict is not Verdict.FAILED:
            self.close(checkpoint, outcome)
            return State.DONE, 0.0
        if isinstance(outcome, LeaseLost) or not self.leases.confirm(self._key(id_)):
            self.leases.release([self._key(id_)])
            return State.HELD_ELSEWHERE, 0.0
        if isinstance(outcome, WorkerDied) and outcome.with_its_node and self._nodes_lost[id_] < NODES_LOST:
            self._nodes_lost[id_] += 1
            self.progress.retried += 1
            return State.DELAYED, 0.0
        self._attempts[id_] += 1
        scan = outcome if isinstance(outcome, Scan) else _failed(self._task, checkpoint, outcome)
        if self._attempts[id_] < ATTEMPTS:
            self.progress.retried += 1
            if isinstance(outcome, DeadlinePassed):
                self._attempts[id_] = ATTEMPTS - 1
                self._store.append(
                    [scan]
                )  # so that a later crawl has it in quarantine if this one ends first
                return State.QUARANTINED, 0.0
            return State.DELAYED, 0.0 if isinstance(outcome, WorkerDied) else PAUSE_S * self._attempts[id_]
        self._store.append([scan])
        self.close(checkpoint, scan)
        return State.DONE, 0.0

    def count_in_metrics(self, metrics: CrawlMetrics) -> None:
        """Counts outcomes in Ray's metrics too, beginning with those that are recorded already."""
        metrics.count_verdicts(self.progress.verdicts)
        self.metrics = metrics

    def _recorded_elsewhere(self, ids: Sequence[str]) -> list[Scan]:
        """The verdicts that other crawls recorded meanwhile.

        A row of inspection does not count for a checkpoint that inspection does not skip any more.
        """

        def counts(scan: Scan) -> bool:
            ready = self._plan[scan.checkpoint_id].inspection_status is InspectionStatus.READY
            if scan.verdict is Verdict.FAILED or (scan.stage == "inspect" and ready):
                return False
            return scan.run_id != self._task.run_id

        return [scan for scan in self._store.scans_of(self._config_id, ids) if counts(scan)] if ids else []

    def close(self, checkpoint: Checkpoint, scan: Scan) -> None:
        """Counts a verdict that is recorded."""
        if scan.run_id == self._task.run_id:
            self.budget.spent_seconds += sum(scan.seconds.values())
            self.budget.spent_bytes += checkpoint.size_bytes if "fetch" in scan.seconds else 0
        self.leases.release([self._key(checkpoint.checkpoint_id)])
        self._count(checkpoint, scan)

    def _count(self, checkpoint: Checkpoint, scan: Scan) -> None:
        self.progress.done += 1
        self.progress.verdicts[scan.verdict] += 1
        if self.metrics is not None:
            self.metrics.count_scan(checkpoint, scan)
        self._observer.outcome(checkpoint, scan, self.progress)

    def _key(self, checkpoint_id: str) -> str:
        return lease_key(checkpoint_id, self._config_id)


def _failed(task: Task, checkpoint: Checkpoint, outcome: WorkerDied | WorkerFailed) -> Scan:
    """The row of a checkpoint whose last attempt ended without a row of its worker."""
    message = first_line(outcome, 300)
    if isinstance(outcome, WorkerDied):
        reason = f"its worker died {ATTEMPTS} times or more: {message}"
        return _unscanned(task, checkpoint, Verdict.FAILED, reason, outcome.reason_code, "worker")
    reason = message if isinstance(outcome, DeadlinePassed) else f"{message} ({ATTEMPTS} times)"
    return _unscanned(task, checkpoint, Verdict.FAILED, reason, outcome.reason_code, "scan")


def _not_ready(task: Task, checkpoint: Checkpoint) -> Scan:
    """The row of a checkpoint that inspection skipped, or could not inspect."""
    skipped = checkpoint.inspection_status is InspectionStatus.SKIPPED
    verdict = Verdict.SKIPPED if skipped else Verdict.FAILED
    return _unscanned(task, checkpoint, verdict, checkpoint.reason, checkpoint.reason_code, "inspect")


def _unscanned(
    task: Task, checkpoint: Checkpoint, verdict: Verdict, reason: str, reason_code: ReasonCode | None,
    stage: str,
) -> Scan:  # fmt: skip
    at = now()
    return Scan(
        scan_id=new_id(),
        checkpoint_id=checkpoint.checkpoint_id,
        config_id=task.config.config_id,
        run_id=task.run_id,
        verdict=verdict,
        reason=reason,
        reason_code=reason_code,
        stage=stage,
        started_at=at,
        finished_at=at,
        caption=checkpoint.caption,
        base=checkpoint.base,
        tau=task.config.tau,
        alpha=task.config.alpha,
        seed=task.config.seed,
    )
