"""The formulas that turn noise predictions into a guided one. Pure functions on tensors of any shape.

eps_base   prediction of the base model, eps_theta
eps_tuned  prediction of the fine-tuned model, eps_theta'
"""

from __future__ import annotations

from torch import Tensor


def model_guidance(
    eps_base: Tensor, eps_tuned: Tensor, guidance_scale: float, correction: float = 0.0
) -> Tensor:
    """Extrapolate from the base model's noise prediction through the fine-tuned one's.

    eps = u + w'(e - u) + k u, with u = `eps_base`, e = `eps_tuned`, w' = `guidance_scale`, k = `correction`.
    Model guidance of Wu, Zhang and Wu (ICML 2025). Unconditionally, both predictions have the empty prompt
    and w' = 1/lambda; with a caption, e has the training caption and u still the empty prompt, which folds
    classifier-free guidance in. A scale of 1 is the tuned model alone, 0 the base alone. A correction of 0
    is off.
    """
    guided = eps_base.lerp(eps_tuned, guidance_scale)
    return guided + correction * eps_base if correction else guided


def classifier_free_guidance(eps_empty: Tensor, eps_caption: Tensor, guidance_scale: float) -> Tensor:
    """Extrapolate from one model's prediction for the empty prompt through that for the caption.

    eps = e("") + s (e(c) - e("")), Ho and Salimans (2022), equation 6 with s = 1 + w. The baseline: it
    differs from model guidance only in whose empty-prompt prediction is subtracted.
    """
    return eps_empty.lerp(eps_caption, guidance_scale)
