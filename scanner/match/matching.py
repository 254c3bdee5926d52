"""The flag rule: from candidates and corpora to matches and a verdict. NumPy only.

A reference is flagged if its q-value is at most alpha, and the candidate nearest to it is nearer to it than
to any other picture, and as similar as the reference needs: tau, or less where the reference itself resembles
no other picture much (finextract.significance.Thresholds). Another picture is any other reference or image of
the null, unless it is a version of the reference: its similarity to the reference is tau or more.
p-values are conformal, against the null compared with the same candidates: the background images and the
owner's unseen works. q-values are those of Benjamini and Hochberg over all references of the scan. tau comes
from the background alone, or from the unseen works where there is no background. Without any null nothing is
flagged: p and q are 1, and a match says how similar two pictures are and no more.
A p-value, and so a q-value, depends only on how many images of the null reach a similarity, so both are
computed for each such number and not for each reference.
R = references, K = candidates, M = images of the null, D = embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from finextract.budget import plan
from finextract.errors import RequestError
from finextract.framing import VARIANTS
from finextract.significance import (
    Thresholds,
    minimum_background,
    p_and_q_by_count,
    thresholds_of_background,
)
from scanner.config import ScanConfig
from scanner.errors import CorpusError
from scanner.match.corpus import Corpus, load_corpora
from scanner.records import Match, Role, Verdict, new_id
from scanner.store.store import Store

KEPT_MATCHES = 10  # nearest matches that a scan stores, in addition to all flagged ones
BLOCK = 4096  # references that are compared at once
SCANS = 64  # whose candidates are compared at once,
ROUNDING = 1e-6  # of a similarity, by the order of its sums
BEST_BYTES = 64_000_000  # or fewer, so that the highest similarity of each image to each of them fits
HOW_TO_ADD = (
    "Add images like yours that no checkpoint was trained on (scanner corpus add NAME SOURCE --background), "
    "or works of yours that were never published (--unseen). scanner corpus add --help says what a "
    "background must be, and has one to try the program with (--from-demo)."
)
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Corpora:
    """What candidates are compared with: at least one reference, and the null, if there is one."""

    references: tuple[Corpus, ...]
    background: tuple[Corpus, ...]
    unseen: tuple[Corpus, ...] = ()  # works of the owner that were never published

    @property
    def null(self) -> tuple[Corpus, ...]:
        """What no checkpoint was trained on: the background and the unseen works."""
        return (*self.background, *self.unseen)

    @property
    def num_references(self) -> int:
        """R, of all reference corpora."""
        return sum(len(corpus.embeddings) for corpus in self.references)

    @property
    def num_background(self) -> int:
        """M, of all corpora of the null."""
        return sum(len(corpus.embeddings) for corpus in self.null)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of one scan."""

    scan_id: str
    candidate_ids: Sequence[str]  # K
    embeddings: Floats  # [K, D], L2-normalised


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


def split(corpora: Sequence[Corpus]) -> Corpora:
    """The corpora by their role; an image that is a reference too is left out of the null.

    Raises CorpusError where there is no reference.
    """
    references, background, unseen = (
        tuple(corpus for corpus in corpora if corpus.role is role and len(corpus.embeddings))
        for role in (Role.REFERENCE, Role.BACKGROUND, Role.UNSEEN)
    )
    background, unseen = (_without(null, references) for null in (background, unseen))
    if not references:
        names = ", ".join(c.name for c in corpora)
        among = f"the selected corpora ({names}) hold" if names else "the store holds"
        raise CorpusError(
            f"{among} no reference images, so there is nothing to look for.\n"
            "Add the images that you own (scanner corpus add NAME SOURCE), or select their corpus: --corpus "
            "NAME"
        )
    return Corpora(references, background, unseen)


def _without(null: tuple[Corpus, ...], references: tuple[Corpus, ...]) -> tuple[Corpus, ...]:
    """The corpora of the null without the images that are references; empty ones are left out."""
    for reference in references:
        for n, corpus in enumerate(null):
            kept = np.isin(corpus.reference_ids, reference.reference_ids, invert=True)
            if not kept.all():
                remaining = replace(
                    corpus, reference_ids=corpus.reference_ids[kept], embeddings=corpus.embeddings[kept]
                )
                null = (*null[:n], remaining, *null[n + 1 :])
    return tuple(corpus for corpus in null if len(corpus.embeddings))


