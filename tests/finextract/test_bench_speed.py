"""The benchmark of speed on one of the zoo's checkpoints, at a cost that shows how it works."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from finextract.bench.cases import Case, read_cases
from finextract.bench.floor import Variant, dense_rate, operations, timed_variants, variants
from finextract.bench.published_cliques import maximal_cliques, published_cover
from finextract.bench.speed import AS_GOOD, DEFAULT, PAPER, PUBLISHED, STAGES, Speed, Timed, measure_speed
from finextract.bench.speed_runs import arm_lines, floor_lines
from finextract.bench.stopwatch import Spent, Stopwatch
from finextract.bench.transcription import networks_of
from finextract.cli import cli
from finextract.commands import bench
from finextract.errors import RequestError
from finextract.models.base import CopiedPair, Pair
from finextract.models.loading import load_pair
from finextract.sscd import load_embedder

ZOO = Path(__file__).resolve().parents[1] / "zoo" / "zoo.json"
CPU = torch.device("cpu")
SAMPLES_PER_IMAGE, STEPS = 2, 4


@pytest.fixture(scope="module")
def case() -> Case:
    return read_cases([ZOO], "test", ["fish-lora"])[0]


@pytest.fixture(scope="module")
def pair(case: Case) -> Pair:
    return load_pair(case.base, case.path, CPU)


@pytest.fixture(scope="module")
def found(case: Case, pair: Pair) -> Speed:
    return measure_speed(case, pair, networks_of(pair), load_embedder(), SAMPLES_PER_IMAGE, STEPS)


def arm(found: Speed, name: str) -> Timed:
    result = found.arm(name)
    assert result is not None
    return result


def test_the_published_pipeline_and_the_paper_preset_draw_the_same_samples(found: Speed) -> None:
    assert found.agreement.most <= 2
    assert found.agreement.mean < 0.01
    assert found.agreement.further < 1e-3
    for name in (PUBLISHED, PAPER):
        assert arm(found, name).samples == 10
        assert arm(found, name).evaluations == 2 * STEPS * 10


def test_stages_add_up_to_the_total_and_every_arm_has_all_of_them(found: Speed) -> None:
    for timed in found.arms:
        assert tuple(timed.spent) == STAGES
        for stage in ("sample", "decode", "embed", *(["files"] if timed.arm == PUBLISHED else [])):
            assert timed.spent[stage].seconds > 0
            assert timed.spent[stage].processor_s > 0
        assert timed.total.seconds == pytest.approx(sum(spent.seconds for spent in timed.spent.values()))
        assert timed.spent["sample"].seconds > timed.spent["decode"].seconds
    assert arm(found, DEFAULT).samples == 10


def test_an_arm_that_is_as_good_costs_no_more_than_the_whole_of_it(found: Speed) -> None:
    """Four steps give the published pipeline little, so the default reaches it."""
    as_good = arm(found, AS_GOOD)
    assert as_good.average_similarity >= arm(found, PUBLISHED).average_similarity
    assert as_good.samples <= arm(found, DEFAULT).samples
    assert as_good.total.seconds <= arm(found, DEFAULT).total.seconds


def test_a_result_that_was_not_reached_is_told(case: Case, found: Speed) -> None:
    without = replace(found, arms=tuple(a for a in found.arms if a.arm in (PUBLISHED, PAPER, DEFAULT)))
    assert f"Not reached: {AS_GOOD}. There is no ratio at equal result." in arm_lines(case, without)


def embeddings(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Some are alike: they are scattered around six points."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((6, 8))[rng.integers(0, 6, count)] + 0.6 * rng.standard_normal((count, 8))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("num_train_images", [1, 4, 9])
def test_the_published_cover_divides_all_samples_into_cliques_at_its_threshold(
    num_train_images: int,
) -> None:
    samples = embeddings(60)
    cover = published_cover(samples, num_train_images)
    assert sorted(i for clique in cover.cliques for i in clique) == list(range(60))
    similarity = samples @ samples.T
    for clique in cover.cliques:
        for i, j in combinations(clique, 2):
            assert similarity[i, j] >= cover.threshold
    assert num_train_images <= len(cover.cliques)
    assert [len(clique) for clique in cover.cliques] == sorted(map(len, cover.cliques), reverse=True)
    for clique, representative in zip(cover.cliques, cover.representatives, strict=True):
        mean = samples[list(clique)].mean(axis=0)
        nearest = min(clique, key=lambda i: float(np.linalg.norm(samples[i] - mean)))
        assert representative == nearest


def graph(vertices: int, edges: list[tuple[int, int]]) -> list[int]:
    neighbours = [0] * vertices
    for i, j in edges:
        neighbours[i] |= 1 << j
        neighbours[j] |= 1 << i
    return neighbours


def sets(cliques: list[int], vertices: int) -> list[set[int]]:
    return sorted(({v for v in range(vertices) if clique >> v & 1} for clique in cliques), key=sorted)


def test_the_maximal_cliques_of_a_small_graph_are_all_listed_once() -> None:
    """Two triangles with a common edge, a further edge, and a vertex alone."""
    neighbours = graph(6, [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (3, 4)])
    found = list(maximal_cliques(neighbours, 0b111111))
    assert sets(found, 6) == [{0, 1, 2}, {1, 2, 3}, {3, 4}, {5}]


def test_the_maximal_cliques_of_random_graphs_are_those_that_trying_every_set_gives() -> None:
    for seed in range(5):
        chance = random.Random(seed)
        edges = [pair for pair in combinations(range(9), 2) if chance.random() < 0.6]
        neighbours = graph(9, edges)
        cliques = [
            chosen
            for chosen in range(1, 1 << 9)
            if all(chosen & ~(1 << v) & ~neighbours[v] == 0 for v in range(9) if chosen >> v & 1)
        ]
        maximal = [c for c in cliques if not any(c != d and c & d == c for d in cliques)]
        assert sets(list(maximal_cliques(neighbours, (1 << 9) - 1)), 9) == sets(maximal, 9)


def test_a_threshold_that_takes_too_long_is_given_up_for_the_next() -> None:
    """The graph of many like samples has more maximal cliques than can be listed."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((120, 4)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    patient, hasty = (published_cover(points, 4, limit_s=limit) for limit in (30.0, 0.0))
    assert patient.timeouts == 0
    assert hasty.timeouts > 0
    assert hasty.threshold > patient.threshold


