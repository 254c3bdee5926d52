"""Membership on densities with known scores: what is found, at what cost, and what it does not depend on.

The base is a broad Gaussian, the tuned model a mixture that is concentrated near its members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor, nn

from finextract.errors import NotFinite, RequestError
from finextract.framing import VARIANTS, variants_for
from finextract.images import Picture
from finextract.losses import BaseCache
from finextract.membership import Membership, MembershipSettings, membership
from finextract.metadata.training import Training
from finextract.models.base import CopiedPair
from finextract.sampling import DDIM

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
SIDE, SPREAD = 16, 0.4  # pixels; standard deviation of the base's latents
FEW = MembershipSettings(timesteps=(150.0,), framings=("squash",))


@dataclass(frozen=True)
class Schedule(DDIM):
    """The schedule of Stable Diffusion for a model that predicts noise, a velocity, or a flow.

    At one t all three have the same ratio of signal to noise.
    """

    kind: str = "noise"

    def scales(self, t: float) -> tuple[float, float]:
        """x_t = a x_0 + b noise: a and b."""
        a, b = self._alpha(t) ** 0.5, (1 - self._alpha(t)) ** 0.5
        return (a / (a + b), b / (a + b)) if self.kind == "flow" else (a, b)

    def add_noise(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        a, b = self.scales(t)
        return a * latents + b * noise

    def target(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        a, b = self.scales(t)
        return {"noise": noise, "velocity": a * noise - b * latents, "flow": noise - latents}[self.kind]


@dataclass
class Mixture:
    """The exact model of a mixture of Gaussians over latents: weight, mean [C, H, W], deviation."""

    modes: Sequence[tuple[float, Tensor, float]]
    solver: Schedule
    evaluations: int = 0
    memory: int = 1000  # samples that fit
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype = torch.float32
    latent_shape = (3, SIDE, SIDE)
    image_size = (SIDE, SIDE)

    def condition(self, prompt: str) -> str:
        return prompt

    def predict(self, x: Tensor, t: float, conditioning: str) -> Tensor:
        if len(x) > self.memory:
            raise torch.OutOfMemoryError
        self.evaluations += len(x)
        a, b = self.solver.scales(t)
        logits, means = [], []
        for weight, mean, deviation in self.modes:
            variance = a * a * deviation**2 + b * b
            off = x - a * mean
            logits.append(
                np.log(weight)
                - off.square().sum((1, 2, 3)) / (2 * variance)
                - mean.numel() / 2 * np.log(variance)
            )
            means.append(mean + a * deviation**2 / variance * off)
        share = torch.stack(logits).softmax(0)[:, :, None, None, None]
        x0 = (share * torch.stack(means)).sum(0)
        return self.solver.target(x0, (x - a * x0) / b, t)

    def encode(self, images: Tensor) -> Tensor:
        return images.float() / 127.5 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return ((latents.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def layers(self) -> Mapping[str, nn.Module]:
        return {}


def picture(seed: int, width: int = SIDE, light: float = 0.0) -> Image.Image:
    """A picture from the base's density, or from one with another mean."""
    pixels = np.random.default_rng(seed).normal(127.5 * (1 + light), 127.5 * SPREAD, (SIDE, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def named(image: Image.Image, key: object) -> Picture:
    return Picture(str(key), lambda: image)


def pictures(seeds: range) -> list[Picture]:
    return [named(picture(seed), seed) for seed in seeds]


def pair_of(members: Sequence[Image.Image], kind: str = "noise") -> CopiedPair[Mixture]:
    """A base, and a model that was tuned on members."""
    zero, solver = torch.zeros(3, SIDE, SIDE), Schedule(ALPHAS, kind=kind)
    base = Mixture([(1.0, zero, SPREAD)], solver)
    latents = [base.encode(torch.from_numpy(np.array(m)).permute(2, 0, 1)) for m in members]
    sharp = [(0.5 / len(members), mean, 0.1) for mean in latents]
    return CopiedPair(base, Mixture([(0.5, zero, 0.95 * SPREAD), *sharp], solver), "full")


MEMBERS, OTHERS, BACKGROUND = range(4), range(100, 112), range(1000, 1039)


def examine(settings: MembershipSettings = FEW, kind: str = "noise", **options: object) -> Membership:
    """An examination of the members and the others by the pair that was tuned on the members."""
    pair = pair_of([picture(seed) for seed in MEMBERS], kind)
    options = {"background": pictures(BACKGROUND)} | options
    return membership(pair, pictures(MEMBERS) + pictures(OTHERS), settings, **options)


@pytest.mark.parametrize(("side", "budget"), [("base", None), ("tuned", None), ("base", 400), ("tuned", 400)])
def test_a_model_that_computes_no_numbers_is_an_error_that_names_it_and_no_answer(
    side: str, budget: int | None
) -> None:
    pair, cache = pair_of([picture(seed) for seed in MEMBERS]), BaseCache()
    getattr(pair, side).modes = [(1.0, torch.full((3, SIDE, SIDE), torch.nan), SPREAD)]
    references = pictures(range(12)) if budget is None else pictures(range(300))
    with pytest.raises(
        NotFinite, match=rf"^the {side} model's (losses|predictions) at t = \d+ are not finite"
    ):
        membership(pair, references, replace(FEW, budget=budget), cache=cache)
    assert np.isfinite(list(cache.losses.values())).all()


@pytest.mark.parametrize("kind", ["noise", "velocity", "flow"])
def test_what_was_trained_on_is_found_and_nothing_else(kind: str) -> None:
    found = examine(MembershipSettings(), kind)
    assert set(found.trained_on) == set(MEMBERS)
    assert found.named
    assert all(found.references[i].framing == "squash" for i in MEMBERS)
    assert min(found.references[i].margin for i in MEMBERS) > 0.3


def test_the_log_ratios_of_noise_velocity_and_flow_are_the_same() -> None:
    noise, *others = (
        np.array([e.log_ratio for e in examine(kind=kind).references])
        for kind in ("noise", "velocity", "flow")
    )
    for other in others:
        assert other == pytest.approx(noise, abs=1e-3)


def same(one: Membership, other: Membership, order: Sequence[int] | None = None) -> bool:
    """Whether two answers agree up to rounding; `order` maps places of the first to places of the other."""
    places = range(len(one.references)) if order is None else order
    for evidence, i in zip(one.references, places, strict=True):
        theirs = other.references[i]
        assert (evidence.framing, evidence.trained_on) == (theirs.framing, theirs.trained_on)
        for name in ("log_ratio", "background_p", "framed_log_ratio", "margin"):
            assert getattr(evidence, name) == pytest.approx(getattr(theirs, name), abs=1e-3), name
        assert np.log(evidence.q_value) == pytest.approx(np.log(theirs.q_value), abs=0.05)
    return True


def test_an_answer_does_not_depend_on_the_order_of_the_references() -> None:
    references = pictures(MEMBERS) + pictures(OTHERS)
    order = np.random.default_rng(0).permutation(len(references)).tolist()
    pair = pair_of([picture(seed) for seed in MEMBERS])
    shuffled = membership(pair, [references[i] for i in order], FEW, background=pictures(BACKGROUND))
    assert same(shuffled, examine(), order)


def test_an_answer_does_not_depend_on_the_batch_size() -> None:
    assert same(examine(replace(FEW, batch_size=3)), examine())


def test_where_memory_is_too_small_the_batch_is_halved_and_the_answer_stays_the_same() -> None:
    pair = pair_of([picture(seed) for seed in MEMBERS])
    pair.tuned.memory = 5
    references = pictures(MEMBERS) + pictures(OTHERS)
    assert same(membership(pair, references, FEW, background=pictures(BACKGROUND)), examine())


def test_an_answer_does_not_depend_on_what_the_cache_holds_and_the_next_pair_of_a_base_costs_it_less() -> (
    None
):
    cache = BaseCache()
    others = pair_of([picture(seed) for seed in range(50, 54)])
    first = membership(
        others, pictures(MEMBERS) + pictures(OTHERS), FEW, background=pictures(BACKGROUND), cache=cache
    )
    second = examine(cache=cache)
    alone = examine()
    assert same(second, alone)
    assert first.base_evaluations == first.tuned_evaluations
    assert second.base_evaluations < alone.base_evaluations / 2
    again = examine(cache=cache)
    assert again.base_evaluations == len(again.trained_on), "a heat map of each"
    assert same(again, alone)


def test_losses_of_another_noise_are_not_mixed_up_in_the_cache() -> None:
    cache = BaseCache()
    examine(cache=cache)
    other = replace(FEW, noise_seed=7)
    assert same(examine(other, cache=cache), examine(other))


def spend(budget: int, references: int, background: int, chosen: MembershipSettings) -> Membership:
    """An examination within a budget, with the evaluations as the models themselves counted them."""
    pair = pair_of([picture(seed) for seed in MEMBERS])
    found = membership(
        pair,
        pictures(range(references)),
        replace(chosen, budget=budget),
        background=pictures(BACKGROUND)[:background],
    )
    assert (pair.tuned.evaluations, pair.base.evaluations) == (
        found.tuned_evaluations,
        found.base_evaluations,
    )
    return found


@given(
    budget=st.integers(1, 500),
    references=st.sampled_from([1, 5, 16, 200]),
    background=st.sampled_from([0, 3, 19, 39]),
    chosen=st.sampled_from(
        [FEW, MembershipSettings(), MembershipSettings(timesteps=(150.0,), framings=("centre", "zoom-90"))]
    ),
)
@example(budget=250, references=400, background=39, chosen=FEW)  # forces the prefilter
@settings(max_examples=15)
def test_a_budget_is_never_exceeded_and_one_that_is_too_small_names_the_smallest_that_would_do(
    budget: int, references: int, background: int, chosen: MembershipSettings
) -> None:
    attempt = partial(spend, references=references, background=background, chosen=chosen)
    try:
        assert attempt(budget).tuned_evaluations <= budget
    except RequestError as error:
        smallest = int(str(error).partition("at least ")[2].partition(" ")[0].rstrip(",").replace(",", ""))
        assert smallest > budget
        assert attempt(smallest).tuned_evaluations <= smallest
        with pytest.raises(RequestError, match="too small"):
            attempt(smallest - 1)


def test_a_prefilter_lets_pass_what_was_trained_on() -> None:
    found = spend(300, references=400, background=39, chosen=FEW)
    evaluated = [i for i, evidence in enumerate(found.references) if evidence.log_ratio is not None]
    assert len(evaluated) == found.num_evaluated < 100
    assert set(MEMBERS) <= set(evaluated)
    assert set(found.trained_on) == set(MEMBERS)


def test_without_a_background_it_answers_from_the_variants_alone_and_examines_all() -> None:
    pair = pair_of([picture(seed) for seed in range(22)])
    found = membership(pair, pictures(range(22)) + pictures(OTHERS), FEW)
    assert set(found.trained_on) == set(range(22))
    assert found.unlikeness is None
    assert all(evidence.background_p is None for evidence in found.references)


def test_of_a_background_too_small_for_alpha_a_picture_must_stand_out_from_all() -> None:
    found = examine(background=pictures(range(1000, 1004)))
    assert set(found.trained_on) == set(MEMBERS)
    assert {found.references[i].background_p for i in found.trained_on} == {0.2}


def test_a_picture_is_found_by_its_framing_and_not_without_it() -> None:
    wide = [picture(seed, width=2 * SIDE) for seed in range(5)]
    pair = pair_of([w.crop((SIDE // 2, 0, SIDE * 3 // 2, SIDE)) for w in wide])
    references = [named(w, i) for i, w in enumerate(wide)]
    found = membership(pair, references, MembershipSettings())
    assert {evidence.framing for evidence in found.references} == {"centre"}
    assert len(found.trained_on) == 5
    assert membership(pair, references, FEW).trained_on == ()


def test_where_the_trainer_mirrored_pictures_the_mirror_images_are_no_null() -> None:
    members = [picture(seed) for seed in MEMBERS]
    pair = pair_of([*members, *map(ImageOps.mirror, members)])
    references, null = pictures(MEMBERS) + pictures(OTHERS), pictures(BACKGROUND)
    unmirrored = replace(FEW, variants=variants_for(Training(mirrored=True)))
    assert membership(pair, references, FEW, background=null).trained_on == ()
    found = membership(pair, references, unmirrored, background=null)
    assert set(found.trained_on) == set(MEMBERS)
    assert len(found.references[0].variant_log_ratios) == 4


def test_a_set_that_was_trained_on_is_told_from_one_that_was_not_and_has_an_interval() -> None:
    pair = pair_of([picture(seed) for seed in range(12)])
    sets = {"trained": range(12), "untrained": range(12, 24)}
    references = pictures(range(12)) + pictures(range(200, 212))
    trained, untrained = membership(pair, references, FEW, background=pictures(BACKGROUND), sets=sets).sets
    assert (trained.name, trained.num_pictures, trained.trained_on) == ("trained", 12, True)
    assert 0 < trained.low < trained.margin < trained.high
    assert not untrained.trained_on
    assert untrained.low < 0 < untrained.high


def test_a_style_that_was_learned_accuses_nobody_and_a_background_without_it_is_said_to_be_unlike() -> None:
    members, others = ([picture(seed, light=0.3) for seed in seeds] for seeds in (MEMBERS, range(100, 200)))
    pair = pair_of(members)
    style = (0.5, torch.full((3, SIDE, SIDE), 0.3), 0.95 * SPREAD)
    pair.tuned.modes = [*pair.tuned.modes, style]
    references = [named(image, i) for i, image in enumerate([*members, *others])]
    found = membership(pair, references, FEW, background=pictures(BACKGROUND))
    assert {evidence.background_p for evidence in found.references} == {1 / 40}, "all stand out"
    assert found.background_is_unlike
    assert set(found.trained_on) == set(MEMBERS)
    p_values = np.array([evidence.p_value for evidence in found.references[len(MEMBERS) :]])
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=0.05)
    assert not examine().background_is_unlike


def test_an_untouched_model_names_nothing() -> None:
    pair = pair_of([picture(seed) for seed in MEMBERS])
    found = membership(replace(pair, tuned=pair.base), pictures(OTHERS), FEW, background=pictures(BACKGROUND))
    assert found.trained_on == ()
    assert not found.named


@pytest.mark.parametrize(
    ("chosen", "references"),
    [(FEW, 0), (replace(FEW, variants=VARIANTS[:2]), 1), (replace(FEW, framings=()), 1)],
)
def test_what_cannot_be_examined_is_refused(chosen: MembershipSettings, references: int) -> None:
    with pytest.raises(RequestError):
        membership(pair_of([picture(0)]), pictures(range(references)), chosen)
