"""Membership: was a picture trained on? Answered from the losses of both models on the picture itself.

The log-ratio of a picture is the log of the base model's denoising loss over that of the tuned model, under
the same noise: positive where the fine-tuning lowered the loss. It needs no caption and no sampling.

Three comparisons stand behind an answer:
- with *its own variants* (mirrored, moved): a model that learned a style or a subject lowers the losses of a
  picture and of its variants alike; one that was trained on this picture lowers that of this picture. The
  margin, divided by the variants' spread, gives the p-value.
- with a *background* of pictures that nothing was trained on: the picture's log-ratio must lie above nearly
  all of theirs.
- for a *set* of pictures: each with its mirror image, all together. This sees what no single picture shows.

R = references, M = background pictures, V = variants, T = timesteps.
Shokri et al. (2017) for membership inference, Watson et al. (2022) for the calibration by a second model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finextract.budget import drawn, plan
from finextract.errors import RequestError
from finextract.framing import FRAMINGS, VARIANTS, framings_of
from finextract.images import Picture as Picture
from finextract.losses import BaseCache, Losses, Query
from finextract.models.base import Pair
from finextract.prefilter import prefilter
from finextract.set_evidence import MIN_SET, set_evidence
from finextract.set_evidence import SetEvidence as SetEvidence
from finextract.significance import (
    benjamini_hochberg,
    conformal_p_values,
    highest_of_normal,
    self_null_p_values,
    share_above,
)

MISMATCH = 0.8  # of the references' mirror images above the background's pictures: another kind of picture
NAMED_WRONGLY = 0.01  # of the checkpoints without a member that a high log-ratio alone may name
MIN_SPREAD = 19  # pictures of the background that tell its spread
MIN_UNTOUCHED = 4  # references that were not trained on, to compare the background with
FEW = 20  # references that a budget lets pass to the second pass where no background tells them apart


@dataclass(frozen=True)
class MembershipSettings:
    """How pictures are examined."""

    timesteps: tuple[
        float, ...
    ] = ()  # the first for all pictures, all for what stands out; else the solver's
    noise_seed: int = 0
    caption: str = ""  # of the tuned side; the empty prompt does as well as the training caption
    framings: tuple[str, ...] = FRAMINGS  # the first one for all pictures
    variants: tuple[str, ...] = VARIANTS  # the first one for sets: by default the mirror image
    budget: int | None = None  # evaluations of the tuned model, at most; the base needs as many, or fewer
    alpha: float = 0.05
    batch_size: int = 64


@dataclass(frozen=True, slots=True)
class ReferenceEvidence:
    """What the pair's losses say about one reference."""

    log_ratio: float | None  # in the first framing at the first timestep; None where a prefilter left it out
    background_p: float | None  # conformal p of `log_ratio` against the background; None without one
    framing: str = ""  # the one with the highest log-ratio; "" where the reference did not stand out
    framings_tried: int = 0
    framed_log_ratio: float | None = None  # in that framing, the mean over the timesteps
    variant_log_ratios: tuple[float, ...] = ()  # [V], alike: the reference's own null
    margin: float | None = None  # `framed_log_ratio` less the mean of its null
    p_value: float = 1.0  # of the margin, corrected for the framings tried; 1 where it did not stand out
    q_value: float = 1.0  # Benjamini-Hochberg over all references and sets
    trained_on: bool = False
    heat: tuple[float, ...] = ()  # where that log-ratio comes from, row by row; of what was trained on


NOT_EXAMINED = ReferenceEvidence(None, None)


