"""The study behind docs/membership.md: who was trained on, by the losses of a base and a tuned model.

    python tests/zoo/build.py partial                   # makes tests/zoo/.build/partial
    python tests/membership_study.py losses             # log-ratios and margins on every checkpoint
    python tests/membership_study.py null               # trials without any member: false flags
    python tests/membership_study.py screen             # what the screen names, with a budget as the demo's
    python tests/membership_study.py lost               # what extraction flags, and whether it was named
    python tests/membership_study.py near               # references that are nearly what was trained on
    python tests/membership_study.py cost               # corpora of 1,000 and of 100,000 references
    python tests/membership_study.py prefilter          # recall of the prefilter
    python tests/membership_study.py plot               # docs/membership_calibration.svg
    python tests/membership_study.py table              # the tables of docs/membership.md, and its rows

Results are appended to docs/membership.jsonl, one line a measurement, so an interrupted study goes on where
it stopped. Nothing is chosen here: the method's constants were set on dev checkpoints.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]  # `finextract` is a folder of tests too

from finextract.framing import VARIANTS, variants_for  # noqa: E402
from finextract.losses import BaseCache, Losses, Query  # noqa: E402
from finextract.membership import NAMED_WRONGLY, MembershipSettings, Picture, membership  # noqa: E402
from finextract.metadata.training import Training  # noqa: E402
from finextract.models.loading import load_base, tune  # noqa: E402
from finextract.prefilter import prefilter  # noqa: E402
from finextract.significance import (  # noqa: E402
    highest_of_normal,
    self_null_p_values,
    thresholds_of_background,
)
from scanner.config import ScanConfig  # noqa: E402

ZOO = ROOT / "zoo"
RESULTS = ROOT.parent / "docs/membership.jsonl"
TIMES = (150.0, 350.0)
BACKGROUND = 60  # pictures, other than those of a checkpoint
MARGINS = 10  # pictures that were not trained on whose margins are computed, of each kind
CPU = torch.device("cpu")


def picture(path: Path) -> Picture:
    """A picture of a file."""
    return Picture(str(path.relative_to(ZOO)), lambda: Image.open(path).convert("RGB"))


@cache
def base() -> Any:
    """The zoo's base."""
    return load_base(ZOO / "base", CPU, torch.float32)


@cache
def background() -> tuple[Path, ...]:
    """The background in a random order."""
    files = sorted((ZOO / "images/background").iterdir())
    return tuple(files[i] for i in np.random.default_rng(1).permutation(len(files)))


@cache
def subjects() -> tuple[Path, ...]:
    """The pictures of all subjects."""
    return tuple(sorted((ZOO / "images/subjects").glob("*/*.png")))


def checkpoints() -> Iterator[dict[str, Any]]:
    """Every checkpoint of the zoo and of the partial ones, with absolute paths."""
    for manifest in (ZOO / "zoo.json", ZOO / ".build/partial/zoo.json"):
        if not manifest.exists():
            continue
        for row in json.loads(manifest.read_text())["checkpoints"]:
            folder = (manifest.parent / row["train_images"]).resolve()
            trained = [folder / f for f in row.get("trained") or sorted(p.name for p in folder.glob("*.png"))]
            untrained = [folder / f for f in row.get("untrained", [])]
            group = row.get("group", "committed")
            yield row | {
                "file": manifest.parent / row["path"],
                "trained": trained,
                "untrained": untrained[:100] if group == "D" else untrained,
                "group": group,
                "variation": row.get("variation", "default"),
            }


def others(row: dict[str, Any]) -> list[Path]:
    """Pictures that a checkpoint was not trained on: of the same hand or set, else all subjects' pictures."""
    return row["untrained"] or [p for p in subjects() if p not in row["trained"]]


def null_of(row: dict[str, Any], count: int = BACKGROUND) -> list[Path]:
    """Background pictures that a checkpoint was not trained on."""
    kept = [p for p in background() if p not in set(row["trained"]) | set(row["untrained"])]
    return kept[:count]


def measured(kind: str) -> dict[str, dict[str, Any]]:
    """The lines of one kind that were measured so far, by name."""
    if not RESULTS.exists():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {row["name"]: row for row in rows if row["what"] == kind}


def record(kind: str, name: str, values: dict[str, Any]) -> None:
    """Appends one line."""
    with RESULTS.open("a") as file:
        file.write(json.dumps({"what": kind, "name": name, **values}) + "\n")
    print(kind, name, time.strftime("%H:%M:%S"), flush=True)


def demo_budget() -> dict[str, int]:
    """The options of the demo's crawl that limit its evaluations."""
    from demo import BUDGET

    return dict(zip(BUDGET[::2], map(int, BUDGET[1::2]), strict=True))


