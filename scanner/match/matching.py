"""From candidates and corpora to matches and a verdict: the flag rule. Numpy only.

A reference is flagged where its similarity to some candidate is at least tau and its q-value at most alpha.
p is conformal against the background images scored on the same candidates, q is Benjamini-Hochberg over all
references of the scan, tau comes from the background alone (finextract.significance).
R = references, K = candidates, M = background images, D = embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finextract.significance import benjamini_hochberg, conformal_p_values, minimum_background
from scanner.errors import CorpusError
from scanner.match.corpus import Corpus
from scanner.records import Match, Role, Verdict, new_id

KEPT_MATCHES = 10  # rows a scan keeps beside its flagged ones, nearest first
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the comparison of a scan's candidates with the corpora gives."""

    matches: tuple[Match, ...]  # all that are flagged, and the nearest others; nearest first
    num_references: int
    num_background: int
    best_similarity: float | None  # None where nothing could be compared
    q_value: float | None  # the least among the references

    @property
    def verdict(self) -> Verdict:
        """Flagged where some reference is."""
        return Verdict.FLAGGED if any(match.flagged for match in self.matches) else Verdict.NOTHING_FOUND


def split(corpora: list[Corpus]) -> tuple[list[Corpus], Floats]:
    """The reference corpora, and the background images' embeddings [M, D].

    Raises CorpusError where there is no reference or no background.
    """
    references = [c for c in corpora if c.role is Role.REFERENCE and len(c.embeddings)]
    background = [c.embeddings for c in corpora if c.role is Role.BACKGROUND and len(c.embeddings)]
    names = ", ".join(c.name for c in corpora)
    among = f"among the corpora asked for ({names}) there are" if names else "the store holds"
    if not references:
        raise CorpusError(
            f"{among} no reference images, so there is nothing to look for.\n"
            "Add the images that you own (scanner corpus add NAME DIR), or name them too: --corpus NAME"
        )
    if not background:
        raise CorpusError(
            f"{among} no background images, so no similarity could be called evidence.\n"
            "Add pictures like yours that no checkpoint was trained on (scanner corpus add NAME DIR "
            "--background), or name such a corpus too: --corpus NAME"
        )
    return references, np.concatenate(background)


def warn_if_small(num_references: int, num_background: int, alpha: float) -> str | None:
    """What to tell where the background is too small for a single match to be flagged, or None."""
    needed = minimum_background(num_references, alpha)
    if num_background >= needed:
        return None
    return (
        f"{num_background} background images are few for {num_references} references: a single copied image "
        f"cannot reach q <= {alpha:g} with less than {needed}. Add more with scanner corpus add --background."
    )


def compare(
    scan_id: str,
    candidate_ids: list[str],
    candidates: Floats,
    references: list[Corpus],
    background: Floats,
    tau: float,
    alpha: float,
) -> Comparison:
    """Scores every reference and every background image against the candidates [K, D]."""
    total = sum(len(corpus.embeddings) for corpus in references)
    if not len(candidates):
        return Comparison((), total, len(background), None, None)
    nearest, similarity = [], []
    for corpus in references:
        scores = corpus.embeddings @ candidates.T  # [R, K]
        nearest.append(scores.argmax(axis=1))
        similarity.append(scores.max(axis=1))
    best, which = np.concatenate(similarity).clip(-1, 1), np.concatenate(nearest)
    null = (background @ candidates.T).max(axis=1).clip(-1, 1)  # [M]
    p = conformal_p_values(best, null)
    q = benjamini_hochberg(p)
    flagged = (best >= tau) & (q <= alpha)
    owners = [(c.name, ref) for c in references for ref in c.reference_ids]
    order = np.lexsort((np.arange(total), -best))
    kept = [int(i) for rank, i in enumerate(order) if flagged[i] or rank < KEPT_MATCHES]
    matches = tuple(
        Match(
            match_id=new_id(),
            scan_id=scan_id,
            candidate_id=candidate_ids[int(which[i])],
            corpus=owners[i][0],
            reference_id=owners[i][1],
            similarity=float(best[i]),
            null_similarity=float(null.max()),
            p_value=float(p[i]),
            q_value=float(q[i]),
            flagged=bool(flagged[i]),
        )
        for i in kept
    )
    return Comparison(matches, total, len(background), float(best.max()), float(q.min()))
