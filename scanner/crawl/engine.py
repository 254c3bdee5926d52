"""The crawl: keep workers busy with a plan, and record exactly one outcome a checkpoint.

The plan may grow meanwhile: the listing is a bounded number of checkpoints ahead of the workers. What
inspection ruled out gets its row at once; the rest goes to workers, which write images and rows to the
store themselves: the driver moves records and counters. What failed for a reason of ours (a dead worker or
node, a hub or a store that does not answer, a deadline) is tried `ATTEMPTS` times. Loss of a node is nobody's
fault and is not counted, up to `NODES_LOST`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import batched

from scanner.crawl.backlog import Schedule
from scanner.crawl.monitoring import CrawlMetrics
from scanner.crawl.planning import Plan, Planned
from scanner.crawl.pool import WorkerDied, WorkerFailed, WorkerHandle, WorkerPool
from scanner.crawl.prefetcher import Prefetcher
from scanner.crawl.progress import Budget, Progress
from scanner.crawl.rematching import Rematching
from scanner.crawl.worker import Scanner, Task
from scanner.errors import SourceError
from scanner.records import Checkpoint, InspectionStatus, Scan, Verdict, new_id, now
from scanner.store.compaction import compacting
from scanner.store.leases import Leases
from scanner.store.store import Store

ATTEMPTS = 3  # of a checkpoint
NODES_LOST = 20  # of a checkpoint, before it counts
CHUNK = 200  # rows that are read or written at once
LISTED_AHEAD = 10_000  # checkpoints that the listing may be ahead of the workers
AHEAD = 2  # checkpoints that a worker has claimed beyond the one that it is at,
AHEAD_S = 10.0  # or as many as take it that long: claiming costs questions to the store;
AHEAD_MOST = 1000  # but no more than these
AHEAD_BYTES = 20_000_000_000  # fetched ahead at once
SETTLED_S = 5.0  # of sampling, before files are fetched ahead: short scans do without
TICK_S = 2.0  # between two looks at what is running
PAUSE_S = 5.0  # before a checkpoint that failed is tried again; longer each time
DEADLINES_S = {"fetch": 7200.0, "load": 1800.0, "sample": 8 * 3600.0, "embed": 3600.0, "cliques": 3600.0,
               "match": 1800.0}  # fmt: skip


Report = Callable[[Checkpoint, Scan, Progress], None]
Listed = Callable[[Plan], None]


class Crawl:
    """One crawl of a plan: its state between two ticks."""

    def __init__(
        self, task: Task, plan: Plan, listing: Prefetcher[list[Planned]], store: Store, report: Report,
        listed: Listed, budget: Budget,
    ) -> None:  # fmt: skip
        self.task, self.plan, self.store, self.budget = task, plan, store, budget
        self._listing, self._report, self._listed = listing, report, listed
        self._config_id = task.config.config_id
        self.progress = Progress()
        self.schedule = Schedule()
        self.quarantined: list[Planned] = []  # what may have killed its workers comes last, with one try
        self._before = Rematching(store, task.config, task.run_id)
        self.leases = Leases(store.storage, task.run_id)
        self.attempts: Counter[str] = Counter()
        self.nodes_lost: Counter[str] = Counter()
        self.later: list[tuple[float, Planned]] = []  # (when it may be tried again, checkpoint)
        self.elsewhere: list[Planned] = []  # held by another crawl
        self.rows: dict[str, Checkpoint] = {}  # of what is claimed
        self.metrics: CrawlMetrics | None = None  # once Ray is there

    # --- what there is to do

    @property
    def listing(self) -> bool:
        """Whether more may be listed."""
        return not self._listing.ended

    def look_at_listing(self, wait_s: float = 0) -> None:
        """Takes in what was listed meanwhile, unless enough waits for a worker: then the listing waits."""
        while self.listing and len(self.schedule) < LISTED_AHEAD:
            try:
                batch = self._listing.take(wait_s)
            except SourceError as error:  # what was listed is scanned all the same
                self.plan.cut_short, batch = error, None
            if batch is None and self.listing:
                return  # it is at it
            self.take_in(batch or [])
            wait_s = 0

    def take_in(self, todo: Sequence[Planned]) -> None:
        """What was listed: rows for what needs no worker, the rest into the schedule."""
        self.progress.total += len(todo)
        self.progress.listed, self.progress.listing = (
            self.plan.listed,
            self.listing and not self.plan.complete,
        )
        self._listed(self.plan)
        self._record_ruled_out([p for p in todo if p.inspection_status is not InspectionStatus.READY])
        for planned in self._record_rematched(
            [p for p in todo if p.inspection_status is InspectionStatus.READY]
        ):
            if planned.checkpoint_id in self.plan.quarantined:
                self.quarantined.append(planned)
                self.attempts[planned.checkpoint_id] = ATTEMPTS - 1
            else:
                self.schedule.add(planned)

    # --- outcomes

    def _record_ruled_out(self, ruled_out: Sequence[Planned]) -> None:
        """The rows of what inspection ruled out, unless another crawl has written them meanwhile."""
        for batch in batched(ruled_out, CHUNK):
            ids = [p.checkpoint_id for p in batch]
            rows = {row.checkpoint_id: row for row in self.store.of_source(self.task.source, ids)}
            there = {scan.checkpoint_id: scan for scan in self._written_elsewhere(ids)}
            scans = [_ruled_out(self.task, row) for id_, row in rows.items() if id_ not in there]
            self.store.append(scans)
            for scan in (*there.values(), *scans):
                self._done(rows[scan.checkpoint_id], scan)

    def _record_rematched(self, ready: Sequence[Planned]) -> list[Planned]:
        """The rows of what was sampled before under a configuration that samples alike: compared anew.

        Gives back what is left.
        """
        done: set[str] = set()
        for batch in batched([p.checkpoint_id for p in ready if p.checkpoint_id in self._before], CHUNK):
            if self.budget.is_spent:
                break
            held = self.leases.acquire(self._key(id_) for id_ in batch)
            mine = {id_ for id_ in batch if self._key(id_) in held}
            mine -= {scan.checkpoint_id for scan in self._written_elsewhere(sorted(mine))}
            for row, scan in self._before.scans(self.store.of_source(self.task.source, sorted(mine))):
                self._close(row, scan)
                done.add(row.checkpoint_id)
            self.leases.release(held)
        return [p for p in ready if p.checkpoint_id not in done]

    def _written_elsewhere(self, ids: Sequence[str]) -> list[Scan]:
        """Verdicts that another crawl has come to meanwhile.

        What inspection once ruled out and now does not has none: a gate was opened, a token given.
        """

        def counts(scan: Scan) -> bool:
            ready = self.plan.planned[scan.checkpoint_id].inspection_status is InspectionStatus.READY
            if scan.verdict is Verdict.FAILED or (scan.stage == "inspect" and ready):
                return False
            return scan.run_id != self.task.run_id

        return [scan for scan in self.store.scans_of(self._config_id, ids) if counts(scan)] if ids else []

    def _done(self, checkpoint: Checkpoint, scan: Scan) -> None:
        self.progress.done += 1
        self.progress.verdicts[scan.verdict] += 1
        if self.metrics is not None:
            self.metrics.ended(checkpoint, scan)
        self._report(checkpoint, scan, self.progress)

    def settle(self, checkpoint: Checkpoint, outcome: Scan | WorkerDied | WorkerFailed) -> None:
        """Records an outcome, or has the checkpoint tried again."""
        if not isinstance(outcome, Scan):
            # A worker's own rows count: it may have died after it wrote them.
            written = self.store.select(
                Scan, "WHERE checkpoint_id = ? AND run_id = ?", [checkpoint.checkpoint_id, self.task.run_id]
            )
            if written:
                outcome = written[0]
        if isinstance(outcome, Scan) and outcome.verdict is not Verdict.FAILED:
            self._close(checkpoint, outcome)
            return
        id_ = checkpoint.checkpoint_id
        if isinstance(outcome, WorkerDied) and outcome.with_its_node and self.nodes_lost[id_] < NODES_LOST:
            self.nodes_lost[id_] += 1
            self._again(checkpoint, 0)
            return
        self.attempts[id_] += 1
        if self.attempts[id_] < ATTEMPTS:
            self._again(
                checkpoint, PAUSE_S * self.attempts[id_] if not isinstance(outcome, WorkerDied) else 0
            )
            return
        scan = outcome if isinstance(outcome, Scan) else _failed(self.task, checkpoint, outcome)
        self.store.append([scan])
        self._close(checkpoint, scan)

    def _close(self, checkpoint: Checkpoint, scan: Scan) -> None:
        if scan.run_id == self.task.run_id:
            self.budget.spent_seconds += sum(scan.seconds.values())
            self.budget.spent_bytes += checkpoint.size_bytes if "fetch" in scan.seconds else 0
        self.rows.pop(checkpoint.checkpoint_id, None)
        self.leases.release([self._key(checkpoint.checkpoint_id)])
        self._done(checkpoint, scan)

    def _again(self, checkpoint: Checkpoint, pause_s: float) -> None:
        self.progress.retried += 1
        planned = Planned(checkpoint.checkpoint_id, checkpoint.base, checkpoint.inspection_status)
        self.later.append((time.monotonic() + pause_s, planned))

    # --- work

    @property
    def left(self) -> bool:
        """Whether anything may still be handed out."""
        if self.budget.is_spent:
            return False
        return bool(self.listing or self.schedule or self.later or self.elsewhere or self.quarantined)

    def claim(self, worker: WorkerHandle) -> None:
        """Fills a worker's queue with checkpoints that nobody else is at, or has finished meanwhile."""
        count = 1 + min(AHEAD_MOST, max(AHEAD, int(AHEAD_S / max(worker.seconds, 1e-3))))
        while self.schedule and len(worker.queue) < 1 + AHEAD and not self.budget.is_spent:
            worker.queue += self._claimed(self.schedule.take(worker, count))

    def _claimed(self, taken: Sequence[Planned]) -> list[Planned]:
        fresh = [p for p in taken if p.checkpoint_id not in self.rows]
        held = self.leases.acquire(self._key(p.checkpoint_id) for p in fresh)
        mine = [p for p in fresh if self._key(p.checkpoint_id) in held]
        self.elsewhere += [p for p in fresh if self._key(p.checkpoint_id) not in held]
        ids = [p.checkpoint_id for p in mine]
        rows = {row.checkpoint_id: row for row in self.store.of_source(self.task.source, ids)} if ids else {}
        for scan in self._written_elsewhere(ids):
            self._close(rows.pop(scan.checkpoint_id), scan)
        self.rows |= rows
        return [p for p in taken if p.checkpoint_id in self.rows]

    def steal(self, worker: WorkerHandle, others: Sequence[WorkerHandle]) -> None:
        """An idle worker takes the last of the longest queue: at the end nobody waits for one worker."""
        longest = max(others, key=lambda w: len(w.queue), default=None)
        if longest is not None and len(longest.queue) > (0 if longest.answer is not None else 1):
            worker.queue.append(longest.queue.pop())

    def wake(self) -> None:
        """What may be tried again now goes back to the schedule."""
        at = time.monotonic()
        due = [p for when, p in self.later if when <= at]
        if not self.schedule and not self.later and not self.listing:
            due, self.quarantined = self.quarantined, []
        self.later = [(when, p) for when, p in self.later if when > at]
        for planned in due:
            self.schedule.add(planned)

    def look_elsewhere(self) -> None:
        """What another crawl was at: its verdict counts; what it let go of is ours."""
        if self.elsewhere:
            held, self.elsewhere = self.elsewhere, []
            for planned in held:
                self.schedule.add(planned)

    def _key(self, checkpoint_id: str) -> str:
        return f"{checkpoint_id}-{self._config_id}"