@dataclass(frozen=True)
class Membership:
    """The answers for all references, and what they cost."""

    settings: MembershipSettings
    references: tuple[ReferenceEvidence, ...]  # [R], in the order given
    sets: tuple[SetEvidence, ...]
    background_log_ratios: NDArray[np.float32]  # [M], of the pictures that were evaluated
    # How often the first variant of a reference that was not trained on has a higher log-ratio than a picture
    # of the background: 0.5 where they are alike. None without enough of either.
    unlikeness: float | None
    highest_z: float | None  # the highest log-ratio of a reference, in standard deviations of the background
    num_evaluated: int  # references that passed the prefilter; R without one
    num_standing: int  # of these, references that stood out; a budget may compare fewer with their variants
    tuned_evaluations: int
    base_evaluations: int  # without those that the cache held

    @property
    def trained_on(self) -> tuple[int, ...]:
        """Indices of the references that were trained on, strongest evidence first."""
        found = [i for i, e in enumerate(self.references) if e.trained_on]
        return tuple(sorted(found, key=lambda i: self.references[i].p_value))

    @property
    def named(self) -> bool:
        """Whether an extraction is worth its cost: something was trained on, or stands far out.

        Where a trainer cropped at random, a picture's variants were trained on too, and only its log-ratio
        stands out. That alone is no claim, but extraction brings a proof of its own.
        """
        claimed = bool(self.trained_on) or any(s.trained_on for s in self.sets)
        bound = highest_of_normal(self.num_evaluated, NAMED_WRONGLY)
        return claimed or (self.highest_z is not None and self.highest_z >= bound)

    @property
    def background_is_unlike(self) -> bool:
        """Whether the background is of another kind than the references, so that it is no null for them."""
        return self.unlikeness is not None and self.unlikeness >= MISMATCH

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """The result as `finextract membership --json` prints it; `names` [R] are those of the references."""
        null = self.background_log_ratios
        return {
            "trained_on": len(self.trained_on),
            "pictures": [{"name": n, **asdict(e)} for n, e in zip(names, self.references, strict=True)],
            "sets": [asdict(found) for found in self.sets],
            "background": {
                "pictures": len(null),
                "highest_log_ratio": float(null.max()),
                "unlikeness": self.unlikeness,
                "is_unlike": self.background_is_unlike,
                "highest_z": self.highest_z,
            }
            if len(null)
            else None,
            **asdict(self.settings),
            "num_evaluated": self.num_evaluated,
            "num_standing": self.num_standing,
            "num_compared": sum(found.margin is not None for found in self.references),
            "tuned_evaluations": self.tuned_evaluations,
            "base_evaluations": self.base_evaluations,
        }


