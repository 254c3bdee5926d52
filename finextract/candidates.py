"""The candidates among samples, and the tight cliques that tell whether a round of samples pays. NumPy only.

N = samples, D = embedding size. Blank and noisy samples are in no clique.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from finextract.cliques import Clique, cliques_above, find_cliques, published_cliques, similarity_matrix

ALIKE = 0.5  # the least similarity of the samples of a tight clique
EXAMINED = 4  # members of a clique whose losses are asked: those in its middle
SHORTLIST = 1.5  # times the candidates that are kept: cliques that are examined


def choose_candidates(
    embeddings: NDArray[np.float32], pictures: NDArray[np.bool_], count: int
) -> tuple[Clique, ...]:
    """The largest cliques among the samples that are pictures; indices are those of all samples."""
    return _of_all(pictures, find_cliques(_similarity(embeddings, pictures), count))


def examined_members(embeddings: NDArray[np.float32], clique: Clique) -> tuple[int, ...]:
    """The members of a clique that may represent it: the most similar to the others, the medoid first."""
    members = np.array(clique.members)
    inside = embeddings[members] @ embeddings[members].sum(axis=0)
    central = members[np.argsort(-inside, kind="stable")].tolist()
    return tuple(dict.fromkeys((clique.representative, *central)))[:EXAMINED]


def ranked_by_log_ratio(
    cliques: Sequence[Clique], examined: Sequence[Sequence[int]], log_ratios: Mapping[int, float], count: int
) -> tuple[Clique, ...]:
    """The `count` cliques with the highest log-ratios, each represented by its member with the highest one.

    `examined` are the members of each clique that may represent it, and `log_ratios` what the losses say of
    them: a sample that the tuned model knows much better than its base is nearer to a training image.
    """
    chosen = []
    for clique, members in zip(cliques, examined, strict=True):
        best = max(members, key=lambda member: log_ratios[member])
        chosen.append(replace(clique, representative=best, log_ratio=log_ratios[best]))
    order = sorted(chosen, key=lambda c: -(c.log_ratio or 0.0))
    return tuple(order[:count])


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
