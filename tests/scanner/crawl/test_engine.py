"""The engine on a real local Ray, with workers that scan nothing: who gets what, what is tried again, how
often a row is written. Workers that scan are in test_crawl.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import ray
from faults.scene import local_ray
from plans import batches_of, whole_plan
from ray import cloudpickle
from servers.front import Front
from servers.objects import Objects
from stub_worker import CONFIG, ended, task

from finextract.reasons import ReasonCode
from scanner.commands.progress import Terminal
from scanner.crawl import engine, outcomes
from scanner.crawl.attempt import Attempt
from scanner.crawl.deadlines import DeadlinePassed, Deadlines
from scanner.crawl.engine import crawl
from scanner.crawl.listing import ListedBatch
from scanner.crawl.planning import Plan
from scanner.crawl.pool import WorkerHandle
from scanner.crawl.progress import Budget, Observer, Progress
from scanner.crawl.worker import Scanner, Stage, Task
from scanner.errors import NoWorkers, SourceError, StoreError
from scanner.records import Checkpoint, InspectionStatus, Scan, Verdict, now
from scanner.store.leases import Leases
from scanner.store.patience import Patience
from scanner.store.store import Store

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Stub:
    """A worker that does what a checkpoint's caption tells it, and writes its row."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.at: tuple[str, float] | None = None

    def ready(self) -> None:
        """At once."""

    def stage(self) -> Stage | None:
        return Stage(self.at[0], "sample", time.perf_counter() - self.at[1]) if self.at else None

    def fetch_ahead(self, checkpoint: Checkpoint) -> bool:
        return True

    def scan(self, checkpoint: Checkpoint) -> Scan:
        self.at = checkpoint.checkpoint_id, time.perf_counter()
        log = Path(self.task.cache) / checkpoint.checkpoint_id
        with log.open("a") as file:
            file.write(f"{os.getpid()} {checkpoint.base}\n")
        tries = len(log.read_text().splitlines())
        told, _, count = (checkpoint.caption or "").partition(" ")
        bad = tries <= int(count or 99)
        if told == "dies" and bad:
            os._exit(1)
        if told == "raises" and bad:
            raise StoreError("the store does not answer")
        if told == "hangs" and bad:
            time.sleep(600)
        if told == "freezes" and bad:
            os.kill(os.getpid(), signal.SIGSTOP)
        if told == "slow":
            time.sleep(0.3)
        verdict = Verdict.FAILED if told == "fails" and bad else Verdict.NOTHING_FOUND
        scan = ended(self.task, checkpoint, verdict, "the hub did not answer" if bad and told else "")
        self.at = None
        return scan


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=2):
        yield


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "PAUSE_S", 0.1)
    monkeypatch.setattr(engine, "TICK_S", 0.3)


def rows_of(store: Store, told: list[tuple[str, str | None]]) -> list[Checkpoint]:
    """Listed checkpoints by (caption, base); what has no base is ruled out."""
    rows = [
        Checkpoint(
            checkpoint_id=f"id{n:03}",
            source="stub",
            repo=f"o/{n}",
            revision="",
            file="",
            url="",
            sha256=None,
            size_bytes=1,
            kind="lora",
            family="sd1",
            base=base,
            caption=caption,
            num_train_images=None,
            license=None,
            created_at=None,
            listed_at=now(),
            raw="{}",
            reason="" if base else "it has no base",
            inspection_status=InspectionStatus.READY if base else InspectionStatus.SKIPPED,
        )
        for n, (caption, base) in enumerate(told)
    ]
    store.append(rows)
    return rows


def plan_of(store: Store, told: list[tuple[str, str | None]]) -> Plan:
    """A whole plan of them."""
    return whole_plan(store, CONFIG.config_id, rows_of(store, told))


