"""The formulas that turn two predictions into a guided one, and the published numbers that go into them.

eps_base   prediction of the base model, eps_theta
eps_tuned  prediction of the fine-tuned model, eps_theta'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from finextract.errors import RequestError
from finextract.weights.formats import TuningKind

Method = Literal["finextract", "cfg", "direct"]
METHODS: tuple[Method, ...] = ("finextract", "cfg", "direct")


@dataclass(frozen=True, slots=True)
class Guidance:
    """The numbers of a guided prediction, and which policy chose them."""

    guidance_scale: float  # w' of the paper; s of classifier-free guidance; 1 = the tuned model alone
    correction: float  # k of the paper; 0 = off
    policy: str  # a preset's id, or "given" where a person gave at least one of the numbers


DREAMBOOTH = Guidance(3.0, -0.02, "paper-dreambooth")  # Wu et al., DreamBooth set: A-ESR.7 0.25
LORA = Guidance(5.0, 0.0, "paper-lora")  # Wu et al., rank 64, DreamBooth set: A-ESR.7 0.04
CFG = Guidance(3.0, 0.0, "cfg")  # their baseline, DreamBooth set: A-ESR.7 0.15
DIRECT = Guidance(1.0, 0.0, "direct")  # no guidance


def choose_guidance(
    method: Method, kind: TuningKind, guidance_scale: float | None = None, correction: float | None = None
) -> Guidance:
    """The given numbers, and the preset of the method and kind for those that are None.

    Raises RequestError for a number that the method has no use for.
    """
    if method == "direct":
        if guidance_scale not in (None, 1.0) or correction:
            raise RequestError("direct sampling takes no guidance scale and no correction.")
        return DIRECT
    if method == "cfg" and correction:
        raise RequestError("classifier-free guidance takes no correction.")
    preset = CFG if method == "cfg" else LORA if kind == "lora" else DREAMBOOTH
    if guidance_scale is None and correction is None:
        return preset
    return Guidance(
        preset.guidance_scale if guidance_scale is None else guidance_scale,
        preset.correction if correction is None else correction,
        "given",
    )


def model_guidance(
    eps_base: Tensor, eps_tuned: Tensor, guidance_scale: float, correction: float = 0.0
) -> Tensor:
    """Extrapolate from the base model's noise prediction through the fine-tuned one's.

    eps = u + w'(e - u) + k u, with u = `eps_base`, e = `eps_tuned`, w' = `guidance_scale`, k = `correction`.
    Model guidance of Wu, Zhang and Wu (ICML 2025). Unconditionally, both predictions have the empty prompt
    and w' = 1/lambda; with a caption, e has the training caption and u still the empty prompt, which folds
    classifier-free guidance in. A scale of 1 is the tuned model alone, 0 the base alone. A correction of 0
    is off. Tensors of any one shape.
    """
    guided = eps_base.lerp(eps_tuned, guidance_scale)
    return guided + correction * eps_base if correction else guided


def classifier_free_guidance(eps_empty: Tensor, eps_caption: Tensor, guidance_scale: float) -> Tensor:
    """Extrapolate from one model's prediction for the empty prompt through that for the caption.

    eps = e("") + s (e(c) - e("")), Ho and Salimans (2022), equation 6 with s = 1 + w. The baseline: it
    differs from model guidance only in whose empty-prompt prediction is subtracted. Tensors of any one shape.
    """
    return eps_empty.lerp(eps_caption, guidance_scale)
