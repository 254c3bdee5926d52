"""The whole method on one page: a pair of models and a caption in, candidate training images out.

An extraction runs in rounds of one batch each, so that a caller sees the samples as they come and may stop.
N = samples drawn so far, B = samples of one round, D = embedding size, K = candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from finextract.archive import SampleArchive
from finextract.cliques import Clique, find_cliques, similarity_matrix
from finextract.errors import RequestError
from finextract.guidance import (
    Guidance,
    Method,
    choose_guidance,
    classifier_free_guidance,
    correct,
    model_guidance,
)
from finextract.images import is_picture
from finextract.models.base import Model, Pair
from finextract.sampling import Predictor, initial_noise, sample_latents
from finextract.sscd import Embedder


@dataclass(frozen=True)
class ExtractionSettings:
    """How many samples an extraction draws, and how it guides them."""

    method: Method = "finextract"
    guidance_scale: float | None = None  # None = the preset of the method and the pair
    correction: float | None = None  # None = the preset
    samples_per_image: int = 50  # the paper draws 50 * N0 samples
    candidates_per_image: int = 1
    steps: int = 50
    seed: int = 0  # of the first sample; each further sample has the next seed
    batch_size: int = 32

    def guidance(self, pair: Pair) -> Guidance:
        """The guidance for a pair. Raises RequestError for settings that cannot be used."""
        if self.samples_per_image < 1 or self.candidates_per_image < 1 or self.batch_size < 1:
            raise RequestError("samples, candidates and batches must be at least 1.")
        if not 1 <= self.steps <= 1000:
            raise RequestError(f"{self.steps} sampling steps cannot be taken: choose 1 to 1000.")
        return choose_guidance(
            self.method, pair.kind, pair.base.solver.is_flow, self.guidance_scale, self.correction
        )


@dataclass(frozen=True)
class Round:
    """One batch of samples, and everything that is kept of the samples so far."""

    settings: ExtractionSettings  # with the batch size that the memory allows
    guidance: Guidance
    caption: str
    num_train_images: int  # N0 of the paper
    total: int  # samples that the settings ask for
    images: NDArray[np.uint8]  # [B, 3, H, W], of this round alone
    seeds: tuple[int, ...]  # [N]
    embeddings: NDArray[np.float32]  # [N, D], L2-normalised
    pictures: NDArray[np.bool_]  # [N]; False = blank or noise
    archive: SampleArchive  # all N samples
    seconds: dict[str, float]  # so far, by stage: sample, embed


@dataclass(frozen=True)
class Extraction:
    """The candidates among the samples that were drawn, and what the extraction cost."""

    settings: ExtractionSettings
    guidance: Guidance
    caption: str
    seeds: tuple[int, ...]  # [N]
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

    def candidate_embeddings(self) -> NDArray[np.float32]:
        """Embeddings of the representatives, [K, D]."""
        result: NDArray[np.float32] = self.embeddings[[c.representative for c in self.candidates]]
        return result

    def picture(self, index: int) -> Image.Image:
        """One sample as a PIL image."""
        return self.archive.image(index)


def extract(
    pair: Pair, caption: str, num_train_images: int, settings: ExtractionSettings, embedder: Embedder
) -> Iterator[Round]:
    """Draws guided samples batch by batch, and embeds each batch.

    `num_train_images` is N0 of the paper: samples_per_image * N0 samples are drawn in all. A caller may stop
    after any round: `conclude` makes an Extraction of it. Images of earlier rounds are in `Round.archive`.
    The prompts are conditioned once. Where a batch does not fit into the GPU's memory, the batch size is
    halved; a sample does not depend on its batch.
    Raises RequestError for settings that cannot be used, NotFinite where a model computes no numbers,
    torch.OutOfMemoryError where not even a single sample fits into memory.
    """
    if num_train_images < 1:
        raise RequestError("the number of training images must be at least 1.")
    return _rounds(pair, caption, num_train_images, settings, settings.guidance(pair), embedder)


def _rounds(
    pair: Pair,
    caption: str,
    num_train_images: int,
    settings: ExtractionSettings,
    guidance: Guidance,
    embedder: Embedder,
) -> Iterator[Round]:
    total = settings.samples_per_image * num_train_images
    seeds = tuple(range(settings.seed, settings.seed + total))
    archive, seconds = SampleArchive(), {"sample": 0.0, "embed": 0.0}
    embeddings: list[NDArray[np.float32]] = []
    pictures: list[NDArray[np.bool_]] = []
    with _timed(seconds, "sample"):
        predict = guided_predictor(pair, caption, settings.method, guidance)
    while len(archive) < total:
        batch = seeds[len(archive) : len(archive) + settings.batch_size]
        try:
            with _timed(seconds, "sample"):
                images = sample(pair.tuned, predict, batch, settings.steps)
        except torch.OutOfMemoryError:
            if settings.batch_size == 1:
                raise
            settings = replace(settings, batch_size=settings.batch_size // 2)
            continue
        with _timed(seconds, "embed"):
            pictures.append(is_picture(images))
            embeddings.append(embedder.embed([Image.fromarray(i.transpose(1, 2, 0)) for i in images]))
            archive.add(images)
        yield Round(
            settings, guidance, caption, num_train_images, total, images, seeds[: len(archive)],
            np.concatenate(embeddings), np.concatenate(pictures), archive, dict(seconds),
        )  # fmt: skip


def conclude(last: Round) -> Extraction:
    """The candidates among all samples up to a round: one representative for each clique."""
    seconds = dict(last.seconds)
    with _timed(seconds, "cliques"):
        count = last.settings.candidates_per_image * last.num_train_images
        candidates = choose_candidates(last.embeddings, last.pictures, count)
    evaluations = len(last.seeds) * last.settings.steps * (1 if last.settings.method == "direct" else 2)
    return Extraction(
        last.settings, last.guidance, last.caption, last.seeds, last.embeddings, last.pictures, candidates,
        evaluations, last.archive, seconds,
    )  # fmt: skip


def extract_all(
    pair: Pair,
    caption: str,
    num_train_images: int,
    settings: ExtractionSettings,
    embedder: Embedder,
    progress: Callable[[int, int], None] | None = None,
) -> Extraction:
    """Runs all rounds of `extract` and concludes. `progress` is called with (samples drawn, samples in all).

    Raises what `extract` raises.
    """
    for last in extract(pair, caption, num_train_images, settings, embedder):
        if progress:
            progress(len(last.seeds), last.total)
    return conclude(last)


def sample(model: Model, predict: Predictor, seeds: tuple[int, ...], steps: int) -> NDArray[np.uint8]:
    """One batch of samples, uint8 [len(seeds), 3, H, W], decoded by `model` and guided by `predict`."""
    noise = initial_noise(seeds, model.latent_shape).to(model.device).to(model.dtype)
    with torch.inference_mode():
        return model.decode(sample_latents(predict, noise, model.solver, steps)).numpy()


def guided_predictor(pair: Pair, caption: str, method: Method, guidance: Guidance) -> Predictor:
    """The guided prediction of a method. Conditions its prompts now, once for all calls."""
    base, tuned, scale = pair.base, pair.tuned, guidance.guidance_scale
    with_caption = tuned.condition(caption)
    if method == "direct":
        return lambda x, t: tuned.predict(x, t, with_caption)
    unguided = tuned if method == "cfg" else base
    empty = unguided.condition("")

    def predict(x: Tensor, t: float) -> Tensor:
        captioned = tuned.predict(x, t, with_caption)
        uncaptioned = unguided.predict(x, t, empty)
        if method == "cfg":
            return classifier_free_guidance(uncaptioned, captioned, scale)
        guided = model_guidance(uncaptioned, captioned, scale)
        return correct(base.solver, x, guided, uncaptioned, guidance.correction, t)

    return predict


def choose_candidates(
    embeddings: NDArray[np.float32], pictures: NDArray[np.bool_], count: int
) -> tuple[Clique, ...]:
    """The largest cliques among the samples that are pictures; indices are those of all samples."""
    kept = np.flatnonzero(pictures)
    cliques = find_cliques(similarity_matrix(embeddings[kept]), count)
    return tuple(
        Clique(tuple(int(kept[i]) for i in c.members), int(kept[c.representative]), c.similarity)
        for c in cliques
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