def crawl(
    task: Task,
    plan: Plan,
    store: Store,
    *,
    growth: Iterable[list[Planned]] = (),
    address: str | None = None,
    workers: int | None = None,
    listed: Listed = lambda _: None,
    report: Report = lambda *_: None,
    tick: Callable[[Progress], None] = lambda _: None,
    budget: Budget | None = None,
    kind: type = Scanner,
) -> Counter[Verdict]:
    """Scans what a plan has left to do, and what it grows by meanwhile.

    `growth` (scanner.crawl.planning.grow) is listed while workers scan, at most `LISTED_AHEAD` checkpoints
    ahead of them. Where its source cannot be listed to the end, what was listed is scanned, and the plan
    says why.
    `listed` is told of each batch and of the end, `report` of each outcome, `tick` every few seconds how far
    it is. Raises StoreError where the store does not answer, NoWorkers where no worker comes up; what was
    recorded stays, and the next crawl goes on. `kind` is what workers hold.
    """
    todo = plan.todo
    with Prefetcher(growth) as listing:
        state = Crawl(task, plan, listing, store, report, listed, budget or Budget())
        try:
            with compacting(store.uri):
                state.take_in(todo)
                while state.left and not state.schedule and state.listing:  # nothing to hand out yet
                    state.look_at_listing(TICK_S)
                    tick(state.progress)
                if state.left:
                    _with_workers(state, address, workers, tick, kind)
        finally:
            state.leases.release()
    return state.progress.verdicts


