"""The store in a folder and in a bucket: newest rows, compaction beside readers and writers, images."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers.objects import Objects

from scanner.cli import cli
from scanner.errors import QueryError, StoreError
from scanner.records import Candidate, Checkpoint, Decision, EventKind, ReviewDecision, Scan, Verdict, now
from scanner.store import compaction
from scanner.store.compaction import compact
from scanner.store.storage import FolderStorage
from scanner.store.store import Store

START = now()


def checkpoint(repo: str, content: str, minute: int = 0, source: str = "hf") -> Checkpoint:
    return Checkpoint(
        checkpoint_id=content, source=source, repo=repo, revision="", file="", url="", sha256=None,
        size_bytes=1, kind="lora", family="sd1", base=None, caption=None, num_train_images=None, license=None,
        created_at=None, listed_at=START + timedelta(minutes=minute), raw="{}",
    )  # fmt: skip


def scan(content: str, verdict: Verdict, minute: int, config: str = "c") -> Scan:
    at = START + timedelta(minutes=minute)
    return Scan(
        scan_id=f"{content}-{minute}", checkpoint_id=content, config_id=config, run_id="r", verdict=verdict,
        reason="", stage="match", started_at=at, finished_at=at,
    )  # fmt: skip


@pytest.fixture(scope="module")
def objects() -> Iterator[Objects]:
    with Objects() as running:
        yield running


Make = Callable[[str], Store]


@pytest.fixture(params=["folder", "bucket"])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Opens the store of that name: in a folder, and in a bucket."""
    if request.param == "folder":
        return lambda name: Store(tmp_path / name, create=True)
    running: Objects = request.getfixturevalue("objects")
    for name, value in running.environment().items():
        monkeypatch.setenv(name, value)
    return lambda name: Store(f"s3://{running.bucket}/{tmp_path.name}/{name}", create=True)


def counting(store: Store) -> set[tuple[object, ...]]:
    rows = store.query(
        "SELECT repo, checkpoint_id, verdict FROM checkpoints LEFT JOIN scans USING (checkpoint_id)"
    )
    return {tuple(row.values()) for row in rows}


def test_a_commit_is_visible_to_the_next_query_of_another_process(make: Make) -> None:
    one, other = make("store"), make("store")
    assert other.query("SELECT * FROM checkpoints") == []
    for n in range(6):
        one.append([checkpoint(f"o/{n}", f"id{n}")])
        if one.storage.uri.startswith("/"):  # a bucket is listed once a second
            assert len(other.query("SELECT repo FROM checkpoints")) == n + 1
    assert len(make("store").query("SELECT repo FROM checkpoints")) == 6


def test_the_newest_row_of_a_file_counts_and_content_seen_twice_is_one_checkpoint(make: Make) -> None:
    store = make("store")
    store.append([checkpoint("o/a", "x", 0), checkpoint("o/b", "x", 1), checkpoint("o/c", "y", 2)])
    store.append([checkpoint("o/c", "z", 3)])
    assert counting(store) == {("o/b", "x", None), ("o/c", "z", None)}
    list(compact(store, retention_hours=0))
    assert counting(store) == {("o/b", "x", None), ("o/c", "z", None)}
    store.append([checkpoint("o/b", "z", 4)])  # o/a now counts for x
    assert counting(store) == {("o/a", "x", None), ("o/b", "z", None)}


ESCAPES = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "FROM '/etc/passwd'",
    "SELECT * FROM read_text('{outside}')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM read_text('{store}-other/secret.txt')",
    "SELECT * FROM read_text('https://127.0.0.1:9/secret')",
    "SELECT * FROM read_text('s3://finextract/secret.txt')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM query('SELECT * FROM read_csv(''/etc/passwd'')')",
    "COPY (SELECT 1) TO '{outside}'",
    "COPY (SELECT 1) TO '{store}/made.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{store}/made.csv'",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{store}/made.csv'",
    "-- hidden\nEXPLAIN ANALYZE COPY (SELECT 1) TO '{store}/made.csv'",
    "EXPORT DATABASE '{store}/made'",
    "ATTACH '{outside}.db'",
    "ATTACH '{store}/made.db'",
    "ATTACH ':memory:' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET allowed_directories = ['/']",
    "RESET lock_configuration",
    "PRAGMA threads = 1",
    "CALL enable_logging()",
    "SELECT getenv('HOME')",
    "FROM arguments",
    "CREATE TABLE made AS SELECT 1",
    "CREATE OR REPLACE VIEW checkpoints AS SELECT 1 AS repo",
    "DROP VIEW checkpoints",
    "INSERT INTO checkpoints SELECT * FROM checkpoints",
    "DELETE FROM checkpoints",
    "SELECT 1; DROP VIEW checkpoints",
]


