"""Cliques of mutually similar samples. Works on a similarity matrix; knows nothing of images or models.

N = samples, K = cliques, S = similarity matrix. FineXtract raises a threshold until the graph of samples that
are at least as similar falls into as many cliques as there are training images. Listing all maximal cliques
takes minutes and needs a time limit. Here the samples are clustered by complete linkage instead: each of K
clusters is a clique of the graph whose threshold is the similarity of its least similar pair, and the result
depends on S alone.
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
    """Mutually similar samples."""

    members: tuple[int, ...]  # indices of samples, ascending
    representative: int  # the medoid: the member most similar to the others
    similarity: float  # mean over the members' pairs; 1.0 for a clique of one


def similarity_matrix(embeddings: Matrix) -> Matrix:
    """Cosine similarities [N, N] of L2-normalised embeddings [N, D]."""
    result: Matrix = (embeddings @ embeddings.T).clip(-1, 1)
    return result


def find_cliques(similarity: Matrix, count: int) -> list[Clique]:
    """Covers all samples with `count` cliques (fewer where ties leave none to split), from S [N, N].

    Sorted by size, then similarity, then first member. A sample that resembles no other is a clique of one.
    """
    samples = len(similarity)
    if samples < 2:
        return [Clique((i,), i, 1.0) for i in range(samples)][:count]
    distance = 1 - (similarity.astype(np.float64) + similarity.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), method="complete")
    labels = fcluster(tree, count, criterion="maxclust")
    found = [_clique(similarity, np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return sorted(found, key=lambda c: (-len(c.members), -c.similarity, c.members))


def _clique(similarity: Matrix, members: NDArray[np.intp]) -> Clique:
    if len(members) == 1:
        return Clique((int(members[0]),), int(members[0]), 1.0)
    inside = similarity[np.ix_(members, members)].astype(np.float64)
    pairs = len(members) * (len(members) - 1)
    mean = (inside.sum() - np.trace(inside)) / pairs
    return Clique(tuple(members.tolist()), int(members[inside.sum(axis=1).argmax()]), float(mean))