def _with_workers(
    state: Crawl, address: str | None, workers: int | None, tick: Callable[[Progress], None], kind: type
) -> None:
    fetchers = 0 if state.task.source.startswith("folder:") else 1
    with WorkerPool(state.task, address=address, workers=workers, fetchers=fetchers, kind=kind) as pool:
        state.metrics = CrawlMetrics(state.task.source)
        state.metrics.told(state.progress.verdicts)
        _work(state, pool, tick)


def _work(state: Crawl, pool: WorkerPool, tick: Callable[[Progress], None]) -> None:
    looked = 0.0
    while state.left or any(w.queue or w.answer is not None for w in pool.workers):
        state.look_at_listing()
        state.wake()
        if not pool.workers:
            pool.grow(most=max(1, state.progress.total - state.progress.done))
        for worker in pool.workers:
            if worker.answer is None and worker.starting is None:
                _hand_out(state, pool, worker)
        busy = any(w.answer is not None or w.starting is not None for w in pool.workers)
        for worker, outcome in pool.finished(TICK_S if busy else 0):
            assert worker.at is not None, "it was given a checkpoint"
            if isinstance(outcome, WorkerDied):
                _lose(state, pool, worker)
            state.settle(worker.at, outcome)
        if time.monotonic() - looked >= TICK_S:
            looked = time.monotonic()
            _look(state, pool, tick)
        if not busy and state.left:
            pause_s = 0.2 if state.later else TICK_S
            if state.listing:
                state.look_at_listing(pause_s)
            else:
                time.sleep(pause_s)
            state.look_elsewhere()


