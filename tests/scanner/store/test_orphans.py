"""What killed writers leave in a store is removed after a grace time, and nothing else is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from servers.objects import Objects

from scanner.cli import cli
from scanner.records import Candidate, Reference, Role, Scan, Verdict, now
from scanner.store.compaction import compact
from scanner.store.orphans import BASE_LOSSES, GRACE, Orphans, collect
from scanner.store.store import Store

LONG_AGO = now() - GRACE - timedelta(hours=1)
# Writes a whole scan, and everything of another one but its last row; then it waits to be killed.
WRITER = """
import os, sys, tempfile
from dataclasses import replace
from scanner.records import Candidate, Match, Membership, Scan, Verdict, now
from scanner.store.leases import Leases
from scanner.store.store import Store
store = Store(sys.argv[1], create=True)
leases = Leases(store.storage, "run")
for n in (1, 2):
    leases.acquire([f"checkpoint{n}-config"])
    image = store.put_image(b"an image of scan %d" % n)
    store.append([Candidate(f"c{n}", f"s{n}", 1, 1, 1.0, image, "d", (0.5,))])
    store.append([Membership(f"p{n}", f"s{n}", "mine", "", 1.0, 1.0, None, (), "", 0, None, 1.0, 1.0, False)])
    store.append([Match(f"m{n}", f"s{n}", f"c{n}", "mine", "r", 0.9, 0.5, 0.1, 0.1, True)])
    if n == 1:
        store.append([Scan("s1", "checkpoint1", "config", "run", Verdict.FLAGGED, "", "match", now(), now())])
if "://" not in sys.argv[1]:
    os.replace = lambda *_: (print("half written", flush=True), sys.stdin.read())
    tempfile.mkdtemp(prefix=".compaction-", dir=sys.argv[1])
    store.put_image(b"an image of no candidate")
    store.storage.put("reports/night.md", b"half")
