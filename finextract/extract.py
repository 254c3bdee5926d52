"""The whole method on one page: a pair of models and a caption in, candidate training images out.

N = samples, D = embedding size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from finextract.cliques import Clique, find_cliques, similarity_matrix
from finextract.errors import RequestError
from finextract.guidance import classifier_free_guidance, model_guidance
from finextract.images import is_picture
from finextract.models.loading import Pair
from finextract.sampling import Predictor, ddim, initial_noise
from finextract.sscd import Embedder

Method = Literal["finextract", "cfg", "direct"]
METHODS: tuple[Method, ...] = ("finextract", "cfg", "direct")


@dataclass(frozen=True)
class Preset:
    """A guidance that was published with its result."""

    guidance_scale: float
    correction: float


DREAMBOOTH = Preset(guidance_scale=3.0, correction=-0.02)  # Wu et al., DreamBooth set: A-ESR.7 0.25
LORA = Preset(guidance_scale=5.0, correction=0.0)  # Wu et al., rank 64, DreamBooth set: A-ESR.7 0.04
CFG = Preset(guidance_scale=3.0, correction=0.0)  # their baseline, DreamBooth set: A-ESR.7 0.15


@dataclass(frozen=True)
class ExtractionSettings:
    """What an extraction costs and how it guides. None means the method's preset."""

    method: Method = "finextract"
    guidance_scale: float | None = None  # w' of the paper; s of classifier-free guidance
    correction: float | None = None  # k of the paper
    samples_per_image: int = 50  # the paper draws 50 * N0 samples
    candidates_per_image: int = 1
    steps: int = 50
    seed: int = 0  # of the first sample; the others follow
    batch_size: int = 32

    def resolved(self, kind: Literal["full", "lora"]) -> ExtractionSettings:
        """The same settings with the preset's numbers in the places left open.

        Raises RequestError for a number that cannot be used.
        """
        if self.samples_per_image < 1 or self.candidates_per_image < 1 or self.batch_size < 1:
            raise RequestError("samples, candidates and batches must be at least 1.")
        if not 1 <= self.steps <= 1000:
            raise RequestError(f"{self.steps} sampling steps cannot be taken: choose 1 to 1000.")
        if self.method == "direct":
            if self.guidance_scale not in (None, 1.0) or self.correction:
                raise RequestError("direct sampling takes no guidance scale and no correction.")
            return replace(self, guidance_scale=1.0, correction=0.0)
        preset = CFG if self.method == "cfg" else LORA if kind == "lora" else DREAMBOOTH
        if self.method == "cfg" and self.correction:
            raise RequestError("classifier-free guidance takes no correction.")
        return replace(
            self,
            guidance_scale=preset.guidance_scale if self.guidance_scale is None else self.guidance_scale,
            correction=preset.correction if self.correction is None else self.correction,
        )


@dataclass(frozen=True)
class Extraction:
    """What came out, and what it cost."""

    settings: ExtractionSettings  # resolved
    caption: str
    images: NDArray[np.uint8]  # [N, 3, H, W]
    seeds: tuple[int, ...]  # [N]
    embeddings: NDArray[np.float32]  # [N, D], L2-normalised
    pictures: NDArray[np.bool_]  # [N]; False = blank or noise
    candidates: tuple[Clique, ...]  # indices into the N samples, best first
    unet_evaluations: int  # per-sample evaluations of either UNet
    seconds: dict[str, float] = field(default_factory=dict)  # by stage: sample, embed, cliques

    def candidate_embeddings(self) -> NDArray[np.float32]:
        """Embeddings of the representatives, [K, D]."""
        result: NDArray[np.float32] = self.embeddings[[c.representative for c in self.candidates]]
        return result

    def picture(self, index: int) -> Image.Image:
        """One sample as a PIL picture."""
        return Image.fromarray(self.images[index].transpose(1, 2, 0))


def extract(
    pair: Pair,
    caption: str,
    num_train_images: int,
    settings: ExtractionSettings,
    embedder: Embedder,
    progress: Callable[[int, int], None] | None = None,
) -> Extraction:
    """Samples with guidance, embeds the samples, finds cliques, keeps one image a clique.

    `num_train_images` is N0 of the paper: N = samples_per_image * N0 samples are drawn. `progress` is told
    (samples drawn, N).
    Where the memory does not do, the batch is halved, and the settings that come back say so.
    Raises RequestError for settings that cannot be used.
    """
    settings = settings.resolved(pair.kind)
    total = settings.samples_per_image * num_train_images
    seeds = range(settings.seed, settings.seed + total)
    seconds: dict[str, float] = {}
    with _timed(seconds, "sample"):
        batches: list[NDArray[np.uint8]] = []
        drawn = 0
        while drawn < total:
            try:
                batches.append(sample(pair, caption, seeds[drawn : drawn + settings.batch_size], settings))
            except torch.OutOfMemoryError:  # a sample does not depend on its batch, so a smaller one will do
                if settings.batch_size == 1:
                    raise
                settings = replace(settings, batch_size=settings.batch_size // 2)
                continue
            drawn += len(batches[-1])
            if progress:
                progress(drawn, total)
        images = np.concatenate(batches)
    with _timed(seconds, "embed"):
        pictures = is_picture(images)
        embeddings = embedder.embed([Image.fromarray(i.transpose(1, 2, 0)) for i in images])
    with _timed(seconds, "cliques"):
        candidates = choose_candidates(embeddings, pictures, settings.candidates_per_image * num_train_images)
    evaluations = total * settings.steps * (1 if settings.method == "direct" else 2)
    return Extraction(
        settings, caption, images, tuple(seeds), embeddings, pictures, candidates, evaluations, seconds
    )


def sample(pair: Pair, caption: str, seeds: range, settings: ExtractionSettings) -> NDArray[np.uint8]:
    """One batch of samples, uint8 [len(seeds), 3, H, W]. `settings` are resolved."""
    tuned = pair.tuned
    noise = initial_noise(seeds, tuned.latent_shape).to(tuned.device)
    noise = noise.to(next(tuned.unet.parameters()).dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        latents = ddim(
            predictor(pair, caption, settings),
            noise,
            tuned.alphas_cumprod,
            settings.steps,
            offset=tuned.steps_offset,
            final_alpha_cumprod=tuned.final_alpha_cumprod,
        )
        return tuned.decode(latents).numpy()


def predictor(pair: Pair, caption: str, settings: ExtractionSettings) -> Predictor:
    """The guided noise prediction of a method."""
    base, tuned = pair.base, pair.tuned
    scale, correction = settings.guidance_scale, settings.correction
    assert scale is not None, "settings are resolved"
    assert correction is not None, "settings are resolved"
    with_caption, empty = tuned.embed_prompt(caption), tuned.embed_prompt("")
    base_empty = base.embed_prompt("")

    def predict(x: Tensor, t: int) -> Tensor:
        eps = tuned.predict_noise(x, t, with_caption)
        if settings.method == "direct":
            return eps
        if settings.method == "cfg":
            return classifier_free_guidance(tuned.predict_noise(x, t, empty), eps, scale)
        return model_guidance(base.predict_noise(x, t, base_empty), eps, scale, correction)

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
    yield
    seconds[stage] = time.perf_counter() - start
