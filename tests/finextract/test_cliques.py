"""Cliques, the metrics over them, and the check for blank and noisy samples."""

import numpy as np
import pytest

from finextract.cliques import find_cliques, similarity_matrix
from finextract.images import is_picture
from finextract.metrics import average_similarity, best_similarity, extraction_success_rate


def _unit(rows: list[list[float]]) -> np.ndarray:
    array = np.array(rows, np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


TWO_GROUPS = _unit([[1, 0, 0.1], [1, 0.1, 0], [0, 1, 0], [1, 0, 0], [0.1, 1, 0], [0, 0, 1]])


def test_similar_samples_are_joined_before_less_similar_ones() -> None:
    """Each clique is one of the graph at some threshold: no pair of two cliques could be joined before it."""
    rng = np.random.default_rng(0)
    similarity = similarity_matrix(_unit(rng.normal(size=(60, 4)).tolist()))
    cliques = find_cliques(similarity, 8)
    assert sorted(i for c in cliques for i in c.members) == list(range(60))

    def loosest(members: tuple[int, ...]) -> float:
        return float(similarity[np.ix_(members, members)].min())

    within = min(loosest(c.members) for c in cliques)
    for a, one in enumerate(cliques):
        for other in cliques[a + 1 :]:
            assert loosest(one.members + other.members) <= within + 1e-6


@pytest.mark.parametrize("count", [1, 2, 7, 40, 99])
def test_as_many_cliques_are_found_as_requested(count: int) -> None:
    similarity = similarity_matrix(_unit(np.random.default_rng(1).normal(size=(40, 6)).tolist()))
    assert len(find_cliques(similarity, count)) == min(count, 40)


def test_cliques_come_largest_first_and_the_representative_is_a_member() -> None:
    cliques = find_cliques(similarity_matrix(TWO_GROUPS), 3)
    assert [c.members for c in cliques] == [(0, 1, 3), (2, 4), (5,)]
    assert all(c.representative in c.members for c in cliques)
    assert cliques[0].representative == 3


def test_the_same_samples_in_another_order_make_the_same_cliques() -> None:
    rng = np.random.default_rng(3)
    vectors = _unit(rng.normal(size=(40, 6)).tolist())
    order = rng.permutation(40)
    one = {c.members for c in find_cliques(similarity_matrix(vectors), 6)}
    other = {
        tuple(sorted(int(order[i]) for i in c.members))
        for c in find_cliques(similarity_matrix(vectors[order]), 6)
    }
    assert one == other


def test_no_samples_form_no_clique_and_one_sample_forms_one() -> None:
    assert find_cliques(np.zeros((0, 0), np.float32), 3) == []
    assert [c.members for c in find_cliques(np.ones((1, 1), np.float32), 3)] == [(0,)]


def test_blank_and_noisy_samples_are_no_pictures() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1, 3, 64, 64))
    blank = np.full((1, 3, 64, 64), 200)
    ramp = np.broadcast_to(np.linspace(0, 255, 64), (1, 3, 64, 64))
    assert is_picture(np.concatenate([noise, blank, ramp]).astype(np.uint8)).tolist() == [False, False, True]


def test_as_and_a_esr_are_recall_over_the_training_images() -> None:
    references, images = _unit([[1, 0], [0, 1]]), _unit([[1, 0], [1, 1]])
    best = best_similarity(references, images)
    assert best == pytest.approx([1.0, 0.7071], abs=1e-3)
    assert average_similarity(best).value == pytest.approx(0.8536, abs=1e-3)
    assert extraction_success_rate(best, 0.7).value == 1.0
    assert extraction_success_rate(best, 0.71).value == 0.5
    assert best_similarity(references, images[:0]).tolist() == [0, 0]