print("written", flush=True)
sys.stdin.read()
"""


def killed_writer(uri: str) -> None:
    """Runs the writer and kills it where it waits."""
    command = [sys.executable, "-c", WRITER, uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() in ("half written\n", "written\n")
        process.send_signal(signal.SIGKILL)


def make_old(store: Store) -> None:
    """Every file of a folder was written before the grace time began, and rows were found then."""
    for path in store.root.rglob("*"):
        os.utime(path, (LONG_AGO.timestamp(),) * 2, follow_symlinks=False)
    noted = store.root / "orphans.json"
    if noted.exists():
        noted.write_text(json.dumps(dict.fromkeys(json.loads(noted.read_text()), LONG_AGO.isoformat())))


def rows(store: Store) -> list[tuple[str, ...]]:
    found = store.query(
        "SELECT scan_id, 'candidate' AS kind FROM candidates UNION ALL SELECT scan_id, 'match' FROM matches "
        "UNION ALL SELECT scan_id, 'membership' FROM memberships "
        "UNION ALL SELECT scan_id, 'scan' FROM all_scans ORDER BY ALL"
    )
    return [tuple(row.values()) for row in found]


def images(store: Store) -> list[bytes]:
    return sorted(store.storage.read(path) for path in store.storage.below("images"))


WHOLE = [("s1", "candidate"), ("s1", "match"), ("s1", "membership"), ("s1", "scan")]


def test_what_a_killed_writer_left_is_removed_after_a_day_and_nothing_else(tmp_path: Path) -> None:
    killed_writer(str(tmp_path / "store"))
    store = Store(tmp_path / "store")
    list(compact(store))  # the rows lie in compacted files when they are found
    assert collect(store) == Orphans(), "nothing is a day old"
    assert len(rows(store)) == 7
    assert images(store) == [b"an image of no candidate", b"an image of scan 1", b"an image of scan 2"]
    make_old(store)
    expected = Orphans(candidates=1, memberships=1, matches=1, images=2, leases=2, temporary_files=2)
    assert collect(store, dry_run=True) == expected
    assert len(rows(store)) == 7
    assert collect(store) == expected
    assert rows(Store(store.uri)) == WHOLE
    assert images(store) == [b"an image of scan 1"]
    assert store.storage.names("leases") == []
    assert [p.name for p in store.root.rglob(".*") if p.name != ".locks"] == []
    assert collect(store) == Orphans()


def test_the_losses_of_a_base_go_when_no_scan_has_added_to_them_for_a_month(store: Store) -> None:
    for name, days in (("a/old.parquet", 31), ("a/claim", 31), ("b/new.parquet", 29)):
        store.storage.put(f"{BASE_LOSSES}/{name}", b"losses")
        then = (now() - timedelta(days=days)).timestamp()
        os.utime(store.root / BASE_LOSSES / name, (then, then))
    assert collect(store) == Orphans(base_losses=2)
    assert sorted(store.storage.below(BASE_LOSSES)) == [f"{BASE_LOSSES}/b/new.parquet"]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with Objects() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield f"s3://{running.bucket}/some/store"


@pytest.mark.parametrize("compacted", [False, True])
def test_the_copies_that_references_name_are_kept(tmp_path: Path, *, compacted: bool) -> None:
    store = Store(tmp_path / "store", create=True)
    for n, copy in enumerate((b"a copy", b"its newer copy", None, b"another copy")):
        name = None if copy is None else store.put_image(copy)
        of = "r" if n < 3 else "s"
        store.append([Reference(of, "mine", Role.UNSEEN, "", of, 1, 1, "d", (0.5,), now(), name)])
    store.put_image(b"an image that no row names")
    for _ in compact(store) if compacted else ():
        pass
    make_old(store)
    assert collect(store) == Orphans(images=1)
    assert images(store) == [b"a copy", b"another copy", b"its newer copy"]


def test_a_bucket_is_rid_of_orphans_too(bucket: str) -> None:
    store = Store(bucket, create=True)
    named, unnamed = store.put_image(b"named"), store.put_image(b"unnamed")
    store.append([Candidate(n, n, 1, 1, 1.0, named, "d", (0.5,)) for n in ("s1", "s2")])
    store.append([Scan("s1", "c", "config", "run", Verdict.FLAGGED, "", "match", now(), now())])
    store.storage.put("leases/c-config~000001.json", b"{}")
    assert unnamed != named
    assert collect(store, grace=-timedelta(seconds=5)) == Orphans(candidates=1, images=1, leases=1)
    assert rows(Store(bucket)) == [("s1", "candidate"), ("s1", "scan")]
    assert images(store) == [b"named"]


def test_compact_counts_and_removes_orphans(tmp_path: Path) -> None:
    killed_writer(str(tmp_path / "store"))
    store = Store(tmp_path / "store")
    run = CliRunner().invoke
    place = ["--store", store.uri]
    assert "Removed: 0 candidates" in run(cli, ["compact", *place]).output
    make_old(store)
    counted = run(cli, ["compact", "--dry-run", *place]).output
    assert counted.startswith(
        "Would be removed: 1 candidates, 1 memberships and 1 matches without a scan, 2 images that no row"
    )
    assert len(rows(store)) == 7
    assert "Removed: 1 candidates, 1 memberships and 1 matches" in run(cli, ["compact", *place]).output
    assert rows(store) == WHOLE


def test_a_scan_that_is_finished_within_the_day_keeps_its_rows(tmp_path: Path) -> None:
    killed_writer(str(tmp_path / "store"))
    store = Store(tmp_path / "store")
    collect(store)
    assert list(json.loads((store.root / "orphans.json").read_text())) == ["s2"]
    (whole,) = store.select(Scan)
    store.append([replace(whole, scan_id="s2", checkpoint_id="checkpoint2")])
    make_old(store)
    assert (collect(store).candidates, collect(store).images) == (0, 0)
    assert len(rows(store)) == 8


def test_orphans_are_kept_while_a_data_file_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed_writer(str(tmp_path / "store"))
    store = Store(tmp_path / "store")
    collect(store)
    make_old(store)
    for part in (store.root / "scans").glob("*.parquet"):
        part.write_bytes(b"")
    assert collect(Store(store.uri)) == Orphans()
    assert "kept until its damaged files are restored" in caplog.text
    assert len(images(store)) == 3


def test_an_image_that_is_written_while_its_orphan_is_removed_is_there_afterwards(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", create=True)
    name = store.put_image(b"png")
    path = f"images/{name[:2]}/{name}.png"
    together = threading.Barrier(2)

    def remove() -> None:
        together.wait()
        store.storage.remove_unchanged(path, now() - GRACE)

    for _ in range(200):
        os.utime(store.root / path, (LONG_AGO.timestamp(),) * 2)
        thread = threading.Thread(target=remove)
        thread.start()
        together.wait()
        store.put_image(b"png")
        thread.join()
        assert store.storage.read(path) == b"png"
    os.utime(store.root / path, (LONG_AGO.timestamp(),) * 2)
    assert store.storage.remove_unchanged(path, now() - GRACE)
    assert store.storage.below("images") == []


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o750])
def test_a_store_that_other_users_could_open_is_closed_to_them_with_a_warning(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "store", create=True)
    assert caplog.text == ""
    store.root.chmod(mode)
    Store(store.uri)
    assert store.root.stat().st_mode & 0o777 == 0o700
    assert f"was open to other users of this machine (mode {mode:o})" in caplog.text
    caplog.clear()
    Store(store.uri)
    assert caplog.text == ""


def test_a_folder_that_holds_other_files_too_is_not_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "store", create=True)
    (store.root / "somebody's file").touch()
    store.root.chmod(0o1777)
    Store(store.uri)
    assert store.root.stat().st_mode & 0o7777 == 0o1777
    assert "and still is, because the folder holds other files too" in caplog.text


def test_an_existing_folder_becomes_private_when_a_store_is_made_in_it(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    Store(tmp_path / "store", create=True)
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


def test_a_store_that_is_mounted_read_only_is_read_though_its_folder_cannot_be_closed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", create=True)
    store.root.chmod(0o755)
    mounted = f"mount --bind {store.root} {store.root} && mount -o remount,bind,ro {store.root}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mounted], check=False).returncode:
        pytest.skip("this machine mounts nothing in a namespace of its own")
    query = f"{Path(sys.executable).parent}/scanner sql 'SELECT 1 AS one' --format csv --store {store.root}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mounted} && {query}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "one\n1\n"), done.stderr
    assert "and still is, because the folder cannot be changed (Read-only file system)" in done.stderr
