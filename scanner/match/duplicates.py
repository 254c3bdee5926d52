"""Images that are nearly the same: inside a corpus, and between references and the null.

An image of the null that is a copy of a reference hides flags: it comes as near to whatever a checkpoint
gives back as the reference does, so the reference's p-value is that of chance.

N, M = images, D = embedding size.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from scanner.match.corpus import Corpus, load_corpora, summaries
from scanner.records import Role
from scanner.store.store import Store

# Similarity: pairs above it are copies with 90 % precision (Pizzi et al. 2022). Of 60 pictures, 83 to 100 %
# of copies reach it that are scaled down, recompressed or cut by a tenth, and 42 to 95 % reach 0.9.
NEARLY_SAME = 0.75
BLOCK = 4096  # images whose similarities are in memory at once, with as many others: 64 MB
COMPARED = 200_000  # images at most; the time grows with the square: some minutes of a core
SHOWN = 3  # pairs that are named
TOLD_FROM = 20_000  # images; comparing more takes so long that it is announced
COPY = "A copy is no further evidence, and costs as much as any other image."
COPY_IN_NULL = (
    "Take copies out: they raise tau, the similarity that a flag needs, and add nothing to compare with."
)
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Pairs of images that are nearly the same."""

    pairs: int
    images: int  # of the first corpus, that are in a pair
    examples: tuple[tuple[str, str, float], ...]  # two ids and their similarity, the nearest first


def near_pairs(
    mine: Corpus, other: Corpus | None = None, least: float = NEARLY_SAME, block: int = BLOCK
) -> NearPairs:
    """The pairs inside a corpus, or between two. Images with the same id are no pair.

    Compares all with all, `block` by `block`: memory for block * block similarities.
    """
    count, paired = 0, np.zeros(len(mine.embeddings), bool)
    nearest: list[tuple[float, str, str]] = []
    for row, column, similarity in _blocks(mine.embeddings, other.embeddings if other else None, block):
        found = np.argwhere(similarity >= least)
        ids = other.reference_ids if other else mine.reference_ids
        same = mine.reference_ids[row + found[:, 0]] == ids[column + found[:, 1]]
        found = found[~same]
        count += len(found)
        paired[row + found[:, 0]] = True
        if other is None:
            paired[column + found[:, 1]] = True
        values = similarity[found[:, 0], found[:, 1]]
        for n in np.argsort(-values, kind="stable")[:SHOWN]:
            first, second = (int(i) for i in found[n])
            names = mine.reference_ids[row + first].decode(), ids[column + second].decode()
            nearest.append((float(values[n]), *names))
    best = heapq.nlargest(SHOWN, nearest)
    return NearPairs(count, int(paired.sum()), tuple((a, b, min(1.0, s)) for s, a, b in best))


def _blocks(mine: Floats, other: Floats | None, block: int) -> Iterator[tuple[int, int, Floats]]:
    """Similarities of blocks, with the first row and column of each. Without `other`, each pair once."""
    columns = mine if other is None else other
    for row in range(0, len(mine), block):
        for column in range(row if other is None else 0, len(columns), block):
            similarity = mine[row : row + block] @ columns[column : column + block].T
            if other is None and row == column:
                similarity[np.tri(len(similarity), dtype=bool)] = -1
            yield row, column, similarity


def on_both_sides(store: Store, name: str) -> dict[str, int]:
    """The other corpora that hold images of this one, where one of the two is of references and the other
    is a part of the null: name -> number of such images."""
    rows = store.query(
        "SELECT other.corpus AS name, count(DISTINCT reference_id) AS images "
        'FROM "references" AS mine JOIN "references" AS other USING (reference_id) '
        "WHERE mine.corpus = ? AND (mine.role = 'reference') != (other.role = 'reference') "
        "GROUP BY other.corpus ORDER BY other.corpus",
        [name],
    )
    return {row["name"]: row["images"] for row in rows}


def _images_are(number: int) -> str:
    return f"{number:,} of the images {'is' if number == 1 else 'are'}"


def told_duplicates(store: Store, name: str, descriptor: str, cache: Path | None = None) -> Iterator[str]:
    """Sentences about what is the same, or nearly so, in a corpus and on the other side of the null."""
    for held, images in on_both_sides(store, name).items():
        yield (
            f"{_images_are(images)} in {held} as well. An image cannot be a reference "
            "and a part of the null: it counts as a reference alone."
        )
    (mine,) = load_corpora(store, [name], descriptor, cache=cache)
    others = [
        str(row["name"])
        for row in summaries(store)
        if descriptor in cast(list[str], row["descriptors"])
        and (mine.role is Role.REFERENCE) != (row["role"] == Role.REFERENCE)
    ]
    if len(mine.embeddings) > COMPARED:
        yield f"More than {COMPARED:,} images are not compared with each other: near-duplicates are not told."
        return
    if len(mine.embeddings) >= TOLD_FROM:
        yield f"Comparing {len(mine.embeddings):,} images with each other, to tell near-duplicates ..."
    if (found := near_pairs(mine)).pairs:
        pairs = f"{found.pairs:,} {'pair' if found.pairs == 1 else 'pairs'}"
        yield (
            f"{_images_are(found.images)} nearly the same as another one of them (a similarity of "
            f"{NEARLY_SAME:g} or more; {pairs}). {_examples(store, name, name, found)} "
            f"{COPY if mine.role is Role.REFERENCE else COPY_IN_NULL}"
        )
    for other_name in others:
        (other,) = load_corpora(store, [other_name], descriptor, cache=cache)
        if (found := near_pairs(mine, other)).pairs:
            references, null = (name, other_name) if mine.role is Role.REFERENCE else (other_name, name)
            yield (
                f"{_images_are(found.images)} nearly the same as an image of {other_name}. "
                f"{_examples(store, name, other_name, found)} Take such images out of {null}: what gives "
                f"back an image of {references} resembles its copy just as much, so no flag can rest on it."
            )


def _examples(store: Store, name: str, other: str, found: NearPairs) -> str:
    """The nearest pairs, by the names of their files."""
    ids = [i for pair in found.examples for i in pair[:2]]
    rows = store.query(
        'SELECT corpus, reference_id, path FROM "references" '
        "WHERE list_contains(?, corpus) AND list_contains(?, reference_id)",
        [[name, other], ids],
    )
    named = {(row["corpus"], row["reference_id"]): row["path"].rpartition("/")[2] for row in rows}
    pairs = (f"{named[name, a]} and {named[other, b]} ({s:.2f})" for a, b, s in found.examples)
    return f"The nearest: {', '.join(pairs)}."
