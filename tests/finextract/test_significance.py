"""Evidence: p-values that are valid under chance, and control of false discoveries."""

from collections.abc import Callable

import numpy as np
import pytest

from finextract.significance import (
    Thresholds,
    benjamini_hochberg,
    conformal_p_values,
    highest_of_normal,
    minimum_background,
    nearest_two_similarities,
    p_and_q_by_count,
    self_null_p_values,
    share_above,
    sign_flip_p_value,
    thresholds_of_background,
)


def test_the_least_p_value_is_one_over_the_background_plus_one() -> None:
    null = np.linspace(0, 0.5, 99)
    assert conformal_p_values(np.array([0.9]), null) == pytest.approx([0.01])


def test_a_tie_with_the_background_counts_against_the_reference() -> None:
    assert conformal_p_values(np.array([0.5]), np.array([0.5, 0.1, 0.2])) == pytest.approx([0.5])


def test_p_values_of_exchangeable_scores_are_at_most_alpha_as_often_as_alpha() -> None:
    rng = np.random.default_rng(0)
    below = [
        (conformal_p_values(rng.normal(size=20), rng.normal(size=199)) <= 0.05).mean() for _ in range(500)
    ]
    assert np.mean(below) == pytest.approx(0.05, abs=0.01)


def test_q_values_are_those_of_the_textbook_and_keep_the_order_of_the_input() -> None:
    p = np.array([0.04, 0.01, 0.03, 0.005])
    assert benjamini_hochberg(p) == pytest.approx([0.04, 0.02, 0.04, 0.02])


@pytest.mark.parametrize(("references", "background"), [(1, 1), (7, 300), (3000, 40), (500, 500)])
def test_p_and_q_by_count_are_those_of_each_score(references: int, background: int) -> None:
    rng = np.random.default_rng(references)
    scores, null = (rng.normal(size=n).astype(np.float32).round(2) for n in (references, background))
    p, q = p_and_q_by_count(scores, null)
    reached = (null[None] >= scores[:, None]).sum(axis=1)
    expected = conformal_p_values(scores, null)
    assert (p[reached] == expected).all()
    assert (q[reached] == benjamini_hochberg(expected)).all()


def test_chance_alone_is_flagged_no_more_often_than_alpha() -> None:
    rng = np.random.default_rng(1)
    flagged = [
        (benjamini_hochberg(conformal_p_values(rng.normal(size=30), rng.normal(size=999))) <= 0.05).any()
        for _ in range(600)
    ]
    assert np.mean(flagged) <= 0.08


def test_tau_is_a_quantile_of_the_similarities_of_nearest_background_images() -> None:
    rng = np.random.default_rng(2)
    embeddings = rng.normal(size=(300, 16)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    nearest = nearest_two_similarities(embeddings, block=64)
    whole = np.sort(embeddings @ embeddings.T - 2 * np.eye(300), axis=1)
    assert nearest == pytest.approx(whole[:, :-3:-1], abs=1e-6)
    thresholds = thresholds_of_background(0.9, embeddings[:100], embeddings[100:])
    assert thresholds.tau == pytest.approx(np.quantile(nearest[:, 0], 0.9))
    assert thresholds.relative == pytest.approx(np.quantile(nearest[:, 0] / nearest[:, 1], 0.9))


def test_a_picture_that_resembles_no_other_needs_less_similarity_for_a_flag() -> None:
    thresholds = Thresholds(tau=0.6, relative=1.5)
    needed = thresholds.needed(np.array([-1, 0.1, 0.2, 0.3, 0.4, 0.5]))
    assert needed == pytest.approx([0.3, 0.3, 0.3, 0.45, 0.6, 0.6])
    assert Thresholds(0.6, None).needed(np.array([0.1, 0.5])).tolist() == [0.6, 0.6]


@pytest.mark.parametrize("images", [1, 2])
def test_too_few_background_images_give_no_relative_threshold(images: int) -> None:
    thresholds = thresholds_of_background(0.99, np.eye(images, 16, dtype=np.float32))
    assert thresholds.relative is None


def test_an_independent_picture_passes_either_threshold_in_a_few_cases_of_a_hundred() -> None:
    rng = np.random.default_rng(5)
    kinds = rng.normal(size=(40, 32))  # pictures of one kind resemble each other, some more than others
    spread = rng.uniform(0.3, 3, 40)

    def pictures(count: int) -> np.ndarray:
        kind = rng.integers(0, 40, count)
        values = kinds[kind] + spread[kind, None] * rng.normal(size=(count, 32))
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)

    background, references, independent = pictures(1000), pictures(1000), pictures(1000)
    thresholds = thresholds_of_background(0.99, background)
    needed = thresholds.needed((references @ background.T).max(axis=1))
    passed = (references @ independent.T).max(axis=1) >= needed
    assert 0 < passed.mean() < 0.05


