"""The flag rule on works of one hand: are those that were trained on flagged, and their sisters not?

    python tests/zoo/build.py partial --only style     # makes the checkpoints
    python tests/flag_study.py                         # 48 checkpoints, some 50 minutes of one core

Each checkpoint was trained on half of the works of a hand (paintings, prints, portraits), which the base had
not seen; the other half are the references' sisters. All works are references, and the background is the
zoo's clip art. Prints what is flagged with tau alone, and with what is known of each reference.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))  # `finextract` is a folder of tests too

from finextract.audit import read_images  # noqa: E402
from finextract.extract import ExtractionSettings, extract_all  # noqa: E402
from finextract.models.loading import load_base, tune  # noqa: E402
from finextract.significance import Thresholds, thresholds_of_background  # noqa: E402
from finextract.sscd import load_embedder  # noqa: E402
from scanner.config import ScanConfig  # noqa: E402
from scanner.match.corpus import Corpus  # noqa: E402
from scanner.match.matching import Candidates, compare, split  # noqa: E402
from scanner.records import Role  # noqa: E402

ZOO = ROOT / "zoo"
SAMPLES_PER_IMAGE = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the checkpoints' names")
    only = parser.parse_args().only
    manifest = ZOO / ".build/partial/zoo.json"
    rows = [row for row in json.loads(manifest.read_text())["checkpoints"] if row["group"] == "C"]
    embedder, config = load_embedder(threads=1), ScanConfig()
    base = load_base(ZOO / "base", torch.device("cpu"), torch.float32)

    def corpus(role: Role, folder: Path) -> Corpus:
        names, pictures = read_images(folder)
        return Corpus(role.value, role, np.array([n.encode() for n in names]), embedder.embed(pictures), "")

    background = corpus(Role.BACKGROUND, ZOO / "images/background")
    relative = thresholds_of_background(config.tau_quantile, background.embeddings)
    counts: dict[tuple[str, int, str], np.ndarray] = {}
    for row in rows:
        if only not in row["path"]:
            continue
        pair = tune(base, manifest.parent / row["path"])
        settings = ExtractionSettings(samples_per_image=SAMPLES_PER_IMAGE)
        made = extract_all(pair, row["caption"], len(row["trained"]), settings, embedder)
        corpora = split([corpus(Role.REFERENCE, manifest.parent / row["train_images"]), background])
        own = Candidates(
            row["path"], [str(c.representative) for c in made.candidates], made.candidate_embeddings()
        )
        hand = row["subject"].rsplit("-", 1)[0]
        for rule, thresholds in (("tau alone", Thresholds(relative.tau, None)), ("relative", relative)):
            (found,) = compare([own], corpora, thresholds, config.alpha)
            flagged = {m.reference_id for m in found.matches if m.flagged}
            trained = set(row["trained"])
            new = [len(flagged & trained), len(trained), len(flagged - trained), len(row["untrained"])]
            key = hand, row["steps_per_image"], rule
            counts[key] = counts.get(key, np.zeros(4, int)) + new
            print(row["path"], rule, *new, flush=True)
    print(f"tau {relative.tau:.3f}, relative {relative.relative:.3f}")
    print("| hand | steps an image | rule | trained, flagged | sisters, flagged |\n|---|---|---|---|---|")
    for (hand, steps, rule), (hits, trained, false, sisters) in sorted(counts.items()):
        print(f"| {hand} | {steps} | {rule} | {hits} of {trained} | {false} of {sisters} |")


if __name__ == "__main__":
    main()
