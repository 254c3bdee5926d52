"""Lists thousands of entries from a hub that misbehaves, killed and resumed, and compares with a calm run.

    python tests/listing.py --source hf --entries 5000 --kills 5        # and --source civitai
    python tests/listing.py bench                                       # the rate, with a fast server

The server is a process of its own on loopback. `scanner crawl --list-only` runs once undisturbed, and once
killed with SIGKILL at random moments and started again; both must record the same rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
SERVERS = {"hf": "hub.py", "civitai": "civitai.py"}
ENDPOINTS = {"hf": "HF_ENDPOINT", "civitai": "CIVITAI_ENDPOINT"}
COMPARED = ("source", "repo", "revision", "file", "checkpoint_id", "size_bytes", "kind", "family", "base",
            "base_origin", "caption", "inspection_status", "reason")  # fmt: skip
MEMORY_KIB = 400_000  # what a listing may take


@dataclass
class Run:
    """One `scanner crawl --list-only`."""

    returncode: int
    seconds: float
    peak_kib: int
    words: str


@contextlib.contextmanager
def serving(source: str, entries: int, misbehave: float, seed: int = 0) -> Iterator[str]:
    """The address of a server with that many entries."""
    with tempfile.TemporaryDirectory(prefix="listing-") as folder:
        port = Path(folder) / "port"
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "servers" / SERVERS[source]), "--items", str(entries),
             "--misbehave", str(misbehave), "--seed", str(seed), "--port-file", str(port)],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not port.exists():
                if server.poll() is not None:
                    raise RuntimeError(f"the server ended with {server.returncode}")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port.read_text()}"
        finally:
            server.terminate()
            server.wait()


def crawl(source: str, url: str, store: Path, limit: int, kill_after_s: float | None = None) -> Run:
    """Runs the command, to its end or for so long."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "scanner"), "crawl", "--source", source, "--list-only",
             "--limit", str(limit), "--store", str(store)],
            env={**os.environ, ENDPOINTS[source]: url}, stdout=subprocess.DEVNULL, stderr=words,
        )  # fmt: skip
        peak_kib = 0
        while process.poll() is None:
            peak_kib = max(peak_kib, _peak_kib(process.pid))
            if kill_after_s is not None and time.monotonic() - began > kill_after_s:
                process.send_signal(signal.SIGKILL)
                kill_after_s = None
            time.sleep(0.02)
        words.seek(0)
        return Run(process.returncode, time.monotonic() - began, peak_kib, words.read())


def _peak_kib(pid: int) -> int:
    """The most memory that a process has held so far; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(match[1]) if match else 0


def rows(store: Path) -> list[tuple[Any, ...]]:
    """What a store says of each file that was listed, in order."""
    sys.path.insert(0, str(ROOT.parent))
    from scanner.store.store import Store

    found = Store(store).query(
        "SELECT * FROM all_checkpoints QUALIFY row_number() OVER "
        "(PARTITION BY source, repo, revision, file ORDER BY listed_at DESC) = 1"
    )
    return sorted(tuple(row[name] for name in COMPARED) for row in found)


def compare(source: str, entries: int, kills: int, misbehave: float, seed: int) -> dict[str, Any]:
    """A calm run, and one that is killed and resumed; what both recorded, and what they took."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="listing-") as folder:
        calm, troubled = Path(folder) / "calm", Path(folder) / "troubled"
        with serving(source, entries, 0.0) as url:
            quiet = crawl(source, url, calm, entries)
        runs = []
        with serving(source, entries, misbehave, seed) as url:
            for _ in range(kills):
                after_s = chance.uniform(2.0, 4.0 + entries / 400)
                runs.append(crawl(source, url, troubled, entries, after_s))
            runs.append(crawl(source, url, troubled, entries))
        # The address of a server differs from run to run; nothing that is compared holds it.
        expected, found = rows(calm), rows(troubled)
    return {
        "source": source,
        "entries": entries,
        "rows": len(found),
        "same_rows": expected == found,
        "twice": max(Counter(row[:4] for row in found).values(), default=0) > 1,
        "by_prospect": dict(Counter(row[COMPARED.index("inspection_status")] for row in found)),
        "killed": [run.returncode for run in runs].count(-signal.SIGKILL),
        "resumed": sum("going on with the listing" in run.words for run in runs),
        "returncode": runs[-1].returncode,
        "seconds_calm": round(quiet.seconds, 1),
        "seconds_troubled": [round(run.seconds, 1) for run in runs],
        "peak_mib": round(max(run.peak_kib for run in [quiet, *runs]) / 1024),
        "words": runs[-1].words[-2000:] if runs[-1].returncode else "",
        "differing": [(a, b) for a, b in zip(expected, found, strict=False) if a != b][:3],
    }


def bench(entries: int) -> dict[str, Any]:
    """Entries a second, listed as records, beside the bare client over the same pages. One core each."""
    code = (
        "import json, os, sys, time\n"
        "os.sched_setaffinity(0, {0})\n"
        f"sys.path.insert(0, {str(ROOT.parent)!r})\n"
        "from scanner.hubs.base import Query\n"
        "from scanner.hubs.huggingface.source import HuggingFaceSource\n"
        "from huggingface_hub import HfApi\n"
        "def timed(made):\n"
        "    began = time.perf_counter(); count = sum(1 for _ in made)\n"
        "    return count / (time.perf_counter() - began)\n"
        f"query = Query({entries}, filters=('lora',))\n"
        "ours = lambda: timed(HuggingFaceSource().list(query))\n"
        "bare = lambda: timed(HfApi().list_models(filter='lora', sort='created_at', full=True, "
        f"limit={entries}))\n"
        "ours(), bare()\n"
        "print(json.dumps({'ours': max(ours(), ours()), 'bare': max(bare(), bare())}))"
    )
    with serving("hf", entries, 0.0) as url:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "HF_ENDPOINT": url}, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
    rates = json.loads(done.stdout)
    return {
        "entries_a_second": round(rates["ours"]),
        "bare_client_entries_a_second": round(rates["bare"]),
        "ratio": round(rates["ours"] / rates["bare"], 2),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=["compare", "bench"], default="compare")
    parser.add_argument("--source", choices=sorted(SERVERS), default="hf")
    parser.add_argument("--entries", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--misbehave", type=float, default=0.05, help="share of requests that go wrong first")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.action == "bench":
        print(json.dumps(bench(options.entries), indent=2))
        return
    outcome = compare(options.source, options.entries, options.kills, options.misbehave, options.seed)
    print(json.dumps(outcome, indent=2, default=str))
    good = outcome["same_rows"] and not outcome["twice"] and outcome["returncode"] == 0
    if not good or outcome["peak_mib"] * 1024 > MEMORY_KIB or outcome["killed"] < options.kills:
        sys.exit("listing: not as it must be")


if __name__ == "__main__":
    main()
