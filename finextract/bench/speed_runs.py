"""A run of the benchmark of speed: its table, and the files that it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from finextract.bench import speed
from finextract.bench.cases import Case, read_cases
from finextract.bench.floor import Variant, dense_rate, operations, timed_variants, variants
from finextract.bench.runs import facts_of_run
from finextract.bench.speed import STAGES, Speed, Timed, measure_speed
from finextract.bench.transcription import networks_of
from finextract.errors import RequestError
from finextract.models.loading import gpu_precision, load_pair
from finextract.sscd import load_embedder

ROWS, TABLE, FLOOR = "speed.parquet", "speed.md", "floor.json"


def run_speed(
    manifests: Sequence[Path],
    split: str,
    only: Sequence[str],
    samples_per_image: int,
    steps: int,
    out: Path,
    say: Callable[[str], object],
    progress: Callable[[str, int, int], None],
) -> None:
    """Measures the cases that `only` names, or the first one, and writes and says their table.

    `steps` are those of the published pipeline and of the paper preset.
    Raises RequestError where the folder holds a run, a manifest cannot be read, or a case is of another
    family than the published pipeline's.
    """
    if (out / ROWS).exists():
        raise RequestError(f"{out} holds a run, whose seconds are kept. Name another folder with --out.")
    cases = read_cases(manifests, split, only)
    cases = cases if only else cases[:1]
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedder = load_embedder(threads=torch.get_num_threads())
    rows: list[dict[str, Any]] = []
    floors: dict[str, Any] = {}
    facts = facts_of_run()
    lines = [
        f"{samples_per_image} samples for each training image, of the default up to {speed.FURTHER} times as "
        f"many until its result is as good; {facts['device']}, {facts['threads']} "
        f"threads, {', '.join(f'{name} {number}' for name, number in facts['versions'].items())}. Loading "
        "is not counted. Seconds that passed / seconds that the processors worked for this process."
    ]
    for case in cases:
        pair = load_pair(case.base, case.path, device)
        networks = networks_of(pair)
        if device.type == "cuda":
            pair = load_pair(case.base, case.path, device, gpu_precision(case.base))
        names = ("float32", "bfloat16") if device.type == "cuda" else ("float32",)
        dense = {name: dense_rate(device, getattr(torch, name)) for name in names}
        each = operations(pair)
        ways = timed_variants(networks, variants(device.type))
        found = measure_speed(case, pair, networks, embedder, samples_per_image, steps, progress)
        lines += ["", *arm_lines(case, found), "", *floor_lines(found, dense, each, ways, facts["threads"])]
        rows += [row for arm in found.arms for row in _rows(arm)]
        floors[case.name] = {
            "dense": dense,
            "operations_of_an_evaluation": each,
            "variants": [asdict(way) for way in ways],
        }
        # After every case, so that an interrupted run keeps those that it measured.
        pq.write_table(pa.Table.from_pylist(rows), out / ROWS)
        (out / FLOOR).write_text(json.dumps({**facts, "cases": floors}, indent=2) + "\n")
        (out / TABLE).write_text("\n".join(lines) + "\n")
    say((out / TABLE).read_text())
    say(f"Rows: {out / ROWS}. Table: {out / TABLE}.")


def _rows(arm: Timed) -> list[dict[str, Any]]:
    """One row for each stage, and one for all of them."""
    facts = {key: value for key, value in asdict(arm).items() if key != "spent"}
    stages = {**arm.spent, "total": arm.total}
    return [{**facts, "stage": stage, **asdict(spent)} for stage, spent in stages.items()]


def arm_lines(case: Case, found: Speed) -> list[str]:
    """The table of the arms of one case, and what it says of the aim."""
    theirs = found.arms[0]
    lines = [
        f"{case.name}, {len(case.references)} training images:",
        "",
        f"| arm | samples | evaluations | {' | '.join(STAGES)} | total | candidates | AS of candidates "
        "| A-ESR 0.6 of candidates | published / this |",
        f"|{'---|' * (len(STAGES) + 8)}",
    ]
    for arm in found.arms:
        spent = [*(arm.spent[stage] for stage in STAGES), arm.total]
        lines.append(
            f"| {arm.arm} | {arm.samples} | {arm.evaluations:,} "
            f"| {' | '.join(f'{s.seconds:.2f} / {s.processor_s:.2f}' for s in spent)} "
            f"| {arm.candidates} | {arm.average_similarity:.3f} | {arm.loose:.2f} "
            f"| {theirs.total.seconds / arm.total.seconds:.2f} "
            f"/ {theirs.total.processor_s / arm.total.processor_s:.2f} |"
        )
    agreement = found.agreement
    lines += [
        "",
        f"The samples of {speed.PAPER} and {speed.PUBLISHED} differ by {agreement.mean:.1g} of 255 grey "
        f"levels on average, {agreement.most} at most, and by more than one in {agreement.further:.2%} of "
        f"the values. The published cliques have the threshold {found.threshold:.2f}; {found.timeouts} "
        "thresholds were given up.",
    ]
    missing = [name for name in (speed.AS_GOOD, speed.AS_GOOD_OF_AS_MANY) if found.arm(name) is None]
    lines += [f"Not reached: {name}. There is no ratio at equal result." for name in missing]
    return lines


def floor_lines(
    found: Speed, dense: dict[str, float], each: int, ways: Sequence[Variant], threads: int
) -> list[str]:
    """What the device computes, and the share of it that sampling and the denoiser alone reach.

    `dense` maps a dtype to its rate: bfloat16's only on a GPU, where the shares are of it. `each` are the
    operations of one evaluation.
    """
    on_gpu = "bfloat16" in dense
    best = "bfloat16" if on_gpu else "float32"
    rates = ", ".join(f"{rate / 1e9:,.1f} billion a second in {name}" for name, rate in dense.items())
    lines = [
        f"One evaluation of a denoiser is {each / 1e9:.3f} billion operations for one sample. "
        f"Products of dense matrices reach {rates}; the shares are of that in {best}. "
        + ("Seconds are those that passed." if on_gpu else "Seconds are those of a processor at work."),
        "",
        "| | billion operations a second | share |",
        "|---|---|---|",
    ]
    for arm in found.arms[:3]:
        spent = arm.spent["sample"]
        rate = each * arm.evaluations / (spent.seconds if on_gpu else spent.processor_s / threads)
        lines.append(f"| sampling, {arm.arm} | {rate / 1e9:,.1f} | {rate / dense[best]:.0%} |")
    for way in ways:
        name = (
            f"{way.networks} denoiser{'s in turn' if way.networks > 1 else ''}, batches of {way.batch_size}, "
            f"{way.dtype}, {'compiled' if way.compiled else 'not compiled'}, attention {way.attention}"
        )
        if way.seconds is None:
            lines.append(f"| {name} | failed: {way.why} | |")
        else:
            rate = each / way.seconds
            lines.append(f"| {name} | {rate / 1e9:,.1f} | {rate / dense[best]:.0%} |")
    return lines
