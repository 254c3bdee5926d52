"""The Ray that a crawl starts for itself: who can reach it, and what happens where it does not start."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import cloudpickle
from stub_worker import Quick, task

from scanner.crawl import cluster
from scanner.crawl.cluster import connected
from scanner.crawl.pool import WorkerPool
from scanner.crawl.threads import share_of_cores
from scanner.crawl.worker import Scanner, SscdEmbedder
from scanner.errors import NoWorkers
from scanner.match import corpus
from scanner.records import Role
from scanner.store.store import Store

cloudpickle.register_pickle_by_value(sys.modules[__name__])
ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
GCS_WAIT = "RAY_gcs_server_port_wait_time_s"  # how long Ray itself waits for its first process


@dataclass
class Own:
    """A Ray that was started by `connected`, and what was told meanwhile."""

    ray: Any = None
    told: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)  # processes of a failed start, before the next one


def ray_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "/ray/" in " ".join(process.cmdline()) or process.name().startswith("ray"):
                found.append(process)
    return found


def other_version(folder: Path) -> Path:
    """A folder with this program, one line longer; where PYTHONPATH names it, it is imported from there.

    Ray's workers put the driver's path before PYTHONPATH, so a finder is needed.
    """
    for package in ("finextract", "scanner"):
        shutil.copytree(ROOT / package, folder / package)
    with (folder / "scanner/units.py").open("a") as file:
        file.write("# A line that is not in this version.\n")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Other:\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        return PathFinder.find_spec(name, [{str(folder)!r}]) if name in PACKAGES else None\n"
        "PACKAGES = ('finextract', 'scanner')\n"
        "sys.meta_path.insert(0, Other)\n"
    )
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    """Ray's first start takes longer than Ray waits for it, because it does not wait; the second does.

    The processes of the second find another version of this program than this process has.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv(GCS_WAIT, "0")
        patch.setattr(cluster, "PAUSES_S", (0.5,))
        started = Own()

        def tell(text: str) -> None:
            started.told.append(text)
            _, alive = psutil.wait_procs(ray_processes(), timeout=300)
            started.left_over += [str(process) for process in alive]
            patch.setenv(GCS_WAIT, "60")
            patch.setenv("PYTHONPATH", str(other_version(tmp_path_factory.mktemp("other"))))

        with connected(None, tell) as started.ray:
            yield started


def test_a_start_of_ray_that_fails_is_told_and_repeated_and_leaves_no_process(own: Own) -> None:
    assert own.ray.is_initialized()
    (told,) = own.told
    assert told.startswith("Ray did not start: ")
    assert told.endswith("It is started again in 0.5 s.")
    assert own.left_over == []


def test_every_socket_of_a_crawls_own_ray_listens_on_loopback_alone(own: Own) -> None:
    pid = own.ray.get(own.ray.remote(lambda: os.getpid()).remote())
    processes = {process.pid: process for process in [psutil.Process(), *ray_processes()]}
    assert pid in processes, "Ray's workers are among them"
    listening = {
        (process.name(), connection.laddr.ip)
        for process in processes.values()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) >= 5
    assert {address for _, address in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_crawls_own_ray_refuses_a_connection_without_its_token(own: Own) -> None:
    asked = "from ray._raylet import GcsClient; import sys; GcsClient(address=sys.argv[1])"
    address = own.ray.get_runtime_context().gcs_address
    tokens = [os.environ["RAY_AUTH_TOKEN"], "0" * 64]
    done = [
        subprocess.run(
            [sys.executable, "-c", asked, address], capture_output=True, text=True, check=False,
            env={**os.environ, "RAY_AUTH_TOKEN": token},
        )
        for token in tokens
    ]  # fmt: skip
    assert done[0].returncode == 0, done[0].stderr
    assert done[1].returncode != 0
    assert "token" in done[1].stderr


def test_the_version_covers_the_configurations_that_come_with_the_program(tmp_path: Path) -> None:
    for package in ("finextract", "scanner"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))

    def version() -> str:
        code = "from scanner.crawl.code import version_reader; print(version_reader()(None))"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True, cwd=tmp_path)

    before = version()
    assert version() == before
    with (tmp_path / "finextract/published/sdxl/unet/config.json").open("a") as file:
        file.write("\n")
    assert version() != before


def test_a_worker_with_another_version_of_this_program_is_refused(
    own: Own, store: Store, tmp_path: Path
) -> None:
    with WorkerPool(task(store, tmp_path / "cache"), address=None, workers=1, worker_class=Quick) as pool:
        pool.grow(1, {"sd1": 1})
        with pytest.raises(
            NoWorkers, match=r"a node has another version of this program: .*, and this machine"
        ):
            list(pool.finished(60))
    assert own.ray.is_initialized()


def test_where_ray_cannot_start_a_crawl_says_so_in_a_sentence_and_the_doctor_before_it(
    zoo_path: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store", create=True)
    pictures = sorted((zoo_path / "images/background").iterdir())
    for name, role, some in (
        ("mine", Role.REFERENCE, pictures[:2]),
        ("background", Role.BACKGROUND, pictures[2:4]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for picture in some:
            shutil.copy(picture, folder)
        list(corpus.add(store, name, folder, SscdEmbedder(), role))
    models = f"folder:{zoo_path}/checkpoints"
    for verb in (["doctor"], ["crawl", "--source", models, "--base", zoo_path / "base", "--limit", "1"]):
        done = subprocess.run(
            [BIN / "scanner", *verb, "--store", store.uri], capture_output=True, text=True, check=False,
            env={**os.environ, "RAY_TMPDIR": "/proc/nowhere"},
        )  # fmt: skip
        printed = done.stdout + done.stderr
        assert done.returncode == 2, printed
        assert "Ray did not start: No such file or directory: /proc/nowhere." in printed
        assert "Traceback" not in printed


class Measured(Scanner):
    """A worker that tells how many threads torch computes with in the calling thread."""

    def threads(self) -> tuple[int, int]:
        import torch

        return threading.get_ident(), torch.get_num_threads()


def test_a_worker_has_its_niceness_from_the_crawl_and_its_threads_in_every_thread_of_its_process(
    own: Own, store: Store, tmp_path: Path
) -> None:
    assert own.ray.get(own.ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
    two = replace(task(store, tmp_path / "cache", "hf"), threads=2)
    worker = own.ray.remote(Measured).options(num_cpus=1, max_concurrency=2).remote(two)
    own.ray.get(worker.ready.remote())
    found = own.ray.get([worker.threads.remote() for _ in range(20)])
    own.ray.kill(worker)
    assert {number for _, number in found} == {2}
    assert share_of_cores(gpus=0) == 1
    assert 1 <= share_of_cores(gpus=0.25) <= share_of_cores(gpus=1)