def test_a_stopwatch_divides_all_the_time_that_counts() -> None:
    stopwatch = Stopwatch(CPU)
    time.sleep(0.02)
    stopwatch.lap("one")
    time.sleep(0.02)
    stopwatch.lap(None)
    other = stopwatch.copy()
    time.sleep(0.02)
    other.lap("two")
    assert set(stopwatch.spent) == {"one"}
    assert stopwatch.total.seconds >= 0.02
    assert other.spent["two"].seconds >= 0.02
    assert other.total == other.spent["one"] + other.spent["two"]
    assert other.spent["two"].processor_s < 0.02  # it slept


def test_the_operations_of_a_denoiser_are_counted_and_variants_are_timed(pair: Pair) -> None:
    each = operations(pair)
    assert 3e8 < each < 6e8  # the zoo's UNet of 4 million weights on 16 x 16 latents
    assert dense_rate(CPU, torch.float32, least_s=0.1) > 1e8
    ways = [Variant("float32", False, "chosen by torch", 2, 1), Variant("bfloat16", False, "plain", 2, 2)]
    for way in timed_variants(networks_of(pair), ways, least_s=0.01):
        assert way.seconds is not None
        assert 0 < way.seconds < 10


def test_a_gpu_is_asked_about_precision_compilation_attention_batches_and_networks(found: Speed) -> None:
    ways = variants("cuda")
    for field in ("dtype", "compiled", "attention", "batch_size", "networks"):
        assert len({getattr(way, field) for way in ways}) > 1
    made = [replace(ways[0], seconds=0.01), replace(ways[1], why="out of memory")]
    lines = floor_lines(found, {"float32": 1e11, "bfloat16": 5e11}, 10**9, made, 1)
    assert "the shares are of that in bfloat16. Seconds are those that passed." in lines[0]
    assert lines[-2].endswith("| 100.0 | 20% |")
    assert "failed: out of memory" in lines[-1]


def run(out: Path, *words: str) -> Result:
    command = ["bench", "speed", "--zoo", str(ZOO), "--samples-per-image", "1", "--out", str(out), *words]
    return CliRunner().invoke(cli, command, catch_exceptions=False)


def test_the_command_writes_a_row_for_each_stage_and_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "STEPS", STEPS)
    out = tmp_path / "speed"
    result = run(out, "--only", "fish-lora")
    rows = pq.read_table(out / "speed.parquet").to_pylist()
    stages = [*STAGES, "total"]
    arms = [row["arm"] for row in rows[:: len(stages)]]
    assert arms[:3] == [PUBLISHED, PAPER, DEFAULT]
    assert [(row["arm"], row["stage"]) for row in rows] == [(a, s) for a in arms for s in stages]
    assert {row["case"] for row in rows} == {"fish-lora"}
    whole = {row["arm"]: row for row in rows if row["stage"] == "total"}
    assert whole[PUBLISHED]["evaluations"] == 2 * STEPS * 5
    text = (out / "speed.md").read_text()
    assert text in result.output
    assert "| published pipeline | 5 | 40 |" in text
    floor = json.loads((out / "floor.json").read_text())
    assert floor["threads"] == torch.get_num_threads()
    assert floor["cases"]["fish-lora"]["dense"]["float32"] > 0
    with pytest.raises(RequestError, match="holds a run, whose seconds are kept"):
        run(out)


def test_what_cannot_be_measured_is_refused_before_anything_is_timed(tmp_path: Path, pair: Pair) -> None:
    with pytest.raises(RequestError, match="no checkpoint of the manifests fits"):
        run(tmp_path / "out", "--only", "no such name")
    assert run(tmp_path / "out", "--samples-per-image", "0").exit_code == 2
    sdxl = ZOO.parent / "sdxl" / "base"
    other = load_pair(sdxl, next((ZOO.parent / "sdxl" / "checkpoints").iterdir()), CPU)
    with pytest.raises(RequestError, match=r"samples Stable Diffusion 1\.x alone"):
        networks_of(other)
    with pytest.raises(RequestError, match=r"samples Stable Diffusion 1\.x alone"):
        networks_of(CopiedPair(pair.base, other.tuned, "lora"))


def test_spent_time_adds_up() -> None:
    assert Spent(1.0, 2.0) + Spent(0.5, 0.25) == Spent(1.5, 2.25)
