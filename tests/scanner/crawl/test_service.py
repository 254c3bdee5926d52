"""The public Python API of the service, without the command line; hub and Ray are real."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from servers.hub import Handler, Hub, generated
from servers.misbehaviour import Misbehaving, Script
from servers.trouble import write_pickle

from finextract.reasons import LABELS, ReasonCode
from scanner.cli import cli
from scanner.commands.crawl import command as crawl_command
from scanner.config import ScanConfig
from scanner.crawl.attempt import reason_code_of, sentence_of
from scanner.crawl.pool import WorkerDied
from scanner.crawl.progress import Observer
from scanner.crawl.service import CrawlOptions, crawl, list_and_inspect
from scanner.errors import ConfigError, CorpusError, SourceError, StoreError
from scanner.records import Checkpoint, InspectionStatus, Scan, Verdict, now
from scanner.store.queries import count_reasons, count_verdicts
from scanner.store.store import Store

ROOT = Path(__file__).resolve().parents[3]


class Recorder(Observer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.checkpoints: list[Checkpoint] = []
        self.messages: list[str] = []

    def checkpoint_listed(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_the_script_of_the_documentation_crawls_a_folder_through_the_python_api_alone(
    zoo_path: Path, tmp_path: Path
) -> None:
    models, background = tmp_path / "models", tmp_path / "background"
    shutil.copytree(zoo_path / "checkpoints/fruit-lora", models / "fruit")
    write_pickle(models / "loose.ckpt")
    background.mkdir()
    for path in sorted((zoo_path / "images/background").iterdir())[:60]:
        shutil.copy(path, background)
    words = [models, zoo_path / "images/subjects/fruit", background, tmp_path / "store"]
    done = subprocess.run(
        [sys.executable, ROOT / "docs/crawl_from_python.py", *words, "--base", zoo_path / "base",
         "--samples", "1"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("This crawl: 2 planned = ")
    store = Store(tmp_path / "store")
    counts = count_verdicts(store)
    assert (counts.skipped, counts.failed, counts.todo) == (1, 0, 0)
    assert counts.flagged + counts.nothing_found == 1
    (reason,) = count_reasons(store)
    assert (reason.reason_code, reason.count) == (ReasonCode.PICKLE, 1)


def test_a_listing_through_the_api_returns_its_counts_and_reports_every_checkpoint(
    hub: Hub, tmp_path: Path
) -> None:
    recorder, store = Recorder(), tmp_path / "listed"
    options = CrawlOptions(source="hf", store=str(store))
    result = list_and_inspect(options, recorder, dry_run=True)
    assert not store.exists(), "a dry run writes nothing"
    assert result.checkpoints == len(recorder.checkpoints) == len(hub.repositories)
    assert result.ready == sum(c.inspection_status is InspectionStatus.READY for c in recorder.checkpoints)
    assert sum(reason.count for reason in result.reasons) == result.skipped + result.unavailable
    assert list_and_inspect(options).listed == result.listed
    assert len(Store(store).query("SELECT * FROM checkpoints")) == result.checkpoints


def test_what_was_listed_before_a_page_broke_is_recorded_and_printed_after_the_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 150 entries 100 are on the first page, fewer than one batch."""
    monkeypatch.setattr("scanner.hubs.http.FIRST_WAIT_S", 0.001)
    recorder, store = Recorder(), tmp_path / "listed"
    away = type("Away", (Misbehaving, Handler), {"plan": Script(["503"] * 99, "cursor=")})
    with Hub(generated(150, tmp_path / "repos"), page_size=100, handler=away) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        options = CrawlOptions(source="hf", store=str(store), limit=1000, listing_pauses_s=(0.01, 0.02))
        result = list_and_inspect(options, recorder)
        assert "answered 503" in str(result.cut_short)
        assert (result.listed, result.checkpoints, len(recorder.checkpoints)) == (100, 100, 100)
        assert len(Store(store).query("SELECT * FROM checkpoints")) == 100
        retries = [m for m in recorder.messages if "The listing is resumed in" in m]
        assert len(retries) == 2
        words = ["--source", "hf", "--dry-run", "--limit", "1000", "--store", str(tmp_path / "none")]
        shown = CliRunner().invoke(crawl_command, words)
        assert "100 checkpoints = " in shown.stdout, "what was listed is printed"
        assert isinstance(shown.exception, SourceError), "and then the error, with exit code 2"
        away.plan = Script(())
        again = list_and_inspect(options, recorder)
    assert (again.cut_short, again.listed, again.checkpoints) == (None, 150, 150)
    assert "after entry 100" in recorder.messages[-1]