class Watcher(Observer):
    """Passes outcomes and ticks on to functions."""

    def __init__(
        self,
        outcome: Callable[[Checkpoint, Scan, Progress], None] = lambda *_: None,
        tick: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.outcome, self.tick = outcome, tick  # type: ignore[method-assign]


def verdicts(store: Store) -> dict[str, str]:
    return {row["checkpoint_id"]: row["verdict"] for row in store.query("SELECT * FROM scans")}


def tries(cache: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().splitlines()) for path in cache.iterdir()}


def test_every_checkpoint_is_scanned_once_and_workers_stay_with_their_base(
    store: Store, tmp_path: Path
) -> None:
    bases = ["a", "b", "a", "c", "b", "a", "c", "b", None, "a"]
    plan = plan_of(store, [("", base) for base in bases])
    told: list[tuple[str, int]] = []

    def report(checkpoint: Checkpoint, scan: Scan, progress: Progress) -> None:
        told.append((checkpoint.checkpoint_id, progress.done))

    counts = crawl(
        task(store, tmp_path / "log"), plan, store, workers=2, observer=Watcher(report), worker_class=Stub
    )
    assert counts == {Verdict.NOTHING_FOUND: 9, Verdict.SKIPPED: 1}
    assert len(verdicts(store)) == len(store.query("SELECT * FROM all_scans")) == 10
    assert sorted(id_ for id_, _ in told) == sorted(p.checkpoint_id for p in plan)
    assert [done for _, done in told] == list(range(1, 11))
    assert set(tries(tmp_path / "log").values()) == {1}
    seen = [path.read_text().split() for path in (tmp_path / "log").iterdir()]
    loads = {(process, base) for process, base in seen}
    assert len(loads) <= 5, "three bases on two workers: at most two are loaded twice"
    assert store.storage.names("leases") == []


