"""The published way to find candidates among embeddings: all maximal cliques are listed, with a time limit.

Written from a description of the method, to be compared with finextract.cliques. A set of vertices is an
integer whose bits are its members. N = samples, D = embedding size, S = similarity matrix.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RANDOM_SIMILARITIES = 1000  # of which the first threshold is the lower quartile
LIMIT_S = 30.0  # of processor time for the cliques at one threshold
_STEPS_BETWEEN_LOOKS = 1024  # at the clock


class _TooLong(Exception):
    """The cliques at a threshold are not found within the limit."""


@dataclass(frozen=True)
class Cover:
    """All samples, divided into the cliques of the graph at a threshold."""

    threshold: float  # the least similarity of two samples of a clique
    cliques: tuple[tuple[int, ...], ...]  # members ascending; in the order in which they were found
    representatives: tuple[int, ...]  # the member of each clique that is nearest to its mean
    timeouts: int  # thresholds that were given up


def published_cover(
    embeddings: NDArray[np.float32], num_train_images: int, seed: int = 0, limit_s: float = LIMIT_S
) -> Cover:
    """The cover at the first threshold that gives at least `num_train_images` cliques, from [N, D].

    The first threshold is the lower quartile of a random thousand entries of S, whose diagonal is 0, cut to
    hundredths; a threshold is 0.01 above the one before. One whose cliques are not found within `limit_s`
    is given up. Where none gives so many cliques it is the last cover that was found. The published limit
    counts seconds that pass, and its thousand entries have no seed; here processor seconds are counted, and
    `seed` is given, so that the result does not depend on what else the machine does.
    """
    similarity = (embeddings @ embeddings.T).clip(-1, 1)
    np.fill_diagonal(similarity, 0)
    some = np.random.default_rng(seed).choice(similarity.ravel(), RANDOM_SIMILARITIES)
    cliques: tuple[tuple[int, ...], ...] = tuple((i,) for i in range(len(embeddings)))
    threshold, timeouts = 1.0, 0
    for hundredths in range(int(np.floor(100 * np.quantile(some, 0.25))), 101):
        try:
            found = _greedy_cover(similarity >= hundredths / 100, time.thread_time() + limit_s)
        except _TooLong:
            timeouts += 1
            continue
        threshold, cliques = hundredths / 100, tuple(found)
        if len(cliques) >= num_train_images:
            break
    return Cover(threshold, cliques, tuple(_medoid(embeddings, c) for c in cliques), timeouts)


def _greedy_cover(edges: NDArray[np.bool_], deadline: float) -> list[tuple[int, ...]]:
    """Takes the largest of all maximal cliques out of a graph [N, N], until no vertex is left.

    Raises _TooLong after the deadline, in seconds of this thread's processor time.
    """
    neighbours = _neighbours(edges)
    left = (1 << len(neighbours)) - 1
    found = []
    while left:
        inside = [n & left for n in neighbours]
        largest = max(maximal_cliques(inside, left, deadline), key=int.bit_count)
        found.append(tuple(_members(largest)))
        left &= ~largest
    return found


def maximal_cliques(
    neighbours: Sequence[int], vertices: int, deadline: float = float("inf")
) -> Iterator[int]:
    """Every clique among `vertices` that no further vertex extends, from the neighbours of each vertex.

    Bron and Kerbosch (1973) with the pivot of Tomita, Tanaka and Takahashi (2006): the vertex with most
    neighbours among those that may extend the clique. No vertex is a neighbour of its own. Raises _TooLong
    after the deadline, in seconds of this thread's processor time.
    """
    steps = 0
    waiting = [(0, vertices, 0)]  # (a clique, vertices that may extend it, those with which it was listed)
    while waiting:
        steps += 1
        if steps % _STEPS_BETWEEN_LOOKS == 0 and time.thread_time() > deadline:
            raise _TooLong
        clique, possible, listed = waiting.pop()
        if not possible:
            if not listed:
                yield clique
            continue
        pivot = max(_members(possible | listed), key=lambda v: (possible & neighbours[v]).bit_count())
        for vertex in _members(possible & ~neighbours[pivot]):
            bit = 1 << vertex
            waiting.append((clique | bit, possible & neighbours[vertex], listed & neighbours[vertex]))
            possible &= ~bit
            listed |= bit


def _neighbours(edges: NDArray[np.bool_]) -> list[int]:
    """The neighbours of each vertex of a graph [N, N]; no vertex is its own."""
    return [
        int.from_bytes(np.packbits(row, bitorder="little").tobytes(), "little") & ~(1 << i)
        for i, row in enumerate(edges)
    ]


def _members(vertices: int) -> Iterator[int]:
    """The members of a set, ascending."""
    while vertices:
        lowest = vertices & -vertices
        yield lowest.bit_length() - 1
        vertices ^= lowest


def _medoid(embeddings: NDArray[np.float32], members: tuple[int, ...]) -> int:
    """The member whose embedding is nearest to the mean of all of them."""
    own = embeddings[list(members)]
    return members[int(np.linalg.norm(own - own.mean(axis=0), axis=1).argmin())]
