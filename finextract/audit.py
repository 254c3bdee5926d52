"""Audit: an extraction compared with the images that the checkpoint was trained on.

It answers whether the checkpoint reproduces them. R = training images, N = samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finextract import metrics
from finextract.errors import ImageError, RequestError
from finextract.extract import Extraction, ExtractionSettings, extract_all
from finextract.images import SUFFIXES, open_image
from finextract.models.base import Pair
from finextract.sscd import Embedder


@dataclass(frozen=True)
class Audit:
    """An extraction, compared with the training images."""

    extraction: Extraction
    descriptor: str
    names: tuple[str, ...]  # file names of the training images [R]
    references: tuple[Image.Image, ...]  # [R]
    over_samples: NDArray[np.float32]  # each training image's best similarity to a sample [R]
    over_candidates: NDArray[np.float32]  # ... to a candidate [R]
    nearest: tuple[
        int, ...
    ]  # the sample that comes nearest to each training image [R]; empty without pictures
    seconds: dict[str, float]  # by stage

    def summary(self) -> dict[str, Any]:
        """The result as `finextract audit --json` prints it."""
        settings, guidance = self.extraction.settings, self.extraction.guidance
        return {
            **_scores(self.over_samples),
            "over_candidates": _scores(self.over_candidates),
            "method": settings.method,
            "guidance_scale": guidance.guidance_scale,
            "correction": guidance.correction,
            "guidance_policy": guidance.policy,
            "caption": self.extraction.caption,
            "descriptor": self.descriptor,
            "seed": settings.seed,
            "steps": settings.steps,
            "samples": self.extraction.num_samples,
            "degenerate_samples": int((~self.extraction.pictures).sum()),
            "candidates": len(self.extraction.candidates),
            "train_images": [
                {"name": n, "similarity": round(float(s), 4), "candidate_similarity": round(float(c), 4)}
                for n, s, c in zip(self.names, self.over_samples, self.over_candidates, strict=True)
            ],
            "unet_evaluations": self.extraction.unet_evaluations,
            "seconds": {stage: round(s, 2) for stage, s in self.seconds.items()},
        }


def _scores(best: NDArray[np.float32]) -> dict[str, Any]:
    average = metrics.average_similarity(best)
    rates = {str(t): metrics.extraction_success_rate(best, t) for t in (metrics.STRICT, metrics.LOOSE)}
    return {
        "average_similarity": round(average.value, 4),
        "average_similarity_interval": [round(average.low, 4), round(average.high, 4)],
        "extracted": {tau: round(rate.value * len(best)) for tau, rate in rates.items()},
        "extraction_success_rate": {tau: round(rate.value, 4) for tau, rate in rates.items()},
        "extraction_success_rate_interval": {
            tau: [round(rate.low, 4), round(rate.high, 4)] for tau, rate in rates.items()
        },
    }


def read_images(folder: Path) -> tuple[tuple[str, ...], tuple[Image.Image, ...]]:
    """Names and RGB pictures of the image files in a folder, sorted by name.

    Raises RequestError where there is none, or where one cannot be read.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder. Name the folder that holds the training images.")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
    if not files:
        raise RequestError(f"{folder} holds no images (png, jpg, webp, bmp, gif or tiff).")
    pictures = []
    for file in files:
        try:
            pictures.append(open_image(file))
        except ImageError as error:
            raise RequestError(f"{file} {error}. Repair or remove it.") from error
    return tuple(file.name for file in files), tuple(pictures)


def audit(
    pair: Pair,
    caption: str,
    names: tuple[str, ...],
    references: tuple[Image.Image, ...],
    settings: ExtractionSettings,
    embedder: Embedder,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Extracts with N0 = R and scores the result against the training images.

    Raises RequestError for settings that cannot be used.
    """
    extraction = extract_all(pair, caption, len(references), settings, embedder, progress)
    start = time.perf_counter()
    targets = embedder.embed(references)  # [R, D]
    pictures = np.flatnonzero(extraction.pictures)
    similarity = targets @ extraction.embeddings[pictures].T  # [R, number of pictures]
    nearest = tuple(int(pictures[i]) for i in similarity.argmax(axis=1)) if len(pictures) else ()
    return Audit(
        extraction,
        embedder.descriptor,
        names,
        references,
        metrics.best_similarity(targets, extraction.embeddings[pictures]),
        metrics.best_similarity(targets, extraction.candidate_embeddings()),
        nearest,
        {**extraction.seconds, "match": time.perf_counter() - start},
    )
