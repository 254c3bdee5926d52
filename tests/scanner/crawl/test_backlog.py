"""The schedule: a worker stays with its base, and goes where most is left."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from scanner.crawl.backlog import Schedule
from scanner.crawl.planning import Planned
from scanner.records import InspectionStatus


def planned(bases: str) -> list[Planned]:
    return [Planned(f"{n}", base, InspectionStatus.READY) for n, base in enumerate(bases)]


def test_a_worker_stays_with_its_base_until_nothing_of_it_is_left() -> None:
    schedule = Schedule(planned("abababaa"))
    order = "".join(str(schedule.take("w")[0].base) for _ in range(8))
    assert order == "aaaaabbb"
    assert schedule.take("w") == ()


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
