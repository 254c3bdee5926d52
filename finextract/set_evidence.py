"""What the losses of a pair say about a set of pictures as a whole. finextract.membership has the question.

N = pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finextract.significance import sign_flip_p_value

MIN_SET = 6  # with fewer pictures no sign pattern is rare enough
_SEED = 0x5E7


@dataclass(frozen=True, slots=True)
class SetEvidence:
    """What the pair's losses say about a set of references as a whole."""

    name: str
    num_pictures: int  # of the set that were compared with their variants
    log_ratio: float  # their mean
    margin: float  # the mean log-ratio less that of the pictures' first variants
    low: float  # its 95 % bootstrap interval
    high: float
    p_value: float
    q_value: float = 1.0
    trained_on: bool = False


def set_evidence(name: str, ratios: list[float], variants: list[float]) -> SetEvidence:
    """A set's margin over its pictures' variants [N], with its bootstrap interval (Efron 1979).

    The test is exact for mirror images. Moved pictures of a set that was not trained on have the higher
    log-ratios (docs/membership.md), so with them it errs on the side of no claim.
    """
    differences = np.sort(np.array(ratios) - np.array(variants))  # the order of the set has no effect
    rng = np.random.default_rng(_SEED)
    means = differences[rng.integers(0, len(differences), (2000, len(differences)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    p = sign_flip_p_value(differences)
    mean = float(differences.mean())
    return SetEvidence(name, len(ratios), float(np.mean(ratios)), mean, float(low), float(high), p)