def test_scanning_begins_while_the_source_is_listed_and_the_listing_waits_for_the_workers(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LISTED_AHEAD", 6)
    monkeypatch.setattr(engine, "MAX_CLAIMS", 2)
    rows = rows_of(store, [("", "abc"[n % 3] if n % 5 else None) for n in range(100)])
    done, ahead = list[str](), list[int]()
    plan = Plan(batches_of(rows, 4, lambda: ahead.append(plan.listed - len(done))))
    counts = crawl(
        task(store, tmp_path / "log"), plan, store, workers=2, worker_class=Stub,
        observer=Watcher(lambda checkpoint, *_: done.append(checkpoint.checkpoint_id)),
    )  # fmt: skip
    assert counts == {Verdict.NOTHING_FOUND: 80, Verdict.SKIPPED: 20}
    assert sorted(done) == sorted(p.checkpoint_id for p in plan)
    assert len(store.query("SELECT * FROM all_scans")) == 100
    assert len(ahead) == 25
    # 6 wait for a worker and a batch beyond, two batches wait to be taken, each worker holds a few
    assert max(ahead) <= 6 + 4 + 2 * 4 + 2 * 6


def test_what_was_listed_is_scanned_where_its_source_breaks_off(store: Store, tmp_path: Path) -> None:
    rows = rows_of(store, [("", "a")] * 6)

    def broken() -> Iterator[ListedBatch]:
        yield from batches_of(rows[:4], 2)
        raise SourceError("the hub is away")

    plan, told = Plan(broken()), list[str]()
    counts = crawl(
        task(store, tmp_path / "log"), plan, store, workers=1, worker_class=Stub,
        on_listed=lambda: told.append(str(plan.cut_short)),
    )  # fmt: skip
    assert counts == {Verdict.NOTHING_FOUND: 4}
    assert sorted(verdicts(store)) == [row.checkpoint_id for row in rows[:4]]
    assert told[-1] == str(plan.cut_short) == "the hub is away"


def test_a_listing_that_fails_for_a_reason_of_ours_ends_the_crawl(store: Store, tmp_path: Path) -> None:
    def broken() -> Iterator[ListedBatch]:
        yield ListedBatch([], 0, 0, False)
        raise StoreError("the disk is full")

    with pytest.raises(StoreError, match="the disk is full"):
        crawl(task(store, tmp_path / "log"), Plan(broken()), store, workers=1, worker_class=Stub)


def test_what_may_kill_workers_waits_for_the_end_of_the_listing(store: Store, tmp_path: Path) -> None:
    rows = rows_of(store, [("", "a")] * 8)
    done = list[str]()
    plan = Plan(batches_of(rows, 2, lambda: time.sleep(0.3)), quarantined={"id000"})
    crawl(
        task(store, tmp_path / "log"), plan, store, workers=1, worker_class=Stub,
        observer=Watcher(lambda checkpoint, *_: done.append(checkpoint.checkpoint_id)),
    )  # fmt: skip
    assert len(done) == 8
    assert done[-1] == "id000"


def test_what_another_crawl_ruled_out_meanwhile_has_no_second_row(store: Store, tmp_path: Path) -> None:
    told = [("", None), ("", None)]
    late, early = plan_of(store, told), plan_of(store, told)
    for plan in (early, late):
        counts = crawl(task(store, tmp_path / "log"), plan, store, workers=1, worker_class=Stub)
        assert counts == {Verdict.SKIPPED: 2}
    assert len(store.query("SELECT * FROM all_scans")) == 2


def test_what_two_crawls_rule_out_at_the_same_moment_has_one_row(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [plan_of(store, [("", None), ("", None)]) for _ in range(2)]
    asked, both = Store.scans_of, threading.Barrier(2)

    def scans_of(self: Store, config_id: str, ids: list[str]) -> list[Scan]:
        found = asked(self, config_id, ids)
        with contextlib.suppress(threading.BrokenBarrierError):  # the other crawl waits for this one
            both.wait(1)
        return found

    monkeypatch.setattr(Store, "scans_of", scans_of)
    recording = [
        outcomes.Outcomes(task(store, tmp_path / "log"), plan, Store(store.uri), Budget(), Observer())
        for plan in plans
    ]
    threads = [
        threading.Thread(target=one.record_skipped, args=[plan.todo])
        for one, plan in zip(recording, plans, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.query("SELECT * FROM all_scans")) == 2
    assert [one.progress.verdicts for one in recording] == [{Verdict.SKIPPED: 2}] * 2
    assert store.storage.names("leases") == []


def test_what_inspection_once_ruled_out_and_now_does_not_is_scanned(store: Store, tmp_path: Path) -> None:
    crawl(task(store, tmp_path / "log"), plan_of(store, [("", None)]), store, workers=1, worker_class=Stub)
    assert verdicts(store) == {"id000": "skipped"}
    plan = plan_of(store, [("", "a")])
    assert len(plan.todo) == 1
    crawl(task(store, tmp_path / "log"), plan, store, workers=1, worker_class=Stub)
    assert verdicts(store) == {"id000": "nothing_found"}


def test_what_fails_for_a_reason_of_ours_is_tried_three_times(store: Store, tmp_path: Path) -> None:
    told = [("fails 2", "a"), ("fails", "a"), ("raises 1", "a"), ("raises", "a"), ("dies 2", "a"), ("", "a")]
    plan = plan_of(store, told)
    crawl(task(store, tmp_path / "log"), plan, store, workers=2, worker_class=Stub)
    found = [verdicts(store)[f"id{n:03}"] for n in range(6)]
    assert found == ["nothing_found", "failed", "nothing_found", "failed", "nothing_found", "nothing_found"]
    assert [tries(tmp_path / "log")[f"id{n:03}"] for n in range(6)] == [3, 3, 2, 3, 3, 1]
    assert len(store.query("SELECT * FROM all_scans")) == 6
    (raised,) = store.select(Scan, "WHERE checkpoint_id = 'id003'")
    assert "does not answer" in raised.reason
    assert raised.reason_code is ReasonCode.STORE_UNREACHABLE
    assert plan_of(store, told).todo == [p for p in plan if p.checkpoint_id in ("id001", "id003")]


def test_a_checkpoint_that_kills_its_workers_costs_three_and_one_more_at_the_end_of_each_later_crawl(
    store: Store, tmp_path: Path
) -> None:
    told = [("dies", "a"), *[("", "a")] * 5]
    counts = crawl(task(store, tmp_path / "log"), plan_of(store, told), store, workers=2, worker_class=Stub)
    assert counts == {Verdict.NOTHING_FOUND: 5, Verdict.FAILED: 1}
    assert tries(tmp_path / "log")["id000"] == 3
    (row,) = store.query("SELECT * FROM scans WHERE verdict = 'failed'")
    assert row["reason"].startswith("its worker died 3 times")
    assert row["reason_code"] == ReasonCode.WORKER_DIED
    later = plan_of(store, [*told, ("", "b")])
    assert [p.checkpoint_id for p in later if later.is_quarantined(p)] == ["id000"]
    done: list[str] = []
    counts = crawl(
        task(store, tmp_path / "log"), later, store, workers=1, worker_class=Stub,
        observer=Watcher(lambda checkpoint, *_: done.append(checkpoint.checkpoint_id)),
    )  # fmt: skip
    assert counts == {Verdict.NOTHING_FOUND: 1, Verdict.FAILED: 1}
    assert done == ["id006", "id000"]
    assert tries(tmp_path / "log")["id000"] == 4


def test_a_worker_that_is_killed_is_replaced_and_its_checkpoint_scanned_all_the_same(
    store: Store, tmp_path: Path
) -> None:
    plan = plan_of(store, [("slow", "a")] * 8)
    killed: list[int] = []

    def report(checkpoint: Checkpoint, scan: Scan, progress: Progress) -> None:
        if len(killed) < 2:
            log = tmp_path / "log" / checkpoint.checkpoint_id
            killed.append(int(log.read_text().split()[0]))
            os.kill(killed[-1], signal.SIGKILL)

    counts = crawl(
        task(store, tmp_path / "log"), plan, store, workers=2, observer=Watcher(report), worker_class=Stub
    )
    assert counts == {Verdict.NOTHING_FOUND: 8}
    assert len(store.query("SELECT * FROM all_scans")) == 8
    assert len(set(killed)) == 2


def has_ended(pid: int) -> bool:
    """Whether a process ends; a zombie has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process, until = psutil.Process(pid), time.monotonic() + 300
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
    return True


def test_a_stage_past_its_deadline_is_ended_and_its_checkpoint_is_tried_once_more_after_all_others(
    store: Store, tmp_path: Path
) -> None:
    plan = plan_of(store, [("hangs 1", "a"), ("hangs", "a"), *[("", "a")] * 3])
    running, done = list[str](), list[str]()

    def tick(progress: Progress) -> None:
        running.extend(stage for _, stage, _ in progress.running)

    crawl(
        task(store, tmp_path / "log"), plan, store, workers=1, worker_class=Stub,
        observer=Watcher(lambda checkpoint, *_: done.append(checkpoint.checkpoint_id), tick),
        deadlines=Deadlines({"sample": 1.0}),
    )  # fmt: skip
    assert [verdicts(store)[f"id{n:03}"] for n in range(3)] == ["nothing_found", "failed", "nothing_found"]
    assert done[-2:] == ["id000", "id001"]
    assert tries(tmp_path / "log")["id001"] == 2
    (row,) = store.query("SELECT reason, reason_code FROM scans WHERE verdict = 'failed'")
    assert "sample took longer than 1 s" in row["reason"]
    assert row["reason_code"] == ReasonCode.TIMED_OUT
    assert "sample" in running
    later = whole_plan(store, CONFIG.config_id, store.select(Checkpoint))
    assert [p.checkpoint_id for p in later.todo] == ["id001"]
    assert later.is_quarantined(later["id001"])


def test_a_worker_that_is_stopped_during_a_scan_is_killed_and_its_checkpoint_scanned_by_another(
    store: Store, tmp_path: Path
) -> None:
    plan = plan_of(store, [("freezes 1", "a"), ("", "a")])
    counts = crawl(
        task(store, tmp_path / "log"), plan, store, workers=1, worker_class=Stub,
        deadlines=Deadlines(answer=1.0),
    )  # fmt: skip
    assert counts == {Verdict.NOTHING_FOUND: 2}
    stopped, other = (line.split()[0] for line in (tmp_path / "log" / "id000").read_text().splitlines())
    assert stopped != other
    assert has_ended(int(stopped))


class Stopped(Stub):
    """A worker whose process is stopped in its constructor, if it is the first."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        first = Path(self.task.cache) / "first"
        if not first.exists():
            first.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)


def test_a_worker_that_is_stopped_while_it_starts_is_killed_and_replaced(
    store: Store, tmp_path: Path
) -> None:
    counts = crawl(
        task(store, tmp_path / "log"), plan_of(store, [("", "a")]), store, workers=1, worker_class=Stopped,
        deadlines=Deadlines(start=12.0),  # a worker that is not stopped starts in less on a busy machine
    )  # fmt: skip
    assert counts == {Verdict.NOTHING_FOUND: 1}
    assert has_ended(int((tmp_path / "log" / "first").read_text()))


def test_deadlines_count_from_the_start_and_from_the_oldest_question_and_not_from_what_was_told_last() -> (
    None
):
    waiting = WorkerHandle(actor=None, starting=object())
    limits = Deadlines({"load": 60.0}, scan=1000, answer=300, start=900)
    assert limits.passed(waiting, None, 1e9) is None, "it has no process: its node is still to come"
    waiting.placed = 1e9
    assert limits.passed(waiting, None, 1e9 + 899) is None
    assert "did not start within 900 s" in str(limits.passed(waiting, None, 1e9 + 901))
    asked = WorkerHandle(actor=None, answer=object(), asked=object(), asked_at=500.0, began=100.0)
    assert limits.passed(asked, "a", 799.0) is None
    assert "did not answer for 300 s" in str(limits.passed(asked, "a", 801.0))
    asked.asked_at = 1000.0
    assert isinstance(limits.passed(asked, "a", 1101.0), DeadlinePassed), "the scan as a whole"
    asked.stage = Stage("another", "load", 61.0)
    assert limits.passed(asked, "a", 1001.0) is None
    asked.stage = Stage("a", "load", 61.0)
    assert "load took longer than 60 s" in str(limits.passed(asked, "a", 1001.0))


def test_two_crawls_at_once_share_the_work_and_both_see_every_verdict(store: Store, tmp_path: Path) -> None:
    told = [("slow", "ab"[n % 2]) for n in range(16)]
    plans = [plan_of(store, told) for _ in range(2)]
    counts: list[Counter[Verdict]] = []

    def run(plan: Plan) -> None:
        counts.append(
            crawl(task(store, tmp_path / "log"), plan, Store(store.uri), workers=1, worker_class=Stub)
        )

    threads = [threading.Thread(target=run, args=[plan]) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(tries(tmp_path / "log").values()) == {1}
    assert len(store.query("SELECT * FROM all_scans")) == 16
    assert counts == [{Verdict.NOTHING_FOUND: 16}] * 2


def test_the_lease_of_a_dead_crawl_is_taken_over(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import timedelta

    from scanner.store import leases

    monkeypatch.setattr(leases, "CLOCK_SKEW", timedelta(0))
    dead = leases.Leases(store.storage, "dead")
    dead.acquire([f"id000-{CONFIG.config_id}"])
    elsewhere: list[int] = []

    def tick(progress: Progress) -> None:
        if progress.elsewhere and not any(elsewhere):  # seen to be held; and now its time is over
            (lease,) = (name for name in store.storage.names("leases") if name.startswith("id000"))
            run_out = {"holder": "dead", "until": now().isoformat(), "machine": "another", "process": 1}
            store.storage.put(f"leases/{lease}", json.dumps(run_out).encode())
        elsewhere.append(progress.elsewhere)

    plan = plan_of(store, [("", "a"), ("", "a")])
    crawl(
        task(store, tmp_path / "log"), plan, store, workers=1, worker_class=Stub, observer=Watcher(tick=tick)
    )
    assert set(verdicts(store).values()) == {"nothing_found"}
    assert len(verdicts(store)) == 2
    assert max(elsewhere) == 1


class InBucket(Scanner):
    """A worker whose store is in the bucket that a file in its cache names. It scans nothing."""

    def __init__(self, task: Task) -> None:
        import s3fs

        os.environ.update(json.loads((Path(task.cache) / "environment").read_text()))
        s3fs.S3FileSystem.retries = 1
        super().__init__(task)

    def ready(self) -> None:
        """Nothing is loaded."""

    def _scan(self, checkpoint: Checkpoint, attempt: Attempt) -> Scan:
        self._store.put_image(checkpoint.checkpoint_id.encode())
        return attempt.end(Verdict.NOTHING_FOUND, "")


def test_a_crawl_waits_for_a_store_that_does_not_answer_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    with Objects() as objects, Front(objects.url) as front:
        there = {**objects.environment(), "AWS_ENDPOINT_URL": front.url, "AWS_MAX_ATTEMPTS": "1"}
        for name, value in there.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        store = Store(f"s3://{objects.bucket}/s", create=True, patience=Patience(120))
        crawled = task(store, tmp_path / "log", "hf")
        (tmp_path / "log" / "environment").write_text(json.dumps(there))
        rows = [replace(row, source="hf") for row in rows_of(store, [("", "a")] * 2)]
        store.append(rows)

        def away(*_: object) -> None:
            front.refusing = 6

        counts = crawl(
            crawled, whole_plan(store, CONFIG.config_id, rows), store, workers=1, worker_class=InBucket,
            observer=Watcher(away),
        )  # fmt: skip
        assert counts == {Verdict.NOTHING_FOUND: 2}
        assert front.refused >= 6
        assert [row["n"] for row in store.query("SELECT count(*) AS n FROM all_scans")] == [2]
        assert len(store.storage.names("leases")) == 0


class Overtaken(Scanner):
    """A worker so slow that another crawl takes over its checkpoint meanwhile, and writes a verdict."""

    def ready(self) -> None:
        """Nothing is loaded."""

    def _scan(self, checkpoint: Checkpoint, attempt: Attempt) -> Scan:
        later = Leases(self._store.storage, "other", clock=lambda: now() + timedelta(minutes=7))
        assert later.acquire([f"{checkpoint.checkpoint_id}-{CONFIG.config_id}"])
        if checkpoint.caption == "finished":
            ended(replace(self._task, run_id="other"), checkpoint, Verdict.FLAGGED)
            later.release()
        return attempt.end(Verdict.NOTHING_FOUND, "")


def test_a_verdict_is_written_only_by_the_crawl_that_holds_the_lease(store: Store, tmp_path: Path) -> None:
    rows = [replace(row, source="hf") for row in rows_of(store, [("finished", "a"), ("", "a")])]
    store.append(rows)
    plan, seen = whole_plan(store, CONFIG.config_id, rows), Counter[str]()

    def tick(progress: Progress) -> None:
        seen["elsewhere"] = max(seen["elsewhere"], progress.elsewhere)
        if progress.elsewhere and progress.done and not seen["closed"]:  # the other crawl ends, too
            seen["closed"] = 1
            ended(replace(crawled, run_id="other"), rows[1], Verdict.FLAGGED)
            for lease in store.storage.names("leases"):
                store.storage.remove(f"leases/{lease}")

    crawled = task(store, tmp_path / "log", "hf")
    counts = crawl(crawled, plan, store, workers=1, worker_class=Overtaken, observer=Watcher(tick=tick))
    assert counts == {Verdict.FLAGGED: 2}
    written = store.query("SELECT run_id, verdict FROM all_scans")
    assert written == [{"run_id": "other", "verdict": "flagged"}] * 2
    assert seen["elsewhere"] >= 1


class Stillborn(Stub):
    """A worker that does not come up where its store holds a file `broken`, the first times or ever."""

    def ready(self) -> None:
        tries = Path(self.task.cache) / "starts"
        with tries.open("a") as file:
            file.write("x")
        if len(tries.read_text()) <= int((Path(self.task.store) / "broken").read_text()):
            raise ImportError("no module named torch")


def test_workers_that_do_not_come_up_are_no_checkpoint_s_fault_and_end_the_crawl_where_none_does(
    store: Store, tmp_path: Path
) -> None:
    plan = plan_of(store, [("", "a"), ("", "a")])
    (store.root / "broken").write_text("99")
    with pytest.raises(NoWorkers, match=r"did not start.*no module named torch"):
        crawl(task(store, tmp_path / "log"), plan, store, workers=1, worker_class=Stillborn)
    assert verdicts(store) == {}
    assert store.storage.names("leases") == []
    (tmp_path / "log" / "starts").unlink()
    (store.root / "broken").write_text("2")
    crawl(task(store, tmp_path / "log"), plan, store, workers=1, worker_class=Stillborn)
    assert verdicts(store) == {"id000": "nothing_found", "id001": "nothing_found"}


def test_a_crawl_compacts_the_store_that_it_writes_to(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "COMPACTED_S", 0.2)
    monkeypatch.setattr(engine, "COMPACTED_PARTS", 5)
    plan = plan_of(store, [("slow", "ab"[n % 2]) for n in range(30)])
    crawl(task(store, tmp_path / "log"), plan, store, workers=2, worker_class=Stub)
    assert len(verdicts(store)) == len(store.query("SELECT * FROM all_scans")) == 30
    assert any(name.startswith("compacted-") for name in store.storage.names("scans"))
    assert len(store.tables["scans"].names()) < 25


def test_ray_serves_the_verdicts_the_stages_and_the_checkpoints_that_are_left_as_metrics(
    store: Store, tmp_path: Path
) -> None:
    plan = plan_of(store, [("", "a"), ("", "a"), ("dies", "b"), ("", None)])
    crawl(task(store, tmp_path / "log"), plan, store, workers=2, worker_class=Stub)
    (node,) = ray.nodes()
    address, told = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", ""
    for _ in range(400):  # Ray's agent gathers every few seconds
        if 'verdict="failed"' in told:
            break
        time.sleep(0.5)
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=20) as answer:
            told = answer.read().decode()
    ours = (line for line in told.splitlines() if line.startswith("ray_finextract_"))
    lines = [line for line in ours if 'source="stub"' in line]
    by_verdict = {
        verdict: float(line.rsplit(" ", 1)[1])
        for line in lines
        for verdict in Verdict
        if line.startswith("ray_finextract_scans") and f'verdict="{verdict}"' in line
    }
    assert by_verdict.keys() >= {Verdict.NOTHING_FOUND, Verdict.FAILED, Verdict.SKIPPED}
    assert any(line.startswith("ray_finextract_left") for line in lines)


def test_an_interrupted_crawl_names_the_scans_that_were_running_and_not_those_that_had_ended(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_of(store, [("", "a"), ("", "a")])
    ended_, running = store.select(Checkpoint, "ORDER BY checkpoint_id")
    progress = Progress(2, running=[(ended_, "match", 1.0), (running, "sample", 5400.0)])
    at = now()
    scan = Scan("s", ended_.checkpoint_id, "c", "r", Verdict.NOTHING_FOUND, "", "match", at, at)

    def interrupted() -> None:
        with Terminal() as terminal:
            terminal.tick(progress)
            terminal.outcome(ended_, scan, progress)
            raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        interrupted()
    told = capsys.readouterr().err
    assert "Interrupted scans: o/1 (sample 1.5 h).\n" in told
    assert "o/0 (" not in told
