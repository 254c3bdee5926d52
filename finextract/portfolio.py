"""How an extraction spreads its samples: over the arms of a portfolio, round by round, while a round pays.

An arm is a way to guide samples: a caption and a strength of guidance. NumPy only; knows no model. Nothing
here sees a reference: an arm that was chosen because it comes near to a reference would make the similarity
of that reference larger than that of the background pictures, which the p-values compare it with.
N = samples, A = arms, D = embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finextract.cliques import Clique, similarity_matrix

EVEN_SHARE = 0.25  # of a round, for all arms alike; the rest goes to the arm whose samples agree most
SETTLED = 8  # samples of a tight clique, above which its growth tells nothing new


def spread(count: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """The arm of each of `count` samples of a round, ascending [count], by the shares [A] of the arms.

    By largest remainders; of equal ones, the first arm's.
    """
    wanted = shares / shares.sum() * count
    counts = np.floor(wanted).astype(np.int64)
    order = np.argsort(-(wanted - counts), kind="stable")
    counts[order[: count - counts.sum()]] += 1
    return np.repeat(np.arange(len(counts)), counts)


def agreement(
    embeddings: NDArray[np.float32], pictures: NDArray[np.bool_], arms: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """How far the samples of each arm agree [A]: the mean similarity of each to its nearest other sample.

    From embeddings [N, D]; `pictures` [N] are those that are neither blank nor noise, of which the others
    agree with none; `arms` [N] are their arms. An arm without a sample has 0.
    """
    nearest = np.zeros(len(embeddings))
    kept = np.flatnonzero(pictures)
    if len(kept) > 1:
        similarity = similarity_matrix(embeddings[kept])
        np.fill_diagonal(similarity, -1)
        nearest[kept] = similarity.max(axis=1)
    sums = np.bincount(arms, weights=nearest, minlength=count)
    return sums / np.maximum(1, np.bincount(arms, minlength=count))


def shares_of(agreeing: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shares of the arms [A] in the next round, from their agreement [A]."""
    shares = np.full(len(agreeing), EVEN_SHARE / len(agreeing))
    shares[int(agreeing.argmax())] += 1 - EVEN_SHARE
    return shares


def pays(before: Sequence[Clique], after: Sequence[Clique]) -> bool:
    """Whether a round brought a tight clique, or made one grow that is not settled.

    `before` and `after` are the tight cliques without and with the samples of the round.
    """
    held = {member: clique for clique in before for member in clique.members}
    for clique in after:
        earlier = {id(held[m]): held[m] for m in clique.members if m in held}.values()
        largest = max((len(c.members) for c in earlier), default=0)
        if largest == 0 or (largest < SETTLED and len(clique.members) > largest):
            return True
    return False
