"""How a budget of evaluations is divided among the pictures of an examination. Knows numbers alone.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np

from finextract.errors import RequestError

PURE_NOISE, RENOISED = 32, 60  # inputs of the prefilter
PREFILTER_COST = PURE_NOISE + RENOISED  # evaluations of the tuned model, whatever the number of references
SET_SIZE = 30  # pictures of a set that are compared with their mirror images
MAX_BACKGROUND = 99  # pictures of the background that are evaluated: enough for a p of 1 %
_SEED = 0x5E7
_ENOUGH, _GOOD = 19, 59  # ... where the budget is small: a p of 5 % can be reached, and a p of 1.7 %


@dataclass(frozen=True)
class Plan:
    """How many pictures of each kind are evaluated."""

    background: int  # pictures of the background
    set_size: int  # pictures of each set, with their variants
    prefiltered: int | None  # references that pass the prefilter; None without one
    second_pass: int | None  # evaluations that are left for it; None without a budget


def plan(budget: int | None, references: int, background: int, sets: list[int], variants: int) -> Plan:
    """The plan for a number of references and background pictures, and for sets of these sizes.

    Where the budget is short, fewer background pictures are taken, then no sets, and then a prefilter.
    Raises RequestError where the budget is too small for any plan, with the smallest that would do.
    """
    if budget is None:
        return Plan(min(background, MAX_BACKGROUND), SET_SIZE, None, None)
    counts = references, background, sum(min(size, SET_SIZE) for size in sets), variants
    if (found := _within(budget, *counts)) is not None:
        return found
    enough = next(more for more in count(budget + 1) if _within(more, *counts) is not None)
    raise RequestError(
        f"A budget of {budget:,} evaluations is too small to examine {references:,} "
        f"picture{'' if references == 1 else 's'}. Allow at least {enough:,}, or give fewer pictures."
    )


def drawn(number: int, wanted: int) -> list[int]:
    """`wanted` of the indices below `number`, in a fixed random order; all where there are no more."""
    return [int(i) for i in np.random.default_rng(_SEED).permutation(number)[:wanted]]


def _within(budget: int, references: int, background: int, paired: int, variants: int) -> Plan | None:
    """The plan for a budget, of which a quarter is for the second pass; None where it is too small."""
    null = min(background, MAX_BACKGROUND)
    reserve = max(variants, budget // 4)  # a reference costs at least `variants` in the second pass
    left = budget - reserve - references
    if left < min(null, _GOOD) + paired:
        paired = 0
    if left >= min(null, _ENOUGH) + paired:
        null = min(null, left - paired)
        return Plan(null, SET_SIZE if paired else 0, None, budget - null - paired - references)
    null = min(null, _GOOD, max(_ENOUGH, (budget - reserve) // 4))
    passed = budget - reserve - null - PREFILTER_COST
    return Plan(null, 0, min(passed, references), reserve) if passed > 0 and background else None
