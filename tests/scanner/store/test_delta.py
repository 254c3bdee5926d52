"""Tables under stress: many writers, killed writers, damaged files, columns that older files lack."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from deltalake import DeltaTable
from servers.objects import Objects

from scanner.records import Candidate, Decision, EventKind, ReviewDecision, Scan, Verdict, now
from scanner.store import compaction
from scanner.store.compaction import compact, compacting
from scanner.store.delta import Table
from scanner.store.rows import arrow_rows
from scanner.store.storage import open_storage
from scanner.store.store import Store
from scanner.store.tables import table_schema

# Appends rows until it is killed or done, and prints the id of each row that is committed.
WRITER = """
import sys
from scanner.records import Candidate
from scanner.store.store import Store
uri, writer, appends, rows = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store = Store(uri)
print("ready", flush=True)
sys.stdin.readline()
for n in range(appends):
    ids = [f"{writer}-{n}-{k}" for k in range(rows)]
    store.append([Candidate(i, f"{writer}-{n}", n, 1, 1.0, "", "d", (0.5, 0.5)) for i in ids])
    print(*ids, flush=True)
"""


def writers(uri: str, count: int, appends: int, rows: int = 2) -> list[subprocess.Popen[str]]:
    """Processes that append at once, from when all of them are ready."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, uri, f"w{n}", str(appends), str(rows)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3],
        )
        for n in range(count)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def committed(process: subprocess.Popen[str]) -> list[str]:
    """The ids that a writer printed before it ended."""
    with process:
        assert process.stdout is not None
        return process.stdout.read().split()


def ids(store: Store) -> list[str]:
    return [str(row["candidate_id"]) for row in store.query("SELECT candidate_id FROM candidates")]


def scan(n: int) -> Scan:
    at = now()
    return Scan(f"scan-number-{n}", f"c{n}", "config", "run", Verdict.SKIPPED, "", "match", at, at)


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "folder":
        yield Store(tmp_path / "store", create=True)
        return
    with Objects() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield Store(f"s3://{running.bucket}/store", create=True)


def test_no_row_is_lost_or_doubled_when_processes_append_at_once(store: Store) -> None:
    expected = [i for process in writers(store.uri, 4, 5) for i in committed(process)]
    assert len(expected) == 40
    assert sorted(ids(Store(store.uri))) == sorted(expected)


