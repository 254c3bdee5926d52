"""At which time does a loss show best what was trained on? Asked for the base of each family of the zoo.

    python tests/family_study.py run                    # appends what is missing to docs/families.jsonl
    python tests/family_study.py weak                   # of weaker LoRA of the flow model, made for it
    python tests/family_study.py table                  # prints the tables of docs/membership.md

For each checkpoint and each of TIMES, the log-ratios of the pictures that it was trained on, of the other
subjects' pictures and of pictures of the background; and the margins, in spreads of a picture's own variants,
of the pictures that it was trained on and of some of the background. AUC is the share of pairs, one picture
that was trained on and one that was not, in which the first has the higher value.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]  # `finextract` is a folder of tests too

from membership_study import CPU, ZOO, auc, null_of, picture, subjects  # noqa: E402
from servers.hub import family_zoos  # noqa: E402

from finextract.framing import VARIANTS  # noqa: E402
from finextract.losses import BaseCache, Losses, Query  # noqa: E402
from finextract.models.base import CopiedPair, Pair  # noqa: E402
from finextract.models.loading import load_base, tune  # noqa: E402

RESULTS = ROOT.parent / "docs/families.jsonl"
WEAK = (5, 10)  # steps an image
TIMES = (50.0, 150.0, 250.0, 350.0, 450.0, 550.0, 650.0, 750.0, 850.0)
BACKGROUND, MARGINS = 60, 10


def checkpoints(zoo: Path) -> list[dict[str, Any]]:
    """A zoo's checkpoints, with absolute paths."""
    rows = json.loads((zoo / "zoo.json").read_text())["checkpoints"]
    for row in rows:
        folder = (zoo / row["train_images"]).resolve()
        row |= {"file": zoo / row["path"], "trained": sorted(folder.glob("*.png")), "untrained": []}
    return rows


def run() -> None:
    """Measures every checkpoint that has no line yet."""
    done = {row["path"] for row in measured()}
    for zoo in (ZOO, *family_zoos(ZOO)):
        family = "sd1" if zoo == ZOO else zoo.name
        base, shared = load_base(zoo / "base", CPU, torch.float32), BaseCache()
        for row in checkpoints(zoo):
            if row["path"] in done:
                continue
            measure(family, tune(base, row["file"]), row, shared)


def measure(family: str, pair: Pair, row: dict[str, Any], shared: BaseCache) -> None:
    """Appends the line of one checkpoint."""
    ratios = Losses(pair, 0, "", 64, shared)
    found: dict[str, Any] = {}
    for kind, files in (
        ("trained", row["trained"]),
        ("other subjects", [p for p in subjects() if p not in row["trained"]]),
        ("background", null_of(row, BACKGROUND)),
    ):
        pictures = [picture(path) for path in files]
        few = pictures[:MARGINS]
        log_ratios, margins = [], []
        for t in TIMES:
            log_ratios.append(ratios.log_ratios([Query(p, t=t) for p in pictures]))
            if kind != "other subjects":
                views = [ratios.log_ratios([Query(p, variant=v, t=t) for p in few]) for v in VARIANTS]
                spread = np.std(views, axis=0, ddof=1)
                margins.append((log_ratios[-1][: len(few)] - np.mean(views, axis=0)) / spread)
        found[kind] = {
            "log_ratio": np.round(log_ratios, 3).tolist(),  # [T, P]
            "margin": np.round(margins, 2).tolist(),
        }
    facts = {key: row[key] for key in ("path", "kind", "steps_per_image", "split", "control")}
    with RESULTS.open("a") as file:
        file.write(json.dumps({"family": family, **facts, **found}) + "\n")
    print(family, row["path"], flush=True)


def weak() -> None:
    """Tunes the flow model on every subject for WEAK steps an image, and measures what has no line yet."""
    sys.path.append(str(ZOO))
    from _captions import SUBJECTS
    from _larger import Checkpoint, flow_zoo

    done, zoo, shared = {row["path"] for row in measured()}, flow_zoo(), BaseCache()
    parts = zoo.load_base()
    base: Any = load_base(zoo.root / "base", CPU, torch.float32)
    for subject, steps in product(SUBJECTS, WEAK):
        made = Checkpoint(f"{subject}-lora-{steps}", "made", subject, "lora", "diffusers", steps)
        row = made.row("sd3") | {"path": f"made/{made.name}", "untrained": []}
        if row["path"] in done:
            continue
        row["trained"] = zoo.pictures(made)
        tuned = zoo.tuned(made, parts)["transformer"].requires_grad_(False)
        measure("sd3", CopiedPair(base, replace(base, transformer=tuned), "lora"), row, shared)


def measured() -> list[dict[str, Any]]:
    """The lines measured so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> None:
    """AUC by family, strength and time, of log-ratios and of margins against those of the background."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in measured():
        split = row["split"] if row["path"].startswith("made/") else "all"
        groups[row["family"], row["steps_per_image"], split].append(row)
    print(
        "| family | steps an image | split | checkpoints | value | "
        + " | ".join(f"t {t:g}" for t in TIMES)
        + " |"
    )
    print("|---" * (5 + len(TIMES)) + "|")
    for (family, steps, split), rows in sorted(groups.items()):
        for value in ("log_ratio", "margin"):
            cells = [
                np.mean(
                    [auc(*(np.array(r[kind][value][i]) for kind in ("trained", "background"))) for r in rows]
                )
                for i in range(len(TIMES))
            ]
            print(
                f"| {family} | {steps} | {split} | {len(rows)} | {value.replace('_', '-')} | "
                + " | ".join(f"{cell:.3f}" for cell in cells)
                + " |"
            )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "weak", "table"])
    {"run": run, "weak": weak, "table": table}[parser.parse_args().action]()


if __name__ == "__main__":
    main()
