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
    log_ratio: float | None = None  # of the representative: the base's loss over the tuned model's


def similarity_matrix(embeddings: Matrix) -> Matrix:
    """Cosine similarities [N, N] of L2-normalised embeddings [N, D]."""
    result: Matrix = (embeddings @ embeddings.T).clip(-1, 1)
    return result


def find_cliques(similarity: Matrix, count: int) -> list[Clique]:
    """Covers all samples with `count` cliques (fewer where ties leave none to split), from S [N, N].

    Sorted by size, then similarity, then first member. A sample that resembles no other is a clique of one.
    """
    if len(similarity) < 2:
        return _singles(similarity)[:count]
    return _sorted(similarity, fcluster(_tree(similarity), count, criterion="maxclust"))


def cliques_above(similarity: Matrix, threshold: float) -> list[Clique]:
    """Covers all samples with cliques whose pairs are all at least so similar, from S [N, N]; sorted."""
    if len(similarity) < 2:
        return _singles(similarity)
    return _sorted(similarity, fcluster(_tree(similarity), 1 - threshold + 1e-9, criterion="distance"))


def published_cliques(similarity: Matrix, num_train_images: int) -> list[Clique]:
    """The cliques at the first threshold that gives at least `num_train_images`, from S [N, N]; sorted.

    FineXtract's stop rule: the threshold rises from the lower quartile of the similarities, cut to
    hundredths, in steps of 0.01. Theirs takes the quartile of a random thousand, and a time limit raises the
    threshold; here all count, and complete linkage needs no limit.
    """
    if len(similarity) < 2:
        return _singles(similarity)
    tree = _tree(similarity)
    lowest = int(np.floor(100 * np.quantile(similarity - np.diag(np.diag(similarity)), 0.25)))
    for hundredths in range(lowest, 101):
        labels = fcluster(tree, 1 - hundredths / 100 + 1e-9, criterion="distance")
        if labels.max() >= num_train_images:
            break
    return _sorted(similarity, labels)


def _singles(similarity: Matrix) -> list[Clique]:
    return [Clique((i,), i, 1.0) for i in range(len(similarity))]


def _tree(similarity: Matrix) -> NDArray[np.float64]:
    """The tree of complete linkage."""
    distance = 1 - (similarity.astype(np.float64) + similarity.T) / 2
    np.fill_diagonal(distance, 0)
    tree: NDArray[np.float64] = linkage(squareform(distance, checks=False), method="complete")
    return tree


def _sorted(similarity: Matrix, labels: NDArray[np.int32]) -> list[Clique]:
    """The cliques of labels [N], by size, then similarity, then first member."""
    found = [_clique(similarity, np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return sorted(found, key=lambda c: (-len(c.members), -c.similarity, c.members))


def _clique(similarity: Matrix, members: NDArray[np.intp]) -> Clique:
    if len(members) == 1:
        return Clique((int(members[0]),), int(members[0]), 1.0)
    inside = similarity[np.ix_(members, members)].astype(np.float64)
    pairs = len(members) * (len(members) - 1)
    mean = (inside.sum() - np.trace(inside)) / pairs
    return Clique(tuple(members.tolist()), int(members[inside.sum(axis=1).argmax()]), float(mean))
