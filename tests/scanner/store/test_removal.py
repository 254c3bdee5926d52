"""A purge leaves no byte of what it removes in any file of the store, and everything else as it was."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from filled_store import BEGAN, DESCRIPTOR, Crawl
from servers.objects import Objects

from scanner.cli import cli
from scanner.match import mapped
from scanner.records import (
    Candidate,
    Checkpoint,
    Night,
    Reference,
    Removal,
    ReviewDecision,
    Role,
    Scan,
    Verdict,
    now,
)
from scanner.store import removal
from scanner.store.compaction import compact
from scanner.store.leases import Leases, lease_key
from scanner.store.store import Store

SECRET = "anna/style"
EMBEDDING = (0.6180339, 0.7861513)  # of all that goes; its bytes are searched for


@pytest.fixture
def crawl(tmp_path: Path) -> Crawl:
    """Two flagged checkpoints; of each table some rows are compacted, some replaced, and some new."""
    (tmp_path / "paintings").mkdir()
    made = Crawl(Store(tmp_path / "store", create=True), tmp_path / "paintings")
    made.flagged(SECRET, (0.81, 0.4), 0.004, margins=(0.3, 0.02), of_corpus=0.2)
    for _ in compact(made.store):
        pass
    made.flagged("kim/other", (0.9,), 0.002, checkpoint={"listed_at": now()})
    made.decide(made.matches[SECRET][0].match_id, ReviewDecision.CONFIRM, "rosa")
    made.decide(made.scans[SECRET].scan_id, ReviewDecision.UNSURE, "rosa")
    made.decide(made.scans["kim/other"].scan_id, ReviewDecision.DISMISS, "rosa")
    flagged = json.dumps([made.scans[repo].checkpoint_id for repo in (SECRET, "kim/other")])
    night = Night("2026-11-24", BEGAN, BEGAN, "[]", "c", 2, {"flagged": 2.0}, flagged, 0, 1.0, 0)
    made.store.append([replace(night, recorded_at=BEGAN)])
    made.store.storage.put("reports/night-2026-11-24.md", f"- {SECRET}\n- kim/other\n".encode())
    made.store.storage.put(f"logs/ab/{made.scans[SECRET].scan_id}.log", f"lora of hf: {SECRET}".encode())
    message = {
        "id": "m",
        "checkpoint_id": made.scans[SECRET].checkpoint_id,
        "found": [{"corpus": "paintings"}],
    }
    made.store.storage.put("notify/waiting/m.json", json.dumps(message, indent=1).encode())
    return made


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a store in an object store."""
    with Objects() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield f"s3://{running.bucket}/purged"


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def pictures(store: Store, repo: str) -> set[str]:
    """The images that a checkpoint gave back."""
    rows = store.query(
        "SELECT image_sha256 FROM candidates JOIN scans USING (scan_id) "
        "JOIN checkpoints USING (checkpoint_id) WHERE repo = ?",
        [repo],
    )
    return {row["image_sha256"] for row in rows}


