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
from collections.abc import Iterator
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
from scanner.crawl.worker import Task
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
            "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80_000_000}, "node_config": {},
            "min_workers": 0, "max_workers": 1,
        },
    },
}  # fmt: skip


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a head without a CPU, and with an autoscaler that may add one node with a GPU."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
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
                 "RAY_USAGE_STATS_ENABLED": "0"},
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


class Worker:
    """A worker that writes its row, and the ids of its node and of its GPUs into it."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def ready(self) -> None:
        """At once."""

    def stage(self) -> None:
        """At nothing."""

    def scan(self, checkpoint: Checkpoint) -> Scan:
        import ray

        gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        return ended(self.task, checkpoint, Verdict.NOTHING_FOUND, f"GPUs {gpus}")


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


def test_workers_wait_for_a_node_with_a_gpu_and_the_autoscaler_adds_it(
    address: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TICK_S", 0.5)
    watching = Watching()
    verdicts = crawl(
        task(store, tmp_path / "cache", "hf"),
        whole_plan(store, CONFIG.config_id, rows_of(store, 3)), store, address=address, worker_class=Worker,
        observer=watching,
    )  # fmt: skip
    assert verdicts == {Verdict.NOTHING_FOUND: 3}
    assert {scan.reason for scan in store.select(Scan)} == {"GPUs ['0']"}
    assert max(watching.waiting) == 3, "as many as there are checkpoints"
    assert any("No node of the cluster has a GPU yet" in text for text in watching.told)
