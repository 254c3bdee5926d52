"""The store under load, measured: the table "The store on Delta Lake" of docs/scale.md.

    python tests/store_bench.py [append] [writers] [bucket] [kill] [candidates] [open]     # by default all

- append: CPU time of an append with its commit
- writers: 32 processes append at once to a folder; bucket: to s3:// (moto)
- kill: writers are killed at random points; what they had committed must be there, once
- candidates: 3,000,000 candidates with embeddings are compacted; time and peak memory
- open: a checkpoint is opened in a store of 300,000 scans, 3,000,000 candidates and 3,000,000 matches

CPU times count every thread of the process. Each measurement has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

APPENDS = 500
PROCESSES, EACH, EACH_OF_BUCKET = 32, 20, 5
SCANS, CANDIDATES = 300_000, 3_000_000
DIMENSIONS = 512
WRITER = """
import sys, time
from scanner.records import Candidate
from scanner.store.store import Store
uri, writer, appends = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = Store(uri)
embedding = tuple(float(n) for n in range(512))
print("ready", flush=True)
sys.stdin.readline()
start = time.process_time()
for n in range(appends):
    ids = [f"{writer}-{n}-{k}" for k in range(2)]
    store.append([Candidate(i, f"{writer}-{n}", n, 1, 1.0, "", "d", embedding) for i in ids])
    print(*ids, flush=True)
