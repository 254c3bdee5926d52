"""Scans whose candidates are compared again under other references: no worker is needed, and no Ray."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stub_worker
from plans import whole_plan

from scanner.config import ScanConfig
from scanner.crawl import rematching
from scanner.crawl.engine import crawl
from scanner.crawl.planning import Plan, Planned
from scanner.crawl.progress import Budget, Observer, Progress
from scanner.crawl.rematching import Rematched, Rematching
from scanner.crawl.samples import samples_alike
from scanner.crawl.worker import Task
from scanner.match.corpus import load_corpora
from scanner.match.matching import Candidates, compare, split, thresholds_of, with_corpora
from scanner.records import (
    Candidate,
    Checkpoint,
    Examination,
    InspectionStatus,
    Match,
    Reference,
    Role,
    Scan,
    Verdict,
    now,
)
from scanner.store.compaction import compact
from scanner.store.store import Store

COUNT, REFERENCES, BACKGROUND, SIZE = 120, 30, 700, 64
BEFORE = ScanConfig(alpha=0.04, screen="off")  # another configuration with the same sampling


def embeddings(rng: np.random.Generator, count: int) -> np.ndarray:
    values = rng.standard_normal((count, SIZE)).astype(np.float32)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def checkpoint(n: int) -> Checkpoint:
    return Checkpoint(
        f"{n:064x}", "stub", f"o/{n}", "", "", "", None, 1, "lora", "sd1", "lab/base", f"a {n}", 5, None,
        None, now(), "{}", InspectionStatus.READY,
    )  # fmt: skip


def earlier(n: int, num_candidates: int, **facts: Any) -> Scan:
    at = now()
    return Scan(
        f"scan{n:05}", f"{n:064x}", BEFORE.config_id, "earlier", Verdict.NOTHING_FOUND, "", "match", at, at,
        caption=f"a {n}", base="lab/base", num_samples=250, num_candidates=num_candidates, device="some GPU",
        versions={"torch": "2"}, **facts,
    )  # fmt: skip


@pytest.fixture
def sampled(store: Store) -> Store:
    """A store with corpora, and scans of zero to six candidates, some of which show a reference."""
    rng = np.random.default_rng(0)
    for name, role, count in (("r", Role.REFERENCE, REFERENCES), ("b", Role.BACKGROUND, BACKGROUND)):
        store.append([
            Reference(f"{name}{i:04}", name, role, "", "", 1, 1, BEFORE.descriptor, tuple(e.tolist()), now())
            for i, e in enumerate(embeddings(rng, count))
        ])  # fmt: skip
    shown = references(store)
    store.append([BEFORE.row()])
    store.append([checkpoint(n) for n in range(COUNT)])
    for start in range(0, COUNT, 40):
        found, scans = [], []
        for n in range(start, start + 40):
            vectors = embeddings(rng, n % 7)
            if n % 7 == 3:
                vectors[1] = shown[n % REFERENCES]
            found += [
                Candidate(f"c{n}-{k}", f"scan{n:05}", k, 9, 0.8, f"{n}", BEFORE.descriptor, tuple(v.tolist()))
                for k, v in enumerate(vectors)
            ]
            scans.append(earlier(n, len(vectors)))
        store.append(found)
        store.append(scans)
    return store


def references(store: Store) -> np.ndarray:
    (corpus,) = load_corpora(store, ["r"], BEFORE.descriptor)
    return corpus.embeddings


def prepared(store: Store, tmp_path: Path) -> tuple[Task, Plan]:
    """A crawl of all of them under another alpha, with a run of its own."""
    config = with_corpora(store, ScanConfig(screen="off"), [])
    task = replace(stub_worker.task(store, tmp_path / "cache"), config=config)
    return task, whole_plan(store, config.config_id, [checkpoint(n) for n in range(COUNT)])


def scans_of(store: Store, task: Task) -> dict[str, Scan]:
    return {
        scan.checkpoint_id: scan
        for scan in store.select(Scan, "WHERE config_id = ?", [task.config.config_id])
    }


def candidates_of(store: Store, scan_id: str) -> list[Candidate]:
    return store.select(Candidate, "WHERE scan_id = ? ORDER BY seed", [scan_id])


@pytest.mark.parametrize("compacted", [False, True])
def test_the_rows_are_those_that_a_scan_of_the_same_candidates_writes(
    sampled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, compacted: bool
) -> None:
    monkeypatch.setattr(rematching, "SCANS", 50)
    for _ in compact(sampled) if compacted else ():
        pass
    task, plan = prepared(sampled, tmp_path)
    assert sum(crawl(task, plan, sampled).values()) == COUNT
    corpora = split(load_corpora(sampled, None, BEFORE.descriptor))
    scans = scans_of(sampled, task)
    assert {scan.verdict for scan in scans.values()} == {Verdict.FLAGGED, Verdict.NOTHING_FOUND}
    for n in range(0, COUNT, 4):
        scan, own = scans[f"{n:064x}"], candidates_of(sampled, f"scan{n:05}")
        copies = candidates_of(sampled, scan.scan_id)
        assert [replace(c, candidate_id="", scan_id="") for c in copies] == [
            replace(c, candidate_id="", scan_id="") for c in own
        ]
        vectors = np.array([c.embedding for c in own], np.float32).reshape(len(own), SIZE)
        ids = [c.candidate_id for c in copies]
        candidates = Candidates(scan.scan_id, ids, vectors)
        (fresh,) = compare([candidates], corpora, thresholds_of(task.config), task.config.alpha)
        matches = sampled.select(Match, "WHERE scan_id = ?", [scan.scan_id])
        found = {m.reference_id: replace(m, match_id="", similarity=0, null_similarity=0) for m in matches}
        expected = {m.reference_id: m for m in fresh.matches}
        assert found == {
            i: replace(m, match_id="", similarity=0, null_similarity=0) for i, m in expected.items()
        }
        for m in matches:
            assert m.similarity == pytest.approx(expected[m.reference_id].similarity, abs=1e-6)
            assert m.null_similarity == pytest.approx(expected[m.reference_id].null_similarity, abs=1e-6)
        assert scan == replace(
            earlier(n, len(own)), scan_id=scan.scan_id, config_id=task.config.config_id, run_id=task.run_id,
            verdict=fresh.verdict, started_at=scan.started_at, finished_at=scan.finished_at,
            num_references=REFERENCES, num_background=BACKGROUND, best_similarity=scan.best_similarity,
            tau=task.config.tau, alpha=task.config.alpha, q_value=fresh.q_value, seconds=scan.seconds,
            grounds="gives_back" if fresh.verdict is Verdict.FLAGGED else "", examined=Examination.SAMPLED,
        )  # fmt: skip
        assert scan.best_similarity == ((matches and max(m.similarity for m in matches)) or None)


class Counting(Store):
    """A store that counts the passes over its candidates."""

    passes = 0

    def stream(self, sql: str, *rest: Any, **more: Any) -> Iterator[Any]:
        self.passes += " FROM candidates" in sql
        return super().stream(sql, *rest, **more)

    def query_arrow(self, sql: str, *rest: Any, **more: Any) -> Any:
        self.passes += ' FROM "candidates"' in sql
        return super().query_arrow(sql, *rest, **more)


def test_all_candidates_are_read_in_one_pass_while_the_crawl_s_loop_goes_on(
    sampled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rematching, "SCANS", 20)
    ticks, threads = set[int](), set[str]()

    class Watcher(Observer):
        def tick(self, progress: Progress) -> None:
            ticks.add(progress.done)

        def outcome(self, checkpoint: Checkpoint, scan: Scan, progress: Progress) -> None:
            threads.add(threading.current_thread().name)

    store = Counting(sampled.uri)
    task, plan = prepared(store, tmp_path)
    crawl(task, plan, store, observer=Watcher())
    assert store.passes == 1
    assert any(0 < done < COUNT for done in ticks), "leases are renewed between two batches"
    assert threads == {threading.current_thread().name}


def test_two_crawls_at_once_write_each_verdict_once(
    sampled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rematching, "SCANS", 7)
    prepared_crawls = [prepared(Store(sampled.uri), tmp_path) for _ in range(2)]
    counted: list[Counter[Verdict]] = []
    together = threading.Barrier(2)

    def run(task: Task, plan: Plan) -> None:
        together.wait()
        counted.append(crawl(task, plan, Store(sampled.uri)))

    threads = [threading.Thread(target=run, args=one) for one in prepared_crawls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (task, _), _ = prepared_crawls
    rows = sampled.query("SELECT checkpoint_id FROM all_scans WHERE config_id = ?", [task.config.config_id])
    assert len(rows) == len({row["checkpoint_id"] for row in rows}) == COUNT
    assert counted[0] == counted[1]
    assert sum(counted[0].values()) == COUNT
    assert not sampled.storage.names("leases")


def test_an_interrupted_crawl_keeps_the_batches_that_it_wrote_and_the_next_one_compares_the_others(
    sampled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rematching, "SCANS", 20)

    class Interrupting(Observer):
        def outcome(self, checkpoint: Checkpoint, scan: Scan, progress: Progress) -> None:
            raise KeyboardInterrupt

    task, plan = prepared(sampled, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        crawl(task, plan, sampled, observer=Interrupting())
    assert "rematching" not in {thread.name for thread in threading.enumerate()}
    assert not sampled.storage.names("leases")
    kept = scans_of(sampled, task)
    assert 0 < len(kept) < COUNT
    assert len(kept) % 20 == 0
    again, plan = prepared(sampled, tmp_path)
    assert sum(crawl(again, plan, sampled).values()) == COUNT - len(kept)
    scans = scans_of(sampled, again)
    assert len(scans) == COUNT
    assert {id_: scans[id_] for id_ in kept} == kept
    assert len(sampled.query("SELECT * FROM all_scans")) == 2 * COUNT


def taken(store: Store, task: Task, ids: list[str], budget: Budget | None = None) -> Rematched:
    """What becomes of those checkpoints."""
    every, budget = Rematched(), budget or Budget()
    with Rematching(store, task, is_spent=lambda: budget.is_spent) as again:
        rest = again.add(Planned(id_, "lab/base", InspectionStatus.READY) for id_ in ids)
        every.rest.extend(rest)
        while again.pending:
            done = again.take(1)
            every.scans.extend(done.scans if done else ())
            every.rest.extend(done.rest if done else ())
    return every


def test_another_caption_or_base_or_missing_candidates_ask_for_new_samples(
    sampled: Store, tmp_path: Path
) -> None:
    at = now()
    sampled.append([
        replace(checkpoint(1), caption="another", listed_at=at),
        replace(checkpoint(2), base="an/other", listed_at=at),
        replace(checkpoint(3), num_train_images=7, listed_at=at),
    ])  # fmt: skip
    sampled.append([replace(earlier(4, 99), finished_at=at, scan_id="another")])
    task, _ = prepared(sampled, tmp_path)
    ids = [f"{n:064x}" for n in range(7)] + ["unknown"]
    done = taken(sampled, task, ids)
    assert {scan.checkpoint_id for _, scan in done.scans} == {ids[0], ids[5], ids[6]}
    assert sorted(p.checkpoint_id for p in done.rest) == sorted([*ids[1:5], "unknown"])
    other = replace(task, config=replace(task.config, steps=9))
    assert len(Rematching(sampled, other)) == 0


def test_a_recovered_caption_is_no_other_caption_while_still_none_is_stated() -> None:
    config, unstated = ScanConfig(), replace(checkpoint(1), caption="")
    recovered = replace(earlier(1, 3), caption="a photo of a cat", caption_origin="recovered", sampled_for=5)
    assert samples_alike(recovered, unstated, config)
    assert not samples_alike(recovered, replace(unstated, caption="a photo of a cat"), config)
    assert samples_alike(replace(recovered, caption="", caption_origin="none"), unstated, config)
    assert not samples_alike(replace(recovered, caption_origin="stated"), unstated, config)


def test_nothing_is_compared_when_the_budget_is_spent(sampled: Store, tmp_path: Path) -> None:
    task, _ = prepared(sampled, tmp_path)
    done = taken(sampled, task, [f"{n:064x}" for n in range(COUNT)], Budget(seconds=0))
    assert (len(done.scans), len(done.rest)) == (0, COUNT)