def test_a_table_is_whole_after_its_writers_were_killed_at_any_point(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", create=True)
    chance, acknowledged = random.Random(0), []
    processes = writers(store.uri, 4, 10_000)
    for process in processes:
        assert process.stdout is not None
        for _ in range(chance.randrange(1, 5)):
            acknowledged += process.stdout.readline().split()
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        acknowledged += committed(process)
    found = ids(Store(store.uri))
    assert acknowledged
    assert set(acknowledged) <= set(found)
    assert len(found) == len(set(found))
    assert len(found) - len(acknowledged) <= 2 * len(processes), "a commit that was not yet acknowledged"
    store.append([Candidate("after", "s", 1, 1, 1.0, "", "d", (0.5,))])
    assert "after" in ids(store)


def test_a_reader_sees_whole_commits_beside_writers_compaction_and_vacuum(tmp_path: Path) -> None:
    store, over, counts = Store(tmp_path / "store", create=True), threading.Event(), []

    def read() -> None:
        mine = Store(store.uri)
        while not over.is_set():
            (row,) = mine.query("SELECT count(*) AS n, count(DISTINCT candidate_id) AS ids FROM candidates")
            counts.append((row["n"], row["ids"]))

    reader = threading.Thread(target=read)
    reader.start()
    processes = writers(store.uri, 2, 25, rows=3)
    while any(process.poll() is None for process in processes):
        list(compact(Store(store.uri), retention_hours=1))
    expected = [i for process in processes for i in committed(process)]
    over.set()
    reader.join()
    assert len(expected) == 150
    assert all(n % 3 == 0 and n == distinct for n, distinct in counts)
    assert counts == sorted(counts), "rows never disappear"
    assert sorted(ids(Store(store.uri))) == sorted(expected)


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "overwritten"])
def test_a_damaged_file_costs_its_own_rows_and_one_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "store", create=True)
    for n in range(3):
        store.append([scan(n)])
    (path,) = (p for p in (store.root / "scans").glob("part-*") if b"scan-number-1" in p.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "overwritten":  # the footer stands, the pages do not
        content = path.read_bytes()
        path.write_bytes(content[:4] + bytes(1000) + content[1004:])
    else:
        path.write_bytes(path.read_bytes()[: 500 if damage == "truncated" else 0])
    opened = Store(store.uri)
    for _ in range(2):
        assert sorted(row.scan_id for row in opened.select(Scan)) == ["scan-number-0", "scan-number-2"]
    (warning,) = caplog.records
    assert path.name in warning.getMessage()
    opened.append([scan(3)])
    list(compact(opened))
    assert sorted(row.scan_id for row in Store(store.uri).select(Scan)) == [
        f"scan-number-{n}" for n in (0, 2, 3)
    ]


def test_a_column_that_an_older_table_lacks_is_added_and_is_null_in_its_rows(store: Store) -> None:
    older = table_schema("scans")
    for name in ("seed", "reason_code", "_newest"):
        older = older.remove(older.get_field_index(name))
    older_rows = arrow_rows([scan(0)]).select([n for n in older.names if not n.startswith("_")])
    storage = open_storage(f"{store.uri}-older")
    Table(storage, "scans", older).append(older_rows)
    opened = Store(storage.uri)
    before = opened.query("SELECT scan_id, seed, reason_code FROM scans")
    assert before == [{"scan_id": "scan-number-0", "seed": None, "reason_code": None}]
    assert opened.select(Scan)[0].seed == 0  # a record has the default of the field
    opened.append([replace(scan(1), seed=7)])
    after = opened.query("SELECT scan_id, seed FROM scans ORDER BY scan_id")
    assert after == [{"scan_id": "scan-number-0", "seed": None}, {"scan_id": "scan-number-1", "seed": 7}]
    table = DeltaTable(storage.address("scans"), storage_options=storage.options)
    assert {field.name for field in table.schema().fields} == set(table_schema("scans").names)
    list(compact(opened))
    assert opened.query("SELECT scan_id, seed FROM scans ORDER BY scan_id") == after


def test_a_large_file_is_never_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "LARGE_BYTES", 15_000)
    monkeypatch.setattr(compaction, "BATCH_BYTES", 60_000)
    store = Store(tmp_path / "store", create=True)
    chance, seen = random.Random(0), dict[str, int]()
    for n in range(60):
        embedding = tuple(chance.random() for _ in range(512))
        store.append([Candidate(f"c{n}", "s", 1, 1, 1.0, "", "d", embedding)])
        if n % 10 == 9:
            list(compact(store, retention_hours=0))
            files = {file.name: file.size_bytes for file in store.tables["candidates"].files()}
            large = {name for name, size in seen.items() if size >= 15_000}
            assert large <= files.keys()
            seen = files
    assert sum(size >= 15_000 for size in seen.values()) >= 3, seen
    assert len(seen) < 12
    assert len(set(ids(store))) == len(ids(store)) == 60


def test_the_tables_that_are_named_are_compacted_beside_a_review_and_no_others(store: Store) -> None:
    for n in range(6):
        decided = Decision(f"d{n}", f"s{n}", EventKind.DECIDE, ReviewDecision.UNSURE, "", None, "vera", now())
        store.append([decided])
        store.append([scan(n)])
    others = store.tables["scans"].files()
    with compacting(store.uri, ["decisions"], fewest_parts=5, interval_s=0.02):
        end = time.monotonic() + 60
        while len(store.tables["decisions"].files()) > 1 and time.monotonic() < end:
            time.sleep(0.02)
    assert len(store.tables["decisions"].files()) == 1
    assert store.tables["scans"].files() == others
    assert sorted(row.decision_id for row in Store(store.uri).select(Decision)) == [f"d{n}" for n in range(6)]
