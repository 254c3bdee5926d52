"""The reliability of a crawl: whatever fails, every checkpoint gets exactly one verdict.

A local Ray cluster of several nodes with simulated GPUs, a hub on loopback that serves copies of the zoo's
checkpoints under their own ids, and `scanner crawl` as a user runs it. While it scans, chosen by the seed:
workers get SIGKILL, nodes are removed and added, the hub does not answer for a while, and the driver gets
SIGKILL and is started again. The listing runs only a few entries ahead of the workers, so it is interrupted
too. At the end every checkpoint must have exactly one verdict, the same as in an undisturbed run.

    python tests/reliability.py --seeds 0-19 [--checkpoints 60] [--results FILE]      # a line a seed
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]  # `finextract` is a folder of tests too

from servers.hub import Handler, Hub  # noqa: E402
from servers.misbehaviour import Misbehaving  # noqa: E402

ZOO = ROOT / "zoo"
SCANNER = Path(sys.executable).parent / "scanner"
PAGE = 10  # entries of a page of the hub, and of a batch of the listing
# The command, with batches so small that the listing lasts for most of the crawl.
CRAWL = f"""
import scanner.crawl.engine, scanner.crawl.listing
from scanner.cli import main
scanner.crawl.listing.BATCH = {PAGE}
scanner.crawl.engine.LISTED_AHEAD = {PAGE}
main()
"""
COPIED = ("fruit-lora", "flowers-lora", "music-lora", "houses-lora-light")
SUBJECTS = ("fruit", "flowers")
BACKGROUND = 100
BUDGET = ["--samples-per-image", "1", "--steps", "4", "--assume-train-images", "3"]
NODE = {"num_cpus": 1, "num_gpus": 1, "resources": {"accelerator_type:T4": 1},
        "object_store_memory": 80_000_000}  # fmt: skip
PACE_S = (5.0, 13.0)  # between two disturbances, at least and at most
MOST = 1000  # disturbances of one crawl
DEATHS = 2  # of the driver
OUTAGE_S = 12.0
DISTURBED = 8  # starts of the driver; later ones are not disturbed
STARTS = 12  # of the driver, before the run counts as broken


class Outage:
    """A plan of a hub: it answers 503 during an outage."""

    def __init__(self) -> None:
        self.until = 0.0

    def fault(self, request: str) -> str | None:
        return "503" if time.monotonic() < self.until else None


@dataclass
class Tally:
    """The disturbances of one seed, and their result."""

    seed: int
    checkpoints: int
    workers_killed: int = 0
    nodes_removed: int = 0
    nodes_added: int = 0
    outages: int = 0
    drivers_killed: int = 0
    driver_starts: int = 0
    failed_then_tried_again: int = 0  # rows `failed`, before the last start
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)  # without a verdict
    twice: list[str] = field(default_factory=list)  # with two conclusive rows
    different: list[str] = field(default_factory=list)  # from the undisturbed run

    @property
    def held(self) -> bool:
        return not (self.lost or self.twice or self.different)


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


def rows(store: Path) -> list[dict[str, Any]]:
    """Every scan row that was ever written, with the name of its repository."""
    from scanner.store.store import Store

    return Store(store).query(
        "SELECT repo, checkpoint_id, s.verdict, s.stage, s.reason, s.best_similarity, s.q_value "
        "FROM all_scans s JOIN checkpoints USING (checkpoint_id)"
    )


@contextmanager
def cluster(workers: int = 2) -> Iterator[Any]:
    """A head without a GPU, and nodes with one simulated GPU each."""
    from ray.cluster_utils import Cluster

    os.environ.update(RAY_ENABLE_UV_RUN_RUNTIME_ENV="0", RAY_USAGE_STATS_ENABLED="0",
                      RAY_worker_register_timeout_seconds="120")  # fmt: skip
    head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 80_000_000}
    running = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(workers):
            running.add_node(**NODE)
        yield running
    finally:
        running.shutdown()


def start(store: Path, cache: Path, hub: Hub, address: str | None, log: Path) -> subprocess.Popen[bytes]:
    """The driver, in a session of its own; without an address it starts a Ray of its own."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "FINEXTRACT_CACHE": str(cache)}
    environment.pop("HF_TOKEN", None)
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-c", CRAWL, "crawl", "--source", "hf", "--limit", "1000", "--store", str(store),
             *(("--ray-address", address, "--gpus-per-worker", "0") if address else ()), "--json", *BUDGET],
            env=environment, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True,
        )  # fmt: skip


