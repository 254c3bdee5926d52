"""How long the published pipeline and ours take on one checkpoint, and how good their candidates are.

In one process on the same weights, after loading: the published pipeline (finextract.bench.transcription),
the paper preset, which draws the same samples, and the default. N0 = training images, N = samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finextract import metrics
from finextract.bench.cases import Case
from finextract.bench.stopwatch import Spent, Stopwatch
from finextract.bench.transcription import STEPS, Networks, Published, draw_published, find_published
from finextract.extract import Drawn, Extraction, ExtractionSettings, conclude, extract
from finextract.models.base import CopiedPair, Model, Pair
from finextract.sscd import Embedder

PUBLISHED, PAPER, DEFAULT = "published pipeline", "paper preset", "default"
# The default, up to the batch with which AS over its candidates is that of the published pipeline.
AS_GOOD, AS_GOOD_OF_AS_MANY = "default, as good", "default, as good with as many candidates"
FURTHER = 4  # times as many samples as the published pipeline, until the default is as good
STAGES = ("sample", "decode", "files", "embed", "cliques")


@dataclass(frozen=True)
class Timed:
    """What an arm found on a case, and what that cost."""

    case: str
    arm: str
    spent: dict[str, Spent]  # by stage, of STAGES
    samples: int
    evaluations: int  # of either denoiser, counted for each sample
    candidates: int
    average_similarity: float  # AS over the candidates
    strict: float  # A-ESR at 0.7 over the candidates
    loose: float  # at 0.6

    @property
    def total(self) -> Spent:
        """All stages together."""
        return sum(self.spent.values(), Spent())


@dataclass(frozen=True)
class Agreement:
    """How far the samples of the paper preset are those of the published pipeline, in grey levels of 255."""

    mean: float
    most: int
    further: float  # the share of the values that differ by more than one


@dataclass(frozen=True)
class Speed:
    """The arms on one case. An arm that did not become as good as the published pipeline is not there."""

    arms: tuple[Timed, ...]
    agreement: Agreement
    threshold: float  # of the published cliques
    timeouts: int  # thresholds that were given up, each after half a minute

    def arm(self, name: str) -> Timed | None:
        """The arm of a name, or None."""
        return next((arm for arm in self.arms if arm.arm == name), None)


def measure_speed(
    case: Case,
    pair: Pair,
    networks: Networks,
    embedder: Embedder,
    samples_per_image: int = 50,
    steps: int = STEPS,
    progress: Callable[[str, int, int], None] | None = None,
) -> Speed:
    """All arms on a case.

    `pair` is what ours samples, `networks` what the published pipeline does; `steps` are those of the
    published pipeline and of the paper preset. The arms draw their batches in turn, so that what else the
    machine does meets all of them; then the default goes on, as long as its rounds pay and until it is as
    good, up to FURTHER times as many samples. `progress` is called with (stage, samples drawn, at most).
    """
    count, references = len(case.references), embedder.embed(case.references)
    samples = samples_per_image * count
    paper = ExtractionSettings(preset="paper", samples_per_image=samples_per_image, steps=steps)
    default = ExtractionSettings(samples_per_image=FURTHER * samples_per_image)
    stopwatches = {arm: Stopwatch(networks.device) for arm in (PUBLISHED, PAPER, DEFAULT)}
    papers, defaults = list[_Concluded](), list[_Concluded]()
    further = _conclusions(case, pair, default, embedder, stopwatches[DEFAULT], defaults)
    with TemporaryDirectory() as name:
        own = stopwatches[PUBLISHED]
        drawn = _in_turn(
            [
                draw_published(networks, case.caption, samples, steps, Path(name), own),
                _conclusions(case, pair, paper, embedder, stopwatches[PAPER], papers),
                _up_to(further, samples),
            ],
            lambda count: progress and progress("drawing", count, 3 * samples),
        )
        published = find_published(Path(name), samples, count, embedder, own)
    if progress and drawn != 3 * samples:  # an arm ended early, or with a whole batch
        progress("drawing", 3 * samples, 3 * samples)
    chosen = published.candidate_embeddings()
    theirs = _timed(case, PUBLISHED, own.spent, samples, 2 * steps * samples, references, chosen)
    as_many = defaults[-1]
    found = [
        theirs,
        _ours(case, PAPER, papers[-1].spent, papers[-1].found, references),
        _ours(case, DEFAULT, as_many.spent, as_many.found, references),
    ]
    as_good: dict[str, Timed] = {}
    examined = 0
    while len(as_good) < 2:
        for batch in defaults[examined:]:
            kept = batch.found.candidates[: theirs.candidates]  # the best come first
            for name, so_far in (
                (AS_GOOD, batch.found),
                (AS_GOOD_OF_AS_MANY, replace(batch.found, candidates=kept)),
            ):
                timed = _ours(case, name, batch.spent, so_far, references)
                if timed.average_similarity >= theirs.average_similarity:
                    as_good.setdefault(name, timed)
        examined = len(defaults)
        if len(as_good) < 2 and (drawn := next(further, 0)) == 0:
            break
        if progress and examined < len(defaults):
            progress("drawing further", min(drawn, FURTHER * samples), FURTHER * samples)
    found += as_good.values()
    cover = published.cover
    return Speed(tuple(found), _agreement(published, papers[-1].found), cover.threshold, cover.timeouts)


@dataclass(frozen=True)
class _Concluded:
    """An extraction up to a batch, and what it cost with the candidates of all samples so far."""

    found: Extraction
    spent: dict[str, Spent]


def _conclusions(
    case: Case, pair: Pair, settings: ExtractionSettings, embedder: Embedder, stopwatch: Stopwatch,
    into: list[_Concluded],
) -> Iterator[int]:  # fmt: skip
    """Draws batches and yields how many samples there are. What is concluded of each goes `into` a list.

    Conclusions before the last one are not counted on `stopwatch`.
    """
    for last in _walk(case, pair, settings, embedder, stopwatch):
        so_far = stopwatch.copy()
        found = conclude(replace(last, losses=last.losses.copy()))
        so_far.lap("cliques")
        into.append(_Concluded(found, so_far.spent))
        yield len(last.seeds)


def _up_to(drawing: Iterator[int], samples: int) -> Iterator[int]:
    """A drawing until it has so many samples, which does not end it."""
    for count in drawing:
        yield count
        if count >= samples:
            return


def _in_turn(drawings: Sequence[Iterator[int]], drawn: Callable[[int], object]) -> int:
    """Takes a batch of the drawing that has fewest samples, until all have ended.

    `drawn` is called with the samples of all, which it returns in the end.
    """
    counts = dict.fromkeys(range(len(drawings)), 0)
    running = set(counts)
    while running:
        index = min(running, key=lambda i: counts[i])
        if (count := next(drawings[index], None)) is None:
            running.remove(index)
        else:
            counts[index] = count
            drawn(sum(counts.values()))
    return sum(counts.values())


def _walk(
    case: Case, pair: Pair, settings: ExtractionSettings, embedder: Embedder, stopwatch: Stopwatch
) -> Iterator[Drawn]:
    """The batches of `extract`. What the caller does between them does not count.

    Its questions between rounds are counted as sampling, and its archive as embedding. A batch is embedded
    beside the sampling of the next one, which has its processor seconds.
    """
    watched = CopiedPair(pair.base, cast("Model", _WatchedModel(pair.tuned, stopwatch)), pair.kind)
    stopwatch.lap(None)
    for drawn in extract(watched, case.caption, len(case.references), settings, embedder):
        stopwatch.lap("embed")
        yield drawn
        stopwatch.lap(None)
    stopwatch.lap("sample")


class _WatchedModel:
    """A model whose decoding is a stage; what comes before it is sampling."""

    def __init__(self, model: Model, stopwatch: Stopwatch) -> None:
        self._model, self._stopwatch = model, stopwatch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, C, H, W] -> RGB images uint8 [N, 3, H', W'] on the CPU."""
        self._stopwatch.lap("sample")
        images = self._model.decode(latents)
        self._stopwatch.lap("decode")
        return images


def _ours(
    case: Case, arm: str, spent: dict[str, Spent], found: Extraction, references: NDArray[np.float32]
) -> Timed:
    return _timed(
        case, arm, spent, found.num_samples, found.unet_evaluations, references,
        found.candidate_embeddings(),
    )  # fmt: skip


def _timed(
    case: Case, arm: str, spent: dict[str, Spent], samples: int, evaluations: int,
    references: NDArray[np.float32], candidates: NDArray[np.float32],
) -> Timed:  # fmt: skip
    best = metrics.best_similarity(references, candidates)
    return Timed(
        case.name, arm, {stage: spent.get(stage, Spent()) for stage in STAGES}, samples, evaluations,
        len(candidates), float(best.mean()), float((best > metrics.STRICT).mean()),
        float((best > metrics.LOOSE).mean()),
    )  # fmt: skip


def _agreement(published: Published, paper: Extraction) -> Agreement:
    ours = np.stack([np.asarray(paper.picture(i)).transpose(2, 0, 1) for i in range(paper.num_samples)])
    apart = np.abs(ours.astype(np.int16) - published.images)
    return Agreement(float(apart.mean()), int(apart.max()), float((apart > 1).mean()))
