"""At which time does a loss show best what was trained on? Asked for the base of each family of the zoo.

    python tests/family_study.py run                    # appends what is missing to docs/families.jsonl
    python tests/family_study.py table                  # prints the table of docs/membership.md

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
from finextract.models.loading import load_base, tune  # noqa: E402

RESULTS = ROOT.parent / "docs/families.jsonl"
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
            ratios = Losses(tune(base, row["file"]), 0, "", 64, shared)
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


def measured() -> list[dict[str, Any]]:
    """The lines measured so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> None:
    """AUC by family, strength and time, of log-ratios and of margins against those of the background."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in measured():
        groups[row["family"], "strong" if row["steps_per_image"] >= 200 else "weak"].append(row)
    print("| family | strength | checkpoints | value | " + " | ".join(f"t {t:g}" for t in TIMES) + " |")
    print("|---" * (4 + len(TIMES)) + "|")
    for (family, strength), rows in groups.items():
        for value in ("log_ratio", "margin"):
            cells = [
                np.mean(
                    [auc(*(np.array(r[kind][value][i]) for kind in ("trained", "background"))) for r in rows]
                )
                for i in range(len(TIMES))
            ]
            print(
                f"| {family} | {strength} | {len(rows)} | {value.replace('_', '-')} | "
                + " | ".join(f"{cell:.3f}" for cell in cells)
                + " |"
            )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "table"])
    run() if parser.parse_args().action == "run" else table()


if __name__ == "__main__":
    main()
