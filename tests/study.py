"""The study behind docs/method.md: the method's arms on the zoo's further strengths of fine-tuning.

For every checkpoint of a zoo manifest, the same seeds are sampled directly, with classifier-free guidance and
with model guidance at several scales, and each arm is audited against the training images. Results are
appended to a JSON-lines file, one line a (checkpoint, arm), so an interrupted study goes on where it stopped.
The samples' embeddings are kept beside the checkpoints, so the choice of candidates can be studied without
sampling again.

    python tests/zoo/build.py more                      # makes tests/zoo/.build/more
    python tests/study.py run                           # measures
    python tests/study.py table                         # prints the tables of docs/method.md
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))  # `finextract` is a folder of tests too
SCALES = (1.25, 1.5, 2.0, 3.0, 5.0)
ARMS: dict[str, dict[str, Any]] = {
    "direct": {"method": "direct"},
    "CFG 3": {"method": "cfg", "guidance_scale": 3.0},
    **{f"w' {w:g}": {"method": "finextract", "guidance_scale": w, "correction": 0.0} for w in SCALES},
}


def measure(manifest: Path, results: Path, samples_per_image: int, steps: int, only: list[str]) -> None:
    """Audits every (checkpoint, arm) that has no line yet."""
    import torch

    from finextract.audit import audit, read_images
    from finextract.extract import ExtractionSettings
    from finextract.models.loading import load_base, tune
    from finextract.sscd import load_embedder

    zoo = json.loads(manifest.read_text())
    results.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["path"], row["arm"]) for row in read(results)}
    base = load_base((manifest.parent / zoo["base"]).resolve(), torch.device("cpu"), torch.float32)
    embedder = load_embedder()
    for entry in zoo["checkpoints"]:
        if only and not any(word in entry["path"] for word in only):
            continue
        arms = {name: options for name, options in ARMS.items() if (entry["path"], name) not in done}
        if not arms:
            continue
        pair = tune(base, (manifest.parent / entry["path"]).resolve())
        names, references = read_images((manifest.parent / entry["train_images"]).resolve())
        for arm, options in arms.items():
            start = time.perf_counter()
            settings = ExtractionSettings(
                preset="single", samples_per_image=samples_per_image, steps=steps, **options
            )
            result = audit(pair, entry["caption"], names, references, settings, embedder)
            row = {
                "path": entry["path"], "kind": entry["kind"], "subject": Path(entry["train_images"]).name,
                "split": entry["split"], "steps_per_image": entry["steps_per_image"], "arm": arm,
                "over_samples": [round(float(s), 4) for s in result.over_samples],
                "samples_per_image": samples_per_image, "steps": steps,
                "seconds": round(time.perf_counter() - start, 1),
            }  # fmt: skip
            kept = manifest.parent / "embeddings" / f"{entry['path']} {arm}.npz"
            kept.parent.mkdir(exist_ok=True, parents=True)
            np.savez_compressed(
                kept,
                samples=result.extraction.embeddings.astype(np.float16),
                pictures=result.extraction.pictures,
                references=embedder.embed(references).astype(np.float16),
            )
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{entry['path']:44} {arm:8} AS {np.mean(row['over_samples']):.3f} {row['seconds']:.0f} s",
                flush=True,
            )


def read(results: Path) -> Iterator[dict[str, Any]]:
    """The lines measured so far."""
    if results.exists():
        for line in results.read_text().splitlines():
            yield json.loads(line)


def table(results: Path) -> None:
    """Markdown: AS (A-ESR.7, A-ESR.6) of each checkpoint and arm, then paired differences."""
    rows = list(read(results))
    arms = [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]
    by_checkpoint: dict[tuple[str, str, int, str], dict[str, list[float]]] = defaultdict(dict)
    for row in rows:
        key = (row["kind"], row["subject"], row["steps_per_image"], row["split"])
        by_checkpoint[key][row["arm"]] = row["over_samples"]
    print("| kind | subject | split | steps an image | " + " | ".join(arms) + " |")
    print("|---" * (4 + len(arms)) + "|")
    for (kind, subject, strength, split), measured in sorted(by_checkpoint.items()):
        cells = [_cell(measured[arm]) if arm in measured else "" for arm in arms]
        scores = [np.mean(measured[arm]) if arm in measured else -1 for arm in arms]
        best = int(np.argmax(scores))
        cells[best] = f"**{cells[best]}**"
        print(f"| {kind} | {subject} | {split} | {strength} | " + " | ".join(cells) + " |")
    print("\nPaired differences in AS, with a 95 % bootstrap interval over subjects:\n")
    others = [arm for arm in arms if arm not in ("direct", "CFG 3")]
    print(
        "| kind | steps an image | subjects | CFG 3 - direct | "
        + " | ".join(f"{a} - CFG 3" for a in others)
        + " |"
    )
    print("|---" * (4 + len(others)) + "|")
    groups: dict[tuple[str, int], list[dict[str, list[float]]]] = defaultdict(list)
    for (kind, _, strength, _), measured in sorted(by_checkpoint.items()):
        if set(arms) <= set(measured):
            groups[kind, strength].append(measured)
    for (kind, strength), group in sorted(groups.items()):
        cells = [_difference(group, "CFG 3", "direct")] + [_difference(group, arm, "CFG 3") for arm in others]
        print(f"| {kind} | {strength} | {len(group)} | " + " | ".join(cells) + " |")


def _cell(similarities: list[float]) -> str:
    values = np.array(similarities)
    return f"{values.mean():.3f} ({(values > 0.7).mean():.1f}, {(values > 0.6).mean():.1f})"


def _difference(group: list[dict[str, list[float]]], one: str, other: str) -> str:
    by_subject = np.array([np.mean(np.subtract(m[one], m[other])) for m in group])
    rng = np.random.default_rng(0)
    means = by_subject[rng.integers(0, len(by_subject), (2000, len(by_subject)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{by_subject.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("only", nargs="*", help="words; a checkpoint whose path holds one is measured")
    parser.add_argument("--manifest", type=Path, default=ROOT / "zoo/.build/more/zoo.json")
    parser.add_argument("--results", type=Path, default=ROOT.parent / "docs/study.jsonl")
    parser.add_argument("--samples-per-image", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    if options.action == "table":
        table(options.results)
    elif not options.manifest.exists():
        sys.exit(f"{options.manifest} is missing: make it with `python tests/zoo/build.py more`.")
    else:
        measure(options.manifest, options.results, options.samples_per_image, options.steps, options.only)


if __name__ == "__main__":
    main()
