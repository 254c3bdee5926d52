"""How much of what a checkpoint was trained on the arms give back, at equal cost, net of chance.

Every arm draws samples until it has taken so many evaluations of the denoisers for each training image. For
each training image, and for pictures that the checkpoint was not trained on, the highest similarity to a
sample is taken: the second tells how much of the first is chance, since a maximum over more samples rises by
itself. R = training images, O = other pictures, N = samples, D = embedding size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finextract import metrics
from finextract.audit import picture_of_image
from finextract.bench.cases import Case
from finextract.candidates import choose_candidates
from finextract.extract import ExtractionSettings, extract
from finextract.membership import MembershipSettings, membership
from finextract.models.base import Pair
from finextract.ranking import rank_candidates
from finextract.sscd import Embedder

# An arm -> its settings. The baselines take the steps of the default, with which they give most back.
ARMS: dict[str, ExtractionSettings] = {
    "direct": ExtractionSettings(preset="single", method="direct"),
    "CFG 3": ExtractionSettings(preset="single", method="cfg", guidance_scale=3.0),
    "paper": ExtractionSettings(preset="paper"),
    "portfolio": ExtractionSettings(),
}
CANDIDATES_PER_IMAGE = 2  # of every arm
CURVE = (0.05, 0.1, 0.2, 0.33, 0.5, 0.75, 1.0)  # shares of the evaluations


@dataclass(frozen=True)
class Measured:
    """One arm on one case, at a number of evaluations."""

    case: str
    kind: str
    subject: str
    split: str
    steps_per_image: int
    out_of_domain: bool
    arm: str
    share: float  # of the evaluations that the arm may take
    evaluations: int  # of either denoiser
    samples: int
    seconds: float  # of sampling and embedding, for all of the arm's samples
    average_similarity: float  # AS
    strict: float  # A-ESR at 0.7
    loose: float  # A-ESR at 0.6
    chance: float  # the same as AS for pictures that were not trained on
    chance_strict: float
    chance_loose: float
    candidate_similarity: float  # AS over the candidates
    candidate_strict: float
    candidate_loose: float

    @property
    def net(self) -> float:
        """AS, less what is chance."""
        return self.average_similarity - self.chance


def measure(
    case: Case,
    pair: Pair,
    others: NDArray[np.float32],
    evaluations_per_image: int,
    embedder: Embedder,
    arms: Sequence[str] = tuple(ARMS),
    batch_size: int = 32,
) -> Iterator[Measured]:
    """Each arm on a case at each share of CURVE. `others` [O, D] are pictures that it was not trained on."""
    references = embedder.embed(case.references)
    budget = evaluations_per_image * len(case.references)
    for arm in arms:
        settings = replace(ARMS[arm], batch_size=batch_size)
        steps = settings.steps_for(pair.tuned.solver)
        cheapest = steps * min(1 if g.is_alone else 2 for g in settings.guidances(pair))
        settings = replace(settings, samples_per_image=-(-evaluations_per_image // cheapest))
        began = time.perf_counter()
        for last in extract(pair, case.caption, len(case.references), settings, embedder):
            each = np.array([steps * (1 if a.guidance.is_alone else 2) for a in last.arms])[last.arm_of]
            each[list(last.losses.known)] += 2
            spent = np.cumsum(each)
            if spent[-1] >= budget:
                break
        seconds = time.perf_counter() - began
        for share in CURVE:
            drawn = int(np.searchsorted(spent, share * budget, side="right"))
            embeddings, pictures = last.embeddings[:drawn], last.pictures[:drawn]
            count = CANDIDATES_PER_IMAGE * len(case.references)
            candidates = choose_candidates(embeddings, pictures, count)
            if settings.preset == "portfolio":
                candidates = rank_candidates(last.losses.copy(), embeddings, pictures, count)
            chosen = embeddings[[clique.representative for clique in candidates]]
            over, chance, over_candidates = (
                metrics.best_similarity(*both)
                for both in (
                    (references, embeddings[pictures]), (others, embeddings[pictures]), (references, chosen),
                )
            )  # fmt: skip
            yield Measured(
                case.name, case.kind, case.subject, case.split, case.steps_per_image, case.out_of_domain,
                arm, share, int(spent[drawn - 1]) if drawn else 0, drawn, seconds, *_scores(over),
                *_scores(chance), *_scores(over_candidates),
            )  # fmt: skip


def _scores(best: NDArray[np.float32]) -> tuple[float, float, float]:
    """AS and A-ESR at both thresholds."""
    return (
        float(best.mean()),
        float((best > metrics.STRICT).mean()),
        float((best > metrics.LOOSE).mean()),
    )


def columns(rows: Sequence[Measured]) -> dict[str, list[Any]]:
    """The rows by column."""
    values = [asdict(row) for row in rows]
    return {field.name: [row[field.name] for row in values] for field in fields(Measured)}


def summary(rows: Sequence[Measured]) -> list[dict[str, Any]]:
    """The means of each arm over the cases in and out of the base's domain, at all its evaluations."""
    found = []
    for arm in dict.fromkeys(row.arm for row in rows):
        for where in (False, True):
            own = [r for r in rows if r.arm == arm and r.share == 1 and r.out_of_domain == where]
            if own:
                found.append({"arm": arm, "out_of_domain": where, "cases": len(own), **_means(own)})
    return found


def _means(rows: Sequence[Measured]) -> dict[str, float]:
    names = [f.name for f in fields(Measured)]
    names = names[names.index("evaluations") :]
    means = {name: float(np.mean([getattr(row, name) for row in rows])) for name in names}
    return {**means, "net": float(np.mean([row.net for row in rows]))}


@dataclass(frozen=True)
class Paired:
    """The difference of two arms over the same cases, with a 95 % bootstrap interval over the subjects."""

    one: str
    other: str
    what: str
    cases: int
    difference: metrics.Estimate
    ratio: float  # of the means; infinite where the other's is 0


def paired(
    rows: Sequence[Measured],
    one: tuple[str, float],
    other: tuple[str, float],
    what: str,
    where: Callable[[Measured], bool] = lambda row: True,
) -> Paired:
    """Compares one (arm, share of the evaluations) with another by a field of Measured, or "net"."""
    values = {(r.case, r.arm, r.share): (r.subject, getattr(r, what)) for r in rows if where(r)}
    cases = sorted({case for case, *_ in values})
    firsts, seconds = (np.array([values[case, *arm][1] for case in cases]) for arm in (one, other))
    subjects = np.array([values[case, *one][0] for case in cases])
    by_subject = [(firsts - seconds)[subjects == s].mean() for s in sorted(set(subjects.tolist()))]
    ratio = float(firsts.mean() / seconds.mean()) if seconds.mean() else float("inf")
    return Paired(one[0], other[0], what, len(cases), metrics.mean_with_interval(np.array(by_subject)), ratio)


def membership_of(case: Case, pair: Pair, others: Sequence[Any], budget: int) -> dict[str, float | int | str]:
    """What membership says of a case's training images, and of as many of the others as its null leaves."""
    began = time.perf_counter()
    references = [picture_of_image(image) for image in (*case.references, *case.sisters)]
    answer = membership(pair, references, MembershipSettings(budget=budget), background=others)
    trained = len(case.references)
    return {
        "case": case.name,
        "trained_on": sum(e.trained_on for e in answer.references[:trained]),
        "references": trained,
        "sisters_accused": sum(e.trained_on for e in answer.references[trained:]),
        "sisters": len(case.sisters),
        "evaluations": answer.tuned_evaluations,
        "seconds": time.perf_counter() - began,
    }
