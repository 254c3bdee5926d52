"""Guided samples: the predictions of a pair of models under a caption, and images drawn with them.

N = samples of a batch, C, H, W = channels, height and width of the latents.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finextract.guidance import (
    Guidance,
    Method,
    classifier_free_guidance,
    correct,
    model_guidance,
)
from finextract.models.base import Model, Pair, Solver
from finextract.sampling import Predictor, initial_noise, sample_latents


def sample(
    model: Model, predict: Predictor, seeds: tuple[int, ...], steps: int, solver: Solver | None = None
) -> NDArray[np.uint8]:
    """One batch of samples, uint8 [len(seeds), 3, H, W], decoded by `model` and guided by `predict`.

    `solver` is by default the model's own.
    """
    noise = initial_noise(seeds, model.latent_shape).to(model.device).to(model.dtype)
    with torch.inference_mode():
        return model.decode(sample_latents(predict, noise, solver or model.solver, steps)).numpy()


class Guided:
    """The guided predictions of a pair under one caption. Conditions its prompts once, for all batches."""

    def __init__(self, pair: Pair, caption: str, method: Method) -> None:
        self._pair, self._method = pair, method
        self._unguided = pair.tuned if method == "cfg" else pair.base
        self._with_caption = pair.tuned.condition(caption)
        self._empty = None if method == "direct" else self._unguided.condition("")

    def predictor(self, *guidances: Guidance) -> Predictor:
        """The prediction for a batch, whose samples have one guidance each, or all the same one."""
        tuned, solver = self._pair.tuned, self._pair.base.solver
        if all(guidance.is_alone for guidance in guidances):
            return lambda x, t: tuned.predict(x, t, self._with_caption)
        scale = _each([guidance.guidance_scale for guidance in guidances], tuned)
        correction = _each([guidance.correction for guidance in guidances], tuned)

        def predict(x: Tensor, t: float) -> Tensor:
            captioned = tuned.predict(x, t, self._with_caption)
            uncaptioned = self._unguided.predict(x, t, self._empty)
            if self._method == "cfg":
                return classifier_free_guidance(uncaptioned, captioned, scale)
            guided = model_guidance(uncaptioned, captioned, scale)
            return correct(solver, x, guided, uncaptioned, correction, t)

        return predict


def _each(values: list[float], model: Model) -> float | Tensor:
    """One number where all are equal, else [N, 1, 1, 1]."""
    if len(set(values)) == 1:
        return values[0]
    return torch.tensor(values, device=model.device, dtype=model.dtype).view(-1, 1, 1, 1)


def guided_predictor(pair: Pair, caption: str, method: Method, guidance: Guidance) -> Predictor:
    """The guided prediction of a method. Conditions its prompts now, once for all calls."""
    return Guided(pair, caption, method).predictor(guidance)