def values(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file's content, of Parquet files each value too."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        yield path, content
        if content.startswith(b"PAR1"):
            for column in pq.read_table(io.BytesIO(content)).columns:
                yield path, repr(column.to_pylist()).encode()


def holding(folder: Path, *needles: str | bytes) -> list[tuple[str, str]]:
    """The files that hold one of some words, in their name or in their content."""
    wanted = [needle.encode() if isinstance(needle, str) else needle for needle in needles]
    return [
        (str(path.relative_to(folder)), repr(needle)[-60:])
        for path, content in values(folder)
        for needle in wanted
        if needle in content or needle in str(path).encode()
    ]


def found_of(held: list[tuple[str, str]]) -> int:
    """How many different words were found."""
    return len({needle for _, needle in held})


def test_no_byte_of_a_purged_checkpoint_is_left(crawl: Crawl) -> None:
    store, root = crawl.store, crawl.store.root
    gone, stays = pictures(store, SECRET), pictures(store, "kim/other")
    images = [store.image(sha256) for sha256 in gone]
    scan = crawl.scans[SECRET]
    traces = [SECRET, scan.checkpoint_id, scan.scan_id, *gone, *images]
    assert found_of(holding(root, *traces)) == len(traces)
    told = run("purge", "--store", root, "--checkpoint", SECRET, "--dry-run")
    assert "2 candidates, 3 memberships, 2 matches, 2 events of the decision log, 1 scan" in told.stderr
    assert "2 images, 2 further files" in told.stderr
    assert found_of(holding(root, *traces)) == len(traces), "a dry run removes nothing"
    assert run("purge", "--store", root, "--checkpoint", SECRET, "--yes").exit_code == 0
    log = store.select(Removal)
    assert [(row.what, row.name, row.removed["candidates"]) for row in log] == [
        ("checkpoint", scan.checkpoint_id, 2.0)
    ]
    left = holding(root, *(trace for trace in traces if trace != scan.checkpoint_id))
    assert left == []
    assert {path.split("/")[0] for path, _ in holding(root, scan.checkpoint_id)} == {"removals"}
    assert store.query("SELECT repo FROM checkpoints") == [{"repo": "kim/other"}]
    assert pictures(store, "kim/other") == stays
    assert all(store.image(sha256) for sha256 in stays)
    assert crawl.decision(crawl.scans["kim/other"].scan_id) == ReviewDecision.DISMISS
    assert (root / "reports/night-2026-11-24.md").read_text() == "- kim/other\n"
    (night,) = store.select(Night)
    assert json.loads(night.flagged) == ["removed", crawl.scans["kim/other"].checkpoint_id]


def test_a_checkpoint_that_is_being_scanned_is_not_purged(crawl: Crawl) -> None:
    scan = crawl.scans[SECRET]
    leases = Leases(crawl.store.storage, "a running crawl")
    assert leases.acquire([lease_key(scan.checkpoint_id, scan.config_id)])
    refused = CliRunner().invoke(
        cli, ["purge", "--store", str(crawl.store.root), "--checkpoint", SECRET, "--yes"]
    )
    assert "a crawl scans" in str(refused.exception)
    leases.release()
    assert run("purge", "--store", crawl.store.root, "--checkpoint", SECRET, "--yes").exit_code == 0


def add_corpus(crawl: Crawl, name: str) -> Reference:
    """A second corpus, of one picture that both checkpoints were trained on, with its copy in the store."""
    copy = crawl.store.put_image(b"a copy of the picture of " + name.encode())
    picture = Reference(
        "f00d" * 16, name, Role.REFERENCE, f"/home/{name}/secret-picture.png", "f00d" * 16, 64, 64,
        DESCRIPTOR, EMBEDDING, BEGAN, copy,
    )  # fmt: skip
    crawl.store.append([picture])
    trained = [
        replace(rows[0], membership_id=f"{repo}-of-{name}", corpus=name, reference_id=picture.reference_id)
        for repo, rows in crawl.memberships.items()
        if rows
    ]
    crawl.store.append(trained)
    table = pa.table({"picture": [picture.reference_id], "loss": [0.1]})
    pq.write_table(table, stream := io.BytesIO())
    crawl.store.storage.put("base-losses/base/shared.parquet", stream.getvalue())
    return picture


def test_no_byte_of_a_removed_corpus_is_left(
    crawl: Crawl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINEXTRACT_CACHE", str(tmp_path / "cache"))
    picture = add_corpus(crawl, "secret corpus")
    row = pa.table({"reference_id": [picture.reference_id], "embedding": [EMBEDDING], "added_at": [BEGAN]})
    ids = np.array([picture.reference_id.encode()])
    mapped.build(tmp_path / "cache", "digest", DESCRIPTOR, ids, [row])
    only = crawl.scan("max/only", Verdict.FLAGGED, grounds="trained_on", trained_on=1, membership_q=0.004)
    crawl.store.append(
        [replace(crawl.memberships[SECRET][0], membership_id="only-t", scan_id=only.scan_id,
                 corpus=picture.corpus, reference_id=picture.reference_id)]
    )  # fmt: skip
    assert picture.image_sha256 is not None
    embedding = np.array(EMBEDDING, np.float32)
    traces: list[str | bytes] = [
        picture.reference_id, picture.image_sha256, picture.path, b"a copy of the picture", "only-t",
        embedding.tobytes(), repr(float(embedding[0])),
    ]  # fmt: skip
    assert found_of(holding(tmp_path, *traces)) == len(traces)
    told = run("corpus", "remove", picture.corpus, "--store", crawl.store.root, "--yes")
    assert "the corpus secret corpus: 2 memberships, 1 reference, 1 image" in told.stderr
    assert "1 scan is no longer flagged without it." in told.stderr
    assert holding(tmp_path / "store", *traces) == []
    assert holding(tmp_path / "cache", *traces) == []
    verdicts = crawl.store.query("SELECT repo, verdict, grounds, scans.reason FROM scans JOIN checkpoints "
                                 "USING (checkpoint_id) ORDER BY repo")  # fmt: skip
    assert [(row["repo"], row["verdict"], row["grounds"]) for row in verdicts] == [
        (SECRET, "flagged", "trained_on+gives_back"),
        ("kim/other", "flagged", ""),
        ("max/only", "nothing_found", ""),
    ]
    assert verdicts[2]["reason"] == removal.CORPUS_REMOVED
    told = run("show", "max/only", "--store", crawl.store.root).stdout
    assert f"Not flagged any more: {removal.CORPUS_REMOVED}." in told
    assert "None of the images" not in told
    assert "what it was flagged for" in run("status", "--store", crawl.store.root).stdout
    (scan,) = crawl.store.scans_with_ids([crawl.scans[SECRET].scan_id])
    assert scan.best_similarity == 0.81, "what was found about the other corpus stays"
    again = CliRunner().invoke(cli, ["corpus", "remove", picture.corpus, "--store", str(crawl.store.root)])
    assert "there is no corpus secret corpus. Existing corpora: paintings." in str(again.exception)


def test_old_images_go_and_what_was_found_and_confirmed_stays(crawl: Crawl) -> None:
    store = crawl.store
    old, confirmed = pictures(store, "kim/other"), pictures(store, SECRET)
    content = [store.image(sha256) for sha256 in old]
    told = run("purge", "--store", store.root, "--older-than", "1h", "--yes")
    assert re.search(r"recovered before 20.*: 1 candidate, 1 image\.", told.stderr), told.stderr
    assert holding(store.root, *old, *content) == []
    assert all(store.image(sha256) for sha256 in confirmed)
    assert len(store.query("FROM matches WHERE flagged")) == 2
    assert run("status", "--store", store.root, "--json").exit_code == 0
    again = run("purge", "--store", store.root, "--older-than", "1h", "--yes")
    assert "nothing to remove" in again.stderr
    run("purge", "--store", store.root, "--older-than", "1h", "--with-confirmed", "--yes")
    assert holding(store.root, *confirmed) == []


def test_an_image_that_a_later_scan_compared_again_is_as_old_as_its_first_scan(crawl: Crawl) -> None:
    store = crawl.store
    first = crawl.scans["kim/other"]
    (candidate,) = store.select(Candidate, "WHERE scan_id = ?", [first.scan_id])
    store.append([replace(candidate, candidate_id="k2", scan_id="later")])
    store.append([replace(first, scan_id="later", config_id="another", finished_at=now())])
    run("purge", "--store", store.root, "--older-than", "1h", "--yes")
    assert holding(store.root, candidate.image_sha256) == []


def test_an_interrupted_purge_is_ended_by_the_same_command(
    crawl: Crawl, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, scan = crawl.store, crawl.scans[SECRET]
    gone = pictures(store, SECRET)

    def fails_at_scans(opened: Store, table: str, condition: str) -> None:
        if table == "scans":
            raise OSError("the disk is gone")
        removed(opened, table, condition)

    removed = removal._remove_all
    monkeypatch.setattr(removal, "_remove_all", fails_at_scans)
    stopped = CliRunner().invoke(cli, ["purge", "--store", str(store.root), "--checkpoint", SECRET, "--yes"])
    assert "Run the same command again" in str(stopped.exception)
    monkeypatch.undo()
    assert run("purge", "--store", store.root, "--checkpoint", SECRET, "--yes").exit_code == 0
    assert holding(store.root, SECRET, scan.scan_id, *gone) == []


def test_a_purge_in_a_bucket_leaves_no_object_of_the_checkpoint(bucket: str, crawl: Crawl) -> None:
    store = Store(bucket, create=True)
    listed = crawl.scans[SECRET]
    store.append(crawl.store.select(Scan))
    store.append(crawl.store.select(Checkpoint))
    image = store.put_image(b"what it gave back")
    store.append([Candidate("k", listed.scan_id, 1, 1, 1.0, image, "d", EMBEDDING)])
    assert run("purge", "--store", store.uri, "--checkpoint", SECRET, "--yes").exit_code == 0
    assert store.storage.below("images") == []
    contents = [store.storage.read(path) for path in store.storage.below("") if path.endswith(".parquet")]
    tables = [repr(pq.read_table(io.BytesIO(content)).to_pylist()) for content in contents]
    assert not any(SECRET in table or listed.scan_id in table for table in tables)


def test_without_a_terminal_nothing_is_removed_unless_it_is_said_so(crawl: Crawl) -> None:
    refused = CliRunner().invoke(cli, ["purge", "--store", str(crawl.store.root), "--checkpoint", SECRET])
    assert "Pass --yes" in str(refused.exception)
    assert pictures(crawl.store, SECRET)
    for words in ([], ["--with-confirmed"], ["--older-than", "soon"]):
        assert CliRunner().invoke(cli, ["purge", "--store", str(crawl.store.root), *words]).exception
