"""The loop of a crawl: gives checkpoints to workers, collects their outcomes, and takes in what is listed.

The plan may grow meanwhile: the listing runs ahead of the workers by a bounded number of checkpoints. Workers
write images and rows to the store themselves; the driver moves rows of checkpoints and counts outcomes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from scanner.crawl.backlog import Backlog, State
from scanner.crawl.deadlines import DEADLINES, Deadlines
from scanner.crawl.monitoring import CrawlMetrics
from scanner.crawl.outcomes import Outcome, Outcomes
from scanner.crawl.planning import Plan, Planned
from scanner.crawl.pool import WorkerDied, WorkerHandle, WorkerPool
from scanner.crawl.prefetcher import Prefetcher
from scanner.crawl.progress import Budget, Observer
from scanner.crawl.rematching import Rematching
from scanner.crawl.worker import Scanner, Task
from scanner.errors import SourceError
from scanner.records import Checkpoint, InspectionStatus, Verdict
from scanner.store.compaction import compacting
from scanner.store.store import Store

LISTED_AHEAD = 10_000  # checkpoints that may wait for a worker before the listing waits
CLAIMS = 2  # checkpoints that a worker claims beyond the one that it scans,
CLAIMS_S = 10.0  # or as many as it scans in this time, because a claim costs queries to the store,
MAX_CLAIMS = 1000  # but no more than this
PREFETCH_BYTES = 20_000_000_000  # of files that are fetched ahead of their scans
PREFETCH_AFTER_S = 5.0  # of screening or sampling: shorter scans do without
COMPUTING = ("screen", "sample")  # stages in which a worker downloads nothing
COMPACTED_S = 60.0  # between two looks for tables of the store
COMPACTED_PARTS = 200  # that have so many small files, which are made one
TICK_S = 2.0  # between two checks of what is running


def crawl(
    task: Task,
    plan: Plan,
    store: Store,
    *,
    observer: Observer | None = None,
    on_listed: Callable[[], None] = lambda: None,
    budget: Budget | None = None,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    worker_class: type = Scanner,
    deadlines: Deadlines = DEADLINES,
) -> Counter[Verdict]:
    """Scans what a plan has left to do, and what it grows by meanwhile; returns the verdicts of this run.

    Where the source cannot be listed to its end, what was listed is scanned, and `plan.cut_short` says why.
    `on_listed` is called after each listed batch and at the end of the listing. Workers are Ray actors of
    `worker_class`, on the cluster at `address` or on one that is started here. Raises StoreError where the
    store does not answer, and NoWorkers where no worker starts; recorded rows stay, and the next crawl
    resumes.
    """
    observer, todo = observer or Observer(), plan.todo
    budget = budget or Budget()
    with (
        Prefetcher(plan.grow()) as listing,
        Rematching(
            store, task, more_to_come=lambda: not listing.ended, is_spent=lambda: budget.is_spent
        ) as rematching,
    ):
        crawling = _Crawl(task, plan, listing, rematching, store, budget, observer, on_listed, deadlines)
        try:
            with compacting(store.uri, fewest_parts=COMPACTED_PARTS, interval_s=COMPACTED_S):
                crawling.take_in(todo)
                crawling.list_until_ready()
                if crawling.has_more:
                    fetches = not task.source.startswith("folder:")
                    with WorkerPool(
                        task, address=address, workers=workers, gpus_per_worker=gpus_per_worker,
                        fetches=fetches, worker_class=worker_class, tell=observer.message,
                    ) as pool:  # fmt: skip
                        crawling.run(pool)
        except BaseException:
            store.storage.patience.give_up()  # nothing more is waited for, by the listing either
            raise
        finally:
            crawling.outcomes.leases.release()
    return crawling.outcomes.progress.verdicts


class _Crawl:
    """One crawl: the listing, the backlog and the outcomes, between two turns of the loop."""

    def __init__(
        self, task: Task, plan: Plan, listing: Prefetcher[list[Planned]], rematching: Rematching,
        store: Store, budget: Budget, observer: Observer, on_listed: Callable[[], None],
        deadlines: Deadlines,
    ) -> None:  # fmt: skip
        self._task, self._plan, self._listing, self._budget = task, plan, listing, budget
        self._rematching = rematching
        self._observer, self._on_listed, self._deadlines = observer, on_listed, deadlines
        self.outcomes = Outcomes(task, plan, store, budget, observer)
        self.backlog = Backlog()
        self._checked = 0.0  # when the running scans were last checked, monotonic

    @property
    def has_more(self) -> bool:
        """Whether any checkpoint may still be given to a worker."""
        return not self._budget.is_spent and (
            self.listing or self._rematching.pending > 0 or self.backlog.has_more
        )

    @property
    def listing(self) -> bool:
        """Whether more may be listed."""
        return not self._listing.ended

    # --- the listing

    def list_until_ready(self) -> None:
        """Waits for the first checkpoint that needs a worker: workers start no sooner."""
        while not self.backlog[State.WAITING] and (
            self._rematching.pending or (self.has_more and self.listing)
        ):
            self.take_listed(0 if self._rematching.pending else TICK_S)
            self.take_rematched(0.2 if self._rematching.pending else 0)
            self._observer.tick(self.outcomes.progress)

    def take_listed(self, wait_s: float = 0) -> None:
        """Takes in what was listed meanwhile, unless enough is waiting for a worker."""
        while self.listing and self.backlog[State.WAITING] < LISTED_AHEAD:
            try:
                batch = self._listing.take(wait_s)
            except SourceError:  # `plan.cut_short` has it; what was listed is scanned
                batch = None
            if batch is None and self.listing:
                return
            self.take_in(batch or [])
            wait_s = 0

    def take_in(self, todo: Sequence[Planned]) -> None:
        """Records what needs no worker, and adds the rest to the backlog."""
        progress = self.outcomes.progress
        progress.total += len(todo)
        progress.listed, progress.listing = self._plan.listed, self.listing and not self._plan.complete
        self._on_listed()
        self.outcomes.record_skipped([p for p in todo if p.inspection_status is not InspectionStatus.READY])
        ready = [p for p in todo if p.inspection_status is InspectionStatus.READY]
        self._enqueue(self._rematching.add(ready))

    def take_rematched(self, wait_s: float = 0) -> None:
        """Counts what was compared again meanwhile, and adds what needs a worker to the backlog."""
        while (done := self._rematching.take(wait_s)) is not None:
            for checkpoint, scan in done.scans:
                self.outcomes.close(checkpoint, scan)
            self._enqueue(done.rest)
            wait_s = 0

    def _enqueue(self, todo: Sequence[Planned]) -> None:
        for planned in todo:
            quarantined = self._plan.is_quarantined(planned)
            self.backlog.add(planned, quarantined=quarantined)
            if quarantined:
                self.outcomes.allow_one_attempt(planned)

    # --- the workers

    def run(self, pool: WorkerPool) -> None:
        """Gives checkpoints to workers until none is left."""
        self.outcomes.count_in_metrics(CrawlMetrics(self._task.source))
        while (
            self.has_more
            or self._rematching.pending
            or self.backlog[State.CLAIMED]
            or self.backlog[State.RUNNING]
        ):
            self.take_listed()
            self.take_rematched()
            self.backlog.wake(more_to_come=self.listing)
            if not pool.workers:
                self._grow(pool)
            for worker in list(pool.workers):
                if worker.is_idle:
                    self._give_work(pool, worker)
            busy = any(not worker.is_idle for worker in pool.workers)
            for worker, outcome in pool.finished(TICK_S if busy else 0):
                checkpoint = self.backlog.stop(worker)
                if isinstance(outcome, WorkerDied):
                    self._remove(pool, worker)
                self._settle(checkpoint, outcome)
            if time.monotonic() - self._checked >= TICK_S:
                self._checked = time.monotonic()
                self._check(pool)
            if not busy and (self.has_more or self._rematching.pending):
                self._pause()

    def _grow(self, pool: WorkerPool) -> None:
        left = self.outcomes.progress.total - self.outcomes.progress.done
        pool.grow(int(max(1, min(left, self._budget.workers))), self.backlog.families())

    def _give_work(self, pool: WorkerPool, worker: WorkerHandle) -> None:
        if not self.backlog.queue(worker):
            self._claim(pool, worker)
        if not self.backlog.queue(worker):
            alike = {other for other in pool.workers if other.share == worker.share}
            self.backlog.steal(worker, keep=pool.fetched_elsewhere(worker), among=alike)
        if self._budget.is_spent:
            self.backlog.give_back(worker)
        while self.backlog.queue(worker):
            checkpoint = self.backlog.start(worker)
            if self.outcomes.is_leased(checkpoint):
                pool.start(worker, checkpoint)
                self._claim(pool, worker)
                return
            self.backlog.hold_elsewhere(Planned.of(self.backlog.stop(worker)))  # taken over meanwhile
        if pool.is_in_the_way(worker, self.backlog.families()):
            self._remove(pool, worker)

    def _claim(self, pool: WorkerPool, worker: WorkerHandle) -> None:
        """Fills a worker's queue with checkpoints that no other crawl holds or has finished.

        They are of the families whose scans the worker's share of a GPU is enough for.
        """
        families = pool.families_for(worker, self.backlog.families())
        count = 1 + min(MAX_CLAIMS, max(CLAIMS, int(CLAIMS_S / max(worker.seconds, 1e-3))))
        while (
            self.backlog[State.WAITING]
            and len(self.backlog.queue(worker)) < 1 + CLAIMS
            and not self._budget.is_spent
        ):
            if not (taken := self.backlog.take(worker, count, families)):
                break
            for row in (self.backlog.row(p.checkpoint_id) for p in taken):
                if row is not None:  # leased before, for an attempt that failed or a worker that ended
                    self.backlog.enqueue(worker, row)
            unleased = [p for p in taken if self.backlog.row(p.checkpoint_id) is None]
            rows, elsewhere, finished = self.outcomes.lease(unleased)
            for row in rows:
                self.backlog.enqueue(worker, row)
            for planned in elsewhere:
                self.backlog.hold_elsewhere(planned)
            for checkpoint_id in finished:
                self.backlog.finish(checkpoint_id)

    def _settle(self, checkpoint: Checkpoint, outcome: Outcome) -> None:
        state, pause_s = self.outcomes.settle(checkpoint, outcome)
        if state is State.DONE:
            self.backlog.finish(checkpoint.checkpoint_id)
        elif state is State.QUARANTINED:
            self.backlog.quarantine(checkpoint)
        elif state is State.HELD_ELSEWHERE:
            self.backlog.hold_elsewhere(Planned.of(checkpoint))
        else:
            self.backlog.delay(checkpoint, pause_s)

    def _remove(self, pool: WorkerPool, worker: WorkerHandle) -> None:
        """A worker has ended, or is to end; other workers get what it had claimed."""
        self.backlog.forget(worker)
        pool.dismiss(worker)

    def _pause(self) -> None:
        """No worker is busy: waits for the listing, for what is tried or compared again, or another crawl."""
        pause_s = 0.2 if self.backlog[State.DELAYED] else TICK_S
        if self._rematching.pending:
            self.take_rematched(0.2)
        elif self.listing:
            self.take_listed(pause_s)
        else:
            time.sleep(pause_s)
        self.backlog.retry_held_elsewhere()

    # --- every few seconds

    def _check(self, pool: WorkerPool) -> None:
        """Renews leases, starts workers, ends those that passed a deadline, and reports progress."""
        progress = self.outcomes.progress
        self.outcomes.leases.renew()
        self._grow(pool)
        pool.poll()
        progress.running = []
        for worker in list(pool.workers):
            checkpoint, stage = self.backlog.running(worker), worker.stage
            id_ = checkpoint.checkpoint_id if checkpoint is not None else None
            passed = self._deadlines.passed(worker, id_, time.monotonic())
            if checkpoint is None:
                if passed is not None:
                    self.backlog.forget(worker)
                    pool.failed_to_start(worker, passed)
                continue
            if stage is None or stage.checkpoint_id != id_:
                progress.running.append((checkpoint, "start", 0.0))
            else:
                progress.running.append((checkpoint, stage.name, stage.seconds))
                if stage.name in COMPUTING and stage.seconds > PREFETCH_AFTER_S:
                    for claimed in list(self.backlog.queue(worker))[:CLAIMS]:
                        pool.fetch_ahead(worker, claimed, PREFETCH_BYTES)
            if passed is not None:
                self.backlog.stop(worker)
                self._remove(pool, worker)
                self._settle(checkpoint, passed)
        progress.elsewhere = self.backlog[State.HELD_ELSEWHERE]
        progress.waiting = pool.num_waiting
        progress.starting = sum(worker.starting is not None for worker in pool.workers) - progress.waiting
        if self.outcomes.metrics is not None:
            self.outcomes.metrics.report(progress)
        self._observer.tick(progress)