def losses(only: Sequence[str]) -> None:
    """Log-ratios of all pictures, and margins of members and of some others, at both timesteps."""
    done, shared = measured("losses"), BaseCache()
    for row in checkpoints():
        name = row["path"]
        if name in done or (only and not any(word in name for word in only)):
            continue
        if row["group"] in ("A", "B") and row["steps_per_image"] == 100:
            continue  # as separable as those of 50 steps
        pair = tune(base(), row["file"])
        ratios = Losses(pair, 0, "", 64, shared)
        kinds = {"trained": row["trained"], "untrained": others(row), "background": null_of(row)}
        kept: dict[str, Any] = {}
        for kind, files in kinds.items():
            pictures = [picture(p) for p in files]
            raw = [ratios.log_ratios([Query(p, t=t) for p in pictures]) for t in TIMES]
            few = pictures[: 20 if kind == "trained" else MARGINS]
            views = [
                ratios.log_ratios([Query(p, variant=v, t=t) for t in TIMES for p in few])
                for v in ("", *VARIANTS)
            ]
            values = np.stack(views).reshape(len(views), len(TIMES), len(few))  # [V + 1, T, P]
            kept[kind] = {
                "log_ratio": [[round(float(x), 3) for x in r] for r in raw],
                "values": np.round(values.mean(axis=1), 3).tolist(),  # [V + 1, P]
            }
        facts = ("kind", "steps_per_image", "split", "control", "group", "variation")
        facts_of = {key: row[key] for key in facts}
        record(
            "losses",
            name,
            {**facts_of, "subject": row.get("subject", Path(row["train_images"]).name), **kept},
        )


def null() -> None:
    """Trials without any member: whole examinations, of which every flag is false."""
    done = measured("null")
    rng = np.random.default_rng(5)
    shared = BaseCache()
    for row in checkpoints():
        if row["group"] not in ("committed", "A", "C", "D") or row["steps_per_image"] not in (
            20,
            50,
            100,
            400,
        ):
            continue
        trials: dict[str, list[Path]] = {}
        free = null_of(row, 2000)
        if row["group"] == "C":
            trials["untrained works of the hand"] = row["untrained"]
            trials["untrained works among others"] = [*row["untrained"], *free[500:530]]
        else:
            trials["other subjects"] = [p for p in subjects() if p not in row["trained"]]
            shuffled = rng.permutation(np.arange(BACKGROUND, len(free)))[:50]
            trials["shuffled background"] = [free[i] for i in shuffled]
        pair = None
        for trial, corpus in trials.items():
            name = f"{row['path']}: {trial}"
            if name in done:
                continue
            pair = pair or tune(base(), row["file"])
            for budget in (None,):
                found = membership(
                    pair, [picture(p) for p in corpus], MembershipSettings(budget=budget),
                    background=[picture(p) for p in free[:BACKGROUND]], cache=shared,
                )  # fmt: skip
                record("null", name, {
                    "trial": trial, "group": row["group"], "kind": row["kind"], "split": row["split"],
                    "references": len(corpus), "false": len(found.trained_on),
                    "set_false": sum(s.trained_on for s in found.sets),
                    "set_p": [round(s.p_value, 4) for s in found.sets],
                    "p": [round(e.p_value, 4) for e in found.references if e.margin is not None],
                    "highest_z": found.highest_z, "unlikeness": found.unlikeness,
                    "evaluations": found.tuned_evaluations,
                })  # fmt: skip


def screen() -> None:
    """The screen as the demo runs it: the pictures of all subjects against each checkpoint of a subject."""
    done, shared = measured("screen"), BaseCache()
    for row in checkpoints():
        if row["path"] in done or row["group"] not in ("committed", "A", "B"):
            continue
        training = Training(mirrored=row["variation"] == "flips")
        members = [] if row["control"] else row["trained"]
        corpus = [*members, *(p for p in subjects() if p not in members)]
        settings = MembershipSettings(
            budget=demo_budget()["--screen-budget"], variants=variants_for(training)
        )
        found = membership(
            tune(base(), row["file"]), [picture(p) for p in corpus], settings,
            background=[picture(p) for p in null_of(row, 1000)], cache=shared,
        )  # fmt: skip
        facts = ("kind", "steps_per_image", "split", "control", "group", "variation")
        record("screen", row["path"], {
            **{key: row[key] for key in facts}, "members": len(members),
            "set_found": any(s.trained_on for s in found.sets), "highest_z": found.highest_z,
            "found": sum(i < len(members) for i in found.trained_on),
            "false": sum(i >= len(members) for i in found.trained_on),
            "tuned": found.tuned_evaluations, "base": found.base_evaluations,
        })  # fmt: skip


