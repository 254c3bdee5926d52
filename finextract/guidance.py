"""The formulas that turn two predictions into a guided one, and the published numbers that go into them.

A prediction is of the noise, the velocity or the flow, as the solver of the model has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finextract.errors import RequestError
from finextract.models.base import Solver
from finextract.weights.formats import TuningKind

Method = Literal["finextract", "cfg", "direct"]
METHODS: tuple[Method, ...] = ("finextract", "cfg", "direct")


@dataclass(frozen=True, slots=True)
class Guidance:
    """The numbers of a guided prediction, and which policy chose them."""

    guidance_scale: float  # w' of the paper; s of classifier-free guidance; 1 = the tuned model alone
    correction: float  # k of the paper; 0 = off
    policy: str  # a preset's id, or "given" where a person gave at least one of the numbers

    @property
    def is_alone(self) -> bool:
        """Whether the guided prediction is that of the tuned model alone, which needs one evaluation."""
        return self.guidance_scale == 1.0 and not self.correction


DREAMBOOTH = Guidance(3.0, -0.02, "paper-dreambooth")  # Wu et al., DreamBooth set: A-ESR.7 0.25
LORA = Guidance(5.0, 0.0, "paper-lora")  # Wu et al., rank 64, DreamBooth set: A-ESR.7 0.04
FLOW = Guidance(1.5, 0.0, "flow")  # the best of five on the dev checkpoint of the zoo's flow model
CFG = Guidance(3.0, 0.0, "cfg")  # their baseline, DreamBooth set: A-ESR.7 0.15
DIRECT = Guidance(1.0, 0.0, "direct")  # no guidance
FURTHER_SCALES = (2.0, 3.0)  # w' of the portfolio, beside 1 and the preset


def choose_guidance(
    method: Method,
    kind: TuningKind,
    is_flow: bool,
    guidance_scale: float | None = None,
    correction: float | None = None,
) -> Guidance:
    """The given numbers, and for those that are None the preset of the method and kind of weights.

    `is_flow`: the model is a flow model. The authors published no numbers for these.

    Raises RequestError for a number that the method has no use for.
    """
    if method == "direct":
        if guidance_scale not in (None, 1.0) or correction:
            raise RequestError("direct sampling takes no guidance scale and no correction.")
        return DIRECT
    if method == "cfg" and correction:
        raise RequestError("classifier-free guidance takes no correction.")
    preset = CFG if method == "cfg" else FLOW if is_flow else LORA if kind == "lora" else DREAMBOOTH
    if guidance_scale is None and correction is None:
        return preset
    return Guidance(
        preset.guidance_scale if guidance_scale is None else guidance_scale,
        preset.correction if correction is None else correction,
        "given",
    )


def portfolio(method: Method, preset: Guidance) -> tuple[Guidance, ...]:
    """The strengths of guidance over which an extraction spreads its samples, weakest first.

    The tuned model alone, w' 2 and 3, and the `preset` that `choose_guidance` chose: which of them gives most
    back depends on the checkpoint, and outside the base's domain the published ones lose to the tuned model
    alone (docs/method.md). Where a number was given, or the method is a baseline, that strength alone.
    """
    if method != "finextract" or preset.policy == "given":
        return (preset,)
    further = (DIRECT, *(Guidance(scale, 0.0, "portfolio") for scale in FURTHER_SCALES))
    by_scale = {guidance.guidance_scale: guidance for guidance in (*further, preset)}
    return tuple(by_scale[scale] for scale in sorted(by_scale))


def model_guidance(base: Tensor, tuned: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Extrapolate from the base model's prediction through the fine-tuned one's: u + w'(e - u).

    u = `base`, e = `tuned`, w' = `guidance_scale`. Model guidance of Wu, Zhang and Wu (ICML 2025), without
    the term that `correct` adds. Unconditionally, both predictions have the empty prompt and w' = 1/lambda;
    with a caption, e has the training caption and u still the empty prompt, which folds classifier-free
    guidance in. A scale of 1 is the tuned model alone, 0 the base alone. It is the same for predictions of
    the noise, the velocity and the flow, each an affine function of the others. Tensors of any one shape;
    w' is one number, or one for each sample, [N, 1, 1, 1].
    """
    return base.lerp(tuned, guidance_scale)


def correct(
    solver: Solver, x: Tensor, guided: Tensor, base: Tensor, correction: float | Tensor, t: float
) -> Tensor:
    """Adds the correction term of Wu, Zhang and Wu to a guided prediction: k u, in terms of the noise.

    u is the noise that the base's prediction `base` states, k = `correction`. A prediction v states the noise
    c v + d x_t, so k u more of the noise is k u / c more of the prediction (docs/method.md). Where x_t is
    noise alone there is nothing to correct. Computed in float32 at least, because c is small near the noise,
    and rounded once. All [N, C, H, W].
    """
    if (not isinstance(correction, Tensor) and not correction) or solver.signal(t) <= 0:
        return guided
    wide = torch.promote_types(guided.dtype, torch.float32)
    u = solver.noise(x.to(wide), base.to(wide), t)
    return (guided + correction / solver.noise_share(t) * u).to(guided.dtype)


def classifier_free_guidance(
    eps_empty: Tensor, eps_caption: Tensor, guidance_scale: float | Tensor
) -> Tensor:
    """Extrapolate from one model's prediction for the empty prompt through that for the caption.

    eps = e("") + s (e(c) - e("")), Ho and Salimans (2022), equation 6 with s = 1 + w. The baseline: it
    differs from model guidance only in whose empty-prompt prediction is subtracted. Tensors of any one shape.
    """
    return eps_empty.lerp(eps_caption, guidance_scale)
