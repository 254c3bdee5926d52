"""The speedup of a second worker on two cores, and how long workers wait for files.

Crawls copies of the zoo's LoRA from a hub on loopback that delays each file, with one worker of one thread,
one of two, and two of one; each with its own store and cache. From the rows of the scans: checkpoints a
minute between the start of the first scan and the end of the last, the ratio to one worker, and the share of
the workers' time that is spent in `fetch` and between scans.

With `--busy N` each crawl is run alone and beside N processes that compute without end; the ratio of the two
speeds is printed beside that of equal shares of the cores, and whether the images are the same to the bit.

    python tests/speedup.py [--checkpoints 16] [--latency 0.5] [--busy 2]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]  # `finextract` is a folder of tests too

from faults import scene  # noqa: E402
from servers.hub import Handler, Hub  # noqa: E402

BUDGET = {"samples_per_image": 4, "steps": 25, "assumed_train_images": 5}
WORKERS = ((1, 1), (1, 2), (2, 1))  # how many, and threads of each


def crawled(
    prepared: Path, folder: Path, workers: int, threads: int
) -> tuple[dict[str, float], frozenset[str]]:
    """One crawl: the figures from its rows, and the hashes of its images."""
    from scanner.config import ScanConfig
    from scanner.crawl.engine import crawl
    from scanner.crawl.listing import list_batches
    from scanner.crawl.planning import Plan
    from scanner.crawl.worker import Task
    from scanner.hubs.base import Query
    from scanner.hubs.registry import open_source
    from scanner.match.matching import with_corpora
    from scanner.records import Scan, Verdict, new_id
    from scanner.store.store import Store

    store = Store(shutil.copytree(prepared, folder / "store"))
    config = with_corpora(store, ScanConfig(**BUDGET), [])
    task = Task(
        store=store.uri, source="hf", base=None, config=config, run_id=new_id(), cache=str(folder / "cache"),
        max_download=10**9, cache_bytes=10**10, keep_weights=False, allow_pickle=False, threads=threads,
    )  # fmt: skip
    plan = Plan.begin(store, config.config_id, list_batches(open_source("hf"), store, Query(1000)))
    list(plan.grow())
    counts = crawl(task, plan, store, workers=workers)
    assert not counts[Verdict.FAILED], counts
    scans = store.select(Scan, "WHERE stage = 'match'")
    span = (max(s.finished_at for s in scans) - min(s.started_at for s in scans)).total_seconds()
    images = frozenset(row["image_sha256"] for row in store.query("SELECT image_sha256 FROM candidates"))
    figures = {
        "a_minute": 60 * len(scans) / span,
        "fetch": sum(s.seconds["fetch"] for s in scans) / (workers * span),
        "between": 1 - sum(sum(s.seconds.values()) for s in scans) / (workers * span),
    }
    return figures, images


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes compute meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def beside(prepared: Path, folder: Path, processes: int) -> None:
    """Prints for each number of workers and threads what is left of its speed beside busy processes."""
    seen: set[frozenset[str]] = set()
    cores = len(os.sched_getaffinity(0))
    for workers, threads in WORKERS[1:]:
        speeds = []
        for count in (0, processes):
            with busy(count):
                figures, images = crawled(prepared, folder / f"{workers}x{threads}-{count}", workers, threads)
            seen.add(images)
            speeds.append(figures["a_minute"])
        wanted = workers * threads
        alone, share = min(wanted, cores), min(wanted, cores * wanted / (wanted + processes))
        print(
            f"{workers} workers of {threads} threads: {speeds[0]:.1f} checkpoints/min alone, {speeds[1]:.1f} "
            f"beside {processes} busy processes: {speeds[0] / speeds[1]:.1f} times slower; equal shares of "
            f"{cores} cores: {alone / share:.1f}; load {os.getloadavg()[0]:.0f}",
            flush=True,
        )
    print("the images are the same to the bit" if len(seen) == 1 else "the images differ", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=int, default=16)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds that the hub takes over a file")
    parser.add_argument("--busy", type=int, default=0, help="processes that compute meanwhile")
    options = parser.parse_args()

    class Slow(Handler):
        def do_GET(self) -> None:
            if "/resolve/" in self.path:
                time.sleep(options.latency)
            super().do_GET()

    with tempfile.TemporaryDirectory(prefix="speedup-") as scratch:
        folder = Path(scratch)
        repos = scene.copies(options.checkpoints, folder / "hub")
        prepared = scene.corpora(folder / "corpora")
        with Hub(repos, handler=Slow) as hub:
            os.environ["HF_ENDPOINT"] = hub.url
            if options.busy:
                beside(prepared, folder, options.busy)
            first = 0.0
            for workers, threads in () if options.busy else WORKERS:
                figures, _ = crawled(prepared, folder / f"{workers}x{threads}", workers, threads)
                first = first or figures["a_minute"]
                print(
                    f"{workers} workers of {threads} threads: {figures['a_minute']:.1f} checkpoints/min, "
                    f"{figures['a_minute'] / first:.2f} times; waiting for files {figures['fetch']:.1%}, "
                    f"between scans {figures['between']:.1%} of their time",
                    flush=True,
                )


if __name__ == "__main__":
    main()