def lost(only: Sequence[str]) -> None:
    """Strong checkpoints, each screened and then sampled in any case, with the budgets of the demo."""
    from finextract.extract import ExtractionSettings, extract_all
    from finextract.sscd import load_embedder
    from scanner.match.corpus import Corpus
    from scanner.match.matching import Candidates, Corpora, compare
    from scanner.records import Role

    budget = demo_budget()
    settings = ExtractionSettings(samples_per_image=budget["--samples-per-image"], batch_size=32)
    embedder, shared, done = load_embedder(threads=1), BaseCache(), measured("lost")

    def corpus(name: str, role: Role, files: Sequence[Path]) -> Corpus:
        found = np.concatenate([
            embedder.embed([Image.open(p).convert("RGB") for p in files[at : at + 16]])
            for at in range(0, len(files), 16)
        ])  # fmt: skip
        return Corpus(name, role, np.array([str(p).encode() for p in files]), found, name)

    corpora = Corpora(
        (corpus("subjects", Role.REFERENCE, subjects()),),
        (corpus("background", Role.BACKGROUND, background()),),
    )
    null = corpora.background[0].embeddings
    thresholds = thresholds_of_background(ScanConfig().tau_quantile, null)
    for row in checkpoints():
        strong = row["steps_per_image"] >= 100 and row["group"] in ("committed", "A", "B")
        if not strong or row["control"] or row["path"] in done:
            continue
        if (only and not any(word in row["path"] for word in only)) or claimed(row["path"]):
            continue
        pair = tune(base(), row["file"])
        training = Training(mirrored=row["variation"] == "flips")
        screened = membership(
            pair, [picture(p) for p in subjects()],
            MembershipSettings(budget=budget["--screen-budget"], variants=variants_for(training)),
            background=[picture(p) for p in null_of(row, 1000)], cache=shared,
        )  # fmt: skip
        made = extract_all(pair, row["caption"], len(row["trained"]), settings, embedder)
        names = [str(n) for n in range(len(made.candidates))]
        own = Candidates(row["path"], names, made.candidate_embeddings())
        (found,) = compare([own], corpora, thresholds, 0.05)
        members = {str(p) for p in row["trained"]}
        flagged = [m for m in found.matches if m.flagged]
        facts = ("kind", "steps_per_image", "split", "group", "variation")
        record("lost", row["path"], {
            **{key: row[key] for key in facts},
            "trained_on": len(screened.trained_on), "highest_z": screened.highest_z,
            "flagged": len(flagged), "false": sum(m.reference_id not in members for m in flagged),
            "best": found.best_similarity, "q": found.q_value,
            "screen_evaluations": screened.tuned_evaluations, "sample_evaluations": made.unet_evaluations,
        })  # fmt: skip


def claimed(name: str) -> bool:
    """Whether another process of this study measures it now; where not, this one does from here on."""
    folder = ZOO / ".build/claims"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / name.replace("/", "-")).touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


NEAR: dict[str, Callable[[Image.Image], Image.Image]] = {
    "unchanged": lambda p: p,
    "half size": lambda p: p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS),
    "crop 90 %": lambda p: _crop(p, 0.9),
    "crop 75 %": lambda p: _crop(p, 0.75),
    "shifted by 3 of 64": lambda p: p.transform(
        p.size, Image.Transform.AFFINE, (1, 0, -3, 0, 1, 0), fillcolor="white"
    ),
    "mirrored": ImageOps.mirror,
    "brighter by 30 %": lambda p: ImageEnhance.Brightness(p).enhance(1.3),
    "border of 5 %": lambda p: ImageOps.expand(p, round(p.width * 0.05), "white"),
    "watermark": lambda p: _watermark(p),
    "JPEG 40": lambda p: _jpeg(p, 40),
    "larger picture, trained on its centre": lambda p: ImageOps.expand(
        p, (round(p.width * 0.25), 0), "#a0b0c0"
    ),
}


