"""Whether a similarity is evidence: null distributions, conformal p-values, false-discovery control.

R = references, M = background images: pictures of the same kind that nothing was trained on. Numpy only;
imports no torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def conformal_p_values(scores: Floats, null: Floats) -> NDArray[np.float64]:
    """p_i = (1 + #{null >= score_i}) / (1 + M), [R].

    Valid for any distribution, as long as a reference that was not trained on is exchangeable with the
    background (Vovk et al. 2005; conformal outlier detection, Bates et al. 2023). Both scores must be taken
    the same way: the maximum over the same candidates. The least p is 1 / (M + 1).
    """
    ordered = np.sort(null)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    result: NDArray[np.float64] = (1.0 + at_least.astype(np.float64)) / (1.0 + len(ordered))
    return result


def benjamini_hochberg(p_values: Floats) -> NDArray[np.float64]:
    """q-values [R]: the least false-discovery level at which each hypothesis is rejected.

    Benjamini and Hochberg (1995); holds for conformal p-values that share one background, which are
    positively dependent (Bates et al. 2023, theorem 2).
    """
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    raised = np.asarray(p_values, np.float64)[order] * count / np.arange(1, count + 1)
    q = np.empty(count)
    q[order] = np.minimum.accumulate(raised[::-1])[::-1].clip(max=1.0)
    return q


def nearest_neighbour_similarities(background: NDArray[np.float32], block: int = 1024) -> NDArray[np.float32]:
    """For each background embedding [M, D], its similarity to the nearest other one, [M]."""
    nearest = np.empty(len(background), np.float32)
    for start in range(0, len(background), block):
        rows = background[start : start + block] @ background.T
        rows[np.arange(len(rows)), np.arange(start, start + len(rows))] = -1
        nearest[start : start + block] = rows.max(axis=1)
    return nearest


def tau_from_background(background: NDArray[np.float32], quantile: float) -> float:
    """The similarity that a flag needs, from the background alone.

    The `quantile` of the similarities between each background image and its nearest neighbour among the other
    background images. A pair that is no more similar than two independent images is no evidence of copying,
    whatever its p-value.
    """
    return float(np.quantile(nearest_neighbour_similarities(background), quantile))


def minimum_background(num_references: int, alpha: float) -> int:
    """Background images needed so that a single match among R references can reach q <= alpha."""
    return int(np.ceil(num_references / alpha)) - 1
