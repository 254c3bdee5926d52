"""How samples are spread over the arms of a portfolio, and when a round pays."""

from __future__ import annotations

import numpy as np
import pytest

from finextract.cliques import Clique
from finextract.portfolio import SETTLED, agreement, pays, shares_of, spread


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


def test_the_arm_whose_samples_agree_most_gets_more_than_half_of_the_next_round() -> None:
    rng = np.random.default_rng(0)
    strangers = rng.normal(size=(6, 64))
    alike = np.repeat(rng.normal(size=(1, 64)), 6, axis=0) + 0.1 * rng.normal(size=(6, 64))
    embeddings = np.concatenate([strangers, alike]).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    arms = np.repeat([0, 1], 6)
    found = agreement(embeddings, np.full(12, True), arms, 3)
    assert found[1] > 0.9 > found[0] > found[2] == 0
    assert shares_of(found).argmax() == 1
    assert shares_of(found).max() > 0.5


def test_blank_samples_agree_with_none() -> None:
    blank = np.tile(np.float32([1, 0]), (4, 1))
    assert agreement(blank, np.full(4, False), np.zeros(4, np.int64), 1).tolist() == [0]


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
