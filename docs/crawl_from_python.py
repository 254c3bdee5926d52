"""Crawls a folder of checkpoints from Python, without the command line.

Adds a corpus of images to look for and a background, scans every checkpoint below a folder, and prints the
verdicts.

    python docs/crawl_from_python.py MODELS IMAGES BACKGROUND STORE --base OWNER/NAME [--samples 50]
"""

from __future__ import annotations

import argparse
from collections import deque
from pathlib import Path

from scanner.config import ScanConfig
from scanner.crawl.progress import Observer, Progress
from scanner.crawl.service import CrawlOptions, CrawlResult, crawl
from scanner.crawl.worker import SscdEmbedder
from scanner.match.corpus import add
from scanner.records import Checkpoint, Role, Scan
from scanner.store.queries import outcomes
from scanner.store.store import Store


class Printer(Observer):
    """Prints the messages of the crawl, and each verdict as it comes."""

    def message(self, text: str) -> None:
        print(text)

    def outcome(self, checkpoint: Checkpoint, scan: Scan, progress: Progress) -> None:
        print(f"{progress.done} of {progress.total}: {checkpoint.repo} is {scan.verdict} {scan.reason}")


def add_corpora(store: Store, images: Path, background: Path) -> None:
    """Embeds both folders; images that are in the store already are not embedded again."""
    embedder = SscdEmbedder()
    deque(add(store, "mine", images, embedder, Role.REFERENCE), maxlen=0)
    deque(add(store, "background", background, embedder, Role.BACKGROUND), maxlen=0)


def scan_folder(models: Path, store: Store, base: str, samples: int) -> CrawlResult:
    """Scans every checkpoint below a folder that has no verdict yet; called again, it resumes."""
    options = CrawlOptions(
        source=f"folder:{models}",
        store=store.uri,
        base=base,
        config=ScanConfig(samples_per_image=samples),
    )
    return crawl(options, Printer())


def main() -> None:
    """The command line of this example."""
    parser = argparse.ArgumentParser(description="Crawl a folder of checkpoints from Python.")
    parser.add_argument("models", type=Path)
    parser.add_argument("images", type=Path, help="images to look for")
    parser.add_argument("background", type=Path, help="images that no checkpoint was trained on")
    parser.add_argument("store", type=Path)
    parser.add_argument("--base", required=True, help="OWNER/NAME, or a local diffusers folder")
    parser.add_argument("--samples", type=int, default=50, help="samples for each training image")
    given = parser.parse_args()
    store = Store(given.store, create=True)
    add_corpora(store, given.images, given.background)
    result = scan_folder(given.models, store, given.base, given.samples)
    for row in outcomes(store, result.config_id, among=result.checkpoint_ids):
        print(row["repo"], row["verdict"], row["best_similarity"], row["reason"])
    print(result.counts)


if __name__ == "__main__":
    main()