def test_every_entry_that_cannot_be_scanned_has_a_reason_code_and_a_sentence(
    hub: Hub, tmp_path: Path
) -> None:
    store = Store(tmp_path / "listed", create=True)
    recorder = Recorder()
    list_and_inspect(CrawlOptions(source="hf", store=store.uri), recorder)
    odd = [c for c in recorder.checkpoints if c.inspection_status is not InspectionStatus.READY]
    assert len(odd) >= 5
    assert [c.repo for c in odd if c.reason_code is None or not c.reason] == []
    assert all(c.reason_code is None for c in recorder.checkpoints if c not in odd)
    counted = count_reasons(store)
    assert sum(reason.count for reason in counted) == len(odd)
    assert {reason.reason_code for reason in counted} == {c.reason_code for c in odd}


def test_reasons_are_counted_by_code_over_scans_and_listed_checkpoints(hub: Hub, tmp_path: Path) -> None:
    store = Store(tmp_path / "listed", create=True)
    list_and_inspect(CrawlOptions(source="hf", store=store.uri))
    ready = store.select(Checkpoint, "WHERE inspection_status = 'ready' ORDER BY repo LIMIT 2")
    at, config = now(), ScanConfig().row()
    store.append([config])
    store.append([
        Scan(f"s{n}", one.checkpoint_id, config.config_id, "run", Verdict.FAILED, f"no. {n}", "fetch", at,
             at, reason_code=ReasonCode.HUB_UNREACHABLE)
        for n, one in enumerate(ready)
    ])  # fmt: skip
    (failed,) = [r for r in count_reasons(store, config.config_id) if r.verdict == "failed"]
    assert (failed.reason_code, failed.count) == (ReasonCode.HUB_UNREACHABLE, 2)
    assert (failed.repo, failed.reason) in {(c.repo, f"no. {n}") for n, c in enumerate(ready)}
    done = CliRunner().invoke(cli, ["status", "--store", store.uri])
    line = next(line for line in done.stdout.splitlines() if "the hub did not answer" in line)
    assert line.split()[:2] == ["2", "failed"]
    shown = CliRunner().invoke(cli, ["status", "--json", "--store", store.uri])
    assert {(r["verdict"], r["count"]) for r in json.loads(shown.stdout)["reasons"]} >= {("failed", 2)}


def test_every_reason_code_has_a_label_of_its_own() -> None:
    assert set(LABELS) == set(ReasonCode)
    assert len(set(LABELS.values())) == len(ReasonCode)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), ReasonCode.OUT_OF_MEMORY),
        (type("OutOfMemoryError", (RuntimeError,), {})(), ReasonCode.OUT_OF_MEMORY),
        (StoreError("it does not answer"), ReasonCode.STORE_UNREACHABLE),
        (OSError(errno.ENOSPC, "no space left on device"), ReasonCode.NO_SPACE),
        (ZeroDivisionError(), ReasonCode.INTERNAL_ERROR),
    ],
)
def test_an_error_of_the_surroundings_has_its_reason_code(error: Exception, code: ReasonCode) -> None:
    assert reason_code_of(error) is code


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "the memory was not enough (stage load). Use fewer --workers, or a larger machine."),
        (
            OSError(errno.ENOSPC, "No space left on device", "/cache/a"),
            "/cache/a could not be used: No space left on device (stage load). "
            "Make room there; the next crawl tries again.",
        ),
        (StoreError("the store s3://a does not answer."), "the store s3://a does not answer."),
        (
            KeyError("x\n\x1b[31m"),
            r"error of this program in the stage load: KeyError: 'x\n\x1b[31m'. Its log says where.",
        ),
    ],
)
def test_an_error_of_the_surroundings_is_recorded_as_a_sentence(error: Exception, sentence: str) -> None:
    assert sentence_of(error, "load") == sentence


def test_a_worker_that_ran_out_of_memory_has_another_reason_code_than_one_that_died() -> None:
    killed = WorkerDied("1 worker(s) were killed due to the node running low on memory.")
    assert killed.reason_code is ReasonCode.OUT_OF_MEMORY
    assert (
        WorkerDied("It may have been killed by the OOM killer due to high memory usage.").reason_code
        is ReasonCode.WORKER_DIED
    )
    assert WorkerDied("The actor's node has died.").with_its_node


def test_options_that_cannot_be_used_raise_before_anything_is_listed(store: Store) -> None:
    with pytest.raises(ConfigError, match="is not known"):
        list_and_inspect(CrawlOptions(source="nowhere", store=store.uri))
    with pytest.raises(ConfigError, match="is not a date"):
        list_and_inspect(CrawlOptions(source="hf", store=store.uri, since="soon"))
    with pytest.raises(CorpusError, match="scanner corpus add"):
        crawl(CrawlOptions(source="hf", store=store.uri))
