"""Compares the candidates of earlier scans again: a corpus that grew needs no new samples. Numpy only.

Samples and candidates depend on the checkpoint, its caption and base, on N0, and on those keys of a
configuration that concern sampling, not on the references. The store holds the candidates of a scan with
their embeddings, so the scan under another set of references is computed from them.

All of it happens in a thread of its own, which reads the candidates of many checkpoints in one pass over the
table: it compares them in batches as they come, under leases, and writes each batch with its verdicts. So an
interrupted crawl loses one batch at most, and the next crawl goes on after it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np
import pyarrow as pa

from scanner.crawl.planning import Planned
from scanner.crawl.samples import batches, candidate_rows, of_each_scan, sampled, samples_alike
from scanner.crawl.verdicts import examination, grounds_of
from scanner.crawl.worker import Task
from scanner.match.corpus import corpora_of
from scanner.match.matching import Candidates, Comparison, Corpora, compare, split, thresholds_of
from scanner.records import Candidate, Checkpoint, Match, Scan, Verdict, new_id, now
from scanner.store.leases import Leases, lease_key
from scanner.store.store import Store
from scanner.store.tables import arrow_schema

SCANS = 4096  # that are compared, leased and written together
PASSES = 8  # over the candidates during a listing, at most: a pass begins with this part of what may come
FINISHED = 2  # batches that wait for the crawl's loop to count them
RENEW_S = 30.0  # between two renewals of a batch's leases
ELSEWHERE_S = 30.0  # that another crawl has to write the verdicts of a batch that it compares


@dataclass(frozen=True, slots=True)
class Rematched:
    """What became of some checkpoints."""

    scans: list[tuple[Checkpoint, Scan]] = field(default_factory=list)  # recorded by this crawl or another
    rest: list[Planned] = field(default_factory=list)  # that need new samples, or are held by another crawl


class Rematching:
    """The newest scans of a store under other configurations with the same sampling; a context manager.

    `add` and `take` are for the crawl's loop. On leaving the thread ends within seconds, and what it has not
    written is left to the next crawl. `more_to_come` says whether the listing may add further checkpoints,
    and `is_spent` whether the budget of the crawl is.
    """

    def __init__(
        self, store: Store, task: Task, *, more_to_come: Callable[[], bool] = lambda: False,
        is_spent: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._store, self._config, self._source, self._run_id = store, task.config, task.source, task.run_id
        self._config_id, self._cache = task.config.config_id, task.cache_folder
        self._more_to_come, self._is_spent = more_to_come, is_spent
        # With a screen, a worker screens the new references, and then compares the earlier samples itself.
        self._sampled = {} if task.config.is_screened else sampled(store, task.config)
        self._leases = Leases(store.storage, task.run_id)  # of the batch that is compared
        self._waiting: dict[str, Planned] = {}
        self._lock = threading.Lock()
        self._finished: queue.Queue[Rematched | BaseException] = queue.Queue(FINISHED)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rematching", daemon=True)
        self.pending = 0  # checkpoints that were added and are not taken yet

    def __enter__(self) -> Rematching:
        if self._sampled:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def __contains__(self, checkpoint_id: str) -> bool:
        """Whether the store holds samples of a checkpoint."""
        return checkpoint_id in self._sampled

    def __len__(self) -> int:
        return len(self._sampled)

    def add(self, ready: Iterable[Planned]) -> list[Planned]:
        """Takes in the checkpoints whose samples the store holds; returns the others."""
        others, mine = [], {}
        for planned in ready:
            if planned.checkpoint_id in self._sampled:
                mine[planned.checkpoint_id] = planned
            else:
                others.append(planned)
        with self._lock:
            self._waiting |= mine
        self.pending += len(mine)
        return others

    def take(self, wait_s: float = 0) -> Rematched | None:
        """What became of some of them; None where nothing has within `wait_s`. Raises StoreError."""
        try:
            done = self._finished.get(timeout=wait_s) if wait_s else self._finished.get_nowait()
        except queue.Empty:
            return None
        if isinstance(done, BaseException):
            raise done
        self.pending -= len(done.scans) + len(done.rest)
        return done

    # --- in the thread

    def _run(self) -> None:
        try:
            corpora = None
            while not self._stopping.wait(0 if self._is_due() else 0.1):
                with self._lock:
                    wanted, self._waiting = (self._waiting, {}) if self._is_due() else ({}, self._waiting)
                if wanted:
                    corpora = corpora or split(corpora_of(self._store, self._config, self._cache))
                    self._pass(wanted, corpora)
        except BaseException as error:  # `take` raises it in the crawl's loop
            self._put(error)
        finally:
            self._leases.release()

    def _is_due(self) -> bool:
        enough = max(SCANS, len(self._sampled) // PASSES)
        return bool(self._waiting) and (len(self._waiting) >= enough or not self._more_to_come())

    def _pass(self, wanted: dict[str, Planned], corpora: Corpora) -> None:
        """One pass over the table of candidates, for all checkpoints that are wanted."""
        elsewhere: list[Planned] = []
        for batch in batches(candidate_rows(self._store, {id_: self._sampled[id_] for id_ in wanted}), SCANS):
            if self._stopping.is_set() or self._is_spent():
                break
            batch_of = [wanted.pop(checkpoint_id) for checkpoint_id, _ in batch]
            done, held_elsewhere = self._settle(batch_of, dict(batch), corpora)
            elsewhere += held_elsewhere
            self._put(done)
        ends = time.monotonic() + ELSEWHERE_S
        while elsewhere and not self._stopping.wait(0.5):
            done, elsewhere = self._recorded(elsewhere)
            late = time.monotonic() > ends
            self._put(Rematched(done.scans, elsewhere if late else []))
            elsewhere = [] if late else elsewhere
        self._put(Rematched(rest=list(wanted.values())))  # their candidates are not whole, or the budget ends

    def _settle(
        self, batch: Sequence[Planned], found: dict[str, pa.Table], corpora: Corpora
    ) -> tuple[Rematched, list[Planned]]:
        """Compares and writes a batch; also returns what another crawl holds.

        Leaves out a checkpoint with another base, caption or number of samples than before, or without a row:
        it is for a worker.
        """
        planned = {self._key(p.checkpoint_id): p for p in batch}
        held = self._leases.acquire(planned)
        elsewhere = [p for key, p in planned.items() if key not in held]
        done, mine = self._recorded([p for key, p in planned.items() if key in held])
        ids = [p.checkpoint_id for p in mine]
        rows = {row.checkpoint_id: row for row in self._store.of_source(self._source, ids)}
        earlier = {
            scan.checkpoint_id: scan
            for scan in self._store.scans_with_ids([self._sampled[id_].scan_id for id_ in ids])
        }
        alike = [
            id_
            for id_ in ids
            if id_ in rows and id_ in earlier and samples_alike(earlier[id_], rows[id_], self._config)
        ]
        scans = self._compared([(earlier[id_], found[id_]) for id_ in alike], corpora) if alike else []
        if scans is not None:
            done.scans.extend((rows[scan.checkpoint_id], scan) for scan in scans)
            written, same = {scan.checkpoint_id for scan in scans}, set(alike)
            done.rest.extend(p for p in mine if p.checkpoint_id not in same)
            elsewhere += [p for p in mine if p.checkpoint_id in same - written]
        self._leases.release(held)
        return done, elsewhere

    def _recorded(self, planned: Sequence[Planned]) -> tuple[Rematched, list[Planned]]:
        """What other crawls recorded meanwhile, and the rest."""
        ids = [p.checkpoint_id for p in planned]
        scans = {
            scan.checkpoint_id: scan
            for scan in (self._store.scans_of(self._config_id, ids) if ids else [])
            if scan.verdict is not Verdict.FAILED and scan.stage != "inspect" and scan.run_id != self._run_id
        }
        rows = self._store.of_source(self._source, list(scans)) if scans else []
        done = Rematched([(row, scans[row.checkpoint_id]) for row in rows])
        counted = {row.checkpoint_id for row in rows}
        return done, [p for p in planned if p.checkpoint_id not in counted]

    def _compared(self, work: Sequence[tuple[Scan, pa.Table]], corpora: Corpora) -> list[Scan] | None:
        """Compares earlier scans and writes the new ones, with rows of candidates and matches of their own.

        None, and nothing is written, where the crawl is interrupted meanwhile.
        """
        started_at, began, config = now(), time.perf_counter(), self._config
        scan_ids = [new_id() for _ in work]
        table = pa.concat_tables(table for _, table in work).cast(arrow_schema(Candidate)).combine_chunks()
        counts = [table.num_rows for _, table in work]
        own = {
            "candidate_id": pa.array([new_id() for _ in range(table.num_rows)], pa.string()),
            "scan_id": pa.array(np.repeat(np.array(scan_ids, object), counts), pa.string()),
        }
        for name, column in own.items():
            table = table.set_column(table.column_names.index(name), name, column)
        compared = self._compare(of_each_scan(table, scan_ids, counts), corpora)
        if compared is None:
            return None
        self._leases.renew()  # which notices leases that were taken over, after a long pause of the process
        held = [one for one in work if self._key(one[0].checkpoint_id) in self._leases]
        if len(held) < len(work):
            return self._compared(held, corpora) if held else []
        seconds = {"match": round((time.perf_counter() - began) / len(work), 6)}
        scans = [
            replace(
                earlier,
                scan_id=scan_id,
                config_id=self._config_id,
                run_id=self._run_id,
                verdict=evidence.verdict,
                grounds="+".join(grounds_of((), evidence)),
                examined=examination(False, True),
                trained_on=0,
                membership_q=None,
                screen_evaluations=0,
                screen_base_evaluations=0,
                screened_references=0,
                standing_references=0,
                compared_references=0,
                background_unlike=False,
                started_at=started_at,
                finished_at=now(),
                num_references=evidence.num_references,
                num_background=evidence.num_background,
                best_similarity=evidence.best_similarity,
                q_value=evidence.q_value,
                tau=config.tau,
                alpha=config.alpha,
                seconds=seconds,
            )
            for (earlier, _), scan_id, evidence in zip(work, scan_ids, compared, strict=True)
        ]
        matches: list[Match] = [match for evidence in compared for match in evidence.matches]
        if table.num_rows:
            self._store.append_arrow("candidates", table)
        self._store.append(matches)
        self._store.append(scans)
        return scans

    def _compare(self, candidates: Sequence[Candidates], corpora: Corpora) -> list[Comparison] | None:
        compared, renewed = [], time.monotonic()
        for evidence in compare(candidates, corpora, thresholds_of(self._config), self._config.alpha):
            if self._stopping.is_set():
                return None
            compared.append(evidence)
            if time.monotonic() - renewed > RENEW_S:
                renewed = time.monotonic()
                self._leases.renew()
        return compared

    def _key(self, checkpoint_id: str) -> str:
        return lease_key(checkpoint_id, self._config_id)

    def _put(self, done: Rematched | BaseException) -> None:
        if isinstance(done, Rematched) and not done.scans and not done.rest:
            return
        while not self._stopping.is_set():
            try:
                self._finished.put(done, timeout=0.2)
            except queue.Full:
                continue
            return