def test_the_background_must_be_large_enough_for_a_single_match() -> None:
    assert minimum_background(10, 0.05) == 199


@pytest.mark.parametrize("variants", [4, 9])
def test_of_gaussian_scores_the_p_values_against_their_own_variants_are_uniform(variants: int) -> None:
    rng = np.random.default_rng(3)
    scale, level = rng.uniform(0.01, 10, 20_000), rng.normal(size=20_000)  # each picture has its own
    draws = (rng.normal(size=(20_000, variants + 1)) * scale[:, None] + level[:, None]).astype(np.float32)
    _, p = self_null_p_values(draws[:, 0], draws[:, 1:])
    for alpha in (0.5, 0.05, 0.01):
        assert (p <= alpha).mean() == pytest.approx(alpha, rel=0.15)


def test_a_score_far_above_its_variants_is_rare_and_one_below_them_is_not() -> None:
    variants = np.array([[0.0, 0.1, -0.1, 0.05], [0.0, 0.1, -0.1, 0.05]])
    t, p = self_null_p_values(np.array([2.0, -2.0]), variants)
    assert t[0] > 10 > -10 > t[1]
    assert p[0] < 1e-3
    assert p[1] > 0.99


def test_variants_that_are_all_alike_give_no_evidence() -> None:
    t, p = self_null_p_values(np.array([1.0]), np.zeros((1, 9)))
    assert (t, p) == (0, 1)


@pytest.mark.parametrize("noise", [np.random.Generator.normal, np.random.Generator.standard_cauchy])
def test_the_sign_flip_test_is_exact_for_any_symmetric_noise(noise: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(4)
    p = np.array([sign_flip_p_value(noise(rng, size=12), flips=199) for _ in range(2000)])
    for alpha in (0.5, 0.05, 0.01):
        below = (p <= alpha).mean()
        assert below == pytest.approx(alpha, abs=3 * np.sqrt(alpha * (1 - alpha) / 2000))


def test_the_sign_flip_test_sees_the_direction_and_cannot_be_surer_than_its_flips() -> None:
    ones = np.ones(20)
    assert sign_flip_p_value(ones, flips=999) == pytest.approx(0.001)
    assert sign_flip_p_value(-ones, flips=999) == 1.0


@pytest.mark.parametrize("count", [1, 10, 200])
def test_the_highest_of_some_normal_values_is_rarely_above_its_bound(count: int) -> None:
    highest = np.random.default_rng(6).normal(size=(20_000, count)).max(axis=1)
    above = (highest > highest_of_normal(count, 0.01)).mean()
    assert above == pytest.approx(0.01, abs=0.0025)


def test_thirty_weak_margins_show_together_what_none_of_them_shows() -> None:
    rng = np.random.default_rng(5)
    scores, variants = rng.normal(1.0, 1, 30), rng.normal(size=(30, 9))
    _, p = self_null_p_values(scores, variants)
    together = sign_flip_p_value(scores - variants[:, 0])
    assert benjamini_hochberg(p).min() > 0.05
    assert benjamini_hochberg(np.array([*p, together]))[-1] <= 0.05


@pytest.mark.parametrize(("scores", "null"), [(1, 1), (40, 7), (7, 90)])
def test_the_share_above_is_the_area_under_the_curve_of_all_pairs(scores: int, null: int) -> None:
    rng = np.random.default_rng(scores)
    high, low = (rng.normal(size=n).astype(np.float32).round(1) for n in (scores, null))
    pairs = (high[:, None] > low[None]) + 0.5 * (high[:, None] == low[None])
    assert share_above(high, low) == pytest.approx(pairs.mean())
    assert share_above(high, low) + share_above(low, high) == pytest.approx(1)
