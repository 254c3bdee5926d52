"""What tests/reliability.py crawls: copies of the zoo on a hub, a store, a cluster, and the driver."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.front import Front
from servers.hub import Hub
from servers.objects import Objects

from scanner.crawl.cluster import few_processes

ZOO = Path(__file__).resolve().parents[1] / "zoo"
SCANNER = Path(sys.executable).parent / "scanner"
PAGE = 10  # entries of a page of the hub, and of a batch of the listing
ANSWER_S = 20.0  # after which a worker that does not answer is ended
# The command, with batches so small that the listing lasts for most of the crawl, and a short deadline.
CRAWL = f"""
import scanner.crawl.engine, scanner.crawl.listing
from scanner.cli import main
from scanner.crawl.deadlines import Deadlines
scanner.crawl.listing.BATCH = {PAGE}
scanner.crawl.engine.LISTED_AHEAD = {PAGE}
scanner.crawl.engine.crawl.__kwdefaults__["deadlines"] = Deadlines(answer={ANSWER_S})
main()
"""
COPIED = ("fruit-lora", "flowers-lora", "music-lora", "houses-lora-light")
SUBJECTS = ("fruit", "flowers")
BACKGROUND = 100
BUDGET = ["--samples-per-image", "1", "--steps", "4", "--assume-train-images", "3",
          "--screen-budget", "60"]  # fmt: skip
NODE = {"num_cpus": 1, "num_gpus": 1, "resources": {"accelerator_type:T4": 1},
        "object_store_memory": 80_000_000}  # fmt: skip
DISK_MB = 150  # of the file system that holds a store
SETTINGS = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0", "RAY_worker_register_timeout_seconds": "120",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a store is, and what can go wrong there."""

    uri: str
    environment: dict[str, str]
    troubles: dict[str, tuple[Callable[[], object], Callable[[], object]]]  # name -> (begin, end)


def copies(count: int, into: Path) -> dict[str, Path]:
    """The base, and the zoo's weights under other ids: with a line more in the file's metadata."""
    repos = {"finextract-zoo/tiny-sd": ZOO / "base"}
    for n in range(count):
        name = COPIED[n % len(COPIED)]
        folder = into / f"{name}-{n:03}"
        folder.mkdir(parents=True)
        for file in (ZOO / "checkpoints" / name).iterdir():
            if file.suffix == ".safetensors":
                content = file.read_bytes()
                (size,) = struct.unpack("<Q", content[:8])
                header = json.loads(content[8 : 8 + size])
                header["__metadata__"] = {**header.get("__metadata__", {}), "copy": f"{n}"}
                written = json.dumps(header).encode()
                written += b" " * (-len(written) % 8)
                rest = content[8 + size :]
                (folder / file.name).write_bytes(struct.pack("<Q", len(written)) + written + rest)
            else:
                shutil.copy(file, folder)
        repos[f"copies/{folder.name}"] = folder
    return repos


def original(repo: str) -> str:
    """The name of the checkpoint that a repository is a copy of."""
    return repo.rpartition("-")[0] if repo.startswith("copies/") else repo


def corpora(into: Path) -> Path:
    """A store with two subjects and some background."""
    for subject in SUBJECTS:
        shutil.copytree(ZOO / "images/subjects" / subject, into / "subjects" / subject)
    (into / "background").mkdir()
    for path in sorted((ZOO / "images/background").iterdir())[:BACKGROUND]:
        shutil.copy(path, into / "background")
    for name, extra in (("subjects", []), ("background", ["--background"])):
        subprocess.run(
            [SCANNER, "corpus", "add", name, into / name, "--store", into / "store", *extra],
            check=True, capture_output=True,
        )  # fmt: skip
    return into / "store"


@contextmanager
def on_disk(prepared: Path, folder: Path) -> Iterator[Place]:
    """A copy of the store, on a small file system of its own where the machine permits a mount."""
    disk, filler = folder / "disk", folder / "disk/filler"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(disk)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0

    def fill() -> None:
        free = shutil.disk_usage(disk).free
        with filler.open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, free)

    try:
        shutil.copytree(prepared, disk / "store")
        troubles = {"disk full": (fill, lambda: filler.unlink(missing_ok=True))} if mounted else {}
        yield Place(str(disk / "store"), {}, troubles)
    finally:
        if mounted:
            shutil.copytree(disk / "store", folder / "store-at-the-end", dirs_exist_ok=True)
            subprocess.run(["umount", "-l", str(disk)], check=True)


@contextmanager
def in_bucket(prepared: Path) -> Iterator[Place]:
    """A copy of the store in a bucket of an S3 server that can be stopped, behind one that can refuse."""
    import fsspec  # type: ignore[import-untyped]

    with (
        Objects() as objects,
        Front(objects.url) as front,
        environment(values := {**objects.environment(), "AWS_ENDPOINT_URL": front.url}),
    ):
        files = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
        for path in prepared.rglob("*"):
            inside = path.relative_to(prepared)
            if path.is_file() and not inside.parts[0].startswith("."):
                files.put_file(str(path), f"{objects.bucket}/store/{inside.as_posix()}")

        def refuse(requests: int) -> None:
            front.refusing = requests

        troubles = {
            "bucket stopped": (objects.stop, objects.resume),
            "bucket refusing": (lambda: refuse(1_000_000), lambda: refuse(0)),
        }
        yield Place(f"s3://{objects.bucket}/store", values, troubles)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Sets variables of this process while the block runs; the processes of a cluster inherit them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def local_ray(**options: Any) -> Iterator[None]:
    """A Ray of this process without a token.

    By default Ray writes a token into the home, and leaves RAY_AUTH_MODE in the environment.
    """
    import ray

    with environment({**SETTINGS, "RAY_AUTH_MODE": "disabled"}):
        with few_processes(ray):
            ray.init(
                address="local", include_dashboard=False, object_store_memory=100_000_000,
                log_to_driver=False, logging_level="ERROR", **options,
            )  # fmt: skip
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """The TMPDIR of all processes of a seed, where they may leave something; short, for Ray's sockets."""
    made = tempfile.TemporaryDirectory(prefix="rel-", ignore_cleanup_errors=True)
    with made as folder, environment({"TMPDIR": folder}):
        yield Path(folder)


@contextmanager
def cluster(workers: int = 2) -> Iterator[Any]:
    """A head without a GPU, and nodes with one simulated GPU each."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 80_000_000}
    with environment(SETTINGS), few_processes(ray):
        running = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(workers):
                running.add_node(**NODE)
            yield running
        finally:
            running.shutdown()


def start(
    store: str, cache: Path, hub: Hub, address: str | None, log: Path, *options: str
) -> subprocess.Popen[bytes]:
    """The driver, in a session of its own; without an address it starts a Ray of its own."""
    values = {**os.environ, "HF_ENDPOINT": hub.url, "FINEXTRACT_CACHE": str(cache)}
    values.pop("HF_TOKEN", None)
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-c", CRAWL, "crawl", "--source", "hf", "--limit", "1000", "--store", store,
             *(("--ray-address", address, "--gpus-per-worker", "1") if address else ()), "--json", *BUDGET,
             *options],
            env=values, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True,
        )  # fmt: skip
