"""The whole method on one page: a pair of models and captions in, candidate training images out.

Samples are drawn in rounds over a portfolio of strengths of guidance, until a round pays no more: each round
is drawn in batches, and a caller sees the samples as they come and may stop.
N = samples drawn so far, B = samples of one batch, D = embedding size, K = candidates, A = arms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from finextract.archive import SampleArchive
from finextract.candidates import choose_candidates, published_candidates, tight_cliques
from finextract.cliques import Clique
from finextract.embedding import Sampled, embedded_beside
from finextract.errors import RequestError
from finextract.guidance import Guidance, Method, choose_guidance, portfolio
from finextract.guided import Guided, sample
from finextract.models.base import Pair, Solver
from finextract.portfolio import pays, promise, shares_of, spread
from finextract.ranking import SampleLosses, rank_candidates
from finextract.sampling import as_published
from finextract.sscd import Embedder

# "portfolio": rounds over several strengths; "paper": as published; "single": one strength, in one round.
Preset = Literal["portfolio", "paper", "single"]
PAPER_STEPS, DDIM_STEPS, FLOW_STEPS = 50, 12, 12
LEAST_ROUNDS = 2  # before it is asked whether a round pays
MAX_SAMPLES = 20_000  # all their pairs, as similarities and as distances, are 6.4 GB by count


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to guide samples."""

    caption: str
    guidance: Guidance


@dataclass(frozen=True)
class ExtractionSettings:
    """How many samples an extraction draws, and how it guides them. None is what the preset says."""

    preset: Preset = "portfolio"
    method: Method = "finextract"
    guidance_scale: float | None = None  # a number makes it the only strength
    correction: float | None = None
    samples_per_image: int = 50  # at most; the paper draws 50 * N0 samples
    samples_per_round: int = 10  # times N0
    candidates_per_image: int = 2  # at most; the paper preset keeps as many as its rule finds
    steps: int | None = None
    seed: int = 0  # of the first sample; each further sample has the next seed
    batch_size: int = 32

    def guidances(self, pair: Pair) -> tuple[Guidance, ...]:
        """The strengths for a pair, weakest first. Raises RequestError for settings that cannot be used."""
        numbers = (
            self.samples_per_image, self.samples_per_round, self.candidates_per_image, self.batch_size,
        )  # fmt: skip
        if min(numbers) < 1:
            raise RequestError("samples, rounds, candidates and batches must be at least 1.")
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise RequestError(f"{self.steps} sampling steps cannot be taken: choose 1 to 1000.")
        preset = choose_guidance(
            self.method, pair.kind, pair.base.solver.is_flow, self.guidance_scale, self.correction
        )
        return portfolio(self.method, preset) if self.preset == "portfolio" else (preset,)

    def steps_for(self, solver: Solver) -> int:
        """The sampling steps with a solver."""
        if self.steps is not None:
            return self.steps
        return PAPER_STEPS if self.preset == "paper" else FLOW_STEPS if solver.is_flow else DDIM_STEPS


@dataclass(frozen=True)
class Drawn:
    """One batch of samples, and everything that is kept of the samples so far."""

    settings: ExtractionSettings  # with the steps, and the batch size that the memory allows
    arms: tuple[Arm, ...]  # [A]
    num_train_images: int  # N0 of the paper
    total: int  # samples that are drawn at most
    rounds: int  # that were begun
    images: NDArray[np.uint8]  # [B, 3, H, W], of this batch alone
    seeds: tuple[int, ...]  # [N]
    arm_of: NDArray[np.int64]  # [N]; indices into `arms`
    embeddings: NDArray[np.float32]  # [N, D], L2-normalised
    pictures: NDArray[np.bool_]  # [N]; False = blank or noise
    archive: SampleArchive  # all N samples
    losses: SampleLosses  # of those that were examined
    seconds: dict[str, float]  # so far, by stage: sample, embed (what sampling waited for it), cliques


