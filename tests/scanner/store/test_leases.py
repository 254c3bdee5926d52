"""Leases: of several crawls one works on a checkpoint, and what a dead one held is taken over."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

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


def test_a_renewed_lease_does_not_expire(folder: FolderStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "CLOCK_SKEW", timedelta(0))
    one, other = Leases(folder, "one", timedelta(seconds=0.6)), Leases(folder, "other")
    one.acquire(["a"])
    wait = threading.Event()
    for _ in range(6):
        wait.wait(0.25)
        one.renew()
        assert other.acquire(["a"]) == set()
    wait.wait(0.8)
    assert other.acquire(["a"]) == {"a"}


def test_a_file_that_is_no_lease_holds_nothing(folder: FolderStorage) -> None:
    folder.put("leases/a~000003.json", b"nonsense")
    folder.put("leases/notes.txt", b"")
    assert Leases(folder, "one").acquire(["a", "notes"]) == {"a", "notes"}