def test_no_query_opens_anything_but_the_store_or_changes_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = pa.table({"secret": [1]})  # DuckDB would find a variable of the program by its name
    (outside := tmp_path / "outside/secret.txt").parent.mkdir()
    store, other = make("store"), make("store-other")
    other.storage.put("secret.txt", b"secret")
    outside.write_text("secret")
    store.append([checkpoint("o/a", "x")])
    names = sorted(store.storage.names(""))
    for escape in ESCAPES:
        with pytest.raises(QueryError) as raised:
            store.query(escape.format(store=store.uri, outside=outside))
        assert str(raised.value).strip(), escape
    above = "SELECT * FROM read_text('{}/../store-other/secret.txt')"
    if store.uri.startswith("/"):
        with pytest.raises(QueryError):
            store.query(above.format(store.uri))
    else:  # an object of that literal name, which no bucket has
        assert store.query(above.format(store.uri)) == []
    assert arguments.num_rows == 1
    assert outside.read_text() == "secret"
    assert sorted(store.storage.names("")) == names
    assert store.query("SELECT repo FROM checkpoints") == [{"repo": "o/a"}]


@pytest.mark.parametrize("name", ["sub/../store", "o'store", "a store, with ]"])
def test_a_store_may_have_any_path(tmp_path: Path, name: str) -> None:
    Store(tmp_path / name, create=True).append([checkpoint("o/a", "x")])
    assert Store(tmp_path / name).query("SELECT repo FROM checkpoints") == [{"repo": "o/a"}]


def test_every_kind_of_question_is_answered(make: Make) -> None:
    store = make("store")
    store.append([checkpoint("o/a", "x"), checkpoint("o/b", "y")])
    for question in (
        "SELECT repo FROM checkpoints; -- and a comment",
        "WITH c AS (FROM checkpoints) SELECT repo FROM c",
        "FROM checkpoints SELECT repo",
        "VALUES (1), (2)",
        "SELECT repo FROM checkpoints LEFT JOIN scans USING (checkpoint_id)",
        "SELECT * FROM (PIVOT checkpoints ON kind USING count(*) GROUP BY repo)",
    ):
        assert len(store.query(question)) == 2, question
    for question in (
        "DESCRIBE checkpoints", "SHOW TABLES", "SUMMARIZE checkpoints", "PRAGMA table_info('checkpoints')",
        "EXPLAIN SELECT * FROM scans", "EXPLAIN ANALYZE SELECT * FROM scans",
        "PIVOT checkpoints ON kind USING count(*)", 'SELECT count(*) FROM "references"',
    ):  # fmt: skip
        assert store.query(question), question


def test_a_result_larger_than_the_memory_spills_to_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store", create=True)
    (where,) = store.query("SELECT current_setting('temp_directory') AS at")
    assert Path(where["at"]).stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / ".tmp").exists()


