"""Cliques of mutually similar samples. Works on a similarity matrix; knows nothing of images or models.

N = samples, K = cliques. FineXtract covers the graph of similar samples with cliques, largest first. Listing
all maximal cliques takes minutes and depends on a time limit, so here the samples are joined by complete
linkage: every cluster cut at a threshold t is a clique of the graph S >= t, and the result depends on nothing
but S.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Clique:
    """Samples that all resemble each other."""

    members: tuple[int, ...]  # indices of samples, ascending
    representative: int  # the medoid: the member most similar to the others
    similarity: float  # mean over the members' pairs; 1.0 for a clique of one


def similarity_matrix(embeddings: Matrix) -> Matrix:
    """Cosine similarities [N, N] of L2-normalised embeddings [N, D]."""
    result: Matrix = (embeddings @ embeddings.T).clip(-1, 1)
    return result


def find_cliques(
    similarity: Matrix,
    count: int,
    *,
    threshold: float = 0.5,
    floor: float = 0.2,
    step: float = 0.05,
) -> list[Clique]:
    """The `count` largest cliques of the graph S >= t, for the highest t that has so many of two or more.

    t starts at `threshold` and falls by `step` to `floor`; where even that has too few cliques, the samples
    with the closest neighbour stand alone. Sorted by size, then similarity, then first member; at most
    `count` are returned.
    """
    samples = len(similarity)
    if samples < 2:
        return [Clique((i,), i, 1.0) for i in range(samples)][:count]
    distance = 1 - (similarity.astype(np.float64) + similarity.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), method="complete")
    found: list[Clique] = []
    for i in range(round((threshold - floor) / step) + 1):
        labels = fcluster(tree, 1 - (threshold - i * step) + 1e-9, criterion="distance")
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        found = [_clique(similarity, group) for group in groups if len(group) > 1]
        if len(found) >= count:
            break
    found.sort(key=lambda c: (-len(c.members), -c.similarity, c.members))
    if len(found) < count:
        inside = {i for clique in found for i in clique.members}
        others = similarity - 2 * np.eye(samples, dtype=similarity.dtype)
        alone = sorted(set(range(samples)) - inside, key=lambda i: (-float(others[i].max()), i))
        found += [Clique((i,), i, 1.0) for i in alone]
    return found[:count]


def _clique(similarity: Matrix, members: NDArray[np.intp]) -> Clique:
    inside = similarity[np.ix_(members, members)].astype(np.float64)
    pairs = len(members) * (len(members) - 1)
    mean = (inside.sum() - np.trace(inside)) / pairs
    return Clique(tuple(members.tolist()), int(members[inside.sum(axis=1).argmax()]), float(mean))
