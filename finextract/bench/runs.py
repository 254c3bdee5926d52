"""A run of the benchmark of quality: files from which an interrupted run goes on, a table and a plot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from finextract.audit import picture_of_image
from finextract.bench import quality
from finextract.bench.cases import Case, read_cases
from finextract.bench.quality import Measured
from finextract.errors import RequestError
from finextract.models.loading import gpu_precision, load_base, tune
from finextract.sscd import load_embedder

PARTS = "parts"  # one file of rows for each checkpoint
SCREEN_BUDGET = 400  # evaluations of the tuned model that membership may take


def run_quality(
    manifests: Sequence[Path],
    split: str,
    only: Sequence[str],
    evaluations_per_image: int,
    batch_size: int,
    out: Path,
    say: Callable[[str], object],
    progress: Callable[[str, int, int], None],
) -> None:
    """Measures every case that has no file yet, and writes the tables of all.

    Raises RequestError where the folder holds another run, a manifest cannot be read, or matplotlib is not
    installed.
    """
    if find_spec("matplotlib") is None:
        raise RequestError("the plot needs matplotlib: pip install 'finextract-scanner[bench]'.")
    cases = read_cases(manifests, split, only)
    run = _begin(out, {"split": split, "evaluations_per_image": evaluations_per_image})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedder = load_embedder()
    own = {case.name: embedder.embed(case.references) for case in cases}
    base: tuple[Path, Any] | None = None
    for number, case in enumerate(cases, 1):
        file = out / PARTS / f"{case.name}.parquet"
        if not file.exists():
            if base is None or base[0] != case.base:
                base = None
                dtype = gpu_precision(case.base) if device.type == "cuda" else torch.float32
                base = (case.base, load_base(case.base, device, dtype))
            pair = tune(base[1], case.path)
            others = _others(case, cases)
            embedded = np.concatenate([own[other.name] for other in others])
            if case.sisters:
                embedded = np.concatenate([embedded, embedder.embed(case.sisters)])
            rows = list(
                quality.measure(case, pair, embedded, evaluations_per_image, embedder, batch_size=batch_size)
            )
            pictures = [picture_of_image(p) for other in others for p in other.references]
            membership = quality.membership_of(case, pair, pictures, SCREEN_BUDGET)
            table = pa.table(quality.columns(rows))
            table = table.replace_schema_metadata({"membership": json.dumps(membership)})
            pq.write_table(table, file)
        progress("measuring", number, len(cases))
    rows, memberships = _read(out)
    (out / "table.md").write_text(text := "\n".join(_lines(rows, memberships, run)) + "\n")
    _plot(rows, out / "curve.svg")
    say(text)
    say(f"Rows: {out / 'rows.parquet'}. Plot: {out / 'curve.svg'}.")


def facts_of_run() -> dict[str, Any]:
    """The device, its threads and the versions, on which the seconds of a run depend."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("finextract-scanner", "torch", "diffusers")},
    }