print("cpu", time.process_time() - start, flush=True)
"""


def append(folder: Path) -> dict[str, Any]:
    """CPU time of appends of one scan, and of ten candidates, by one process."""
    from scanner.records import Candidate, Scan, Verdict, new_id, now
    from scanner.store.store import Store

    store, embedding, found = Store(folder / "store", create=True), tuple(np.arange(512.0).tolist()), {}
    rows: dict[str, Any] = {
        "scan": lambda: [
            Scan(new_id(), new_id(), "c", "r", Verdict.FLAGGED, "", "match", now(), now(),
                 seconds={"sample": 1.0}, versions={"torch": "2"})
        ],
        "candidates": lambda: [Candidate(new_id(), "s", n, 1, 1.0, "", "d", embedding) for n in range(10)],
    }  # fmt: skip
    for name, make in rows.items():
        times = []
        for _ in range(APPENDS):
            start = time.process_time()
            store.append(make())
            times.append(1000 * (time.process_time() - start))
        times.sort()
        found |= {f"{name}_ms": sum(times) / APPENDS, f"{name}_p99_ms": times[-APPENDS // 100],
                  f"{name}_max_ms": times[-1]}  # fmt: skip
    return found


def _start(uri: str, count: int, appends: int) -> list[subprocess.Popen[str]]:
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, uri, f"w{n}", str(appends)], text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT.parent)
        for n in range(count)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def _together(uri: str, each: int) -> dict[str, Any]:
    from scanner.store.store import Store

    Store(uri, create=True)
    processes = _start(uri, PROCESSES, each)
    start, lines = time.perf_counter(), []
    for process in processes:
        lines += process.communicate()[0].splitlines()
    seconds = time.perf_counter() - start
    cpu = [float(line.split()[1]) for line in lines if line.startswith("cpu")]
    expected = [i for line in lines if not line.startswith("cpu") for i in line.split()]
    found = [r["candidate_id"] for r in Store(uri).query("SELECT candidate_id FROM candidates")]
    return {"appended": len(expected), "lost": len(set(expected) - set(found)),
            "twice": len(found) - len(set(found)), "seconds": seconds,
            "cpu_ms_each": 1000 * sum(cpu) / (PROCESSES * each)}  # fmt: skip


def writers(folder: Path) -> dict[str, Any]:
    """32 processes append at once to a folder."""
    return _together(str(folder / "store"), EACH)


def bucket(folder: Path) -> dict[str, Any]:
    """32 processes append at once to an object store."""
    from servers.objects import Objects

    with Objects() as running:
        os.environ.update(running.environment())
        return _together(f"s3://{running.bucket}/store", EACH_OF_BUCKET)


def kill(folder: Path) -> dict[str, Any]:
    """Writers are killed with SIGKILL, eight at a time, 0 to 0.4 s after they began."""
    from scanner.store.store import Store

    store, chance, acknowledged, killed = Store(folder / "store", create=True), random.Random(0), set(), 0
    for round_ in range(8):
        processes = _start(store.uri, 8, 10_000)
        for process in processes:
            time.sleep(chance.uniform(0, 0.4))
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            ids = process.communicate()[0].split()
            acknowledged |= {f"{i}" for i in ids}
            killed += 1
        found = [r["candidate_id"] for r in Store(store.uri).query("SELECT candidate_id FROM candidates")]
        assert acknowledged <= set(found), f"rows lost in round {round_}"
        for name in store.tables["candidates"].names():  # each round counts from nothing
            assert name
        doubled = len(found) - len(set(found))
        assert doubled == 0, f"{doubled} rows twice in round {round_}"
        shutil.rmtree(folder / "store")
        store, acknowledged = Store(folder / "store", create=True), set()
    return {"killed": killed, "lost": 0, "twice": 0}


def _ids(rng: np.random.Generator, count: int) -> list[str]:
    digits = rng.bytes(count * 16).hex()
    return [digits[i : i + 32] for i in range(0, len(digits), 32)]


def _candidates(store: Any, rng: np.random.Generator, scan_ids: list[str], at_once: int) -> None:
    from scanner.records import Candidate
    from scanner.store.tables import TABLES, table_schema

    schema = table_schema(TABLES[Candidate], marks=False)
    for start in range(0, len(scan_ids), at_once):
        n = len(scan_ids[start : start + at_once])
        values = pa.array(rng.standard_normal(n * DIMENSIONS, dtype=np.float32))
        offsets = pa.array(np.arange(n + 1, dtype=np.int32) * DIMENSIONS)
        columns = {
            "candidate_id": pa.array(_ids(rng, n)), "scan_id": pa.array(scan_ids[start : start + n]),
            "seed": pa.array(rng.integers(0, 500, n)), "clique_size": pa.array([5] * n),
            "clique_similarity": pa.array(rng.random(n)), "image_sha256": pa.array(["a" * 64] * n),
            "descriptor": pa.array(["sscd"] * n), "embedding": pa.ListArray.from_arrays(offsets, values),
        }  # fmt: skip
        store.append_arrow("candidates", pa.table(columns).select(schema.names).cast(schema))


def candidates(folder: Path) -> dict[str, Any]:
    """3,000,000 candidates in 600 commits are compacted, then 20,000 more in 100 commits."""
    from scanner.store.store import Store

    store, rng = Store(folder / "store", create=True), np.random.default_rng(0)
    scan_ids = [i for i in _ids(rng, CANDIDATES // 10) for _ in range(10)]
    _candidates(store, rng, scan_ids, 5_000)
    found = {f"first_{k}": v for k, v in _compacted(store).items()}
    _candidates(store, rng, scan_ids[:20_000], 200)
    return found | {f"second_{k}": v for k, v in _compacted(store).items()}


def _compacted(store: Any) -> dict[str, Any]:
    """Compaction in a process of its own, which alone is measured."""
    code = (
        "import resource, sys, time; from scanner.store.compaction import compact;"
        "from scanner.store.store import Store; start = time.perf_counter();"
        "done = {c.table: c for c in compact(Store(sys.argv[1]), retention_hours=0)};"
        "used = resource.getrusage(resource.RUSAGE_SELF);"
        "peak = [l for l in open('/proc/self/status') if 'VmHWM' in l][0].split()[1];"
        "print(done['candidates'].files, time.perf_counter() - start, used.ru_utime + used.ru_stime, peak)"
    )
    done = subprocess.run([sys.executable, "-c", code, store.uri], check=True, stdout=subprocess.PIPE,
                          text=True, cwd=ROOT.parent)  # fmt: skip
    files, seconds, cpu, peak = done.stdout.splitlines()[-1].split()
    sizes = [file.size_bytes for file in store.tables["candidates"].files()]
    return {"files": int(files), "seconds": float(seconds), "cpu_s": float(cpu),
            "peak_gb": int(peak) / 1e6, "files_left": len(sizes), "gb": sum(sizes) / 1e9}  # fmt: skip


def open_(folder: Path) -> dict[str, Any]:
    """A checkpoint is opened as the desk does, in a compacted store with 500 appends after the compaction."""
    from scale import fill  # type: ignore[import-not-found]

    from scanner.records import Match, Scan, Verdict, new_id
    from scanner.store.compaction import compact
    from scanner.store.desk_queries import open_checkpoint
    from scanner.store.store import Store

    store, rng = Store(folder / "store", create=True), np.random.default_rng(0)
    fill(folder / "store", SCANS * 10 // 9)
    rows = store.query("SELECT scan_id, checkpoint_id FROM scans ORDER BY scan_id")
    scan_ids = [row["scan_id"] for row in rows for _ in range(CANDIDATES // SCANS)][:CANDIDATES]
    _candidates(store, rng, scan_ids, 20_000)
    for _ in compact(store, retention_hours=0):
        pass
    at = datetime(2026, 11, 24, tzinfo=UTC)
    for n in range(100):
        scan_id = new_id()
        store.append([Match(new_id(), scan_id, "k", "mine", "r", 0.5, 0.5, 0.5, 0.5, False)])
        _candidates(store, rng, [scan_id] * 5, 5)
        store.append([Scan(scan_id, rows[n]["checkpoint_id"], "other", "r", Verdict.NOTHING_FOUND, "",
                           "match", at, at + timedelta(minutes=n))])  # fmt: skip
    fresh, chosen = Store(store.uri), random.Random(1).sample(rows, 21)
    times = []
    for row in chosen:
        start = time.process_time()
        open_checkpoint(fresh, row["checkpoint_id"], row["scan_id"])
        times.append(1000 * (time.process_time() - start))
    return {"first_cpu_ms": times[0], "cpu_ms": sorted(times[1:])[10], "worst_cpu_ms": max(times[1:]),
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}  # fmt: skip


MEASUREMENTS = {"append": append, "writers": writers, "bucket": bucket, "kill": kill,
                "candidates": candidates, "open": open_}  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", choices=[*MEASUREMENTS, []], default=[])
    parser.add_argument("--scratch", type=Path, help="where the stores are made; 20 GB")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.what or MEASUREMENTS:
        if options.here:
            with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
                print(json.dumps(MEASUREMENTS[name](Path(folder))))
            continue
        command = [sys.executable, __file__, name, "--here"]
        command += ["--scratch", str(options.scratch)] if options.scratch else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        shown = (f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in measured.items())
        print(f"{name:10} {'; '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
