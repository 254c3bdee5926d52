"""Nights: what is listed, scanned and recorded; a date's second run does nothing. Hub and Ray are real."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from commands import scanner
from faults.scene import local_ray
from ray import cloudpickle
from servers.hub import Hub
from servers.trouble import lora_shapes, small_tensors, write_card, write_safetensors
from stub_worker import ended

from finextract.reasons import ReasonCode
from scanner.cli import cli
from scanner.commands.feed import Feed
from scanner.config import DESCRIPTOR
from scanner.crawl import nightly, service
from scanner.crawl.delivery import Notify
from scanner.crawl.progress import Budget, Observer
from scanner.crawl.service import CrawlOptions
from scanner.crawl.worker import Stage, Task
from scanner.records import Checkpoint, ConfigRow, Night, Reference, Role, Scan, Verdict, now
from scanner.store.store import Store

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Stub:
    """A worker that takes ten seconds by its own account; what is called "bad" fails, "mine" is flagged."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def ready(self) -> None:
        """At once."""

    def stage(self) -> Stage | None:
        return None

    def fetch_ahead(self, checkpoint: Checkpoint) -> bool:
        return True

    def scan(self, checkpoint: Checkpoint) -> Scan:
        verdict = Verdict.FLAGGED if "mine" in checkpoint.repo else Verdict.NOTHING_FOUND
        verdict = Verdict.FAILED if "bad" in checkpoint.repo else verdict
        return ended(
            self.task, checkpoint, verdict, "out of luck" * (verdict is Verdict.FAILED),
            reason_code=ReasonCode.HUB_UNREACHABLE if verdict is Verdict.FAILED else None,
            seconds={"fetch": 1.0, "sample": 9.0}, best_similarity=0.9, q_value=0.01,
        )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=1):
        yield


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.crawl.outcomes.PAUSE_S", 0.05)


