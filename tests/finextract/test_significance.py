"""Evidence: p-values that are valid under chance, and control of false discoveries."""

import numpy as np
import pytest

from finextract.significance import (
    benjamini_hochberg,
    conformal_p_values,
    minimum_background,
    nearest_neighbour_similarities,
    p_and_q_by_count,
    tau_from_background,
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
    nearest = nearest_neighbour_similarities(embeddings, block=64)
    whole = embeddings @ embeddings.T - 2 * np.eye(300)
    assert nearest == pytest.approx(whole.max(axis=1), abs=1e-6)
    assert tau_from_background(0.9, embeddings[:100], embeddings[100:]) == pytest.approx(
        np.quantile(nearest, 0.9)
    )


def test_the_background_must_be_large_enough_for_a_single_match() -> None:
    assert minimum_background(10, 0.05) == 199
