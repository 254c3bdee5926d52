"""The flag rule: from candidates and corpora to matches and a verdict. NumPy only.

A reference is flagged if its similarity to a candidate is at least tau and its q-value at most alpha.
p-values are conformal, against the background images compared with the same candidates; q-values are those
of Benjamini and Hochberg over all references of the scan; tau comes from the background alone
(finextract.significance).
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

KEPT_MATCHES = 10  # nearest matches that a scan stores, in addition to all flagged ones
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The candidates of a scan, compared with the corpora."""

    matches: tuple[Match, ...]  # the flagged ones and the nearest others; nearest first
    num_references: int
    num_background: int
    best_similarity: float | None  # None where nothing could be compared
    q_value: float | None  # the lowest among the references

    @property
    def verdict(self) -> Verdict:
        """FLAGGED if a reference is flagged, otherwise NOTHING_FOUND."""
        return Verdict.FLAGGED if any(match.flagged for match in self.matches) else Verdict.NOTHING_FOUND


def split(corpora: list[Corpus]) -> tuple[list[Corpus], Floats]:
    """The reference corpora, and the background images' embeddings [M, D].

    Raises CorpusError where there is no reference or no background.
    """
    references = [c for c in corpora if c.role is Role.REFERENCE and len(c.embeddings)]
    background = [c.embeddings for c in corpora if c.role is Role.BACKGROUND and len(c.embeddings)]
    names = ", ".join(c.name for c in corpora)
    among = f"the selected corpora ({names}) hold" if names else "the store holds"
    if not references:
        raise CorpusError(
            f"{among} no reference images, so there is nothing to look for.\n"
            "Add the images that you own (scanner corpus add NAME DIR), or select their corpus: --corpus NAME"
        )
    if not background:
        raise CorpusError(
            f"{among} no background images, and without them no similarity is evidence.\n"
            "Add images like yours that no checkpoint was trained on (scanner corpus add NAME DIR "
            "--background), or select such a corpus: --corpus NAME"
        )
    return references, np.concatenate(background)


def warn_if_small(num_references: int, num_background: int, alpha: float) -> str | None:
    """A warning where the background is too small for a single match to be flagged, else None."""
    needed = minimum_background(num_references, alpha)
    if num_background >= needed:
        return None
    return (
        f"{num_background} background images are few for {num_references} references: a single copied image "
        f"cannot reach q <= {alpha:g} with fewer than {needed}. "
        "Add more with scanner corpus add --background."
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
    """Compares every reference and every background image with the candidates [K, D].

    `candidate_ids` are the ids of the rows of `candidates`, `background` is [M, D]; all are L2-normalised.
    """
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