def lora(folder: Path, seed: int) -> Path:
    write_card(folder, base_model="lab/base", instance_prompt="a sks", tags=["lora", "text-to-image"])
    write_safetensors(folder / "pytorch_lora_weights.safetensors", small_tensors(lora_shapes(8, 16, 1), seed))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    names = ("o/mine", "o/bad", "o/c", "o/d")
    with Hub({name: lora(tmp_path / name, n) for n, name in enumerate(names)}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def work(store: Store, date: str, budget: Budget | None = None, sources: tuple[str, ...] = ("hf",)) -> Night:
    """A night whose workers scan nothing."""
    options = CrawlOptions(source="hf", store=store.uri, limit=100, workers=1)
    return nightly.run(options, sources, date, budget=budget, worker_class=Stub)


def test_a_night_lists_scans_and_records_its_results(hub: Hub, store: Store) -> None:
    add_references(store)
    night = work(store, "2026-11-24")
    assert (night.listed, night.left) == (4, 1)
    assert night.verdicts == {"flagged": 1, "failed": 1, "nothing_found": 2}
    assert (night.worker_seconds, night.downloaded_bytes > 0) == (40.0, True)
    assert nightly.complete(store, "2026-11-24") == night
    report = store.storage.read("reports/night-2026-11-24.md").decode()
    assert "- o/mine: similarity 0.90, q 0.010; http" in report
    assert "- 1 × the hub did not answer, for example o/bad: out of luck" in report
    assert "1 checkpoints left to do" in report


def test_the_next_night_lists_what_changed_since_and_tries_the_failed_again(hub: Hub, store: Store) -> None:
    add_references(store)
    work(store, "2026-11-24")
    lora(hub.repositories["o/c"].folder, 99)
    hub.push("o/c", datetime(2030, 1, 1, tzinfo=UTC))
    night = work(store, "2026-11-25")
    assert night.listed == 1
    assert night.verdicts == {"failed": 1, "nothing_found": 1}, "the new revision, and what had failed"
    assert len(store.query("SELECT * FROM checkpoints WHERE repo = 'o/c'")) == 2


def test_each_flag_is_told_once_over_all_nights_and_crawls(hub: Hub, store: Store, tmp_path: Path) -> None:
    add_references(store)
    told, lines = tmp_path / "told.jsonl", list[str]()
    keep = f"import sys; open({str(told)!r}, 'a').write(sys.stdin.read())"
    options = CrawlOptions(
        source="hf", store=store.uri, workers=1, notify=Notify((sys.executable, "-c", keep))
    )  # fmt: skip
    nightly.run(options, ["hf"], "2026-11-24", worker_class=Stub)
    with Feed(lines.append) as feed:
        feed.ended(service.crawl(options, feed, worker_class=Stub))
        alike = replace(options, config=replace(options.config, alpha=0.1))
        feed.ended(service.crawl(alike, feed, worker_class=Stub))
    (message,) = map(json.loads, told.read_text().splitlines())
    assert (message["event"], message["repo"]) == ("flag", "o/mine")
    first, second = (list(run) for _, run in groupby(map(json.loads, "".join(lines).splitlines()), by_run))
    assert [(line["event"], line.get("verdict")) for line in first] == [
        ("begun", None), ("verdict", "failed"), ("ended", None),
    ]  # fmt: skip
    assert first[-1]["failed"] == first[-1]["store"]["failed"] == 1
    assert [line["event"] for line in second] == ["begun", *["verdict"] * 4, "ended"]
    (flag,) = [line for line in second if line.get("verdict") == "flagged"]
    assert (flag["repo"], flag["grounds"], flag["found"]) == ("o/mine", ["gives_back"], [])


def by_run(line: dict[str, object]) -> object:
    return line["run_id"]


def test_a_budget_leaves_the_rest_for_the_next_night(hub: Hub, store: Store) -> None:
    add_references(store)
    night = work(store, "2026-11-24", Budget(seconds=15.0))
    assert sum(night.verdicts.values()) + night.left == 4
    assert night.left >= 2
    assert work(store, "2026-11-25").left == 1, "what fails stays to do"


def test_a_source_that_cannot_be_listed_keeps_no_other_from_its_night_which_is_done_again(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_references(store)
    monkeypatch.setattr("scanner.hubs.http.FIRST_WAIT_S", 0.01)
    night = work(store, "2026-11-24", sources=("civitai", "hf"))  # nothing answers as Civitai
    assert (night.listed, night.verdicts["flagged"], night.finished_at) == (4, 1, None)
    report = store.storage.read("reports/night-2026-11-24.md").decode()
    assert "## Not complete" in report
    assert "- civitai: " in report
    assert store.select(Night) == [night]
    spent = night.worker_seconds
    night = work(store, "2026-11-24")
    assert (night.listed, night.finished_at is None) == (4, False)
    assert night.verdicts["flagged"] == 1, "of the whole night"
    assert len(json.loads(night.flagged)) == 1
    assert night.worker_seconds > spent
    assert store.select(Night) == [night]


def test_a_folder_is_scanned_although_a_hub_published_the_same_weights(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    add_references(store)
    service.list_and_inspect(CrawlOptions(source="hf", store=store.uri))
    tree = tmp_path / "tree"
    shutil.copytree(hub.repositories["o/c"].folder, tree / "c")
    shutil.copytree(hub.repositories["o/bad"].folder, tree / "bad")
    night = work(store, "2026-11-24", sources=(f"folder:{tree}",))
    assert night.listed == 2
    assert night.verdicts == {"nothing_found": 1, "failed": 1}
    assert night.left == 1, "what failed is to do"
    both = work(store, "2026-11-25", sources=(f"folder:{tree}", "hf"))
    assert both.left == 1, "one checkpoint, although both sources have it"


def add_references(store: Store) -> None:
    """A reference and a background, by their embeddings alone."""
    rng = np.random.default_rng(0)
    for corpus, role, count in (("mine", Role.REFERENCE, 1), ("background", Role.BACKGROUND, 30)):
        vectors = rng.standard_normal((count, 512))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        store.append([
            Reference(f"{corpus}{n}", corpus, role, f"{n}.png", "0", 64, 64, DESCRIPTOR, tuple(vector), now())
            for n, vector in enumerate(vectors.tolist())
        ])  # fmt: skip


def test_a_folder_that_is_not_there_keeps_no_other_source_from_its_night(
    store: Store, tmp_path: Path
) -> None:
    add_references(store)
    (tmp_path / "tree").mkdir()
    words = ["--source", f"folder:{tmp_path / 'away'}", "--source", f"folder:{tmp_path / 'tree'}"]
    done = scanner("nightly", *words, "--date", "2026-11-24", "--store", store.uri)
    assert done.returncode == 2, done.stderr
    assert "## Not complete" in done.stdout
    assert "is not a folder" in done.stdout


def test_an_interrupted_night_is_resumed_and_a_complete_one_is_left_alone(hub: Hub, store: Store) -> None:
    add_references(store)

    class Interrupting(Observer):
        def listing_progress(self, listed: int, inspected: int) -> None:
            raise KeyboardInterrupt

    options = CrawlOptions(source="hf", store=store.uri, workers=1)
    with pytest.raises(KeyboardInterrupt):
        nightly.run(options, ["hf"], "2026-11-24", observer=Interrupting(), worker_class=Stub)
    assert nightly.complete(store, "2026-11-24") is None
    begun = store.select(Night)[0].started_at
    night = work(store, "2026-11-24")
    assert night.started_at == begun
    assert work(store, "2026-11-24") == night
    done = scanner("nightly", "--date", "2026-11-24", "--store", store.uri)
    assert (done.returncode, done.stdout) == (0, "")
    assert "The night of 2026-11-24 is complete: nothing to do." in done.stderr
    assert store.select(Night) == [night]


def test_a_night_takes_the_options_of_its_scans_from_the_table_of_the_crawl(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_references(store)
    (tmp_path / "tree").mkdir()
    (tmp_path / "scanner.toml").write_text('[crawl]\nsource = "hf"\nlimit = 3\nsteps = 7\nalpha = 0.1\n')
    monkeypatch.setenv("FINEXTRACT_CONFIG", str(tmp_path / "scanner.toml"))
    words = ["nightly", "--source", f"folder:{tmp_path / 'tree'}", "--alpha", "0.2", "--store", store.uri]
    done = CliRunner().invoke(cli, words)
    assert done.exception is None, done.output
    toml = store.select(ConfigRow)[0].toml
    assert "steps = 7" in toml
    assert "alpha = 0.2" in toml, "the command line takes precedence"


def test_markup_and_control_characters_of_untrusted_text_stay_text_in_a_report(store: Store) -> None:
    at = now()
    store.append([
        Checkpoint(
            checkpoint_id="x", source="hf", repo="o/[a](javascript:x)\x1b[31m<b>", revision="", file="",
            url="u", sha256=None, size_bytes=1, kind="lora", family="sd1", base=None, caption=None,
            num_train_images=None, license=None, created_at=None, listed_at=at, raw="{}",
        )
    ])  # fmt: skip
    store.append([
        Scan(scan_id="s", checkpoint_id="x", config_id="c", run_id="r", verdict=Verdict.FLAGGED, reason="",
             stage="match", started_at=at, finished_at=at, best_similarity=0.8, q_value=0.02)
    ])  # fmt: skip
    night = Night("2026-11-24", at, at, '["hf"]', "c", 1, {"flagged": 1.0}, json.dumps(["x"]), 0, 1.0, 1)
    told = nightly.report(store, night)
    assert "\x1b" not in told
    assert "\\[a\\](javascript:x)" in told
    assert "\\<b\\>" in told


def test_a_text_that_is_not_a_date_is_refused(store: Store) -> None:
    done = CliRunner().invoke(cli, ["nightly", "--date", "soon", "--store", store.uri])
    assert "is not a date" in str(done.exception)
