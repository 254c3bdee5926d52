"""The candidates among samples, and the tight cliques that tell whether a round of samples pays. NumPy only.

N = samples, D = embedding size. Blank and noisy samples are in no clique.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finextract.cliques import Clique, cliques_above, find_cliques, published_cliques, similarity_matrix

ALIKE = 0.5  # the least similarity of the samples of a tight clique


def choose_candidates(
    embeddings: NDArray[np.float32], pictures: NDArray[np.bool_], count: int
) -> tuple[Clique, ...]:
    """The largest cliques among the samples that are pictures; indices are those of all samples."""
    return _of_all(pictures, find_cliques(_similarity(embeddings, pictures), count))


def published_candidates(
    embeddings: NDArray[np.float32], pictures: NDArray[np.bool_], num_train_images: int
) -> tuple[Clique, ...]:
    """The candidates of the published stop rule; indices are those of all samples."""
    return _of_all(pictures, published_cliques(_similarity(embeddings, pictures), num_train_images))


def tight_cliques(embeddings: NDArray[np.float32], pictures: NDArray[np.bool_]) -> list[Clique]:
    """The tight cliques of two samples or more; indices are those of all samples."""
    found = cliques_above(_similarity(embeddings, pictures), ALIKE)
    return [clique for clique in _of_all(pictures, found) if len(clique.members) > 1]


def _similarity(embeddings: NDArray[np.float32], pictures: NDArray[np.bool_]) -> NDArray[np.float32]:
    return similarity_matrix(embeddings[pictures])


def _of_all(pictures: NDArray[np.bool_], cliques: Sequence[Clique]) -> tuple[Clique, ...]:
    """Cliques of the samples that are pictures, with the indices of all samples."""
    kept = np.flatnonzero(pictures).tolist()
    return tuple(
        Clique(tuple(kept[i] for i in c.members), kept[c.representative], c.similarity) for c in cliques
    )
