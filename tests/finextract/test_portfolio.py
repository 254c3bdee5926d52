"""How samples are spread over the arms of a portfolio, and when a round pays."""

from __future__ import annotations

import numpy as np
import pytest

from finextract.cliques import Clique
from finextract.portfolio import SETTLED, pays, promise, shares_of, spread


@pytest.mark.parametrize(
    ("count", "shares", "expected"),
    [
        (10, [1, 1], [5, 5]),
        (10, [1, 1, 1], [4, 3, 3]),
        (2, [1, 1, 1], [1, 1, 0]),
        (10, [0.125, 0.125, 0.625, 0.125], [2, 1, 6, 1]),
        (1, [0.2, 0.8], [0, 1]),
    ],
)
def test_the_samples_of_a_round_are_spread_by_the_largest_remainders(
    count: int, shares: list[float], expected: list[int]
) -> None:
    arms = spread(count, np.array(shares, np.float64))
    assert np.bincount(arms, minlength=len(shares)).tolist() == expected
    assert (np.diff(arms) >= 0).all()


def test_the_two_arms_whose_losses_fell_most_share_three_quarters_of_further_rounds() -> None:
    found = promise(np.array([0.1, 0.3, 0.9, 0.7, 0.0]), np.array([0, 0, 1, 1, 1]), 3)
    assert found == pytest.approx([0.2, 1.6 / 3, 0])
    assert shares_of(found) == pytest.approx([0.375 + 0.25 / 3, 0.375 + 0.25 / 3, 0.25 / 3])
    assert shares_of(np.array([0.5])).tolist() == [1]


def clique(*members: int) -> Clique:
    return Clique(members, members[0], 0.8)


def test_a_round_pays_that_brings_a_clique_or_makes_a_small_one_grow() -> None:
    settled = clique(*range(SETTLED))
    grown = clique(*range(SETTLED + 1))
    assert pays([], [clique(0, 1)])
    assert pays([clique(0, 1)], [clique(0, 1), clique(7, 8)])
    assert pays([clique(0, 1)], [clique(0, 1, 9)])
    assert not pays([clique(0, 1)], [clique(0, 1)])
    assert not pays([settled], [grown])
    assert pays([settled], [grown, clique(90, 91)])
    assert not pays([], [])


def test_a_clique_that_falls_apart_does_not_pay() -> None:
    assert not pays([clique(0, 1, 2)], [clique(0, 1)])