def _hand_out(state: Crawl, pool: WorkerPool, worker: WorkerHandle) -> None:
    if not worker.queue:
        state.claim(worker)
    if not worker.queue:
        state.steal(worker, [w for w in pool.workers if w is not worker])
    if not worker.queue or state.budget.is_spent:
        worker.queue.clear()
        return
    pool.start(worker, state.rows[worker.queue.pop(0).checkpoint_id])
    state.claim(worker)


def _lose(state: Crawl, pool: WorkerPool, worker: WorkerHandle) -> None:
    """A worker is gone: what it had claimed is handed out anew."""
    for planned in worker.queue:
        state.schedule.add(planned)
    worker.queue.clear()
    state.schedule.forget(worker)
    pool.dismiss(worker)


def _look(state: Crawl, pool: WorkerPool, tick: Callable[[Progress], None]) -> None:
    """Renews leases, holds stages to their deadlines, tells how far it is."""
    state.leases.renew()
    pool.grow(most=max(1, state.progress.total - state.progress.done))
    pool.look()
    state.progress.running = []
    for worker in list(pool.workers):
        if worker.answer is None or worker.at is None:
            continue
        stage = worker.stage
        if stage is None or stage.checkpoint_id != worker.at.checkpoint_id:
            state.progress.running.append((worker.at, "start", 0.0))
            continue
        state.progress.running.append((worker.at, stage.name, stage.seconds))
        if stage.name == "sample" and stage.seconds > SETTLED_S:  # the line is free
            for planned in worker.queue[:AHEAD]:
                pool.fetch_ahead(state.rows[planned.checkpoint_id], AHEAD_BYTES)
        if stage.seconds > DEADLINES_S.get(stage.name, float("inf")):
            checkpoint = worker.at
            _lose(state, pool, worker)
            state.settle(
                checkpoint,
                WorkerFailed(f"{stage.name} took longer than {DEADLINES_S[stage.name]:.0f} s, and was ended"),
            )
    state.progress.elsewhere = len(state.elsewhere)
    state.progress.starting = sum(w.starting is not None for w in pool.workers)
    if state.metrics is not None:
        state.metrics.look(state.progress)
    tick(state.progress)


def _failed(task: Task, checkpoint: Checkpoint, outcome: WorkerDied | WorkerFailed) -> Scan:
    """The row of a checkpoint that no worker came to an end with."""
    first_line = (str(outcome).strip().splitlines() or ["no reason told"])[0][:300]
    if isinstance(outcome, WorkerDied):
        reason = f"its worker died {ATTEMPTS} times or more: {first_line}"
        return _without_scan(task, checkpoint, Verdict.FAILED, reason, "worker")
    return _without_scan(task, checkpoint, Verdict.FAILED, f"{first_line} ({ATTEMPTS} times)", "scan")


def _ruled_out(task: Task, checkpoint: Checkpoint) -> Scan:
    """The row of a checkpoint that inspection ruled out."""
    skipped = checkpoint.inspection_status is InspectionStatus.SKIPPED
    verdict = Verdict.SKIPPED if skipped else Verdict.FAILED
    return _without_scan(task, checkpoint, verdict, checkpoint.reason, "inspect")


def _without_scan(task: Task, checkpoint: Checkpoint, verdict: Verdict, reason: str, stage: str) -> Scan:
    at = now()
    return Scan(
        scan_id=new_id(),
        checkpoint_id=checkpoint.checkpoint_id,
        config_id=task.config.config_id,
        run_id=task.run_id,
        verdict=verdict,
        reason=reason,
        stage=stage,
        started_at=at,
        finished_at=at,
        caption=checkpoint.caption,
        base=checkpoint.base,
        tau=task.config.tau,
        alpha=task.config.alpha,
        seed=task.config.seed,
    )