def membership(
    pair: Pair,
    references: Sequence[Picture],
    settings: MembershipSettings | None = None,
    *,
    background: Sequence[Picture] = (),
    sets: Mapping[str, Sequence[int]] | None = None,
    cache: BaseCache | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Membership:
    """Examines references in two passes, within the budget.

    The first pass computes every log-ratio at the first timestep. Where that would exceed the budget, a
    prefilter chooses the references. The second pass takes those that stand out, the strongest first, in
    several framings, at all timesteps and with their variants. A reference was trained on if its q-value and
    its p-value against the background are at most alpha. `sets` are named indices of references; the default
    is one set of all. `cache` holds what depends on the base alone, and serves all pairs of that base.

    Deterministic: neither the cache nor the batch size change a result by more than rounding.
    Raises RequestError for settings that cannot be used, NotFinite, and what a picture's `open` raises.
    """
    settings = settings or MembershipSettings()
    _check(settings, references)
    settings = replace(settings, timesteps=settings.timesteps or pair.base.solver.membership_times)
    cache = cache or BaseCache()
    losses = Losses(pair, settings.noise_seed, settings.caption, settings.batch_size, cache, progress)
    sets = sets if sets is not None else {"all": range(len(references))}
    sizes = [len(members) for members in sets.values()]
    parts = plan(settings.budget, len(references), len(background), sizes, len(settings.variants))

    chosen = np.arange(len(references))
    if parts.prefiltered is not None:
        chosen = prefilter(losses, references, background, parts.prefiltered)
    null_pictures = [background[i] for i in drawn(len(background), parts.background)]
    sampled = {
        n: [int(members[i]) for i in drawn(len(members), parts.set_size)] for n, members in sets.items()
    }
    paired = sorted({i for members in sampled.values() for i in members})
    looked_at = sorted({*chosen.tolist(), *paired})
    view = partial(Query, framing=settings.framings[0], t=settings.timesteps[0])
    whole = losses.log_ratios([view(references[i]) for i in looked_at], "references")
    null = losses.log_ratios([view(picture) for picture in null_pictures], "background")
    varied = losses.log_ratios([view(references[i], variant=settings.variants[0]) for i in paired], "sets")
    ratio = dict(zip(looked_at, whole.tolist(), strict=True))
    variant_ratio = dict(zip(paired, varied.tolist(), strict=True))

    background_p: dict[int, float] = {}
    if len(null):
        p = conformal_p_values(whole, null)
        background_p = dict(zip(looked_at, p.tolist(), strict=True))
    bound = max(settings.alpha, 1 / (1 + len(null)))  # of a small background, the picture must lie above all
    few = settings.budget is None or len(chosen) <= FEW
    standing = _standing_out(ratio, background_p, chosen.tolist(), bound, few)
    examined = _examine(losses, references, standing, settings, parts.second_pass)
    evidence = [
        replace(examined.get(i, NOT_EXAMINED), log_ratio=ratio.get(i), background_p=background_p.get(i))
        for i in range(len(references))
    ]
    found_sets = [
        set_evidence(name, [ratio[i] for i in members], [variant_ratio[i] for i in members])
        for name, members in sampled.items()
        if len(members) >= MIN_SET
    ]
    answered, answered_sets = _answers(evidence, found_sets, settings.alpha, bound)
    claimed = [i for i, e in enumerate(answered) if e.trained_on]
    maps = losses.heat_maps([view(references[i], framing=answered[i].framing) for i in claimed])
    for i, cells in zip(claimed, maps, strict=True):
        answered[i] = replace(answered[i], heat=tuple(cells.ravel().tolist()))
    untouched = [variant_ratio[i] for i in paired if not answered[i].trained_on]
    comparable = len(null) > 0 and len(untouched) >= MIN_UNTOUCHED
    unlikeness = share_above(np.array(untouched), null) if comparable else None
    spread = float(null.std()) if len(null) >= MIN_SPREAD else 0.0
    highest_z = float(whole.max() - null.mean()) / spread if spread > 0 else None
    return Membership(
        settings, tuple(answered), answered_sets, null, unlikeness, highest_z, len(chosen),
        len(standing), losses.tuned_evaluations, losses.base_evaluations,
    )  # fmt: skip


def _check(settings: MembershipSettings, references: Sequence[Picture]) -> None:
    if not references:
        raise RequestError("there are no pictures to examine.")
    if not settings.framings or len(settings.variants) < 3:
        raise RequestError("membership needs a framing and at least three variants.")


def _standing_out(
    ratio: Mapping[int, float], background_p: Mapping[int, float], chosen: Sequence[int], bound: float,
    few: bool,
) -> list[int]:  # fmt: skip
    """The references that the second pass examines, highest log-ratio first.

    With a background, those whose p against it is at most `bound`. Without one, all if they are `few`, else
    the upper quarter.
    """
    if background_p:
        found = [i for i in chosen if background_p[i] <= bound]
    elif few:
        found = list(chosen)
    else:
        quarter = float(np.quantile([ratio[i] for i in chosen], 0.75))
        found = [i for i in chosen if ratio[i] >= quarter]
    return sorted(found, key=lambda i: -ratio[i])


def _examine(
    losses: Losses, references: Sequence[Picture], standing: Sequence[int], settings: MembershipSettings,
    budget: int | None,
) -> dict[int, ReferenceEvidence]:  # fmt: skip
    """The second pass: the best framing of each reference, and its margin over its variants."""
    if not standing:
        return {}
    variants, timesteps = settings.variants, settings.timesteps
    tried = len(settings.framings)
    if budget is not None:
        standing = standing[: budget // len(variants)]
        if not standing:
            return {}
        share = budget // len(standing)  # for each; its first framing is known at the first timestep
        if share < (len(variants) + 1) * len(timesteps) - 1:
            timesteps = timesteps[:1]
        tried = min(tried, 1 + share - ((len(variants) + 1) * len(timesteps) - 1))
    first = timesteps[0]
    framings = {i: framings_of(references[i].open(), settings.framings)[:tried] for i in standing}
    asked = [(i, f) for i in standing for f in framings[i]]
    found = losses.log_ratios([Query(references[i], framing=f, t=first) for i, f in asked], "framings")
    best: dict[int, tuple[float, str]] = {}
    for (i, framing), value in zip(asked, found.tolist(), strict=True):
        if i not in best or value > best[i][0]:
            best[i] = value, framing
    views = ("", *variants)
    queries = [Query(references[i], best[i][1], v, t) for i in standing for t in timesteps for v in views]
    values = (
        losses.log_ratios(queries, "variants").reshape(len(standing), len(timesteps), len(views)).mean(axis=1)
    )
    _, p = self_null_p_values(values[:, 0], values[:, 1:])
    return {
        i: ReferenceEvidence(
            None, None, best[i][1], len(framings[i]), float(v[0]), tuple(v[1:].tolist()),
            float(v[0] - v[1:].mean()), _corrected(float(p_value), best[i][1], framings[i]),
        )
        for i, v, p_value in zip(standing, values, p, strict=True)
    }  # fmt: skip


def _corrected(p: float, framing: str, tried: Sequence[str]) -> float:
    """p corrected for the choice among the framings: Bonferroni's bound with half of its weight on the first.

    The first framing is the usual one, and the others share the other half.
    """
    others = len(tried) - 1
    return min(1.0, p * (1 if not others else 2 if framing == tried[0] else 2 * others))


def _answers(
    evidence: Sequence[ReferenceEvidence], sets: Sequence[SetEvidence], alpha: float, bound: float
) -> tuple[list[ReferenceEvidence], tuple[SetEvidence, ...]]:
    """The q-values over all references and sets, and the answers."""
    p = [*(e.p_value for e in evidence), *(s.p_value for s in sets)]
    found = benjamini_hochberg(np.array(p)).tolist()
    references = [
        replace(e, q_value=q, trained_on=q <= alpha and (e.background_p is None or e.background_p <= bound))
        for e, q in zip(evidence, found, strict=False)
    ]
    return references, tuple(
        replace(s, q_value=q, trained_on=q <= alpha)
        for s, q in zip(sets, found[len(evidence) :], strict=True)
    )