@dataclass(frozen=True)
class Extraction:
    """The candidates among the samples that were drawn, and what the extraction cost."""

    settings: ExtractionSettings
    arms: tuple[Arm, ...]  # [A]
    num_train_images: int  # N0 of the paper
    rounds: int
    seeds: tuple[int, ...]  # [N]
    arm_of: NDArray[np.int64]  # [N]; indices into `arms`
    embeddings: NDArray[np.float32]  # [N, D], L2-normalised
    pictures: NDArray[np.bool_]  # [N]; False = blank or noise
    candidates: tuple[Clique, ...]  # [K]; indices into the N samples, best first
    unet_evaluations: int  # evaluations of either denoiser, counted for each sample
    archive: SampleArchive
    seconds: dict[str, float]  # by stage: sample, embed, cliques

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.seeds)

    def strengths(self) -> list[dict[str, Any]]:
        """The strengths of guidance, with their samples, as results print them."""
        counts = np.bincount(self.arm_of, minlength=len(self.arms)).tolist()
        return [
            {
                "caption": arm.caption,
                "guidance_scale": arm.guidance.guidance_scale,
                "correction": arm.guidance.correction,
                "guidance_policy": arm.guidance.policy,
                "samples": count,
            }
            for arm, count in zip(self.arms, counts, strict=True)
        ]

    def arm(self, index: int) -> Arm:
        """The arm of one sample."""
        return self.arms[int(self.arm_of[index])]

    def candidate_embeddings(self) -> NDArray[np.float32]:
        """Embeddings of the representatives, [K, D]."""
        result: NDArray[np.float32] = self.embeddings[[c.representative for c in self.candidates]]
        return result

    def picture(self, index: int) -> Image.Image:
        """One sample as a PIL image."""
        return self.archive.image(index)


def extract(
    pair: Pair,
    captions: str | Sequence[str],
    num_train_images: int,
    settings: ExtractionSettings,
    embedder: Embedder,
) -> Iterator[Drawn]:
    """Draws guided samples in rounds, batch by batch, and embeds each batch.

    The arms are every caption with every strength. The first round spreads its samples over them evenly,
    further ones prefer the arms whose samples' losses fell most (finextract.portfolio). The last round is the
    first after the second that pays nothing, or the one with which all samples are drawn that
    `settings.samples_per_image` allows. The paper preset draws all of them in one round. What is drawn
    depends on the settings alone. A caller may stop after any batch: `conclude` makes an Extraction of it.
    The prompts are conditioned once. A batch is embedded while the next one is sampled. Where a batch does
    not fit into the GPU's memory, the batch size is halved; a sample does not depend on its batch.
    Raises RequestError for settings that cannot be used, NotFinite where a model computes no numbers,
    torch.OutOfMemoryError where not even a single sample fits into memory.
    """
    if num_train_images < 1:
        raise RequestError("the number of training images must be at least 1.")
    refuse_too_many(settings, num_train_images)
    captions = (captions,) if isinstance(captions, str) else tuple(dict.fromkeys(captions))
    if not captions:
        raise RequestError("an extraction needs a caption; the empty one samples without a prompt.")
    arms = tuple(Arm(caption, guidance) for caption in captions for guidance in settings.guidances(pair))
    settings = replace(settings, steps=settings.steps_for(pair.tuned.solver))
    return _Drawing(pair, arms, num_train_images, settings, embedder).batches()


def refuse_too_many(settings: ExtractionSettings, num_train_images: int) -> None:
    """Raises RequestError where there would be more samples than can be compared with each other."""
    if (total := settings.samples_per_image * num_train_images) > MAX_SAMPLES:
        raise RequestError(
            f"{settings.samples_per_image} samples for each of {num_train_images:,} training images are "
            f"{total:,}, and at most {MAX_SAMPLES:,} can be compared with each other. Draw fewer for each "
            "image (--samples-per-image), or state fewer images: those that are given back most are found."
        )