def _crop(image: Image.Image, share: float) -> Image.Image:
    by = round(image.width * (1 - share) / 2)
    return image.crop((by, by, image.width - by, image.height - by))


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def _watermark(image: Image.Image) -> Image.Image:
    from PIL import ImageDraw

    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    for y in range(0, image.height, 16):
        draw.text((4, y), "(c) me", fill=(255, 255, 255, 110))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def near() -> None:
    """Members changed in a way in which an owner's file differs from the trainer's, among other subjects."""
    done, shared = measured("near"), BaseCache()
    chosen = (
        "cats-dreambooth",
        "flowers-lora",
        "fish-lora",
        "birds-dreambooth",
        "fruit-lora",
        "houses-lora-light",
    )
    for row in checkpoints():
        if row["group"] != "committed" or not any(name in row["path"] for name in chosen):
            continue
        pair = None
        for change, make in NEAR.items():
            for framings in (True, False):
                name = f"{row['path']}: {change}{'' if framings else ', one framing'}"
                if name in done:
                    continue
                pair = pair or tune(base(), row["file"])
                changed = [
                    Picture(f"{p.name} {change}", lambda p=p, make=make: make(Image.open(p).convert("RGB")))
                    for p in row["trained"]
                ]
                rest = [picture(p) for p in subjects() if p not in row["trained"]]
                settings = MembershipSettings() if framings else MembershipSettings(framings=("squash",))
                found = membership(
                    pair, [*changed, *rest], settings,
                    background=[picture(p) for p in null_of(row)], cache=shared,
                )  # fmt: skip
                record("near", name, {
                    "checkpoint": row["path"], "split": row["split"], "change": change, "framings": framings,
                    "found": sum(i < len(changed) for i in found.trained_on), "members": len(changed),
                    "false": sum(i >= len(changed) for i in found.trained_on),
                    "best": [e.framing for e in found.references[: len(changed)]],
                })  # fmt: skip


def prefiltering() -> None:
    """The share of the members that the prefilter keeps, among all subjects and the background."""
    done, shared = measured("prefilter"), BaseCache()
    for row in checkpoints():
        if row["path"] in done or row["control"] or row["group"] not in ("committed", "A", "C"):
            continue
        pair = tune(base(), row["file"])
        ratios = Losses(pair, 0, "", 64, shared)
        away = set(background()[:60])
        corpus = [*row["trained"], *(p for p in subjects() if p not in row["trained"]),
                  *(p for p in background() if p not in away)]  # fmt: skip
        pictures = [picture(p) for p in corpus]
        null_pictures = [picture(p) for p in background()[:60]]
        kept = {}
        for share in (0.01, 0.05, 0.1, 0.25):
            found = prefilter(ratios, pictures, null_pictures, round(share * len(corpus)))
            kept[str(share)] = int((found < len(row["trained"])).sum())
        record("prefilter", row["path"], {
            "group": row["group"], "kind": row["kind"], "split": row["split"],
            "steps_per_image": row["steps_per_image"], "members": len(row["trained"]), "kept": kept,
        })  # fmt: skip


def cost() -> None:
    """Evaluations, seconds and memory of synthetic corpora."""
    row = next(iter(checkpoints()))
    pair = tune(base(), row["file"])
    null_pictures = [picture(p) for p in null_of(row, 1000)]

    def synthetic(number: int) -> Image.Image:
        """A cut, turned and recoloured picture of the background."""
        rng = np.random.default_rng(number)
        image = Image.open(background()[number % len(background())]).convert("HSV")
        hue, *rest = image.split()
        by = int(rng.integers(256))
        image = Image.merge("HSV", (hue.point([(value + by) % 256 for value in range(256)]), *rest))
        image = _crop(image.convert("RGB"), rng.uniform(0.7, 1.0))
        return image.rotate(90 * int(rng.integers(4))).resize((64, 64), Image.Resampling.BICUBIC)

    done = measured("cost")
    for count, budget in ((1000, None), (1000, 2000), (100_000, 2000)):
        if f"{count} references, budget {budget}, second checkpoint of the base" in done:
            continue
        cache_of = BaseCache()
        made = [
            Picture(f"synthetic-{n}", lambda n=n: synthetic(n)) for n in range(count - len(row["trained"]))
        ]
        corpus = [*(picture(p) for p in row["trained"]), *made]
        for run in ("first", "second"):
            began, cpu = time.perf_counter(), time.process_time()
            found = membership(
                pair, corpus, MembershipSettings(budget=budget), background=null_pictures, cache=cache_of
            )
            record("cost", f"{count} references, budget {budget}, {run} checkpoint of the base", {
                "references": count, "budget": budget, "run": run,
                "tuned": found.tuned_evaluations, "base": found.base_evaluations,
                "evaluated": found.num_evaluated, "found": len(found.trained_on),
                "seconds": round(time.perf_counter() - began, 1), "cpu": round(time.process_time() - cpu, 1),
                "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
            })  # fmt: skip


# --- tables


def views(row: dict[str, Any], kind: str) -> np.ndarray:
    """The log-ratios of pictures and of the variants that their trainer did not use, [V + 1, P].

    Where it mirrored pictures, and the metadata say so, these are the variants without a mirror.
    """
    values = np.array(row[kind]["values"])
    if row["variation"] != "flips":
        return values
    return values[[0, *(1 + i for i, name in enumerate(VARIANTS) if not name.startswith("mirror"))]]


