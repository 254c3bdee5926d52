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


def p_and_q_by_count(scores: Floats, null: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`conformal_p_values` and `benjamini_hochberg` of all scores [R], by how many null scores reach a score.

    Returns p [M + 1] and q [M + 1]: a score that c of the M null scores reach (are at least as high as) has
    p[c] and q[c]. Both increase with c. Costs one sort of the scores, and no work for each of them.
    """
    ordered, levels = np.sort(scores), np.sort(null)[::-1]
    p = (1.0 + np.arange(len(null) + 1, dtype=np.float64)) / (1.0 + len(null))
    rank = np.full(len(null) + 1, len(scores))  # scores that at most c null scores reach
    rank[:-1] -= np.searchsorted(ordered, levels, side="right")
    raised = np.full(len(p), np.inf)
    np.divide(p * len(scores), rank, out=raised, where=rank > 0)
    return p, np.minimum.accumulate(raised[::-1])[::-1].clip(max=1.0)


def nearest_neighbour_similarities(
    *background: NDArray[np.float32], block: int = 4096
) -> NDArray[np.float32]:  # fmt: skip
    """For each background embedding, its similarity to the nearest other one, [M].

    The M embeddings may be given in several arrays [m, D]. Memory: `block` * `block` similarities at once;
    each pair is compared once.
    """
    blocks = [part[at : at + block] for part in background for at in range(0, len(part), block)]
    nearest = [np.full(len(rows), -1, np.float32) for rows in blocks]
    for i, rows in enumerate(blocks):
        for j in range(i, len(blocks)):
            similarity = rows @ blocks[j].T
            if i == j:
                np.fill_diagonal(similarity, -1)
            else:
                np.maximum(nearest[j], similarity.max(axis=0), out=nearest[j])
            np.maximum(nearest[i], similarity.max(axis=1), out=nearest[i])
    return np.concatenate(nearest)


def tau_from_background(quantile: float, *background: NDArray[np.float32]) -> float:
    """The similarity that a flag needs, from the background alone.

    The `quantile` of the similarities between each background image and its nearest neighbour among the other
    background images, which may be given in several arrays [m, D]. A pair that is no more similar than two
    independent images is no evidence of copying, whatever its p-value.
    """
    return float(np.quantile(nearest_neighbour_similarities(*background), quantile))


def minimum_background(num_references: int, alpha: float) -> int:
    """Background images needed so that a single match among R references can reach q <= alpha."""
    return int(np.ceil(num_references / alpha)) - 1
