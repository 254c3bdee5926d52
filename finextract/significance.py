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


def self_null_p_values(scores: Floats, variants: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far each picture's score [R] lies above the scores of its own variants [R, V]: t and p, both [R].

    t = (score - mean of the variants) / (their standard deviation * sqrt(1 + 1/V)), and p is the upper tail
    of Student's distribution with V - 1 degrees of freedom: the chance that one further draw from the
    variants' distribution lies as high. Variants that are all alike give no evidence: p = 1. Needs V >= 2.
    """
    from scipy.special import stdtr

    count = variants.shape[1]
    spread = variants.std(axis=1, ddof=1).astype(np.float64) * np.sqrt(1 + 1 / count)
    margin = scores.astype(np.float64) - variants.mean(axis=1)
    known = spread > 1e-12
    statistic = np.divide(margin, spread, out=np.zeros(len(scores)), where=known)
    return statistic, np.where(known, stdtr(count - 1, -statistic), 1.0)


def sign_flip_p_value(differences: Floats, flips: int = 99_999, seed: int = 0) -> float:
    """The one-sided p of a mean above 0, for differences [N] that are symmetric about 0 under the null.

    The randomisation test of Fisher (1935): p = (1 + #{flipped means >= the mean}) / (1 + flips), with signs
    drawn from a generator of this seed. Exact for any symmetric distribution.
    """
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-1.0, 1.0]), (flips, len(differences)))
    values = differences.astype(np.float64)
    reached = int((signs @ values >= values.sum() - 1e-12).sum())
    return (1 + reached) / (1 + flips)


def highest_of_normal(count: int, share: float) -> float:
    """What the highest of `count` standard normal values exceeds with a chance of at most `share`.

    Bonferroni's bound; for no values it is that of one.
    """
    from scipy.special import ndtri

    return -float(ndtri(share / max(1, count)))


def share_above(scores: Floats, null: Floats) -> float:
    """The chance that a random score lies above a random null score (ties count half): the ROC's area."""
    ordered = np.sort(null)
    below = np.searchsorted(ordered, scores, side="left")
    at_most = np.searchsorted(ordered, scores, side="right")
    return float((below + at_most).mean() / (2 * len(ordered)))


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