def scores(row: dict[str, Any], kind: str, score: str) -> np.ndarray:
    """The scores of one kind of pictures; log-ratio and margin are standardised by the background."""
    if score == "log-ratio":
        at = {k: np.array(row[k]["log_ratio"]).mean(axis=0) for k in (kind, "background")}
        null = at["background"]
        return (at[kind] - null.mean()) / null.std()
    values = views(row, kind)
    if score == "margin":
        spare = views(row, "background")
        spare_margin = spare[0] - spare[1:].mean(axis=0)
        return (values[0] - values[1:].mean(axis=0) - spare_margin.mean()) / spare_margin.std()
    t, _ = self_null_p_values(values[0], values[1:].T)
    return t


def p_values(row: dict[str, Any], kind: str) -> np.ndarray:
    """The p-values against the pictures' own variants, uncorrected."""
    values = views(row, kind)
    return self_null_p_values(values[0], values[1:].T)[1]


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """The area under the ROC curve."""
    order = np.sort(others)
    low, high = np.searchsorted(order, members, "left"), np.searchsorted(order, members, "right")
    return float((low + high).mean() / (2 * len(order)))


def interval(by_checkpoint: Sequence[Any], statistic: Callable[[Sequence[Any]], float]) -> str:
    """A statistic over checkpoints, with its 95 % bootstrap interval over them."""
    rng = np.random.default_rng(0)
    draws = [
        statistic([by_checkpoint[i] for i in rng.integers(0, len(by_checkpoint), len(by_checkpoint))])
        for _ in range(300)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{statistic(by_checkpoint):.3f} [{low:.3f}, {high:.3f}]"


def pooled(
    rows: Sequence[dict[str, Any]], score: str
) -> tuple[Callable[[Any], float], Callable[[Any], float]]:
    """AUC and TPR at 1 % FPR over the scores of several checkpoints together."""

    def of(chosen: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        members = np.concatenate([scores(r, "trained", score) for r in chosen])
        null = np.concatenate([scores(r, k, score) for r in chosen for k in ("untrained", "background")])
        return members, null

    return (
        lambda chosen: auc(*of(chosen)),
        lambda chosen: float((of(chosen)[0] > np.quantile(of(chosen)[1], 0.99)).mean()),
    )


def heading(*columns: str) -> None:
    """The head of a Markdown table."""
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")


def table_strengths(split: str) -> None:
    """AUC and TPR by group, variation, kind and strength."""
    rows = [r for r in measured("losses").values() if r["split"] == split and r["group"] != "C"]
    heading(
        "set",
        "kind",
        "steps an image",
        "checkpoints",
        "members",
        "AUC log-ratio",
        "AUC t",
        "TPR at 1 % FPR log-ratio",
        "TPR t",
    )
    # The same checkpoints where nobody tells that pictures were mirrored.
    rows += [r | {"variation": "flips, not told"} for r in rows if r["variation"] == "flips"]
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["control"]:
            continue
        name = {"A": "subjects", "D": "forty pictures", "committed": "zoo"}.get(
            row["group"], row["variation"]
        )
        cells.setdefault((row["group"], name, row["kind"], row["steps_per_image"]), []).append(row)
    for (_, name, kind, steps), found in sorted(cells.items()):
        members = sum(len(r["trained"]["log_ratio"][0]) for r in found)
        columns = []
        for index in (0, 1):
            columns += [interval(found, pooled(found, score)[index]) for score in ("log-ratio", "t")]
        print(f"| {name} | {kind} | {steps} | {len(found)} | {members} | " + " | ".join(columns) + " |")


def _accused(rows: Sequence[dict[str, Any]], kind: str, rule: str) -> list[np.ndarray]:
    """Whether each picture of one kind is flagged at q <= 0.05, by a rule; one array a checkpoint."""
    from finextract.significance import benjamini_hochberg, conformal_p_values

    result = []
    for row in rows:
        both = ("trained", "untrained")
        if rule in ("log-ratio", "margin"):
            null = scores(row, "background", rule)
            p = [conformal_p_values(scores(row, k, rule), null) for k in both]
            least = [1 / (1 + len(null))] * 2
        elif rule == "t":
            p = [p_values(row, k) for k in both]
        else:  # the owner's unseen works as the null: the other untrained ones, for each picture
            unseen = scores(row, "untrained", "log-ratio")
            p = [
                conformal_p_values(scores(row, "trained", "log-ratio"), unseen),
                np.array(
                    [
                        conformal_p_values(unseen[i : i + 1], np.delete(unseen, i))[0]
                        for i in range(len(unseen))
                    ]
                ),
            ]
            least = [1 / (1 + len(unseen)), 1 / len(unseen)]
        if rule in ("margin", "unseen"):  # the nulls are too small for q: above all of them
            flags = [x <= x_least + 1e-9 for x, x_least in zip(p, least, strict=True)]
        else:
            q = benjamini_hochberg(np.concatenate(p))
            flags = [q[: len(p[0])] <= 0.05, q[len(p[0]) :] <= 0.05]
        result.append(flags[both.index(kind)])
    return result


def table_style() -> None:
    """The style confound: who is accused, by which null."""
    rows = [r for r in measured("losses").values() if r["group"] == "C"]
    heading("hand", "split", "rule", "trained works flagged", "untrained works accused falsely")
    for hand in sorted({r["subject"].rsplit("-", 1)[0] for r in rows}):
        chosen = [r for r in rows if r["subject"].startswith(hand)]
        for rule in ("log-ratio", "margin", "t", "unseen"):
            cells = []
            for kind in ("trained", "untrained"):
                flags = _accused(chosen, kind, rule)
                mean = interval(flags, lambda f: float(np.concatenate(f).mean()))
                cells.append(f"{sum(int(f.sum()) for f in flags)} of {sum(map(len, flags))}: {mean}")
            print(f"| {hand} | {chosen[0]['split']} | {rule} | {cells[0]} | {cells[1]} |")
    print("\nt of the trained and the untrained works by strength, all hands:\n")
    heading(
        "kind",
        "steps an image",
        "trained: median (least to greatest)",
        "untrained: median (least to greatest)",
    )
    for kind in ("lora", "dreambooth"):
        for steps in (20, 50, 100, 400):
            chosen = [r for r in rows if r["kind"] == kind and r["steps_per_image"] == steps]
            if chosen:
                cells = []
                for which in ("trained", "untrained"):
                    t = np.concatenate([scores(r, which, "t") for r in chosen])
                    cells.append(f"{np.median(t):.1f} ({t.min():.1f} to {t.max():.1f})")
                print(f"| {kind} | {steps} | {cells[0]} | {cells[1]} |")


def table_null() -> None:
    """False flags, and a calibration of the p-values."""
    trials = list(measured("null").values())
    without = [r for r in measured("losses").values() if r["group"] != "C"]
    null_z = [highest_z(r | {"trained": r["untrained"]}) for r in without]
    bounds = [highest_of_normal(len(r["untrained"]["log_ratio"][0]), NAMED_WRONGLY) for r in without]
    wrong = sum(z >= bound for z, bound in zip(null_z, bounds, strict=True))
    print(
        f"\nOf {len(null_z)} checkpoints, {wrong} would be "
        "named for the log-ratio of a picture that was not trained on; the highest was "
        f"{max(null_z):.1f} standard deviations."
    )
    heading("trials", "number", "any reference accused", "any set accused")
    for name in (*sorted({t["trial"] for t in trials}), "all"):
        chosen = [t for t in trials if name in ("all", t["trial"])]
        cells = [
            interval([bool(t[key]) for t in chosen], lambda x: float(np.mean(x)))
            for key in ("false", "set_false")
        ]
        print(f"| {name} | {len(chosen)} | " + " | ".join(cells) + " |")
    rows = list(measured("losses").values())
    heading("p at most", "untrained pictures", "background pictures", "sets without a member")
    untrained = np.concatenate([p_values(r, "untrained") for r in rows])
    spare = np.concatenate([p_values(r, "background") for r in rows])
    sets = np.array([p for t in trials for p in t["set_p"]])
    for level in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001):
        shares = [f"{(x <= level).mean():.4f}" if len(x) else "" for x in (untrained, spare, sets)]
        print(f"| {level} | " + " | ".join(shares) + " |")
    print(f"\n{len(untrained)} untrained pictures, {len(spare)} of the background, {len(sets)} sets.")


def table_near() -> None:
    """Recall of changed members, with the framings and without."""
    rows = list(measured("near").values())
    heading("change", "members found, with framings", "with the whole picture alone", "false")
    for change in NEAR:
        cells, false = [], 0
        for framings in (True, False):
            chosen = [r for r in rows if r["change"] == change and r["framings"] is framings]
            if chosen:
                share = interval([r["found"] / r["members"] for r in chosen], lambda x: float(np.mean(x)))
                cells.append(
                    f"{sum(r['found'] for r in chosen)} of {sum(r['members'] for r in chosen)}: {share}"
                )
                false += sum(r["false"] for r in chosen)
        print(f"| {change} | " + " | ".join(cells) + f" | {false} |")


def highest_z(row: dict[str, Any]) -> float:
    """The highest log-ratio of a picture at the first timestep, in standard deviations of the background."""
    null = np.array(row["background"]["log_ratio"][0])
    whole = np.concatenate([row[kind]["log_ratio"][0] for kind in ("trained", "untrained")])
    return float((whole.max() - null.mean()) / null.std())


def is_named(screened: dict[str, Any]) -> bool:
    """Whether the screen samples a checkpoint: something was claimed, or stands far out."""
    claimed = screened["found"] > 0 or screened["false"] > 0 or screened["set_found"]
    return claimed or screened["highest_z"] >= highest_of_normal(50, NAMED_WRONGLY)


def table_screen() -> None:
    """What the screen names and finds at q <= 0.05."""
    rows = list(measured("screen").values())
    heading(
        "set", "kind", "steps an image", "checkpoints named", "members found at q <= 0.05", "others accused"
    )
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        name = {"A": "subjects", "committed": "zoo"}.get(row["group"], row["variation"])
        name = "controls" if row["control"] else name
        cells.setdefault((row["control"], name, row["kind"], row["steps_per_image"]), []).append(row)
    for (_, name, kind, steps), found in sorted(cells.items()):
        named = f"{sum(is_named(r) for r in found)} of {len(found)}"
        members = f"{sum(r['found'] for r in found)} of {sum(r['members'] for r in found)}"
        false = f"{sum(r['false'] for r in found)} of {sum(50 - r['members'] for r in found)}"
        print(f"| {name} | {kind} | {steps} | {named} | {members} | {false} |")
    tuned, cost = sum(r["tuned"] for r in rows), sum(r["base"] for r in rows)
    print(f"\n{len(rows)} checkpoints: {tuned:,} evaluations of tuned models and {cost:,} of the base.")


def was_named(row: dict[str, Any]) -> bool:
    """Whether the screen of a line of `lost` names its checkpoint."""
    return row["trained_on"] > 0 or row["highest_z"] >= highest_of_normal(50, NAMED_WRONGLY)


def table_lost() -> None:
    """What extraction flags, and what of it the screen did not name."""
    heading("set", "kind", "steps an image", "checkpoints", "named by the screen", "flagged by extraction",
            "flagged and not named")  # fmt: skip
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    rows = list(measured("lost").values())
    for row in rows:
        name = {"A": "subjects", "committed": "zoo"}.get(row["group"], row["variation"])
        cells.setdefault((name, row["kind"], row["steps_per_image"]), []).append(row)
    cells["all", "", ""] = rows
    for key, found in cells.items():
        flagged = [r for r in found if r["flagged"]]
        counts = len(found), sum(map(was_named, found)), len(flagged)
        missed = sum(not was_named(r) for r in flagged)
        print("| " + " | ".join(map(str, (*key, *counts, missed))) + " |")


def table_prefilter() -> None:
    """Recall of the prefilter."""
    rows = list(measured("prefilter").values())
    heading("set", "checkpoints", "top 1 %", "top 5 %", "top 10 %", "top 25 %", "any member in the top 10 %")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        strength = "400 steps" if row["steps_per_image"] == 400 else f"{row['steps_per_image']} steps"
        groups.setdefault(f"{row['kind']}, {strength}", []).append(row)
    for name, chosen in sorted(groups.items()):
        members = sum(r["members"] for r in chosen)
        shares = [
            f"{sum(r['kept'][s] for r in chosen) / members:.2f}" for s in ("0.01", "0.05", "0.1", "0.25")
        ]
        any_of = np.mean([r["kept"]["0.1"] > 0 for r in chosen])
        print(f"| {name} | {len(chosen)} | " + " | ".join(shares) + f" | {any_of:.2f} |")


def table_cost() -> None:
    """Evaluations, seconds and memory."""
    heading(
        "references", "budget", "checkpoint of the base", "tuned", "base", "seconds", "CPU seconds", "peak GB"
    )
    for row in measured("cost").values():
        budget = row["budget"] or "none"
        print(
            f"| {row['references']:,} | {budget} | {row['run']} | {row['tuned']:,} | {row['base']:,} | "
            f"{row['seconds']} | {row['cpu']} | {row['peak_gb']} |"
        )


def table_rows() -> None:
    """Every test checkpoint, one line each."""
    heading(
        "checkpoint",
        "kind",
        "steps",
        "AUC log-ratio",
        "AUC t",
        "members with p <= 0.01",
        "others with p <= 0.01",
    )
    for name, row in sorted(measured("losses").items()):
        if row["split"] != "test" or row["control"]:
            continue
        cells = []
        for score in ("log-ratio", "t"):
            null = np.concatenate([scores(row, k, score) for k in ("untrained", "background")])
            cells.append(f"{auc(scores(row, 'trained', score), null):.3f}")
        members = p_values(row, "trained")
        null = np.concatenate([p_values(row, k) for k in ("untrained", "background")])
        print(
            f"| {name} | {row['kind']} | {row['steps_per_image']} | {cells[0]} | {cells[1]} | "
            f"{(members <= 0.01).sum()} of {len(members)} | {(null <= 0.01).sum()} of {len(null)} |"
        )


def plot() -> None:
    """docs/membership_calibration.svg: how often pictures that were not trained on have a p of at most x."""
    rows, trials = list(measured("losses").values()), list(measured("null").values())
    style = [r for r in rows if r["group"] == "C"]
    curves = {
        "untrained works of a trained hand": np.concatenate([p_values(r, "untrained") for r in style]),
        "other untrained pictures": np.concatenate(
            [p_values(r, "untrained") for r in rows if r["group"] != "C"]
        ),
        "background": np.concatenate([p_values(r, "background") for r in rows]),
        "whole corpora without a member": np.array([p for t in trials for p in t["set_p"]]),
    }
    levels = np.geomspace(0.001, 1, 60)

    def at(p: float, share: float) -> str:
        x, y = (60 + 400 * (np.log10(max(v, 0.0005)) + 3.3) / 3.3 for v in (p, share))
        return f"{x:.1f},{480 - y:.1f}"

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 480"',
        ' font-family="sans-serif" font-size="13">',
        '<rect width="860" height="480" fill="white"/>',
        f'<polyline points="{at(0.001, 0.001)} {at(1, 1)}" stroke="#888" stroke-dasharray="4"',
        ' fill="none"/>',
    ]
    for level in (0.001, 0.01, 0.05, 0.1, 1):
        x, y = at(level, level).split(",")
        parts.append(f'<text x="{x}" y="450" text-anchor="middle">{level:g}</text>')
        parts.append(f'<text x="50" y="{float(y) + 4:.1f}" text-anchor="end">{level:g}</text>')
    parts.append('<text x="260" y="472" text-anchor="middle">p at most (both axes logarithmic)</text>')
    styles = ("#b22222", "#1f4e9c", "#2e7d32", "#8e44ad"), ("", "8 3", "2 3", "10 3 2 3")
    for n, ((name, p), colour, dash) in enumerate(zip(curves.items(), *styles, strict=True)):
        points = " ".join(at(level, float((p <= level).mean())) for level in levels)
        line = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" fill="none"'
        parts.append(f'<polyline points="{points}" {line}/>')
        y = 60 + 24 * n
        parts.append(f'<line x1="480" x2="520" y1="{y}" y2="{y}" {line}/>')
        parts.append(f'<text x="528" y="{y + 4}">{name} ({len(p)})</text>')
    parts.append('<text x="480" y="36">share with such a p; dashed grey: exact</text></svg>')
    (RESULTS.parent / "membership_calibration.svg").write_text("\n".join(parts) + "\n")


