"""Audit: what a checkpoint gives back of its training images, and what its losses say of them.

Two answers that are never mixed. "Gives back" compares an extraction with the training images. "Trained on"
is the membership of each of them. R = training images, N = samples.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finextract import metrics
from finextract.ceilings import ceilings
from finextract.extract import Extraction, ExtractionSettings, extract_all
from finextract.images import Picture, open_picture, picture_files
from finextract.membership import Membership, MembershipSettings, membership
from finextract.models.base import Pair
from finextract.sscd import Embedder


@dataclass(frozen=True)
class Audit:
    """An extraction, compared with the training images, and their membership."""

    extraction: Extraction
    descriptor: str
    names: tuple[str, ...]  # file names of the training images [R]
    references: tuple[Image.Image, ...]  # [R]
    over_samples: NDArray[np.float32]  # each training image's best similarity to a sample [R]
    over_candidates: NDArray[np.float32]  # ... to a candidate [R]
    ceilings: NDArray[np.float32]  # the similarity that a perfect copy of it would have [R]
    nearest: tuple[int, ...]  # the sample nearest to each training image [R]; empty without pictures
    membership: Membership  # of the training images
    seconds: dict[str, float]  # by stage

    @property
    def gives_back(self) -> NDArray[np.bool_]:
        """Whether a sample comes near enough to what a perfect copy of each training image would be [R]."""
        return self.over_samples > metrics.STRICT * self.ceilings

    def summary(self) -> dict[str, Any]:
        """The result as `finextract audit --json` prints it."""
        settings = self.extraction.settings
        return {
            **_scores(self.over_samples),
            "over_candidates": _scores(self.over_candidates),
            "method": settings.method,
            "preset": settings.preset,
            "caption": self.extraction.arms[0].caption,
            "strengths": self.extraction.strengths(),
            "rounds": self.extraction.rounds,
            "descriptor": self.descriptor,
            "seed": settings.seed,
            "steps": settings.steps,
            "samples": self.extraction.num_samples,
            "degenerate_samples": int((~self.extraction.pictures).sum()),
            "candidates": len(self.extraction.candidates),
            "given_back": int(self.gives_back.sum()),
            "train_images": [
                {
                    "name": name,
                    "similarity": round(float(similarity), 4),
                    "candidate_similarity": round(float(candidate), 4),
                    "ceiling": round(float(ceiling), 4),
                    "gives_back": bool(gives_back),
                    "trained_on": evidence.trained_on,
                    "membership_q": evidence.q_value,
                }
                for name, similarity, candidate, ceiling, gives_back, evidence in zip(
                    self.names,
                    self.over_samples,
                    self.over_candidates,
                    self.ceilings,
                    self.gives_back,
                    self.membership.references,
                    strict=True,
                )
            ],
            "membership": self.membership.summary(self.names),
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
    """Names (paths below the folder) and RGB pictures of the image files below a folder, sorted.

    Raises RequestError where there is none, or where one cannot be read.
    """
    files = picture_files(folder)
    return tuple(str(file.relative_to(folder)) for file in files), tuple(open_picture(file) for file in files)


def audit(
    pair: Pair,
    captions: str | Sequence[str],
    names: tuple[str, ...],
    references: tuple[Image.Image, ...],
    settings: ExtractionSettings,
    embedder: Embedder,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    examination: MembershipSettings | None = None,
    background: Sequence[Picture] = (),
) -> Audit:
    """Extracts with N0 = R, scores the result against the training images, and examines their membership.

    Raises RequestError for settings that cannot be used.
    """
    start = time.perf_counter()
    pictures_of = [picture_of_image(reference) for reference in references]
    trained = membership(pair, pictures_of, examination, background=background, progress=progress)
    membership_s = time.perf_counter() - start
    sampled = partial(progress, "sampling") if progress else None
    extraction = extract_all(pair, captions, len(references), settings, embedder, sampled)
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
        ceilings(pair.base, references, embedder),
        nearest,
        trained,
        {"membership": membership_s, **extraction.seconds, "match": time.perf_counter() - start},
    )


def picture_of_image(image: Image.Image) -> Picture:
    """An open image as a picture, identified by its pixels."""
    return Picture(hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest(), lambda: image)
