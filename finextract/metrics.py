"""How much of a training set was extracted. Both metrics are recall over the training images.

R = training images (references), N = extracted images. Definitions of Wu et al. (ICML 2025):
AS = mean over i of max over j of S_ij; A-ESR at tau = share of i with max over j of S_ij > tau.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRICT, LOOSE = 0.7, 0.6  # tau of the paper


@dataclass(frozen=True)
class Estimate:
    """A mean over references, with a 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def best_similarity(references: NDArray[np.float32], images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embeddings [R, D] and [N, D] -> each reference's highest similarity to an image [R]; 0 where N = 0."""
    if len(images) == 0:
        return np.zeros(len(references), np.float32)
    result: NDArray[np.float32] = (references @ images.T).clip(-1, 1).max(axis=1)
    return result


def average_similarity(best: NDArray[np.float32]) -> Estimate:
    """AS of the references' best similarities [R]."""
    return mean_with_interval(best.astype(np.float64))


def extraction_success_rate(best: NDArray[np.float32], tau: float) -> Estimate:
    """A-ESR at `tau` of the references' best similarities [R]."""
    return mean_with_interval((best > tau).astype(np.float64))


def mean_with_interval(values: NDArray[np.float64], resamples: int = 2000) -> Estimate:
    """The mean of values [N] and its percentile bootstrap interval (Efron 1979), seeded."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))