class _Drawing:
    """The samples that were drawn so far."""

    def __init__(
        self, pair: Pair, arms: tuple[Arm, ...], num_train_images: int, settings: ExtractionSettings,
        embedder: Embedder,
    ) -> None:  # fmt: skip
        self._pair, self._arms, self._settings, self._embedder = pair, arms, settings, embedder
        self._num_train_images = num_train_images
        self._total = settings.samples_per_image * num_train_images
        self._archive, self._seconds = SampleArchive(), {"sample": 0.0, "embed": 0.0, "cliques": 0.0}
        self._losses = SampleLosses(pair, self._archive.image, settings.batch_size)
        self._embeddings: list[NDArray[np.float32]] = []
        self._pictures: list[NDArray[np.bool_]] = []
        self._arm_of: list[NDArray[np.int64]] = []
        self._rounds = 0
        self._solver = pair.tuned.solver
        if settings.preset == "paper":
            self._solver = as_published(self._solver)
        with _timed(self._seconds, "sample"):
            self._guided = {arm.caption: Guided(pair, arm.caption, settings.method) for arm in arms}

    def batches(self) -> Iterator[Drawn]:
        """All rounds."""
        cliques: list[Clique] = []
        shares = np.ones(len(self._arms))
        in_rounds = self._settings.preset == "portfolio"
        at_once = self._settings.samples_per_round * self._num_train_images if in_rounds else self._total
        while len(self._archive) < self._total:
            self._rounds += 1
            yield from self._round(spread(min(at_once, self._total - len(self._archive)), shares))
            if in_rounds and len(self._archive) < self._total:
                pictures = np.concatenate(self._pictures)
                with _timed(self._seconds, "cliques"):
                    found = tight_cliques(np.concatenate(self._embeddings), pictures)
                    if self._rounds == 1 and len(self._arms) > 1:
                        shares = self._shares(pictures)
                if self._rounds >= LEAST_ROUNDS and not pays(cliques, found):
                    return
                cliques = found

    def _shares(self, pictures: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The shares of the arms [A] in further rounds. `pictures` [N] are as in Drawn."""
        log_ratios = np.zeros(len(pictures))
        log_ratios[pictures] = self._losses.log_ratios(np.flatnonzero(pictures).tolist())
        return shares_of(promise(log_ratios, np.concatenate(self._arm_of), len(self._arms)))

    def _round(self, arms: NDArray[np.int64]) -> Iterator[Drawn]:
        """The batches of one round, whose samples have these arms [n], ascending."""
        for batch, pictures, embeddings, waited_s in embedded_beside(self._sampled(arms), self._embedder):
            self._seconds["embed"] += waited_s
            self._archive.add(batch.images)
            self._pictures.append(pictures)
            self._embeddings.append(embeddings)
            self._arm_of.append(batch.arm_of)
            yield Drawn(
                self._settings, self._arms, self._num_train_images, self._total, self._rounds, batch.images,
                tuple(range(self._settings.seed, self._settings.seed + len(self._archive))),
                np.concatenate(self._arm_of), np.concatenate(self._embeddings),
                np.concatenate(self._pictures), self._archive, self._losses, dict(self._seconds),
            )  # fmt: skip

    def _sampled(self, arms: NDArray[np.int64]) -> Iterator[Sampled]:
        """The same, not embedded yet."""
        groups = [(self._arms[a].caption, self._arms[a].guidance.is_alone) for a in arms]
        first = self._settings.seed + len(self._archive)  # of the round
        at = 0
        while at < len(arms):
            end = at + 1
            while end < min(len(arms), at + self._settings.batch_size) and groups[end] == groups[at]:
                end += 1
            chosen = [self._arms[a].guidance for a in arms[at:end]]
            try:
                with _timed(self._seconds, "sample"):
                    predict = self._guided[groups[at][0]].predictor(*chosen)
                    seeds = tuple(range(first + at, first + end))
                    images = sample(self._pair.tuned, predict, seeds, self._steps, self._solver)
            except torch.OutOfMemoryError:
                if self._settings.batch_size == 1:
                    raise
                size = self._settings.batch_size // 2
                self._settings = replace(self._settings, batch_size=size)
                continue
            yield Sampled(images, arms[at:end])
            at = end

    @property
    def _steps(self) -> int:
        assert self._settings.steps is not None, "the settings of a drawing have their steps"
        return self._settings.steps


def conclude(last: Drawn) -> Extraction:
    """The candidates among all samples up to a batch: one representative for each clique.

    Raises NotFinite where a model computes no numbers.
    """
    seconds, settings = dict(last.seconds), last.settings
    assert settings.steps is not None, "the settings of a drawing have their steps"
    models = np.array([1 if arm.guidance.is_alone else 2 for arm in last.arms])
    evaluations = settings.steps * int(models[last.arm_of].sum())
    count = settings.candidates_per_image * last.num_train_images
    with _timed(seconds, "cliques"):
        if settings.preset == "paper":
            candidates = published_candidates(last.embeddings, last.pictures, last.num_train_images)
        elif settings.preset == "single":
            candidates = choose_candidates(last.embeddings, last.pictures, count)
        else:
            candidates = rank_candidates(last.losses, last.embeddings, last.pictures, count)
    evaluations += last.losses.evaluations
    return Extraction(
        settings, last.arms, last.num_train_images, last.rounds, last.seeds, last.arm_of, last.embeddings,
        last.pictures, candidates, evaluations, last.archive, seconds,
    )  # fmt: skip


def extract_all(
    pair: Pair,
    captions: str | Sequence[str],
    num_train_images: int,
    settings: ExtractionSettings,
    embedder: Embedder,
    progress: Callable[[int, int], None] | None = None,
) -> Extraction:
    """Runs all rounds of `extract` and concludes. `progress` is called with (samples drawn, at most).

    Raises what `extract` raises.
    """
    for last in extract(pair, captions, num_train_images, settings, embedder):
        if progress:
            progress(len(last.seeds), last.total)
    if progress and len(last.seeds) < last.total:
        progress(len(last.seeds), len(last.seeds))  # ended early
    return conclude(last)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