def test_compaction_leaves_one_file_a_table_and_every_row_that_counts(make: Make) -> None:
    store = make("store")
    for n in range(6):
        store.append([checkpoint(f"o/{n % 3}", f"id{n % 3}", n)])
        store.append([scan(f"id{n % 3}", Verdict.FAILED if n < 3 else Verdict.FLAGGED, n)])
    before = counting(store)
    done = {c.table: c for c in compact(store, retention_hours=0)}
    assert (done["checkpoints"].files, done["checkpoints"].rows) == (6, 3)  # replaced rows are removed
    assert (done["scans"].files, done["scans"].rows) == (6, 6)  # every attempt is kept
    assert done["decisions"].files == 0
    assert counting(store) == counting(make("store")) == before
    names = store.storage.names("scans")
    assert sorted(name.split("-")[0] for name in names) == ["_delta_log", "compacted"]
    assert all(c.files == 0 for c in compact(store, retention_hours=0))
    for n in (7, 8):
        store.append([scan("id0", Verdict.SKIPPED, n)])
    list(compact(store, retention_hours=0))
    assert ("o/0", "id0", "skipped") in counting(store)
    assert len(store.query("SELECT * FROM all_scans")) == 8


def test_a_failed_attempt_never_hides_a_verdict_though_its_clock_was_ahead(make: Make) -> None:
    store = make("store")
    store.append([checkpoint("o/a", "x"), checkpoint("o/b", "y"), checkpoint("o/c", "z")])
    store.append([scan("x", Verdict.FAILED, 90)])  # by a machine whose clock is ahead by 90 minutes
    store.append([scan("x", Verdict.FLAGGED, 1)])  # half an hour after that
    inspected = replace(scan("y", Verdict.SKIPPED, 1), stage="inspect")
    store.append([inspected, replace(inspected, checkpoint_id="z")])
    store.append([scan("y", Verdict.FAILED, 2), replace(scan("z", Verdict.FAILED, 90), stage="inspect")])
    counting_now = {("o/a", "x", "flagged"), ("o/b", "y", "failed"), ("o/c", "z", "skipped")}
    for _ in range(2):
        assert counting(store) == counting_now
        assert {s.checkpoint_id: s.verdict for s in store.scans_of("c", ["x", "z"])} == {
            "x": Verdict.FLAGGED,
            "z": Verdict.SKIPPED,
        }
        assert store.finished("c") == {"x"}
        list(compact(store, retention_hours=0))


@pytest.mark.parametrize("large_bytes", [1, compaction.LARGE_BYTES])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.one_of(
    st.tuples(st.just("checkpoint"), st.integers(0, 3), st.integers(0, 3), st.integers(0, 30)),
    st.tuples(st.just("scan"), st.integers(0, 3), st.sampled_from(list(Verdict)), st.integers(0, 30)),
    st.tuples(st.just("compact")),
), max_size=14))  # fmt: skip
def test_a_store_that_is_compacted_at_any_moment_answers_as_one_that_never_is(
    tmp_path: Path, large_bytes: int, steps: list[tuple[object, ...]]
) -> None:
    """With a limit of one byte no compacted file is rewritten, so the same keys occur in several."""
    name = os.urandom(4).hex()
    plain, often = Store(tmp_path / f"{name}-1", create=True), Store(tmp_path / f"{name}-2", create=True)
    used: set[int] = set()
    compacted = False  # until then both stores have had the same appends alone
    for step in steps:
        if step[0] == "compact":
            compacted = True
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(compaction, "LARGE_BYTES", large_bytes)
                list(compact(often, fewest_parts=1, retention_hours=0))
            continue
        _, which, what, minute = step
        if minute in used:  # of two rows of one time either may count
            continue
        used.add(minute)  # type: ignore[arg-type]
        row: Checkpoint | Scan
        if step[0] == "checkpoint":
            source = "hf" if which != 3 else "folder:x"
            row = checkpoint(f"o/{which}", f"id{what}", minute, source)  # type: ignore[arg-type]
        else:
            row = scan(f"id{which}", what, minute)  # type: ignore[arg-type]
        plain.append([row])
        often.append([row])
        if compacted:
            assert counting(often) == counting(plain)
    assert counting(often) == counting(plain)


