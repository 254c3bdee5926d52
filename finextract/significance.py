"""Whether a similarity is evidence: null distributions, conformal p-values, false-discovery control.

R = references, M = background images: pictures of the same kind that nothing was trained on. Numpy only;
imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
LEAST_SHARE = 0.5  # of tau, that every flag needs
LEAST_SIMILARITY = 0.05  # of two pictures that have nothing in common; a ratio to less would mean nothing


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


def nearest_two_similarities(*background: NDArray[np.float32], block: int = 4096) -> NDArray[np.float32]:
    """For each background embedding, its similarity to the two nearest other ones, the nearest first [M, 2].

    The M embeddings may be given in several arrays [m, D]; -1 stands for one that does not exist. Memory:
    `block` * `block` similarities at once; each pair is compared once.
    """
    blocks = [part[at : at + block] for part in background for at in range(0, len(part), block)]
    nearest = [np.full((len(rows), 2), -1, np.float32) for rows in blocks]
    for i, rows in enumerate(blocks):
        for j in range(i, len(blocks)):
            similarity = rows @ blocks[j].T
            if i == j:
                np.fill_diagonal(similarity, -1)
            else:
                nearest[j] = _highest_two(nearest[j], similarity.T)
            nearest[i] = _highest_two(nearest[i], similarity)
    return np.concatenate(nearest)


def _highest_two(found: NDArray[np.float32], further: NDArray[np.float32]) -> NDArray[np.float32]:
    """The two highest of each row of both, the highest first: [m, 2] and [m, n] -> [m, 2]."""
    both = np.concatenate([found, further], axis=1)
    highest: NDArray[np.float32] = -np.partition(-both, (0, 1), axis=1)[:, :2]
    return highest


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The similarity that a flag needs, from what is known of independent pictures."""

    tau: float  # enough for any picture
    relative: float | None  # times the picture's similarity to its nearest other picture; None = tau for all

    @property
    def least(self) -> float:
        """What any picture needs at least."""
        return self.tau if self.relative is None else LEAST_SHARE * self.tau

    def needed(self, nearest_other: Floats) -> NDArray[np.float64]:
        """What each picture needs [R], given its similarity to the nearest other picture [R].

        tau at most, and half of it at least: below, a candidate does not look like the picture.
        """
        if self.relative is None:
            return np.full(len(nearest_other), self.tau)
        return (self.relative * nearest_other.astype(np.float64)).clip(self.least, self.tau)


def thresholds_of_background(quantile: float, *background: NDArray[np.float32]) -> Thresholds:
    """The thresholds that all but a share of 1 - `quantile` of the independent pictures stay below.

    From the background images, which may be given in several arrays [m, D]. tau is the quantile of the
    similarities between each and its nearest neighbour: a pair that is no more similar than two independent
    images is no evidence of copying, whatever its p-value. But some kinds of pictures resemble nothing, and
    even a perfect copy of them, which has passed an autoencoder, may stay below the tau of pictures that
    resemble each other. So what counts is also how much nearer than its nearest neighbour another independent
    picture comes: `relative` is the quantile of (similarity to the nearest) / (to the second nearest), where
    the second stands for what is known. None with fewer than three images.
    """
    nearest = nearest_two_similarities(*background).astype(np.float64)
    tau = float(np.quantile(nearest[:, 0], quantile))
    if len(nearest) < 3:
        return Thresholds(tau, None)
    ratios = nearest[:, 0] / nearest[:, 1].clip(min=LEAST_SIMILARITY)
    return Thresholds(tau, max(1.0, float(np.quantile(ratios, quantile))))


def minimum_background(num_references: int, alpha: float) -> int:
    """Background images needed so that a single match among R references can reach q <= alpha."""
    return int(np.ceil(num_references / alpha)) - 1