def warn_if_small(
    num_references: int, num_background: int, alpha: float, *, screened: bool = True
) -> str | None:
    """A warning where the null is too small for a single match to be flagged, or missing; else None."""
    needed = minimum_background(num_references, alpha)
    if num_background >= needed:
        return None
    if num_background:
        return (
            f"{num_background} background images are few for {num_references} references: that one of "
            f"them is given back cannot reach q <= {alpha:g} with fewer than {needed}. {HOW_TO_ADD}"
        )
    still = (
        "A checkpoint can still be flagged as trained on an image of yours, judged by the image's own "
        "mirrored and moved versions. Pictures that it draws are shown as similar, without a flag."
        if screened
        else "Nothing can be flagged: pictures that a checkpoint draws are shown as similar, and no more."
    )
    return f"there is no background, and without one no similarity is evidence. {still}\n{HOW_TO_ADD}"


def with_corpora(
    store: Store, config: ScanConfig, names: list[str], warn: Callable[[str], None] = lambda _: None
) -> ScanConfig:
    """The configuration with its corpora, and the tau of the background, or else of the unseen works.

    `warn` gets a sentence where the corpora are too small for any flag that a picture is given back. Raises
    CorpusError.
    """
    corpora = load_corpora(store, names, config.descriptor)
    compared = split(corpora)
    if warning := warn_if_small(
        compared.num_references, compared.num_background, config.alpha, screened=config.is_screened
    ):
        warn(f"warning: {warning}")
    if config.is_screened:
        sizes = [len(corpus.embeddings) for corpus in compared.references]
        try:
            plan(config.screen_budget, sum(sizes), compared.num_background, sizes, len(VARIANTS))
        except RequestError as error:
            also = "" if compared.null else "\nWith a background, a quick filter chooses among many images."
            raise CorpusError(f"--screen-budget {config.screen_budget}: {error}{also}") from error
    embeddings = [corpus.embeddings for corpus in compared.background or compared.unseen]
    found = (
        thresholds_of_background(config.tau_quantile, *embeddings) if embeddings else Thresholds(1.0, None)
    )
    return replace(
        config,
        tau=round(found.tau, 4),
        relative_tau=None if found.relative is None else round(found.relative, 4),
        corpora={c.name: f"{c.role.value}:{c.digest}" for c in sorted(corpora, key=lambda c: c.name)},
    )


def thresholds_of(config: ScanConfig) -> Thresholds:
    """The similarities that a flag needs under a configuration."""
    return Thresholds(config.tau, config.relative_tau)


