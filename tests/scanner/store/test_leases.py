"""Leases: of several crawls one works on a checkpoint, and what a dead one held is taken over."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from scanner.records import now
from scanner.store import leases
from scanner.store.leases import Leases
from scanner.store.storage import FolderStorage


@pytest.fixture
def folder(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "store")


def test_what_one_crawl_holds_no_other_takes(folder: FolderStorage) -> None:
    one, other = Leases(folder, "one"), Leases(folder, "other")
    assert one.acquire(["a", "b"]) == {"a", "b"}
    assert other.acquire(["b", "c"]) == {"c"}
    one.release(["b"])
    assert other.acquire(["a", "b"]) == {"b"}
    one.release()
    other.release()
    assert folder.names("leases") == []


def test_an_expired_lease_is_taken_over_by_exactly_one_crawl(
    folder: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "CLOCK_SKEW", timedelta(0))
    Leases(folder, "dead", timedelta(seconds=-1)).acquire([str(n) for n in range(30)])
    crawls = [Leases(folder, f"crawl{n}") for n in range(6)]
    taken: list[set[str]] = []
    ready = threading.Barrier(len(crawls))

    def take(crawl: Leases) -> None:
        ready.wait()
        taken.append(crawl.acquire([str(n) for n in range(30)]))

    threads = [threading.Thread(target=take, args=[crawl]) for crawl in crawls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(t) for t in taken) == len(set().union(*taken)) == 30


def test_what_a_killed_process_held_on_this_machine_is_free_at_once(folder: FolderStorage) -> None:
    code = (
        "from pathlib import Path; from scanner.store.leases import Leases; "
        "from scanner.store.storage import FolderStorage; "
        f"print(Leases(FolderStorage(Path({folder.uri!r})), 'dead').acquire(['a']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'a'}"
    assert Leases(folder, "one").acquire(["a"]) == {"a"}


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = now()

    def __call__(self) -> datetime:
        return self.now


def test_a_renewed_lease_does_not_expire(folder: FolderStorage) -> None:
    clock = Clock()
    one, other = Leases(folder, "one", timedelta(minutes=5), clock), Leases(folder, "other", clock=clock)
    one.acquire(["a"])
    for _ in range(6):
        clock.now += timedelta(minutes=2)
        one.renew()
        assert other.acquire(["a"]) == set()
    clock.now += timedelta(minutes=6, seconds=1)
    assert other.acquire(["a"]) == {"a"}


ELSEWHERE = timedelta(minutes=7)  # later than a lease that was not renewed expires, clock skew included


def test_a_lease_that_another_crawl_took_over_is_not_renewed_by_its_old_holder(folder: FolderStorage) -> None:
    clock = Clock()
    one, other, third = (Leases(folder, name, clock=clock) for name in ("one", "other", "third"))
    assert one.acquire(["a", "b", "c"]) == {"a", "b", "c"}
    clock.now += ELSEWHERE  # the machine of `one` slept
    assert other.acquire(["a", "b"]) == {"a", "b"}
    other.release(["b"])
    assert third.acquire(["b"]) == {"b"}, "its numbers begin anew"
    one.renew()
    assert [key in one for key in "abc"] == [False, False, True]
    assert [one.confirm("a"), one.confirm("b"), one.confirm("c")] == [False, False, True]
    assert other.confirm("a")
    assert third.confirm("b")
    one.release()
    assert [name.partition("~")[0] for name in sorted(folder.names("leases"))] == ["a", "b"]


def test_of_a_renewal_and_a_takeover_at_once_exactly_one_succeeds(folder: FolderStorage) -> None:
    keys, clock = [str(n) for n in range(40)], Clock()
    one, other = Leases(folder, "one", clock=clock), Leases(folder, "other", clock=clock)
    one.acquire(keys)
    clock.now += ELSEWHERE
    ready, taken = threading.Barrier(2), set[str]()

    def take() -> None:
        ready.wait()
        taken.update(other.acquire(keys))

    thread = threading.Thread(target=take)
    thread.start()
    ready.wait()
    one.renew()
    thread.join()
    kept = {key for key in keys if key in one}
    assert kept | taken == set(keys)
    assert not kept & taken
    assert {key for key in keys if one.confirm(key)} == kept
    assert {key for key in keys if other.confirm(key)} == taken


def test_a_worker_confirms_the_lease_of_its_crawl_and_renews_one_that_has_expired(
    folder: FolderStorage,
) -> None:
    clock = Clock()
    crawl, worker, other = (Leases(folder, name, clock=clock) for name in ("one", "one", "other"))
    assert not worker.confirm("a"), "nobody holds it"
    crawl.acquire(["a"])
    assert worker.confirm("a")
    clock.now += ELSEWHERE
    assert worker.confirm("a"), "nobody took it"
    assert other.acquire(["a"]) == set(), "now it is held again"
    crawl.renew()
    assert "a" in crawl
    assert crawl.confirm("a")


def test_a_file_that_is_no_lease_holds_nothing(folder: FolderStorage) -> None:
    folder.put("leases/a~000003.json", b"nonsense")
    folder.put("leases/notes.txt", b"")
    assert Leases(folder, "one").acquire(["a", "notes"]) == {"a", "notes"}
