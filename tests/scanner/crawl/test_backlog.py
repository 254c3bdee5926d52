"""The backlog and its states; the schedule by which a worker stays with its base."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scanner.crawl.backlog import Backlog, Schedule, State
from scanner.crawl.planning import Planned
from scanner.records import Checkpoint, InspectionStatus, now


def planned(bases: str) -> list[Planned]:
    return [Planned(f"{n}", base, InspectionStatus.READY) for n, base in enumerate(bases)]


def test_a_worker_stays_with_its_base_until_nothing_of_it_is_left() -> None:
    schedule = Schedule(planned("abababaa"))
    order = "".join(str(schedule.take("w")[0].base) for _ in range(8))
    assert order == "aaaaabbb"
    assert schedule.take("w") == ()


def test_a_worker_takes_the_families_alone_that_it_has_a_gpu_for() -> None:
    backlog = Backlog()
    for number, family in enumerate(("sd1", "flux", "sd1", "flux")):
        backlog.add(Planned(f"{number}", "one base", InspectionStatus.READY, family))
    assert backlog.families() == {"sd1": 2, "flux": 2}
    assert [p.checkpoint_id for p in backlog.take("small", 9, {"sd1"})] == ["0", "2"]
    assert backlog.families() == {"flux": 2}
    assert backlog.take("small", 9, {"sd1"}) == ()
    assert [p.checkpoint_id for p in backlog.take("large", 9)] == ["1", "3"]


def test_workers_spread_over_the_bases_by_what_is_left_of_each() -> None:
    schedule = Schedule(planned("a" * 9 + "b" * 3))
    first = [schedule.take(worker)[0].base for worker in ("u", "v", "w")]
    assert Counter(first) == {"a": 2, "b": 1}


def test_a_free_worker_helps_where_most_is_left() -> None:
    schedule = Schedule(planned("aab" + "c" * 5))
    assert [schedule.take(w)[0].base for w in ("u", "v", "w")] == ["c", "a", "c"]
    assert "".join(str(schedule.take("v")[0].base) for _ in range(5)) == "abccc"  # c has two workers already


def test_what_is_given_back_comes_again() -> None:
    schedule = Schedule(planned("aaa"))
    (first,) = schedule.take("w")
    schedule.add(first)
    assert [p.checkpoint_id for p in (schedule.take("w", 9))] == ["1", "2", "0"]


@given(st.text("abc", max_size=30), st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.booleans())))
def test_each_checkpoint_is_taken_exactly_once(bases: str, steps: list[tuple[int, int, bool]]) -> None:
    schedule = Schedule(planned(bases))
    taken: list[str] = []
    for worker, count, back in steps:
        batch = schedule.take(worker, count)
        assert len({p.base for p in batch}) <= 1
        if back and batch:
            schedule.add(batch[0])
            batch = batch[1:]
        taken += [p.checkpoint_id for p in batch]
    while batch := schedule.take("last", 5):
        taken += [p.checkpoint_id for p in batch]
    assert sorted(taken) == sorted(str(n) for n in range(len(bases)))
    assert len(schedule) == 0


def row(checkpoint_id: str, base: str) -> Checkpoint:
    return Checkpoint(
        checkpoint_id=checkpoint_id, source="stub", repo="o/r", revision="", file="", url="", sha256=None,
        size_bytes=1, kind="lora", family="sd1", base=base, caption="", num_train_images=None, license=None,
        created_at=None, listed_at=now(), raw="{}", inspection_status=InspectionStatus.READY,
    )  # fmt: skip


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def backlog_of(bases: str) -> tuple[Backlog, Clock]:
    clock = Clock()
    backlog = Backlog(clock)
    for one in planned(bases):
        backlog.add(one)
    return backlog, clock


def claim(backlog: Backlog, worker: str, count: int = 1) -> None:
    for one in backlog.take(worker, count):
        backlog.enqueue(worker, row(one.checkpoint_id, one.base or ""))


def test_a_checkpoint_goes_from_waiting_through_claimed_and_running_to_done() -> None:
    backlog, _ = backlog_of("a")
    states = [backlog.state("0")]
    claim(backlog, "w")
    states.append(backlog.state("0"))
    assert backlog.row("0") is not None
    started = backlog.start("w")
    states.append(backlog.state("0"))
    assert backlog.running("w") == started == backlog.stop("w")
    backlog.finish("0")
    states.append(backlog.state("0"))
    assert states == [State.WAITING, State.CLAIMED, State.RUNNING, State.DONE]
    assert not backlog.has_more
    assert backlog.row("0") is None


def test_a_delayed_checkpoint_waits_again_when_its_pause_is_over() -> None:
    backlog, clock = backlog_of("a")
    claim(backlog, "w")
    backlog.start("w")
    backlog.delay(backlog.stop("w"), 5.0)
    backlog.wake(more_to_come=False)
    assert backlog.state("0") is State.DELAYED
    clock.now = 5.0
    backlog.wake(more_to_come=False)
    assert backlog.state("0") is State.WAITING
    assert backlog.row("0") is not None, "its lease is kept, and its row"


def test_quarantined_checkpoints_come_after_all_others() -> None:
    backlog, _ = backlog_of("a")
    backlog.add(Planned("killer", "a", InspectionStatus.READY), quarantined=True)
    backlog.wake(more_to_come=False)
    assert backlog.state("killer") is State.QUARANTINED, "another one is waiting"
    claim(backlog, "w")
    backlog.wake(more_to_come=True)
    assert backlog.state("killer") is State.QUARANTINED, "the listing has not ended"
    backlog.wake(more_to_come=False)
    assert backlog.state("killer") is State.QUARANTINED, "the other one is claimed, and has not begun"
    slow = backlog.start("w")
    backlog.wake(more_to_come=False)
    assert backlog.state("killer") is State.WAITING
    backlog.stop("w")
    backlog.quarantine(slow)
    assert backlog.state("0") is State.QUARANTINED
    claim(backlog, "v")
    backlog.start("v")
    backlog.wake(more_to_come=False)
    assert backlog.state("0") is State.WAITING


def test_what_another_crawl_holds_is_tried_again_when_it_is_asked_for() -> None:
    backlog, _ = backlog_of("a")
    (one,) = backlog.take("w", 1)
    backlog.hold_elsewhere(one)
    assert (backlog[State.HELD_ELSEWHERE], backlog[State.WAITING], backlog.has_more) == (1, 0, True)
    backlog.retry_held_elsewhere()
    assert (backlog[State.HELD_ELSEWHERE], backlog[State.WAITING]) == (0, 1)


def test_the_claims_of_a_worker_that_ended_go_to_the_others() -> None:
    backlog, _ = backlog_of("aaa")
    claim(backlog, "w", 3)
    backlog.start("w")
    backlog.forget("w")
    assert [backlog.state(id_) for id_ in "012"] == [State.RUNNING, State.WAITING, State.WAITING]
    claim(backlog, "v", 9)
    assert [c.checkpoint_id for c in backlog.queue("v")] == ["1", "2"]


def test_an_idle_worker_takes_the_last_claim_of_the_longest_queue() -> None:
    backlog, _ = backlog_of("aaaa")
    claim(backlog, "w", 4)
    backlog.start("w")
    backlog.steal("v")
    assert [c.checkpoint_id for c in backlog.queue("v")] == ["3"]
    assert [c.checkpoint_id for c in backlog.queue("w")] == ["1", "2"]


def test_the_only_claim_of_a_worker_that_is_about_to_begin_is_left_to_it() -> None:
    backlog, _ = backlog_of("a")
    claim(backlog, "w")
    backlog.steal("v")
    assert not backlog.queue("v")


def test_what_another_node_has_fetched_ahead_is_left_to_the_worker_there() -> None:
    backlog, _ = backlog_of("aaa")
    claim(backlog, "w", 3)
    backlog.start("w")
    backlog.steal("v", keep={"2"})
    assert not backlog.queue("v")
    backlog.steal("v", keep={"1"})
    assert [c.checkpoint_id for c in backlog.queue("v")] == ["2"]


class BacklogMachine(RuleBasedStateMachine):
    """Any order of events: each checkpoint is in one state, and the counts agree."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.backlog = Backlog(self.clock)
        self.added = 0

    @rule(base=st.sampled_from("ab"), quarantined=st.booleans())
    def add(self, base: str, quarantined: bool) -> None:
        self.backlog.add(Planned(str(self.added), base, InspectionStatus.READY), quarantined=quarantined)
        self.added += 1

    @rule(worker=st.sampled_from("uv"), count=st.integers(1, 3), held=st.booleans())
    def take(self, worker: str, count: int, held: bool) -> None:
        for one in self.backlog.take(worker, count):
            if held and self.backlog.row(one.checkpoint_id) is None:
                self.backlog.hold_elsewhere(one)
            else:
                self.backlog.enqueue(worker, row(one.checkpoint_id, one.base or ""))

    @rule(worker=st.sampled_from("uv"))
    def start(self, worker: str) -> None:
        if self.backlog.running(worker) is None and self.backlog.queue(worker):
            self.backlog.start(worker)

    @rule(worker=st.sampled_from("uv"), retry=st.booleans())
    def end(self, worker: str, retry: bool) -> None:
        if self.backlog.running(worker) is not None:
            checkpoint = self.backlog.stop(worker)
            if retry:
                self.backlog.delay(checkpoint, 1.0)
            else:
                self.backlog.finish(checkpoint.checkpoint_id)

    @rule(worker=st.sampled_from("uv"))
    def steal_or_lose(self, worker: str) -> None:
        self.backlog.steal(worker)
        if self.backlog.running(worker) is None:
            self.backlog.forget(worker)

    @rule(more=st.booleans())
    def pass_time(self, more: bool) -> None:
        self.clock.now += 1
        self.backlog.wake(more_to_come=more)
        self.backlog.retry_held_elsewhere()

    @invariant()
    def every_checkpoint_is_in_one_state(self) -> None:
        states = Counter(self.backlog.state(str(n)) for n in range(self.added))
        assert all(self.backlog[state] == states[state] for state in State)
        claimed = [c.checkpoint_id for worker in "uv" for c in self.backlog.queue(worker)]
        running = [c.checkpoint_id for worker in "uv" if (c := self.backlog.running(worker))]
        assert sorted(claimed) == sorted(
            str(n) for n in range(self.added) if self.backlog.state(str(n)) is State.CLAIMED
        )
        assert len(running) == len(set(running)) == states[State.RUNNING]


TestBacklogMachine = BacklogMachine.TestCase


def test_nothing_is_stolen_from_a_worker_with_another_share_of_a_gpu() -> None:
    backlog, _ = backlog_of("aaa")
    claim(backlog, "large", 3)
    backlog.steal("small", among={"other"})
    assert not backlog.queue("small")
    backlog.steal("small", among={"large"})
    assert len(backlog.queue("small")) == 1
