"""Adds 10,000 pictures to a corpus, and kills the process again and again on the way.

    python tests/ingest_bench.py [--pictures N] [--kills N] [--source DIR]

Runs the command `scanner corpus add` with the real SSCD network on the PNGs of Debian's openclipart-png,
completed with cut versions of them, ends it by SIGKILL at random times, and starts it again. Prints figures,
and fails where a picture was stored twice, or a killed process lost more than one part that was not written.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "ingest"
SEED = 20261130


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["child"]:
        return child(sys.argv[2], *sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--source", type=Path, help="a folder of PNGs, instead of Debian's openclipart-png")
    parser.add_argument("--out", type=Path, default=BUILD)
    given = parser.parse_args()
    folder = collect(given.source or openclipart(given.out), given.out / "pictures", given.pictures)
    measure(folder, given.out / f"store-{time.strftime('%H%M%S')}", given.kills)
    return None


def openclipart(out: Path) -> Path:
    """Debian's openclipart-png, unpacked."""
    folder = out / "openclipart"
    if not folder.is_dir():
        out.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "openclipart-png"], cwd=out, check=True)
        (package,) = out.glob("openclipart-png_*.deb")
        subprocess.run(["dpkg", "-x", package.name, folder.name], cwd=out, check=True)
    return folder


def collect(source: Path, folder: Path, count: int) -> Path:
    """`count` different pictures in a folder: those of `source`, and then cut versions of them."""
    if folder.is_dir() and sum(1 for _ in folder.iterdir()) == count:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    Image.MAX_IMAGE_PIXELS = None  # sizes are looked at below
    files = [path for path in sorted(source.rglob("*.png")) if path.is_file() and not path.is_symlink()]
    random.Random(SEED).shuffle(files)
    for n, path in enumerate(files[:count]):
        target = folder / f"{n:05}.png"
        if not target.exists():
            target.hardlink_to(path)
    made = len(files[:count])
    for path in files:
        if made >= count:
            break
        with Image.open(path) as opened:
            if opened.width * opened.height > 2_000_000 or min(opened.size) < 100:
                continue
            width, height = opened.size
            opened.crop((width // 4, height // 4, width, height)).save(folder / f"{made:05}.png")
        made += 1
    return folder


def child(log: str, *words: str) -> None:
    """The command, with an embedder that counts in a file what it has embedded."""
    from scanner.cli import main as scanner
    from scanner.crawl import worker

    embed = worker.SscdEmbedder.embed

    def counted(self: worker.SscdEmbedder, images: list[Image.Image]) -> object:
        found = embed(self, images)
        with open(log, "a") as file:
            file.write(f"{len(images)}\n")
        return found

    worker.SscdEmbedder.embed = counted  # type: ignore[method-assign,assignment]
    sys.argv = ["scanner", *words]
    scanner()


def measure(folder: Path, store: Path, kills: int) -> None:
    """Adds, kills, resumes; prints the figures."""
    from scanner.match.adding import BATCH_IMAGES, PART_ROWS

    draw, log = random.Random(SEED), store.with_suffix(".log")
    words = ["corpus", "add", "bg", str(folder), "--background", "--store", str(store)]
    began, stored, embedded, lost = time.monotonic(), 0, 0, []
    for run in range(kills + 1):
        log.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, __file__, "child", str(log), *words], stderr=subprocess.PIPE, text=True
        )
        killed = False
        if run < kills:
            try:
                process.wait(draw.uniform(4, 24))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed = True
        told = process.communicate()[1]
        now = sum(map(int, log.read_text().split())) if log.exists() else 0
        rows = count(store)
        embedded += now
        lost.append(now - (rows - stored))
        print(f"run {run + 1}: {'killed' if killed else 'ended'}; embedded {now}, stored {rows}", flush=True)
        stored = rows
        if not killed:
            break
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    began = time.monotonic()
    again = subprocess.run(
        [sys.executable, __file__, "child", str(log), *words], stderr=subprocess.PIPE, text=True, check=True
    )
    unchanged_s = time.monotonic() - began
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    print(told.strip(), again.stderr.strip(), sep="\n")
    print(
        f"{len(os.listdir(folder)):,} files, {stored:,} images stored, {len(lost) - 1} kills, "
        f"{seconds:.0f} s in all; embedded {embedded:,}, of which {sum(lost):,} were lost to kills, "
        f"{max(lost)} at most to one; "
        f"{embedded / seconds:.1f} embedded a second; peak {peak:.2f} GB; adding again {unchanged_s:.1f} s; "
        f"store {size / 1e6:.0f} MB"
    )
    assert max(lost) < PART_ROWS + 2 * BATCH_IMAGES, "a kill lost more than the part that was not written"
    assert lost[-1] == 0, "a run that ended has stored what it embedded"


def count(store: Path) -> int:
    """Images stored. Fails where one is stored twice."""
    from scanner.errors import StoreError
    from scanner.store.store import Store

    try:
        opened = Store(store)
    except StoreError:
        return 0
    (row,) = opened.query("SELECT count(*) AS n, count(DISTINCT reference_id) AS ids FROM all_references")
    assert row["n"] == row["ids"], "an image was embedded although it was stored"
    return int(row["n"])


if __name__ == "__main__":
    main()