def scanners() -> list[psutil.Process]:
    """The cluster's worker processes that hold a scanner."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::Scanner" in " ".join(process.cmdline()):
                found.append(process)
    return found


class Disturbing:
    """What happens to a cluster and its hub, one thing after another; by the seed."""

    def __init__(self, rng: random.Random, tally: Tally, running: Any, outage: Outage, span_s: float) -> None:
        self._rng, self._tally, self._running, self._outage = rng, tally, running, outage
        now = time.monotonic()
        self._deaths = sorted(now + rng.uniform(0.1, 0.9) * span_s for _ in range(DEATHS))
        self._next = now + rng.uniform(*PACE_S)
        self._away = 0  # nodes
        self._left = MOST

    def go_on(self, driver: subprocess.Popen[bytes]) -> None:
        """Does what is due."""
        now, tally = time.monotonic(), self._tally
        if self._deaths and now > self._deaths[0]:
            self._deaths.pop(0)
            driver.send_signal(signal.SIGKILL)
            tally.drivers_killed += 1
        if now < self._next:
            return
        self._next = now + self._rng.uniform(*PACE_S)
        if self._away:
            self._running.add_node(**NODE)
            tally.nodes_added += 1
            self._away -= 1
        elif self._left:
            self._left -= self._disturb()

    def end(self) -> None:
        """Brings back what is away."""
        while self._away:
            self._running.add_node(**NODE)
            self._tally.nodes_added += 1
            self._away -= 1

    def _disturb(self) -> bool:
        """One thing goes wrong, unless what was chosen is not there."""
        tally = self._tally
        what = self._rng.choice(["worker", "worker", "node", "outage"])
        if what == "worker":
            if not (alive := scanners()):
                return False
            self._rng.choice(alive).kill()
            tally.workers_killed += 1
        elif what == "node":
            nodes = sorted(self._running.worker_nodes, key=lambda node: str(node.node_id))
            self._running.remove_node(self._rng.choice(nodes), allow_graceful=False)
            tally.nodes_removed += 1
            self._away += 1
        else:
            self._outage.until = time.monotonic() + self._rng.uniform(1, OUTAGE_S)
            tally.outages += 1
        return True


def disturbed(
    seed: int, repos: dict[str, Path], prepared: Path, calm: dict[str, dict[str, Any]], folder: Path,
    span_s: float,
) -> Tally:  # fmt: skip
    """One seed: a crawl, disturbed; run again until nothing is left, as a person would."""
    tally, began = Tally(seed, len(repos) - 1), time.monotonic()
    store, outage = Path(shutil.copytree(prepared, folder / "store")), Outage()
    troubled = type("Troubled", (Misbehaving, Handler), {"plan": outage})
    with Hub(repos, page_size=PAGE, handler=troubled) as hub, cluster() as running:
        disturbing = Disturbing(random.Random(seed), tally, running, outage, span_s)
        while tally.driver_starts < STARTS:
            driver = start(store, folder / "cache", hub, running.address, folder / "log")
            tally.driver_starts += 1
            while driver.poll() is None:
                if tally.driver_starts <= DISTURBED:
                    disturbing.go_on(driver)
                else:
                    disturbing.end()
                time.sleep(0.2)
            if driver.returncode == 0:
                break
            time.sleep(2)
    written = rows(store)
    tally.failed_then_tried_again = sum(row["verdict"] == "failed" for row in written)
    count = Counter(row["repo"] for row in written if row["verdict"] != "failed")
    tally.lost = sorted(set(repos) - set(count))
    tally.twice = sorted(repo for repo, n in count.items() if n > 1)
    for row in written:
        if row["verdict"] != "failed" and not _same(row, calm[original(row["repo"])]):
            tally.different.append(f"{row['repo']}: {row['verdict']} {row['reason']}")
    tally.seconds = round(time.monotonic() - began, 1)
    return tally


def original(repo: str) -> str:
    """The name of the checkpoint that a repository is a copy of."""
    return repo.rpartition("-")[0] if repo.startswith("copies/") else repo


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    alike = all(
        (one[name] is None) == (other[name] is None) and abs((one[name] or 0) - (other[name] or 0)) < 1e-4
        for name in ("best_similarity", "q_value")
    )
    return bool(one["verdict"] == other["verdict"]) and alike


def undisturbed(
    repos: dict[str, Path], prepared: Path, folder: Path, *, on_cluster: bool = True
) -> tuple[dict[str, dict[str, Any]], float]:
    """The verdicts of an undisturbed crawl by the name of the copied checkpoint, and its seconds."""
    store, began = Path(shutil.copytree(prepared, folder / "store")), time.monotonic()
    with Hub(repos, page_size=PAGE) as hub, cluster() if on_cluster else nullcontext() as running:
        address = running.address if running else None
        driver = start(store, folder / "cache", hub, address, folder / "log")
        assert driver.wait() == 0, (folder / "log").read_text()
    written = rows(store)
    assert sorted(row["repo"] for row in written) == sorted(repos), "one row each"
    calm = {original(row["repo"]): row for row in written}
    assert all(_same(row, calm[original(row["repo"])]) for row in written), "copies come to the same"
    return calm, time.monotonic() - began


def study(
    seeds: list[int], count: int, results: Path | None, folder: Path, *, short: bool = False
) -> list[Tally]:
    """Runs every seed; prints each to stdout, and appends it to the results.

    The undisturbed run scans all copies on a cluster, or, if `short`, one copy of each on one machine.
    """
    repos = copies(count, folder / "hub")
    prepared = corpora(folder / "corpora")
    few = dict(list(repos.items())[: 1 + len(COPIED)]) if short else repos  # with the base
    calm, span_s = undisturbed(few, prepared, _made(folder / "calm"), on_cluster=not short)
    print(f"undisturbed: {len(few)} in {span_s:.0f} s", flush=True)
    tallies = []
    for seed in seeds:
        tally = disturbed(seed, repos, prepared, calm, _made(folder / f"seed-{seed}"), span_s)
        tallies.append(tally)
        print(f"{'held' if tally.held else 'BROKEN'}: {json.dumps(asdict(tally))}", flush=True)
        if results is not None:
            with results.open("a") as file:
                file.write(json.dumps(asdict(tally)) + "\n")
    return tallies


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0-19", help="N or FIRST-LAST")
    parser.add_argument("--checkpoints", type=int, default=60)
    parser.add_argument("--results", type=Path, help="a JSON-lines file to append to")
    parser.add_argument("--folder", type=Path, help="keep stores and logs there")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    with tempfile.TemporaryDirectory(prefix="reliability-") as scratch:
        folder = options.folder or Path(scratch)
        tallies = study(
            list(range(int(first), int(last or first) + 1)), options.checkpoints, options.results, folder
        )
    if not all(tally.held for tally in tallies):
        sys.exit(1)


if __name__ == "__main__":
    main()
