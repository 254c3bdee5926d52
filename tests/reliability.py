"""The reliability of a crawl: whatever fails, every checkpoint gets exactly one verdict, and nothing is left.

A local Ray cluster of several nodes with simulated GPUs, a hub on loopback that serves copies of the zoo's
checkpoints under their own ids, a store on a small disk or in a bucket, and `scanner crawl` as a user runs
it; in every second seed two at once. While they scan, `scanner compact` runs again and again, and a reviewer
decides. What goes wrong is chosen by the seed: workers get SIGKILL or SIGSTOP, nodes are removed and added,
the hub does not answer, the disk is full or the bucket does not answer for a while, and a driver gets SIGKILL
and is started again. The listing runs only a few entries ahead of the workers, so it is interrupted too.

At the end all lists of `faults.checks.Findings` must be empty: verdicts, candidates and matches are those of
an undisturbed run, no image or decision is lost, and no lease, orphan, process or temporary file is left.

    python tests/reliability.py --seeds 0-9 [--checkpoints 24] [--results FILE]      # a line a seed
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]  # `finextract` is a folder of tests too

from faults import checks, scene  # noqa: E402
from faults.checks import Evidence, Findings  # noqa: E402
from faults.scene import COPIED, PAGE, Place, copies, corpora  # noqa: E402
from faults.troubles import Compacting, Deciding, Disturbing, Outage  # noqa: E402
from servers.hub import Handler, Hub  # noqa: E402
from servers.misbehaviour import Misbehaving  # noqa: E402

from scanner.store.compaction import compact  # noqa: E402
from scanner.store.orphans import collect  # noqa: E402
from scanner.store.store import Store  # noqa: E402

DEATHS = 2  # of drivers
MOST = 12  # disturbances of one seed
DISTURBED_S = 90.0  # after which nothing is disturbed any more
STARTS = 20  # of one driver, before the run counts as broken,
GIVE_UP_S = 900.0  # or so much time


@dataclass
class Tally:
    """One seed: what happened, and what was found at the end."""

    seed: int
    checkpoints: int
    crawls: int  # at once
    store: str  # disk or bucket
    schema: int = 2
    happened: dict[str, int] = field(default_factory=dict)  # troubles by kind
    driver_starts: int = 0
    failed_then_tried_again: int = 0  # rows `failed`, before the last start
    compactions: int = 0
    compactions_refused: int = 0  # that ended with a message, because of a trouble
    decisions: int = 0  # events
    decisions_refused: int = 0
    orphans_before: dict[str, int] = field(default_factory=dict)  # before they were collected
    collected: dict[str, int] = field(default_factory=dict)  # what the collection removed, by kind
    seconds: float = 0.0
    findings: Findings = field(default_factory=Findings)

    @property
    def held(self) -> bool:
        return self.findings.held


def disturbed(
    seed: int, repos: dict[str, Path], prepared: Path, calm: Evidence, folder: Path, span_s: float
) -> Tally:
    """One seed: crawls, disturbed; each run again until nothing is left, as a person would."""
    rng, began = random.Random(seed), time.monotonic()
    in_bucket, crawls = seed % 3 == 0, 1 + seed % 2
    tally = Tally(seed, len(repos) - 1, crawls, "bucket" if in_bucket else "disk")
    outage = Outage()
    troubled = type("Troubled", (Misbehaving, Handler), {"plan": outage})
    with (
        scene.temporary_folder() as scratch,
        scene.in_bucket(prepared) if in_bucket else scene.on_disk(prepared, folder) as place,
        Hub(repos, page_size=PAGE, handler=troubled) as hub,
    ):
        with scene.cluster() as running:
            disturbing = Disturbing(rng, running, outage, place, span_s, deaths=DEATHS, most=MOST)
            compacting, deciding = Compacting(place.uri), Deciding(place.uri, rng)
            options = ["--workers", "1"] if crawls > 1 else []

            def start(n: int) -> subprocess.Popen[bytes]:
                log = folder / f"log-{n}"
                return scene.start(place.uri, folder / "cache", hub, running.address, log, *options)

            with compacting, deciding, Crawls(crawls, start) as at_once:
                broken = at_once.run(disturbing)
                disturbing.end()
            tally.driver_starts = sum(at_once.starts)
            tally.findings.ends = [broken] if broken else []
            checks.check_processes(tally.findings, at_once.sessions)
        tally.happened = dict(disturbing.happened)
        tally.compactions, tally.compactions_refused = compacting.exits[0], compacting.exits[2]
        tally.decisions, tally.decisions_refused = len(deciding.recorded), deciding.refused
        tally.findings.tracebacks += [*compacting.tracebacks, *deciding.errors]
        _check(tally, place, calm, repos, deciding.recorded, folder, scratch)
    tally.seconds = round(time.monotonic() - began, 1)
    return tally


class Crawls:
    """The drivers of a seed, each started again until it ends with nothing left; a context manager."""

    def __init__(self, count: int, start: Callable[[int], subprocess.Popen[bytes]]) -> None:
        self._start = start
        self.starts, self.sessions = [0] * count, set[int]()
        self.drivers = [self._again(n) for n in range(count)]

    def _again(self, n: int) -> subprocess.Popen[bytes]:
        self.starts[n] += 1
        driver = self._start(n)
        self.sessions.add(driver.pid)
        return driver

    def run(self, disturbing: Disturbing) -> str | None:
        """Disturbs them until each has ended with exit code 0; returns why they did not."""
        began = time.monotonic()
        while any(driver.poll() != 0 for driver in self.drivers):
            spent_s = time.monotonic() - began
            if spent_s < DISTURBED_S:
                disturbing.go_on(self.drivers)
            else:
                disturbing.end()
            for n, driver in enumerate(self.drivers):
                if driver.poll() not in (None, 0):
                    if self.starts[n] == STARTS:
                        return f"crawl {n} ends with {driver.returncode}"
                    self.drivers[n] = self._again(n)
            if spent_s > GIVE_UP_S:
                return f"the crawls have not ended after {GIVE_UP_S:.0f} s"
            time.sleep(0.2)
        return None

    def __enter__(self) -> Crawls:
        return self

    def __exit__(self, *exception: object) -> None:
        for driver in self.drivers:
            driver.kill()
            driver.wait()


def _check(
    tally: Tally, place: Place, calm: Evidence, repos: dict[str, Path], recorded: list[str], folder: Path,
    scratch: Path,
) -> None:  # fmt: skip
    """Looks at everything that is left, collects orphans, and looks again."""
    found, store = tally.findings, Store(place.uri)
    now = Evidence.of(store)
    tally.failed_then_tried_again = len(now.scans) - len(now.conclusive)
    checks.check_store(found, store, now, calm, repos, recorded)
    checks.check_rows(found, now)
    checks.check_leases(found, store)
    tally.orphans_before = checks.orphans(store)
    for _ in compact(store, retention_hours=0):
        pass
    tally.collected = asdict(collect(store, grace=timedelta(0)))
    store = Store(place.uri)
    checks.check_store(found, store, Evidence.of(store), calm, repos, recorded)
    found.orphans = [f"{n} {name}" for name, n in checks.orphans(store).items() if n]
    found.orphans += store.storage.names("leases")
    for where in (folder / "cache", folder / "disk", scratch):
        found.files += [f"{where.name}/{path}" for path in checks.left_files(where) if path[:4] != "ray/"]
    for log in sorted(folder.glob("log-*")):
        lines = log.read_text(errors="replace").splitlines()
        found.tracebacks += [f"{log.name}: {line}" for line in lines if line.startswith("Traceback")]


def undisturbed(
    repos: dict[str, Path], prepared: Path, folder: Path, *, on_cluster: bool = True
) -> tuple[Evidence, float]:
    """What an undisturbed crawl finds, and its seconds."""
    began = time.monotonic()
    with (
        scene.on_disk(prepared, folder) as place,
        Hub(repos, page_size=PAGE) as hub,
        scene.cluster() if on_cluster else nullcontext() as running,
    ):
        address = running.address if running else None
        driver = scene.start(place.uri, folder / "cache", hub, address, folder / "log")
        assert driver.wait() == 0, (folder / "log").read_text()
        seconds, calm = time.monotonic() - began, Evidence.of(Store(place.uri))
    assert sorted(calm.repos[scan.checkpoint_id] for scan in calm.scans) == sorted(repos), "one row each"
    one = calm.by_original()
    for scan in calm.scans:
        expected = one[scene.original(calm.repos[scan.checkpoint_id])]
        assert checks.same(scan, expected), "copies come to the same"
        assert not list(checks.differences(calm, scan, calm, expected)), "with the same evidence"
    return calm, seconds


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
        line = json.dumps(_shown(tally))
        print(f"{'held' if tally.held else 'BROKEN'}: {line}", flush=True)
        if results is not None:
            with results.open("a") as file:
                file.write(line + "\n")
    return tallies


def _shown(tally: Tally) -> dict[str, Any]:
    """A tally with the findings that there are."""
    shown = asdict(tally)
    shown["findings"] = {name: some for name, some in shown["findings"].items() if some}
    return shown


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0-9", help="N or FIRST-LAST")
    parser.add_argument("--checkpoints", type=int, default=24)
    parser.add_argument("--results", type=Path, help="a JSON-lines file to append to")
    parser.add_argument("--folder", type=Path, help="keep stores and logs there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with everything that was started
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