def test_of_two_compactions_at_once_one_wins_and_nothing_is_lost(make: Make) -> None:
    store = make("store")
    for n in range(4):
        store.append([checkpoint(f"o/{n}", f"id{n}")])
    threads = [
        threading.Thread(target=lambda: list(compact(make("store"), retention_hours=0))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = make("store")
    assert (
        len(again.query("SELECT * FROM checkpoints"))
        == len(again.query("SELECT * FROM all_checkpoints"))
        == 4
    )
    assert len(again.tables["checkpoints"].names()) == 1


def test_readers_and_writers_go_on_while_a_store_is_compacted(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", create=True)
    stop = threading.Event()
    written, wrong = [0], []

    def write() -> None:
        mine = Store(store.uri)
        while not stop.is_set():
            mine.append([checkpoint(f"o/{written[0]}", f"id{written[0]}")])
            written[0] += 1

    def read() -> None:
        mine = Store(store.uri)
        while not stop.is_set():
            least = written[0]
            (row,) = mine.query("SELECT count(*) AS n, count(DISTINCT repo) AS repos FROM all_checkpoints")
            if row["n"] < least or row["n"] != row["repos"]:
                wrong.append((least, row))

    threads = [threading.Thread(target=work) for work in (write, read, read)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        list(compact(Store(store.uri), retention_hours=1))
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(Store(store.uri).query("SELECT * FROM checkpoints")) == written[0] > 0


def test_a_compaction_that_was_interrupted_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store", create=True)
    for n in range(4):
        store.append([checkpoint(f"o/{n}", f"id{n}")])

    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("scanner.store.delta.Table.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):  # after the new file was written, before it was committed
        list(compact(store))
    monkeypatch.undo()
    assert len(Store(store.uri).query("SELECT * FROM all_checkpoints")) == 4
    list(compact(store, retention_hours=0))
    assert len(Store(store.uri).query("SELECT * FROM all_checkpoints")) == 4
    assert len(store.storage.names("checkpoints")) == 2, "the log and one file"


def test_decisions_and_candidates_survive_with_their_embeddings(make: Make) -> None:
    store = make("store")
    candidates = [Candidate(f"c{n}", "s", n, 1, 1.0, "", "d", (0.5, float(n))) for n in range(3)]
    for candidate in candidates:
        store.append([candidate])
    decisions = [
        Decision(
            f"d{minute}", "m", EventKind.DECIDE, decision, "", None, "me", START + timedelta(minutes=minute)
        )
        for minute, decision in enumerate((ReviewDecision.CONFIRM, ReviewDecision.DISMISS))
    ]
    for decision in decisions:
        store.append([decision])
    list(compact(store, retention_hours=0))
    assert store.select(Candidate, "ORDER BY seed") == candidates
    assert store.select(Decision, "ORDER BY decided_at") == decisions


def test_images_come_back_by_their_content(make: Make) -> None:
    store = make("store")
    name = store.put_image(b"png")
    assert store.put_image(b"png") == name
    assert store.image(name) == b"png"
    with pytest.raises(FileNotFoundError):
        store.image("0" * 64)


def test_opening_a_store_that_does_not_exist_is_an_error(make: Make, tmp_path: Path) -> None:
    there = make("store").uri
    with pytest.raises(StoreError, match="there is no store"):
        Store(there + "-not")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store("nowhere://bucket/prefix")


def test_a_file_that_does_not_fit_on_the_disk_leaves_nothing_there(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for write in (storage.put, storage.create):
            with pytest.raises(OSError, match="File too large"):
                write("scans/part.parquet", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "scans").iterdir()) == []


def test_a_signal_interrupts_a_query(store: Store) -> None:
    """Immediately or at the end of the query, depending on which of DuckDB's threads runs it."""

    def ask() -> None:
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
        store.query("SELECT count(*) AS n FROM range(500000000) numbers(i) WHERE i % 7 = 3")

    with pytest.raises(KeyboardInterrupt):
        ask()
    assert store.query("SELECT 1 AS one") == [{"one": 1}], "and it can be asked again"


def test_the_verb_reports_what_it_did(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", create=True)
    for n in range(3):
        store.append([replace(checkpoint("o/a", "x"), listed_at=START + timedelta(minutes=n))])
    first, second = (CliRunner().invoke(cli, ["compact", "--store", store.uri]) for _ in range(2))
    assert "checkpoints: 3 files compacted, 1 rows" in first.output
    assert "Nothing to compact" in second.output