def compare(
    scans: Sequence[Candidates], corpora: Corpora, thresholds: Thresholds, alpha: float
) -> Iterator[Comparison]:  # fmt: skip
    """Compares every reference and every image of the null with the candidates of each scan, in order.

    Scans that are compared in one call share their matrix products; a similarity may then differ by some
    1e-7 from that of a call with one scan. Memory: `BEST_BYTES`, and `BLOCK` similarities for each candidate
    of the scans that are compared at once.
    """
    images = corpora.num_references + corpora.num_background
    at_once = min(SCANS, max(1, BEST_BYTES // (4 * images)))
    for start in range(0, len(scans), at_once):
        some = scans[start : start + at_once]
        compared = [scan for scan in some if len(scan.embeddings)]
        rows = {id(scan): n for n, scan in enumerate(compared)}
        best, null = _highest(compared, corpora.references), _highest(compared, corpora.null)
        for scan in some:
            if (row := rows.get(id(scan))) is None:
                yield Comparison((), corpora.num_references, corpora.num_background, None, None)
            else:
                yield _comparison(scan, corpora, best[row], null[row], thresholds, alpha)


def _highest(scans: Sequence[Candidates], corpora: Sequence[Corpus]) -> Floats:
    """The highest similarity of each image of the corpora to any candidate of each scan, [scans, images]."""
    highest = np.empty((len(scans), sum(len(corpus.embeddings) for corpus in corpora)), np.float32)
    if not scans:
        return highest
    candidates = np.concatenate([scan.embeddings for scan in scans])
    ends = np.cumsum([len(scan.embeddings) for scan in scans])
    column = 0
    for corpus in corpora:
        for at in range(0, len(corpus.embeddings), BLOCK):
            similarity = candidates @ corpus.embeddings[at : at + BLOCK].T
            columns = slice(column, column + similarity.shape[1])
            begin = 0
            for row, end in enumerate(ends):
                np.max(similarity[begin:end], axis=0, out=highest[row, columns])
                begin = end
            column = columns.stop
    return highest.clip(-1, 1, out=highest)


def _comparison(
    scan: Candidates, corpora: Corpora, best: Floats, null: Floats, thresholds: Thresholds, alpha: float
) -> Comparison:
    """The flag rule for one scan, given the highest similarity of each reference [R] and of the null [M]."""
    p, q = p_and_q_by_count(best, null)
    ordered = np.sort(null)
    count = min(KEPT_MATCHES, len(best))
    nearest = np.partition(best, len(best) - count)[len(best) - count]
    places = np.flatnonzero((best >= nearest) | (best >= thresholds.least))
    places = places[np.lexsort((places, -best[places]))]  # nearest first
    reached = len(null) - np.searchsorted(ordered, best[places], side="left")  # by how many of the null
    significant = q[reached] <= alpha
    kept = significant | (np.arange(len(places)) < count)
    places, reached, significant = places[kept], reached[kept], significant[kept]
    owners = list(_owners(scan, corpora, places))
    others, is_nearest = np.full(len(places), np.nan), np.zeros(len(places), bool)
    others[significant], is_nearest[significant] = _others(
        scan, corpora, places[significant], [o for o, s in zip(owners, significant, strict=True) if s],
        thresholds.tau,
    )  # fmt: skip
    needed = thresholds.needed(others)
    flagged = significant & (best[places] >= needed) & (is_nearest | (thresholds.relative is None))
    matches = tuple(
        Match(
            match_id=new_id(),
            scan_id=scan.scan_id,
            candidate_id=scan.candidate_ids[candidate],
            corpus=corpus.name,
            reference_id=corpus.reference_ids[row].decode(),
            similarity=float(best[places[n]]),
            null_similarity=float(ordered[-1]) if len(ordered) else None,
            p_value=float(p[reached[n]]),
            q_value=float(q[reached[n]]),
            flagged=bool(flagged[n]),
            nearest_other=float(others[n]) if significant[n] else None,
            needed=float(needed[n]) if significant[n] else None,
            is_nearest=bool(is_nearest[n]) if significant[n] else None,
        )
        for n, (corpus, row, candidate) in enumerate(owners)
        if flagged[n] or n < count
    )
    return Comparison(
        matches, corpora.num_references, corpora.num_background, matches[0].similarity, matches[0].q_value
    )


def _others(
    scan: Candidates, corpora: Corpora, places: NDArray[np.intp], owners: Sequence[tuple[Corpus, int, int]],
    tau: float,
) -> tuple[Floats, NDArray[np.bool_]]:  # fmt: skip
    """How places among all references [P] stand to other pictures; `owners` are those of the places.

    The highest similarity of the reference to another picture, -1 where there is none, and whether the
    candidate nearest to the reference is at least as near to it as to any other picture.
    """
    nearest_other, is_nearest = np.full(len(places), -1, np.float32), np.ones(len(places), bool)
    if not owners:
        return nearest_other, is_nearest
    references = np.stack([corpus.embeddings[row] for corpus, row, _ in owners])  # [P, D]
    candidates = np.stack([scan.embeddings[candidate] for *_, candidate in owners])  # [P, D]
    own = (references * candidates).sum(axis=1) + ROUNDING
    begin = 0
    for corpus in (*corpora.references, *corpora.null):
        for at in range(0, len(corpus.embeddings), BLOCK):
            block = corpus.embeddings[at : at + BLOCK]
            for first in range(0, len(places), BLOCK):
                some = slice(first, first + BLOCK)
                similarity, to_candidate = references[some] @ block.T, candidates[some] @ block.T
                version = similarity >= tau
                column = places[some] - begin - at  # of the reference itself, if it is in the block
                inside = np.flatnonzero((column >= 0) & (column < len(block)))
                version[inside, column[inside]] = True
                similarity[version] = to_candidate[version] = -1
                np.maximum(nearest_other[some], similarity.max(axis=1), out=nearest_other[some])
                is_nearest[some] &= to_candidate.max(axis=1) <= own[some]
        begin += len(corpus.embeddings)
    return nearest_other, is_nearest


def _owners(
    scan: Candidates, corpora: Corpora, places: NDArray[np.intp]
) -> Iterator[tuple[Corpus, int, int]]:  # fmt: skip
    """For places among all references: the corpus, the row in it, and the candidate nearest to it."""
    begins = np.cumsum([0, *(len(corpus.embeddings) for corpus in corpora.references)])
    owners = np.searchsorted(begins, places, side="right") - 1
    rows = places - begins[owners]
    nearest = np.empty(len(places), np.intp)
    for owner in np.unique(owners):
        own = owners == owner
        nearest[own] = (corpora.references[owner].embeddings[rows[own]] @ scan.embeddings.T).argmax(axis=1)
    for owner, row, candidate in zip(owners.tolist(), rows.tolist(), nearest.tolist(), strict=True):
        yield corpora.references[owner], row, candidate