def _begin(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The facts of the run, which its folder keeps. Raises RequestError where it holds another run."""
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    run = {**asked, **facts_of_run()}
    file = out / "run.json"
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text())
        if any(kept.get(key) != value for key, value in asked.items()):
            raise RequestError(f"{out} holds a run with other settings. Name another folder with --out.")
        return kept
    file.write_text(json.dumps(run, indent=2) + "\n")
    return run


def _others(case: Case, cases: Sequence[Case]) -> list[Case]:
    """One case of each other subject, whose pictures this one was not trained on."""
    seen = {_hand(case)}
    found = []
    for other in cases:
        if _hand(other) not in seen:
            seen.add(_hand(other))
            found.append(other)
    if not found:
        raise RequestError("there is a single subject, so there are no other pictures. Use fewer --only.")
    return found


def _hand(case: Case) -> str:
    """What tells whose pictures a case has: those of one subject may be told apart by a letter."""
    return hashlib.sha256(
        b"".join(sorted(p.tobytes() for p in (*case.references, *case.sisters)))
    ).hexdigest()


def _read(out: Path) -> tuple[list[Measured], list[dict[str, Any]]]:
    tables = [pq.read_table(file) for file in sorted((out / PARTS).glob("*.parquet"))]
    memberships = [json.loads((table.schema.metadata or {})[b"membership"]) for table in tables]
    joined = pa.concat_tables(table.replace_schema_metadata() for table in tables)
    pq.write_table(joined, out / "rows.parquet")
    return [Measured(**row) for row in joined.to_pylist()], memberships


def _lines(
    rows: Sequence[Measured], memberships: Sequence[dict[str, Any]], run: dict[str, Any]
) -> list[str]:  # fmt: skip
    """The table of a run, as Markdown."""
    cases = len({row.case for row in rows})
    lines = [
        f"{cases} checkpoints of the {run['split']} subjects, at most {run['evaluations_per_image']} "
        "evaluations of either denoiser for each training image and arm; "
        f"{run['device']}, {run['threads']} threads, "
        f"{', '.join(f'{name} {number}' for name, number in run['versions'].items())}.",
        "",
        "| arm | subjects | checkpoints | AS | net of chance | A-ESR 0.7 | A-ESR 0.6 | chance at 0.6 "
        "| AS of candidates | A-ESR 0.6 of candidates | evaluations | samples | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in quality.summary(rows):
        where = "out of the domain" if row["out_of_domain"] else "in the domain"
        lines.append(
            f"| {row['arm']} | {where} | {row['cases']} | {row['average_similarity']:.3f} | {row['net']:.3f} "
            f"| {row['strict']:.3f} | {row['loose']:.3f} | {row['chance_loose']:.3f} "
            f"| {row['candidate_similarity']:.3f} | {row['candidate_loose']:.3f} "
            f"| {row['evaluations']:,.0f} | {row['samples']:.0f} | {row['seconds']:.1f} |"
        )
    lines += ["", "| compared | AS net of chance | A-ESR 0.6 | ratio of A-ESR 0.6 |", "|---|---|---|---|"]
    for one, other in ((("portfolio", 1.0), (arm, 1.0)) for arm in ("paper", "CFG 3", "direct")):
        lines.append(_compared(rows, one, other, f"portfolio - {other[0]}"))
    lines.append(_compared(rows, ("portfolio", 0.33), ("paper", 1.0), "portfolio at a third of them - paper"))
    nets = {(row.case, row.arm): row.net for row in rows if row.share == 1}
    worst, case = min(
        (net - nets[case, "direct"], case) for (case, arm), net in nets.items() if arm == "portfolio"
    )
    found, total = (sum(m[key] for m in memberships) for key in ("trained_on", "references"))
    accused, sisters = (sum(m[key] for m in memberships) for key in ("sisters_accused", "sisters"))
    spent = np.mean([m["evaluations"] for m in memberships])
    return [
        *lines,
        "",
        f"Worst against direct sampling: {case}, {worst:+.3f} of AS net of chance.",
        f"Membership: {found} of {total} training images found, {accused} of {sisters} sisters of them "
        f"accused, in {spent:.0f} evaluations of the tuned model a checkpoint.",
    ]


def _compared(rows: Sequence[Measured], one: tuple[str, float], other: tuple[str, float], name: str) -> str:
    net, loose = (quality.paired(rows, one, other, what) for what in ("net", "loose"))
    return f"| {name} | {_interval(net)} | {_interval(loose)} | {loose.ratio:.2f} |"


def _interval(found: quality.Paired) -> str:
    estimate = found.difference
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _plot(rows: Sequence[Measured], file: Path) -> None:
    """A-ESR at 0.6 against the evaluations of each arm, for the subjects in and out of the domain."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot, ticker

    places = sorted({row.out_of_domain for row in rows})
    figure, axes = pyplot.subplots(1, len(places), figsize=(5 * len(places), 4), sharey=True, squeeze=False)
    for axis, where in zip(axes[0], places, strict=True):
        own = [row for row in rows if row.out_of_domain == where]
        for arm in dict.fromkeys(row.arm for row in own):
            points = [[r for r in own if (r.arm, r.share) == (arm, share)] for share in quality.CURVE]
            axis.plot(
                [np.mean([r.evaluations for r in some]) for some in points],
                [np.mean([r.loose for r in some]) for some in points],
                marker="o", label=arm,
            )  # fmt: skip
        axis.set_title("Out of the base's domain" if where else "In the base's domain")
        axis.set_xlabel("evaluations of either denoiser")
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes[0][0].set_ylabel("A-ESR at 0.6 (share of training images)")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
