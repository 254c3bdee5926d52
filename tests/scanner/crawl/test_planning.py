"""What a crawl has to do: listing, inspection and what is recorded of them, with a real hub on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import scanner
from plans import listed_plan
from servers.civitai import Civitai as CivitaiSite
from servers.civitai import TroubledSite, lora_bytes, model
from servers.hub import FIRST_CREATED, Handler, Hub
from servers.misbehaviour import Misbehaving, Script
from servers.trouble import lora_shapes, small_tensors, write_card, write_pickle, write_safetensors

from scanner.commands.crawl import command
from scanner.config import ScanConfig
from scanner.crawl.listing import _listing_id, last_finished, list_batches, list_with_retries
from scanner.crawl.planning import Plan
from scanner.hubs import addresses, http
from scanner.hubs.base import Query
from scanner.hubs.civitai.source import CivitaiSource
from scanner.hubs.huggingface.source import HuggingFaceSource
from scanner.hubs.registry import open_source
from scanner.records import BaseOrigin, Checkpoint, InspectionStatus, Listing, Scan, Verdict, now
from scanner.store.compaction import compact
from scanner.store.store import Store

WEIGHTS = "pytorch_lora_weights.safetensors"


def lora(folder: Path, seed: int, **card: object) -> Path:
    shown = {"base_model": "lab/base", "instance_prompt": "a sks", "tags": ["lora", "text-to-image"]}
    write_card(folder, **{k: v for k, v in (shown | card).items() if v is not None})
    write_safetensors(folder / WEIGHTS, small_tensors(lora_shapes(width=8, context=16, rank=1), seed))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Twelve LoRA, one of them without a base; a pickle; and a repository without weights."""
    repos = {f"o/{n:02}": lora(tmp_path / f"{n:02}", n) for n in range(11)}
    repos["o/baseless"] = lora(tmp_path / "baseless", 99, base_model=None)
    write_card(tmp_path / "pickled", tags=["lora", "text-to-image"], base_model="lab/base")
    write_pickle(tmp_path / "pickled" / "model.ckpt")
    write_card(tmp_path / "empty", tags=["lora", "text-to-image"])
    repos |= {"o/pickled": tmp_path / "pickled", "o/empty": tmp_path / "empty"}
    with Hub(repos, page_size=4) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def asked_files(hub: Hub) -> list[str]:
    return [path for _, path, _ in hub.requests if "/resolve/" in path]


def test_every_entry_is_recorded_with_what_inspection_says(hub: Hub, store: Store) -> None:
    plan = listed_plan(HuggingFaceSource(), store, Query(100))
    assert plan.listed == len(plan) == len(hub.repositories)
    rows = {row["repo"]: row for row in store.query("SELECT * FROM checkpoints")}
    assert len(rows) == len(hub.repositories)
    ready = rows["o/05"]
    assert (ready["inspection_status"], ready["base"], ready["base_origin"]) == ("ready", "lab/base", "card")
    assert ready["checkpoint_id"] == ready["sha256"]
    assert ready["size_bytes"] == hub.repositories["o/05"].files[WEIGHTS].size
    assert "base model is not known" in rows["o/baseless"]["reason"]
    assert "pickle" in rows["o/pickled"]["reason"]
    assert "no weights" in rows["o/empty"]["reason"]
    assert {rows[f"o/{n}"]["inspection_status"] for n in ("baseless", "pickled", "empty")} == {"skipped"}


def test_no_weights_are_read_to_list_and_inspect(hub: Hub, store: Store) -> None:
    listed_plan(HuggingFaceSource(), store, Query(100))
    ranges = [r for _, path, r in hub.requests if "/resolve/" in path or "/cdn/" in path]
    assert ranges
    assert all(r is not None for r in ranges)


def test_what_is_known_is_not_asked_again(hub: Hub, store: Store) -> None:
    listed_plan(HuggingFaceSource(), store, Query(100))
    hub.requests.clear()
    again = listed_plan(HuggingFaceSource(), store, Query(100))
    assert again.listed == len(hub.repositories)
    assert {path.split("/resolve/")[0] for path in asked_files(hub)} == {"/o/baseless"}
    assert again.inspected == 1


