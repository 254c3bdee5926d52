"""The study of recovered captions: ranks of the true caption, and what the recovered one gives back.

For every committed checkpoint of the zoo that is no control, as if nothing stated its caption: the rank of
the true caption's subject among the 200 common subjects, by the caption model and by the pair, what is
recovered, and AS with the true caption, with the empty one, and with what the recovery chose.
Results are appended to a JSON-lines file, so that an interrupted study goes on where it stopped.

    python tests/caption_study.py run --split dev
    python tests/caption_study.py table
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))  # `finextract` is a folder of tests too
ZOO = ROOT / "zoo"
RESULTS = ROOT.parent / "docs/caption-study.jsonl"


def measure(split: str, samples_per_image: int, results: Path) -> None:
    """Every checkpoint of a split that has no line yet."""
    import torch

    from finextract.audit import read_images
    from finextract.caption_model import CaptionModel
    from finextract.caption_recovery import Ranking, budget_for, described, recover
    from finextract.extract import ExtractionSettings, extract_all
    from finextract.metadata.phrases import captions_of
    from finextract.metadata.vocabulary import SUBJECTS
    from finextract.metrics import best_similarity
    from finextract.models.loading import load_base, tune
    from finextract.sscd import load_embedder

    torch.set_num_threads(1)
    done = {row["name"] for row in read(results)}
    base = load_base(ZOO / "base", torch.device("cpu"), torch.float32)
    embedder, ranker = load_embedder(threads=1), CaptionModel(ZOO / "caption_model")
    for entry in json.loads((ZOO / "zoo.json").read_text())["checkpoints"]:
        name = Path(entry["path"]).name
        if entry["control"] or entry["split"] != split or name in done:
            continue
        start = time.perf_counter()
        pair = tune(base, ZOO / entry["path"])
        settings = ExtractionSettings(samples_per_image=samples_per_image)
        _, references = read_images(ZOO / entry["train_images"])
        targets = embedder.embed(references)
        true = next(s for s in SUBJECTS if entry["caption"] in captions_of(s))
        row: dict[str, Any] = {"name": name, "split": split, "caption": entry["caption"]}
        ranking = Ranking(pair, settings.batch_size, guided=False)
        seen = Ranking(pair, settings.batch_size, guided=True).images
        row["rank_by_model"] = described(ranker, seen, SUBJECTS).index(true) + 1
        first = sorted(SUBJECTS, key=lambda s: -ranking.distance(captions_of(s)[0], 1))
        last = ranking.narrowed(SUBJECTS)
        row["rank_at_first_sight"] = first.index(true) + 1
        row["rank_among_last"] = last.index(true) + 1 if true in last else None
        row["score_of_true"] = round(ranking.score(entry["caption"]), 3)
        budget = budget_for(ExtractionSettings(), pair, len(references))
        with_model, found = recover(pair, (), budget, ranker), recover(pair, (), budget)
        row |= {
            "recovered": found.best, "score": found.score, "used": bool(found.caption.text),
            "recovery_evaluations": found.evaluations, "by_model": with_model.best,
            "score_by_model": with_model.score, "by_model_evaluations": with_model.evaluations,
        }  # fmt: skip
        arms = {"true": (entry["caption"],), "empty": ("",), "recovered": found.captions}
        known: dict[tuple[str, ...], tuple[list[float], int]] = {}
        for arm, captions in arms.items():
            if captions not in known:
                extraction = extract_all(pair, captions, len(references), settings, embedder)
                best = best_similarity(targets, extraction.embeddings[extraction.pictures])
                known[captions] = [round(float(s), 4) for s in best], extraction.unet_evaluations
            row[f"over_samples_{arm}"], row[f"evaluations_{arm}"] = known[captions]
        row["seconds"] = round(time.perf_counter() - start, 1)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({k: v for k, v in row.items() if not k.startswith("over")}), flush=True)
        print({arm: round(float(np.mean(row[f"over_samples_{arm}"])), 3) for arm in arms}, flush=True)


def read(results: Path) -> list[dict[str, Any]]:
    """The lines measured so far."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def table(results: Path) -> None:
    """Markdown: a row for each checkpoint, then the share of AS that the recovery reaches."""
    print(
        "| checkpoint | split | by one probe | among the last six | by the caption model | best guess, score "
        "| AS true | AS empty | AS recovered | share |"
    )
    print("|---" * 10 + "|")
    rows = read(results)
    for row in rows:
        scores = [float(np.mean(row[f"over_samples_{arm}"])) for arm in ("true", "empty", "recovered")]
        guess = f"{row['recovered']!r}, {row['score']:.2f}" + ("" if row["used"] else ", not used")
        ranks = [row["rank_at_first_sight"], row["rank_among_last"] or "none", row["rank_by_model"]]
        cells = [row["name"], row["split"], *map(str, ranks), guess]
        cells += [*(f"{score:.3f}" for score in scores), f"{scores[2] / scores[0]:.0%}"]
        print(f"| {' | '.join(cells)} |")
    for split in ("dev", "test"):
        of_split = [row for row in rows if row["split"] == split]
        if of_split:
            means = {
                arm: np.mean([np.mean(row[f"over_samples_{arm}"]) for row in of_split])
                for arm in ("true", "empty", "recovered")
            }
            print(
                f"\n{split}: AS with the recovered caption is {means['recovered'] / means['true']:.0%} of "
                f"that with the true one; with the empty one {means['empty'] / means['true']:.0%}."
            )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    parser.add_argument("--samples-per-image", type=int, default=8, help="of 12 steps: about 165 evaluations")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.action == "run":
        measure(args.split, args.samples_per_image, args.results)
    else:
        table(args.results)


if __name__ == "__main__":
    main()
