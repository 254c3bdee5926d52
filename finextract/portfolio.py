"""How an extraction spreads its samples: over the arms of a portfolio, round by round, while a round pays.

An arm is a way to guide samples: a caption and a strength of guidance. NumPy only; knows no model. Nothing
here sees a reference: an arm that was chosen because it comes near to a reference would make the similarity
of that reference larger than that of the background pictures, which the p-values compare it with.
N = samples, A = arms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finextract.cliques import Clique

EVEN_SHARE = 0.25  # of a round, for all arms alike; the rest goes to the most promising arms
PREFERRED = 2  # arms that share the rest of a round
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


def promise(
    log_ratios: NDArray[np.floating], arms: NDArray[np.int64], count: int
) -> NDArray[np.float64]:  # fmt: skip
    """How near the samples of each arm come to training images [A]: the mean of their log-ratios of losses.

    From the log-ratios [N] (finextract.ranking), 0 for what is no picture, and the arms [N]. An arm without a
    sample has 0.
    """
    sums = np.bincount(arms, weights=log_ratios, minlength=count)
    return sums / np.maximum(1, np.bincount(arms, minlength=count))


def shares_of(promising: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shares of the arms [A] in the further rounds, from their promise [A]."""
    shares = np.full(len(promising), EVEN_SHARE / len(promising))
    preferred = np.argsort(-promising, kind="stable")[:PREFERRED]
    shares[preferred] += (1 - EVEN_SHARE) / len(preferred)
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