@pytest.mark.parametrize("hub_of_source", ["hf", "civitai"])
def test_an_entry_behind_a_refused_redirect_has_failed_and_comes_back(
    hub_of_source: str, hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a network that redirects every request to its login page, or after a hub moved its files."""
    monkeypatch.setattr("scanner.hubs.http.FIRST_WAIT_S", 0.001)
    plan = {"plan": Script(["off-host"] * 5, "resolve" if hub_of_source == "hf" else "download")}
    content = lora_bytes(1, {"ss_sd_model_name": "lab/base", "ss_base_model_version": "sd_v1"})
    with (
        Hub(
            {"o/00": hub.repositories["o/00"].folder}, handler=type("Portal", (Misbehaving, Handler), plan)
        ) as a,
        CivitaiSite([model(1, "a", content)], handler=type("Portal", (TroubledSite,), plan)) as b,
    ):
        addresses.trust(b.store_url)
        source = HuggingFaceSource(endpoint=a.url) if hub_of_source == "hf" else CivitaiSource(endpoint=b.url)
        (before,) = listed_plan(source, store, Query(9))
        (row,) = store.query("SELECT reason, reason_code FROM checkpoints")
        (after,) = listed_plan(source, store, Query(9))
    assert before.inspection_status is InspectionStatus.UNAVAILABLE
    assert row["reason_code"] == "hub_unreachable"
    assert "an address on another host is not requested: https://elsewhere.invalid/. Check" in row["reason"]
    assert after.inspection_status is InspectionStatus.READY


def test_a_base_that_is_given_makes_more_of_what_was_skipped(hub: Hub, store: Store) -> None:
    listed_plan(HuggingFaceSource(), store, Query(100))
    seen: list[Checkpoint] = []
    listed_plan(
        HuggingFaceSource(base="lab/other"), store, Query(100), base_given=True, on_checkpoint=seen.append
    )
    baseless = next(c for c in seen if c.repo == "o/baseless")
    assert (baseless.inspection_status, baseless.base) == (InspectionStatus.READY, "lab/other")
    shown = next(c for c in seen if c.repo == "o/03")
    assert (shown.base, shown.base_origin) == ("lab/base", BaseOrigin.CARD)


def test_what_was_ruled_out_is_to_do_as_soon_as_inspection_rules_it_out_no_more(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    folder, config = f"folder:{tmp_path / 'baseless'}", ScanConfig().config_id
    ((id_, *_),) = listed_plan(open_source(folder), store, Query(9))
    at = now()
    store.append([Scan("s", id_, config, "r", Verdict.SKIPPED, "its base is unknown", "inspect", at, at)])
    assert listed_plan(open_source(folder), store, Query(9), config_id=config).todo == []
    based = open_source(folder, base="lab/base")
    plan = Plan.begin(store, config, list_batches(based, store, Query(9), base_given=True))
    ((planned,),) = plan.grow()
    assert plan.todo == [planned]
    assert (planned.checkpoint_id, planned.inspection_status) == (id_, InspectionStatus.READY)


def test_an_entry_that_could_not_be_identified_leaves_no_second_row(hub: Hub, store: Store) -> None:
    broken = next(c for c in HuggingFaceSource().list(Query(100)) if c.repo == "o/03")
    store.append([broken])  # as a crawl leaves it that the hub did not answer
    listed_plan(HuggingFaceSource(), store, Query(100))
    (row,) = store.query("SELECT checkpoint_id FROM checkpoints WHERE repo = 'o/03'")
    assert row["checkpoint_id"] != broken.checkpoint_id


def test_a_file_that_both_hubs_offer_is_one_checkpoint(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = lora_bytes(1, {"ss_sd_model_name": "lab/base", "ss_base_model_version": "sd_v1"})
    write_card(tmp_path / "a", base_model="lab/base", instance_prompt="a sks", tags=["lora", "text-to-image"])
    (tmp_path / "a" / WEIGHTS).write_bytes(content)
    with Hub({"o/a": tmp_path / "a"}) as hub, CivitaiSite([model(7, "the same", content)]) as site:
        (one,) = listed_plan(HuggingFaceSource(endpoint=hub.url), store, Query(9))
        addresses.trust(site.store_url)
        (other,) = listed_plan(CivitaiSource(endpoint=site.url), store, Query(9))
    assert (one.inspection_status, other.inspection_status) == (
        InspectionStatus.READY,
        InspectionStatus.READY,
    )
    assert one.checkpoint_id == other.checkpoint_id
    assert len(store.query("SELECT * FROM checkpoints")) == 1


class Stopped(Exception):
    pass


def test_an_interrupted_listing_is_resumed_after_the_last_recorded_batch(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scanner.crawl.listing.BATCH", 5)

    def stop_at_ten(plan: Plan) -> None:
        if plan.listed == 10:
            raise Stopped

    with pytest.raises(Stopped):
        listed_plan(HuggingFaceSource(), store, Query(13), report=stop_at_ten)
    hub.requests.clear()
    plan = listed_plan(HuggingFaceSource(), store, Query(13))
    assert plan.resumed is not None
    assert plan.resumed.listed == 10
    assert plan.listed == len(plan) == 13
    assert len(asked_files(hub)) == 3, "only what is new is asked about"
    lists = [path for _, path, _ in hub.requests if path.startswith("/api/models?")]
    assert any("cursor=" in path for path in lists[:1]), "the pages before are not asked for again"
    assert listed_plan(HuggingFaceSource(), store, Query(13)).resumed is None


@pytest.mark.parametrize("stale", [timedelta(days=1), timedelta(0)])
def test_an_interrupted_listing_is_resumed_or_begins_again_when_it_is_too_old(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch, stale: timedelta
) -> None:
    for name, value in [
        ("crawl.listing.BATCH", 2),
        ("crawl.listing.STALE", stale),
    ]:
        monkeypatch.setattr(f"scanner.{name}", value)
    monkeypatch.setattr("scanner.hubs.http.FIRST_WAIT_S", 0.01)
    repos = {name: repository.folder for name, repository in hub.repositories.items()}
    away = {"plan": Script(["503"] * 5, "cursor=")}  # as often as a request is tried
    pauses = list[float]()
    with Hub(repos, page_size=4, handler=type("Away", (Misbehaving, Handler), away)) as breaking:
        monkeypatch.setenv("HF_ENDPOINT", breaking.url)
        plan = Plan(
            list_with_retries(
                HuggingFaceSource(),
                store,
                Query(100),
                pauses_s=(0.1,),
                on_retry=lambda _, pause_s: pauses.append(pause_s),
            )
        )
        given = [planned.checkpoint_id for batch in plan.grow() for planned in batch]
    assert pauses == [0.1]
    assert plan.complete
    assert plan.listed == len(plan) == len(repos)
    assert sorted(given) == sorted(p.checkpoint_id for p in plan), "each once"


def test_a_resumed_listing_reads_what_it_recorded_in_batches(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compaction replaces the files between two batches, and the replaced files are deleted."""
    monkeypatch.setattr("scanner.crawl.listing.READ_TOGETHER", 2048)
    source, started = HuggingFaceSource(), now()
    older = [recorded(n, InspectionStatus.UNAVAILABLE) for n in range(100)]
    rows = [recorded(n, InspectionStatus.READY) for n in range(5000)]
    for at_once in (older, rows[:2500], rows[2500:], [recorded(9999, InspectionStatus.READY, "other")]):
        store.append(at_once)
    query = Query(5000)
    store.append([Listing(_listing_id(source, query), "hf", started, now(), 5000, {}, False)])
    batches = list_batches(source, store, query)
    found = [row for batch in islice(batches, 2) for row in batch.rows]
    assert 0 < len(found) <= 2048
    for _ in compact(store, retention_hours=0):
        pass
    for batch in batches:
        assert len(batch.rows) <= 2048
        found += batch.rows
    assert sorted(row.checkpoint_id for row in found) == sorted(row.checkpoint_id for row in rows)
    assert {row.inspection_status for row in found} == {InspectionStatus.READY}


def recorded(n: int, status: InspectionStatus, source: str = "hf") -> Checkpoint:
    return Checkpoint(
        f"{n:064x}", source, f"o/{n}", "", "", "", None, 1, "lora", "sd1", "lab/base", "a", 5, None, None,
        now(), "{}", status,
    )  # fmt: skip


def test_another_query_does_not_take_over_an_interrupted_listing(hub: Hub, store: Store) -> None:
    def stop(plan: Plan) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        listed_plan(HuggingFaceSource(), store, Query(100), report=stop)
    assert listed_plan(HuggingFaceSource(), store, Query(3)).resumed is None


def test_since_lists_what_was_published_then_or_later(hub: Hub, store: Store) -> None:
    at = FIRST_CREATED.replace(hour=9)
    seen: list[Checkpoint] = []
    plan = listed_plan(HuggingFaceSource(), store, Query(100, since=at), on_checkpoint=seen.append)
    assert plan.listed == len(hub.repositories) - 9
    assert len(seen) == len(plan)
    assert all(c.created_at is not None and c.created_at >= at for c in seen)
    began = last_finished(store, HuggingFaceSource())
    assert began is not None
    assert began <= datetime.now(UTC)


def test_a_base_model_narrows_the_listing(hub: Hub, store: Store) -> None:
    seen: list[Checkpoint] = []
    listed_plan(HuggingFaceSource(), store, Query(100, base_model="lab/base"), on_checkpoint=seen.append)
    assert {c.repo for c in seen} == set(hub.repositories) - {"o/baseless", "o/empty"}
    assert listed_plan(HuggingFaceSource(), store, Query(100, filters=("dreambooth",))).listed == 0


def test_list_only_writes_rows_and_no_verdict_and_needs_no_corpus(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fresh"
    monkeypatch.setenv("FINEXTRACT_CACHE", str(tmp_path / "cache"))
    code, shown = crawl("crawl", "--source", "hf", "--list-only", "--limit", "50", "--store", str(folder))
    assert code == 0
    assert "14 checkpoints = 11 can be scanned + 3 skipped + 0 unavailable" in shown
    store = Store(folder)
    assert len(store.query("SELECT * FROM checkpoints")) == 14
    assert store.select(Scan) == []
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_writes_nothing_and_prints_counts_bytes_and_reasons(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "fresh"
    done = CliRunner().invoke(
        command, ["--source", "hf", "--dry-run", "--limit", "50", "--store", str(folder), "--json"]
    )
    shown = json.loads(done.stdout)
    assert (shown["ready"], shown["skipped"], shown["unavailable"], shown["bases"]) == (11, 3, 0, 1)
    assert shown["download_bytes"] == sum(
        repository.files[WEIGHTS].size for name, repository in hub.repositories.items() if name[2:].isdigit()
    )
    assert {row["repo"]: row["reason"] for row in shown["checkpoints"]}["o/pickled"].count("pickle")
    assert not folder.exists()


def test_listing_and_inspecting_import_no_torch_and_no_ray(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from scanner.commands.crawl import command\n"
        f"command(['--source', 'hf', '--list-only', '--store', {str(tmp_path / 's')!r}], "
        "standalone_mode=False)\n"
        "print(sorted({'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def crawl(*words: str) -> tuple[int, str]:
    """The command's exit code and all its words, as a terminal has them."""
    done = scanner(*words)
    return done.returncode, done.stdout + done.stderr


def test_a_checkpoint_that_is_published_stays_at_its_address_when_a_folder_has_it_too(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    listed_plan(HuggingFaceSource(), store, Query(100))
    listed_plan(open_source(f"folder:{tmp_path / '05'}"), store, Query(100))
    (row,) = store.query(
        "SELECT source, repo FROM checkpoints WHERE file = ? AND repo IN ('.', 'o/05')", [WEIGHTS]
    )
    assert (row["source"], row["repo"]) == ("hf", "o/05")


def test_what_is_larger_than_may_be_downloaded_is_not_counted_as_scannable(hub: Hub, tmp_path: Path) -> None:
    _, shown = crawl(
        "crawl", "--source", "hf", "--dry-run", "--max-download", "10", "--store", str(tmp_path / "s")
    )
    assert "14 checkpoints = 0 can be scanned + 3 skipped + 11 larger than --max-download" in shown


def test_a_listing_that_is_interrupted_does_not_wait_for_the_hub_s_limits(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = json.dumps({"error": "later"}).encode()

    class Limiting(Handler):
        def do_GET(self) -> None:
            if "/resolve/" in self.path:
                self.send_bytes(429, limits, {"Content-Type": "application/json", "Retry-After": "600"})
            else:
                super().do_GET()

    command = [Path(sys.executable).parent / "scanner", "crawl", "--source", "hf", "--list-only"]
    command += ["--store", tmp_path / "s"]
    with Hub({"o/05": tmp_path / "05"}, handler=Limiting) as limiting:
        monkeypatch.setenv("HF_ENDPOINT", limiting.url)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as listing:
            assert listing.stderr is not None
            assert any("limits requests" in line for line in listing.stderr)
            listing.send_signal(signal.SIGINT)
            assert listing.wait() == 130
            assert "interrupted" in listing.stderr.read()
    assert Store(tmp_path / "s").select(Checkpoint) == [], "what was not asked is not recorded"


class Interrupting(HuggingFaceSource):
    """Gets a SIGINT while an inspection begins, whose request is then limited by the hub."""

    def inspect(self, checkpoint: Checkpoint) -> Checkpoint:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)  # the request is on its way
        http.pause(600)
        return checkpoint


def test_an_interrupt_while_an_inspection_begins_ends_the_listing_and_every_thread_of_it(
    zoo_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        with Hub({"o/05": zoo_path / "checkpoints/fruit-lora"}) as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            with pytest.raises(KeyboardInterrupt):
                list(list_batches(Interrupting(), store, Query(1)))
        assert inspecting() == []
    finally:
        with http.interrupt_waits():
            for thread in inspecting():
                thread.join()


def inspecting() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("inspect")]


def test_an_empty_listing_says_what_to_loosen(hub: Hub, tmp_path: Path) -> None:
    code, shown = crawl(
        "crawl", "--source", "hf", "--dry-run", "--since", "2030-01-01", "--store", str(tmp_path / "s")
    )
    assert (code, "Nothing was listed" in shown) == (0, True)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["--source", "civitai", "--base-model", "a/b", "--dry-run"],
            "--base-model is not supported by --source civitai",
        ),
        (["--source", "hf", "--base-model", "nonsense", "--dry-run"], "is not OWNER/NAME"),
        (["--source", "folder:.", "--filter", "x", "--dry-run"], "It works with: hf, civitai."),
        (["--source", "hf", "--since", "soon", "--dry-run"], "is not a date"),
        (["--source", "hf", "--ray-address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_an_option_that_cannot_be_used_is_an_error_at_once(words: list[str], why: str, store: Store) -> None:
    code, shown = crawl("crawl", *words, "--store", str(store.root))
    assert code == 2
    assert "scanner: error:" in shown
    assert why in shown
    assert "Traceback" not in shown


def test_status_shows_the_strongest_first_and_says_how_many_more_there_are(hub: Hub, store: Store) -> None:
    listed_plan(HuggingFaceSource(), store, Query(100))
    first = store.query("SELECT checkpoint_id, repo FROM checkpoints ORDER BY repo DESC LIMIT 1")[0]
    store.append([ScanConfig().row()])
    at = now()
    for n, (id_, verdict) in enumerate([(first["checkpoint_id"], Verdict.FLAGGED), ("gone", Verdict.FAILED)]):
        store.append([Scan(f"s{n}", id_, ScanConfig().config_id, "r", verdict, "", "match", at, at)])
    planned = len(store.query("SELECT * FROM checkpoints"))
    code, shown = crawl("status", "--limit", "2", "--store", str(store.root))
    lines = shown.splitlines()
    assert code == 0
    assert lines[1].split()[:2] == [first["repo"], "FLAGGED"]
    assert f"... and {planned - 2} more" in shown
    assert lines[-1] == (
        f"Store: {planned} planned = 1 flagged + 0 nothing found + 0 skipped + 0 failed + {planned - 1} to do"
    )


def test_a_watched_status_prints_the_counts_again_when_the_store_has_changed(hub: Hub, store: Store) -> None:
    listed_plan(HuggingFaceSource(), store, Query(100))
    command = [Path(sys.executable).parent / "scanner", "status", "--watch", "--store", str(store.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        before = watching.stdout.readline()
        store.append([ScanConfig().row()])
        (row, *_) = store.query("SELECT checkpoint_id FROM checkpoints")
        at, id_ = now(), row["checkpoint_id"]
        store.append([Scan("s", id_, ScanConfig().config_id, "r", Verdict.FLAGGED, "", "", at, at)])
        after = next(line for line in watching.stdout if "1 flagged" in line)
        watching.send_signal(signal.SIGINT)
        assert watching.wait() == 0
    assert "0 flagged" in before
    assert after.split()[1:5] == before.split()[1:5]


def test_a_configuration_that_the_store_never_saw_is_refused(store: Store) -> None:
    code, shown = crawl("status", "--config", "nonsense", "--store", str(store.root))
    assert (code, "is not a configuration of this store" in shown) == (2, True)


def test_status_shows_why_a_listed_checkpoint_cannot_be_scanned(hub: Hub, store: Store) -> None:
    listed_plan(HuggingFaceSource(), store, Query(100))
    code, shown = crawl("status", "--store", str(store.root))
    assert code == 0
    assert "base model is not known" in shown
