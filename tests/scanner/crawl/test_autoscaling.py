"""A cluster that begins without a worker node, as ray_cluster.yaml describes one: Ray's real autoscaler, with
its provider of fake nodes (processes of this machine), whose GPUs are numbers only."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from plans import whole_plan
from ray import cloudpickle
from stub_worker import CONFIG, ended, task

from scanner.crawl import engine
from scanner.crawl.engine import crawl
from scanner.crawl.progress import Observer, Progress
from scanner.crawl.worker import Scanner, Stage, Task
from scanner.records import Checkpoint, InspectionStatus, Scan, Verdict, now
from scanner.store.store import Store

cloudpickle.register_pickle_by_value(sys.modules[__name__])
BIN = Path(sys.executable).parent
CLUSTER = {
    "cluster_name": "fake", "max_workers": 2, "upscaling_speed": 1.0, "idle_timeout_minutes": 5, "auth": {},
    "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
    "rsync_exclude": [], "rsync_filter": [], "initialization_commands": [], "setup_commands": [],
    "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
    "worker_start_ray_commands": [], "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "fetcher": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        "gpu": {
            "resources": {"CPU": 0, "GPU": 1, "object_store_memory": 80_000_000}, "node_config": {},
            "min_workers": 0, "max_workers": 1,
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head without a CPU; its autoscaler may add one node with a GPU and one with a CPU."""
    tmp_path = tmp_path_factory.mktemp("cluster")
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")
    host = ray.util.get_node_ip_address()
    with socket.socket() as held:
        held.bind((host, 0))
        address = f"{host}:{held.getsockname()[1]}"
    config = tmp_path / "cluster.json"
    config.write_text(json.dumps(CLUSTER | {"provider": {"type": "fake_multinode", "gcs_address": address}}))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", f"--port={address.rpartition(':')[2]}",
             f"--node-ip-address={host}", "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false",
             f"--autoscaling-config={config}", f"--temp-dir={scratch}", "--object-store-memory=80000000",
             "--dashboard-agent-listen-port=0"],
            env={**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                 "RAY_USAGE_STATS_ENABLED": "0", "FINEXTRACT_CACHE": str(tmp_path / "of-the-nodes")},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            printed = []
            for line in process.stdout:
                printed.append(line)
                if "Ray runtime started" in line:
                    break
            else:
                raise AssertionError("".join(printed))
            yield address
        finally:
            started = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            process.wait()
            for child in started:  # of the fake nodes, which a head does not end
                if child.is_running():
                    child.kill()
            patch.undo()


class Worker(Scanner):
    """A worker that writes its row, and its cache and the ids of its GPUs into it."""

    def ready(self) -> None:
        """Loads nothing."""

    def scan(self, checkpoint: Checkpoint) -> Scan:
        gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        return ended(self._task, checkpoint, Verdict.NOTHING_FOUND, f"{self._cache} GPUs {gpus}")


class Downloading(Worker):
    """A worker that downloads a file of no content into the cache of its node, unless it is there."""

    scanned: str | None = None
    has_waited = False

    def stage(self) -> Stage | None:
        return Stage(self.scanned, "sample", 60.0) if self.scanned else None

    def download(self, checkpoint: Checkpoint) -> None:
        node = ray.get_runtime_context().get_node_id()
        file = self._cache / node / checkpoint.checkpoint_id
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            with (self._cache / "downloads").open("a") as log:
                log.write(f"{checkpoint.checkpoint_id} {node}\n")
            file.touch()

    def fetch_ahead(self, checkpoint: Checkpoint) -> bool:
        self.download(checkpoint)
        return True

    def scan(self, checkpoint: Checkpoint) -> Scan:
        node = ray.get_runtime_context().get_node_id()
        self.download(checkpoint)
        self.scanned = checkpoint.checkpoint_id
        if not self.has_waited:  # until a fetcher has downloaded something on this node
            self.has_waited = True
            for _ in range(600):
                if len(list((self._cache / node).iterdir())) > 1:
                    break
                time.sleep(0.1)
        return ended(self._task, checkpoint, Verdict.NOTHING_FOUND, node)


class Watching(Observer):
    """Keeps what is told, and the numbers of workers that waited for a node."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.waiting: set[int] = set()

    def message(self, text: str) -> None:
        self.told.append(text)

    def tick(self, progress: Progress) -> None:
        self.waiting.add(progress.waiting)


def rows_of(store: Store, count: int) -> list[Checkpoint]:
    rows = [
        Checkpoint(
            checkpoint_id=f"id{n}", source="hf", repo=f"o/{n}", revision="", file="", url="", sha256=None,
            size_bytes=1, kind="lora", family="sd1", base="b", caption="", num_train_images=None,
            license=None, created_at=None, listed_at=now(), raw="{}",
            inspection_status=InspectionStatus.READY,
        )
        for n in range(count)
    ]  # fmt: skip
    store.append(rows)
    return rows


def cluster_task(store: Store, tmp_path: Path) -> Task:
    return replace(task(store, tmp_path / "cache", "hf"), cache=None)


def test_workers_wait_for_a_node_with_a_gpu_and_the_autoscaler_adds_it(
    address: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TICK_S", 0.5)
    watching = Watching()
    verdicts = crawl(
        cluster_task(store, tmp_path),
        whole_plan(store, CONFIG.config_id, rows_of(store, 3)), store, address=address, worker_class=Worker,
        observer=watching,
    )  # fmt: skip
    assert verdicts == {Verdict.NOTHING_FOUND: 3}
    reasons = {scan.reason for scan in store.select(Scan)}
    assert all(reason.endswith("of-the-nodes GPUs ['0']") for reason in reasons), "the nodes' own cache"
    assert max(watching.waiting) == 3, "as many as there are checkpoints"
    assert any("No node of the cluster has a GPU yet" in text for text in watching.told)


def test_what_is_fetched_ahead_is_fetched_once_and_on_the_node_of_its_scan(
    address: str,
    store: Store,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "TICK_S", 0.3)
    verdicts = crawl(
        cluster_task(store, tmp_path), whole_plan(store, CONFIG.config_id, rows_of(store, 6)), store,
        address=address, worker_class=Downloading,
    )  # fmt: skip
    assert verdicts == {Verdict.NOTHING_FOUND: 6}
    scanned = {scan.checkpoint_id: scan.reason for scan in store.select(Scan)}
    (log,) = tmp_path_factory.getbasetemp().rglob("of-the-nodes/downloads")
    downloads = [tuple(line.split()) for line in log.read_text().splitlines()]
    assert sorted(downloads) == sorted(scanned.items())
