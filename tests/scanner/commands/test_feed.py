"""`scanner crawl --jsonl`: verdicts as lines of JSON while it runs. What is pickled needs no worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from commands import scanner
from filled_store import Crawl
from servers.trouble import write_pickle

from scanner.commands.feed import Feed
from scanner.config import DESCRIPTOR
from scanner.crawl.progress import Progress, Run
from scanner.records import Checkpoint, Reference, Role, Verdict, now
from scanner.store.queries import VerdictCounts
from scanner.store.store import Store

SCANNER = Path(sys.executable).parent / "scanner"


@pytest.fixture
def words(store: Store, tmp_path: Path) -> list[str]:
    """A crawl of three pickled checkpoints, over references that only their embeddings make up."""
    for corpus, role, count in (("mine", Role.REFERENCE, 1), ("background", Role.BACKGROUND, 2)):
        store.append([
            Reference(f"{corpus}{n}", corpus, role, f"{n}.png", "0", 64, 64, DESCRIPTOR,
                      tuple(float(place == n) for place in range(512)), now())
            for n in range(count)
        ])  # fmt: skip
    for n in range(3):
        (tmp_path / "tree").mkdir(exist_ok=True)
        write_pickle(tmp_path / f"tree/{n}.ckpt")
        with (tmp_path / f"tree/{n}.ckpt").open("ab") as file:
            file.write(bytes([n]))
    return ["crawl", "--source", f"folder:{tmp_path / 'tree'}", "--store", store.uri, "--jsonl"]


def test_a_crawl_prints_a_line_for_each_verdict_between_its_first_and_its_last(words: list[str]) -> None:
    done = scanner(*words)
    assert done.returncode == 0, done.stderr
    begun, *verdicts, ended = map(json.loads, done.stdout.splitlines())
    assert (begun["event"], begun["format"]) == ("begun", 1)
    assert begun["source"] == words[2]
    assert [(line["event"], line["verdict"], line["reason_code"]) for line in verdicts] == [
        ("verdict", "skipped", "pickle")
    ] * 3
    assert {line["file"] for line in verdicts} == {"0.ckpt", "1.ckpt", "2.ckpt"}
    assert all(line["run_id"] == begun["run_id"] for line in (*verdicts, ended))
    assert (ended["event"], ended["planned"], ended["skipped"], ended["cut_short"]) == ("ended", 3, 3, None)
    assert ended["store"]["planned"] == 3
    assert "This crawl: 3 planned = " in done.stderr
    begun, ended = map(json.loads, scanner(*words).stdout.splitlines())
    assert ended["skipped"] == 3, "what was finished before is counted, and not repeated"


def test_a_reader_that_has_gone_ends_the_crawl_which_says_how_to_resume(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([SCANNER, *words], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 141
    assert (
        "Nobody reads the lines any more, so the crawl has ended. Run the same command again" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_a_crawl_whose_reader_is_stuck_can_be_interrupted(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while os.write(writer, b" " * 4096):
            pass
    os.set_blocking(writer, True)
    crawl = subprocess.Popen([SCANNER, *words], stdout=writer, stderr=subprocess.PIPE, text=True)
    assert crawl.stderr is not None
    for line in crawl.stderr:
        if line.startswith("[3/3]"):
            crawl.send_signal(signal.SIGINT)
    assert crawl.wait() == 130
    os.close(reader)
    os.close(writer)


def test_a_disk_that_is_full_is_one_message(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([SCANNER, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "the lines of --jsonl cannot be written: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_flag_says_what_it_rests_on_and_an_interrupted_crawl_ends_with_its_counts(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    crawl = Crawl(store, tmp_path / "mine")
    scans = [
        crawl.flagged("anna/style", (0.81, 0.4), 0.004, margins=(0.3, 0.2), of_corpus=0.2),
        crawl.scan("kim/plain", Verdict.NOTHING_FOUND),
    ]
    lines: list[str] = []
    with Feed(lines.append) as feed:
        feed.begun(Run("run-1", "config", "hf", store.uri))
        for scan in scans:
            (listed,) = store.select(Checkpoint, "WHERE checkpoint_id = ?", [scan.checkpoint_id])
            feed.outcome(listed, scan, Progress())
        feed.interrupted(VerdictCounts(5, 1, 1, 0, 0))
    printed: list[dict[str, Any]] = [json.loads(line) for line in "".join(lines).splitlines()]
    assert [line["event"] for line in printed] == ["begun", "verdict", "verdict", "interrupted"]
    flag, plain = printed[1:3]
    assert [row["grounds"] for row in flag["found"]] == [
        ["trained_on", "gives_back"], ["trained_on"], ["trained_on"],
    ]  # fmt: skip
    match = crawl.matches["anna/style"][0]
    row = flag["found"][0]
    assert (row["match_id"], row["similarity"], row["p_value"]) == (match.match_id, 0.81, match.p_value)
    assert row["reference"] == "1-0.png"
    assert {row["reference"] for row in flag["found"]} == {"1-0.png", "1-1.png", None}, "null: the corpus"
    assert "found" not in plain
    assert (printed[3]["planned"], printed[3]["todo"]) == (5, 3)


@pytest.mark.parametrize("other", ["--json", "--list-only", "--dry-run"])
def test_what_prints_something_else_excludes_the_lines(words: list[str], other: str) -> None:
    done = scanner(*words, other)
    assert (done.returncode, done.stdout) == (2, "")
    assert "exclude it" in done.stderr


def test_a_crawl_refuses_to_begin_where_nobody_could_be_told(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scanner.toml").write_text('[notify]\ncommand = "no-such-program --loud"\n')
    monkeypatch.setenv("FINEXTRACT_CONFIG", str(tmp_path / "scanner.toml"))
    done = scanner(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "names no-such-program, which is no program on this machine" in done.stderr