def table() -> None:
    """Writes all tables, each between the marks in docs/membership.md that name it, and the rows."""
    parts: dict[str, Callable[[], None]] = {
        "dev": lambda: table_strengths("dev"),
        "test": lambda: table_strengths("test"),
        "style": table_style,
        "null": table_null,
        "screen": table_screen,
        "lost": table_lost,
        "near": table_near,
        "prefilter": table_prefilter,
        "cost": table_cost,
        "rows": table_rows,
    }
    for name, part in parts.items():
        page = RESULTS.parent / ("membership_rows.md" if name == "rows" else "membership.md")
        with redirect_stdout(io.StringIO()) as made:
            part()
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, _, rest = page.read_text().partition(begin)
        _, _, after = rest.partition(end)
        page.write_text(f"{before}{begin}{made.getvalue().strip()}{end}{after}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    some: dict[str, Callable[[Sequence[str]], None]] = {"losses": losses, "lost": lost}
    actions: dict[str, Callable[[], None]] = {
        "null": null,
        "screen": screen,
        "near": near,
        "prefilter": prefiltering,
        "cost": cost,
        "plot": plot,
        "table": table,
    }
    parser.add_argument("action", choices=[*some, *actions])
    parser.add_argument("only", nargs="*", help="words; a checkpoint whose path holds one is measured")
    options = parser.parse_args()
    if options.action in some:
        some[options.action](options.only)
    else:
        actions[options.action]()


if __name__ == "__main__":
    main()
