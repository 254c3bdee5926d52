"""`scanner nightly` as a job of a real cluster: `ray start --head`, its job server, `ray job submit`."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import scanner
from servers.hub import Hub

from scanner.records import Night, Scan
from scanner.store.store import Store

BIN = Path(sys.executable).parent
ZOO = Path(__file__).resolve().parents[2] / "zoo"
DATE = "2026-11-24"
SETTINGS = """
[crawl]
samples-per-image = 1
steps = 4
assume-train-images = 3
screen-budget = 100
gpus-per-worker = 0
"""


@dataclass
class Head:
    """A running head, and how its jobs are submitted."""

    jobs: str  # the job server's address
    store: Path
    scratch: Path  # Ray's own files
    environment: dict[str, str]

    def submit(self, job_id: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "ray", "job", "submit", "--address", self.jobs, "--submission-id", job_id, "--",
             "scanner", "nightly", "--source", "hf", "--date", DATE],
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head that asks for a token, its dashboard on loopback; a hub with one LoRA and its base; a corpus."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "scanner.toml").write_text(SETTINGS)
    store = folder / "store"
    add(store, "mine", sorted((ZOO / "images/subjects/fruit").iterdir()), folder)
    add(store, "background", sorted((ZOO / "images/background").iterdir())[:30], folder, "--background")
    scratch = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets need a short path
    dashboard = free_port()
    with Hub({"finextract-zoo/tiny-sd": ZOO / "base", "lab/fruit": ZOO / "checkpoints/fruit-lora"}) as hub:
        environment = {
            **os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HF_ENDPOINT": hub.url,
            "FINEXTRACT_STORE": str(store), "FINEXTRACT_CACHE": str(folder / "cache"),
            "FINEXTRACT_CONFIG": str(folder / "scanner.toml"), "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
        }  # fmt: skip
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", f"--port={free_port()}", "--num-cpus=2",
             "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={scratch}",
             f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
             "--object-store-memory=100000000"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            running = Head(f"http://127.0.0.1:{dashboard}", store, scratch, environment)
            await_jobs(running, process)
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            shutil.rmtree(scratch, ignore_errors=True)


def add(store: Path, corpus: str, pictures: list[Path], scratch: Path, *extra: str) -> None:
    folder = scratch / corpus
    folder.mkdir()
    for picture in pictures:
        shutil.copy(picture, folder)
    assert scanner("corpus", "add", corpus, folder, "--store", store, *extra).returncode == 0


def await_jobs(head: Head, process: subprocess.Popen[bytes]) -> None:
    """Until the head takes a job: its job server answers a little before that."""
    headers = {
        "Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}", "Content-Type": "application/json",
    }  # fmt: skip
    for _ in range(240):
        assert process.poll() is None, "the head came up"
        try:
            job = urllib.request.Request(f"{head.jobs}/api/jobs/", b'{"entrypoint": "true"}', headers)
            urllib.request.urlopen(job, timeout=120).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the head takes no job")


def test_a_night_runs_as_a_job_of_a_cluster_and_the_second_of_its_date_does_nothing(
    head: Head,
) -> None:
    store = Store(head.store)
    first = head.submit(f"nightly-{DATE}")
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"# The night of {DATE}" in first.stdout
    (night,) = store.select(Night)
    assert night.finished_at is not None
    scans = store.select(Scan)
    assert {scan.verdict.value for scan in scans} == {"flagged", "skipped"}, "the LoRA, and its base"
    assert {scan.grounds for scan in scans} == {"trained_on", ""}

    second = head.submit(f"nightly-{DATE}-again")
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"The night of {DATE} is complete: nothing to do." in second.stdout
    assert store.select(Night) == [night]
    assert store.select(Scan) == scans

    refused = head.submit(f"nightly-{DATE}")
    assert refused.returncode != 0
    assert "already exists" in refused.stdout + refused.stderr


def test_the_job_server_asks_for_the_token(head: Head) -> None:
    with pytest.raises(urllib.error.HTTPError, match=r"401|403"):
        urllib.request.urlopen(f"{head.jobs}/api/jobs/", timeout=120)


def test_a_crawl_without_a_cluster_address_starts_its_own_ray_beside_a_running_one(head: Head) -> None:
    asked = (
        "from scanner.crawl.cluster import connected\n"
        "with connected(None) as ray: print(len(ray.nodes()), ray.nodes())"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 ")
    assert head.scratch.name not in done.stdout
