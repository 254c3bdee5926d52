"""GPUs: how workers share them, and what only a real one can show (marked `gpu`, skipped where none is)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from faults.scene import local_ray
from ray import cloudpickle
from servers.hub import Hub
from stub_worker import Quick, ended, task

from finextract.reasons import ReasonCode
from scanner.crawl import engine, gpu_shares, worker
from scanner.crawl.attempt import Attempt
from scanner.crawl.engine import crawl
from scanner.crawl.gpu_shares import MAX_PER_GPU, share_of_gpu, why_too_small
from scanner.crawl.planning import Plan, Planned
from scanner.crawl.pool import WorkerPool
from scanner.crawl.progress import Observer, Progress
from scanner.crawl.worker import Scanner, Task
from scanner.records import Checkpoint, InspectionStatus, Scan, Verdict, now
from scanner.store.store import Store

cloudpickle.register_pickle_by_value(sys.modules[__name__])
ZOO = Path(__file__).resolve().parents[2] / "zoo"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def labelled() -> Iterator[None]:
    """A Ray on which a GPU stands that is called an H100; nothing of it is used."""
    with local_ray(num_cpus=1, num_gpus=1, resources={"accelerator_type:H100": 1}):
        yield


class Poisoned(Scanner):
    """A worker whose first scan of all leaves its CUDA context unusable, as the driver tells it."""

    real = False

    def ready(self) -> None:
        """Nothing is loaded."""

    def _scan(self, checkpoint: Checkpoint, attempt: Attempt) -> Scan:
        once = Path(self._task.cache) / "poisoned"
        if not once.exists():
            once.write_text(str(os.getpid()))
            if not self.real:
                raise RuntimeError("CUDA error: device-side assert triggered")
            import torch

            torch.zeros(4, device="cuda")[torch.tensor([99], device="cuda")].cpu()
        return attempt.end(Verdict.NOTHING_FOUND, str(os.getpid()))


class ReallyPoisoned(Poisoned):
    """The same with a real GPU."""

    real = True


def row_of(checkpoint_id: str, family: str) -> Checkpoint:
    return Checkpoint(
        checkpoint_id=checkpoint_id, source="hf", repo=f"o/{checkpoint_id}", revision="", file="", url="",
        sha256=None, size_bytes=1, kind="lora", family=family, base=family, caption="", num_train_images=None,
        license=None, created_at=None, listed_at=now(), raw="{}", inspection_status=InspectionStatus.READY,
    )  # fmt: skip


def plan_of_one(store: Store) -> Plan:
    row = row_of("a", "sd1")
    store.append([row])
    return Plan(planned=[Planned.of(row)])


class Retries(Observer):
    """Keeps the number of retries at each outcome."""

    def __init__(self, retries: list[int]) -> None:
        self._retries = retries

    def outcome(self, checkpoint: Checkpoint, scan: Scan, progress: Progress) -> None:
        self._retries.append(progress.retried)


def hf_task(store: Store, tmp_path: Path) -> Task:
    return replace(task(store, tmp_path / "cache", "hf"), cache_bytes=10**9)


def test_as_many_workers_share_a_gpu_as_its_memory_allows_and_one_takes_a_kind_that_is_not_known(
    store: Store, tmp_path: Path, labelled: None
) -> None:
    with WorkerPool(hf_task(store, tmp_path), address=None, workers=None, worker_class=Quick) as there:
        there.grow(10, {"sd1": 20})
        ray.get([worker.starting for worker in there.workers], timeout=120)
        assert len(there.workers) == MAX_PER_GPU == 4
        assert ray.available_resources().get("GPU", 0) == 0
        assert [there.share(family) for family in ("sd1", "flux", "unknown")] == [0.25, 1.0, 1.0]
    assert share_of_gpu("sd1", ["H100", "A10G"]) == 0.5, "that of the smallest type"
    assert share_of_gpu("sd1", ["H100", "Tomorrow"]) == share_of_gpu("sd1", ()) == 1.0


class Sharing(Quick):
    """A worker that writes how many GPUs it takes."""

    def scan(self, checkpoint: Checkpoint) -> Scan:
        time.sleep(0.2)
        facts = {"device": f"{self.task.gpus:g} of {os.getpid()}"}
        return ended(self.task, checkpoint, Verdict.NOTHING_FOUND, "", self.store, **facts)


def test_scans_of_small_families_share_a_gpu_and_one_of_a_large_family_gets_a_whole_one(
    store: Store, tmp_path: Path, labelled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TICK_S", 0.3)
    monkeypatch.setitem(gpu_shares.GPU_GIB, "H100", 40)
    families = ["sd1", "flux", "sd1", "sdxl", "sd1", "flux", "sdxl", "sd1"]
    rows = [row_of(f"{n}", family) for n, family in enumerate(families)]
    store.append(rows)
    counts = crawl(
        hf_task(store, tmp_path), Plan(planned=[Planned.of(row) for row in rows]), store, worker_class=Sharing
    )
    assert counts == {Verdict.NOTHING_FOUND: 8}
    took = {scan.checkpoint_id: str(scan.device).split(" of ") for scan in store.select(Scan)}
    shares = {(family, took[f"{n}"][0]) for n, family in enumerate(families)}
    assert shares == {("sd1", "0.25"), ("sdxl", "0.5"), ("flux", "1")}
    assert len({process for _, process in took.values()}) <= 4 + 2 + 1, "no more than are of use"


def test_a_gpu_that_is_too_small_for_a_family_is_told_before_anything_is_fetched(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "devices", lambda: [("M4", 8 * 1024**3)])
    scan = Scanner(hf_task(store, tmp_path)).scan(row_of("a", "flux"))
    assert (scan.verdict, scan.reason_code, scan.seconds) == (Verdict.FAILED, ReasonCode.OUT_OF_MEMORY, {})
    assert scan.reason.startswith("a scan of flux needs ")
    assert "the M4 of this node has 8 GiB" in scan.reason
    assert why_too_small("sdxl", 8 * 1024**3, "M4") is why_too_small("unknown", 1, "M4") is None


@pytest.mark.parametrize("kind", [Poisoned, pytest.param(ReallyPoisoned, marks=pytest.mark.gpu)])
def test_a_worker_whose_cuda_context_is_gone_ends_its_process_and_a_fresh_one_takes_over(
    store: Store, tmp_path: Path, labelled: None, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TICK_S", 0.3)
    told: list[int] = []
    counts = crawl(
        hf_task(store, tmp_path), plan_of_one(store), store, workers=1, worker_class=kind,
        observer=Retries(told),
    )  # fmt: skip
    assert counts == {Verdict.NOTHING_FOUND: 1}
    assert told == [1]
    (scan,) = store.select(Scan)
    assert (tmp_path / "cache" / "poisoned").read_text() != scan.reason, "another process"


@pytest.mark.gpu
def test_a_scan_on_a_gpu_has_the_verdict_of_one_on_the_cpu_and_names_its_device(
    tmp_path: Path,
) -> None:
    for subject in ("fruit", "flowers"):
        shutil.copytree(ZOO / f"images/subjects/{subject}", tmp_path / "subjects" / subject)
    store = tmp_path / "store"
    for name, folder, extra in (
        ("subjects", tmp_path / "subjects", []),
        ("background", ZOO / "images/background", ["--background"]),
    ):
        subprocess.run([BIN / "scanner", "corpus", "add", name, folder, "--store", store, *extra], check=True)
    repos = {"finextract-zoo/tiny-sd": ZOO / "base", "o/fruit": ZOO / "checkpoints/fruit-lora"}
    rows = {}
    with Hub(repos) as hub:
        for where, hidden in (("gpu", {}), ("cpu", {"CUDA_VISIBLE_DEVICES": ""})):
            crawled = shutil.copytree(store, tmp_path / where)
            done = subprocess.run(
                [BIN / "scanner", "crawl", "--source", "hf", "--store", crawled, "--samples-per-image", "10",
                 "--steps", "25", "--json"],
                env={**os.environ, "HF_ENDPOINT": hub.url, "FINEXTRACT_CACHE": str(tmp_path), **hidden},
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            assert json.loads(done.stdout)["failed"] == 0
            (rows[where],) = Store(crawled).select(Scan, "WHERE best_similarity IS NOT NULL")
    assert rows["gpu"].device not in (None, "cpu")
    assert rows["gpu"].precision == "float16"
    assert (rows["cpu"].device, rows["cpu"].precision) == ("cpu", "float32")
    assert rows["gpu"].verdict == rows["cpu"].verdict
    assert rows["gpu"].best_similarity == pytest.approx(rows["cpu"].best_similarity, abs=0.1)


@pytest.mark.gpu
def test_a_batch_that_the_memory_of_a_gpu_does_not_hold_is_halved() -> None:
    import torch

    from finextract.extract import ExtractionSettings, extract_all
    from finextract.models.loading import load_base, tune
    from finextract.sscd import load_embedder

    base = load_base(ZOO / "base", torch.device("cuda"), torch.float16)
    pair = tune(base, ZOO / "checkpoints/fruit-lora")
    _, total = torch.cuda.mem_get_info()
    held = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((held + 300e6) / total)
    try:
        settings = ExtractionSettings(samples_per_image=2048, steps=1, batch_size=2048)
        done = extract_all(pair, "a fruit", 1, settings, load_embedder())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert done.settings.batch_size < 2048
    assert done.num_samples == 2048
