"""A store that does not answer for a while: what is asked again, and that nothing is written twice."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from deltalake.exceptions import DeltaError
from servers.front import Front
from servers.objects import Objects
from test_store import checkpoint

from scanner.errors import StoreError
from scanner.store import patience
from scanner.store.delta import write
from scanner.store.leases import Leases
from scanner.store.patience import Patience, is_outage
from scanner.store.store import Store


@pytest.fixture(scope="module")
def objects() -> Iterator[Objects]:
    with Objects() as running:
        yield running


@pytest.fixture
def front(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """A bucket behind a server that can be away; s3fs repeats no request by itself, delta-rs for 2 s."""
    with Front(objects.url) as running:
        for name, value in objects.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        monkeypatch.setattr(patience, "FIRST_S", 0.1)
        yield running


def open_store(tmp_path: Path, told: list[str], *, seconds: float = 60) -> Store:
    uri = f"s3://{Objects.bucket}/{tmp_path.name}"
    return Store(uri, create=True, patience=Patience(seconds, told.append))


def repos(store: Store) -> list[str]:
    return sorted(row["repo"] for row in store.query("SELECT repo FROM all_checkpoints"))


def test_a_bucket_that_is_away_is_asked_again_until_it_answers(front: Front, tmp_path: Path) -> None:
    told: list[str] = []
    store = open_store(tmp_path, told)
    store.append([checkpoint("o/a", "x")])
    for operation in (
        lambda: store.append([checkpoint("o/b", "y")]),
        lambda: store.put_image(b"png"),
        lambda: Leases(store.storage, "one").acquire(["a"]),
        lambda: repos(store),
    ):
        front.refusing = 4
        operation()
        assert front.refusing == 0
    assert repos(store) == ["o/a", "o/b"]
    assert told
    assert all(text.startswith("the store does not answer: ") for text in told)


def test_a_bucket_that_stays_away_and_a_wait_that_is_ended_raise_the_error(
    front: Front, tmp_path: Path
) -> None:
    store = open_store(tmp_path, [], seconds=0.5)
    front.refusing = 10**6
    with pytest.raises(StoreError, match="cannot be written"):
        store.append([checkpoint("o/a", "x")])
    store.storage.patience = Patience(3600, lambda _: store.storage.patience.give_up())
    with pytest.raises(StoreError, match="does not answer"):
        repos(store)


def test_a_commit_whose_answer_was_lost_is_not_repeated_though_its_file_was_compacted_meanwhile(
    front: Front, tmp_path: Path
) -> None:
    def on_wait(_: str) -> None:
        front.refusing = 0
        other = Store(store.uri)
        table, rows = other.tables["checkpoints"], other.query_arrow("SELECT * FROM all_checkpoints")
        merged = write(other.storage, "checkpoints", "part-merged.parquet", rows)
        compacted.append(table.replace(table.names(), merged))

    compacted = list[bool]()
    store = open_store(tmp_path, [])
    store.append([checkpoint("o/a", "x")])
    store.storage.patience = Patience(60, on_wait)
    front.losing, front.then_refusing = "_delta_log/0000", 10**6
    store.append([checkpoint("o/b", "y")])
    assert compacted == [True]
    assert len(front.lost) == 1
    assert repos(store) == ["o/a", "o/b"]
    assert store.tables["checkpoints"].names() == ("part-merged.parquet",)


def test_a_lease_whose_answer_was_lost_is_held(front: Front, tmp_path: Path) -> None:
    store = open_store(tmp_path, [])
    front.losing = "leases/a~"
    assert Leases(store.storage, "one").acquire(["a"]) == {"a"}
    assert len(front.lost) == 1
    assert Leases(store.storage, "other").acquire(["a"]) == set()


def test_what_does_not_pass_by_itself_is_raised_at_once() -> None:
    for passing in (
        ConnectionResetError(), TimeoutError(), OSError(errno.EIO, "a network disk"),
        OSError(errno.EBUSY, "503"),
        OSError("Generic S3 error\n ↳ Server returned non-2xx status code\n ↳ 503 Service Unavailable"),
        DeltaError("Generic S3 error: HTTP error: error sending request"),
    ):  # fmt: skip
        assert is_outage(passing), passing
    for lasting in (
        FileNotFoundError(errno.ENOENT, "NoSuchBucket"), PermissionError(errno.EACCES, "AccessDenied"),
        OSError(errno.ENOSPC, "full"), OSError("Unable to locate credentials"), StoreError("no store"),
        OSError("Server returned non-2xx status code\n ↳ 403 Forbidden"),
    ):  # fmt: skip
        assert not is_outage(lasting), lasting
