"""Which references are worth an evaluation, for corpora that are larger than a budget.

The difference of the two models' predictions on pure noise, and on strongly noised pictures that nothing was
trained on, points at what the tuned model would draw instead. A reference that was trained on resembles some
of these directions. The cost does not grow with the number of references: they are compared by their latents.

R = references, K = directions, D = values of coarse latents, C, H, W = channels, height and width of latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from finextract.budget import PURE_NOISE, RENOISED
from finextract.images import Picture
from finextract.losses import Losses, Query
from finextract.sampling import initial_noise

NOISY_T, RENOISED_T = 981.0, 750.0  # of 1,000
_SIDE = 16  # latents are averaged to at most this side: outlines are enough
_BLOCK = 1024  # references at once
_SEED = 7_000_003


def prefilter(
    losses: Losses, references: Sequence[Picture], background: Sequence[Picture], kept: int
) -> NDArray[np.intp]:
    """The indices of the `kept` references that resemble most what the tuned model adds, ascending.

    A reference's score is the sum over both times of the standardised highest cosine between its latents,
    less the background's mean, and a direction -(tuned - base). Measured recall: docs/membership.md.
    """
    chosen = np.random.default_rng(_SEED).permutation(len(background))[:RENOISED]
    pictures = [background[int(i)] for i in chosen]
    renoised = losses.latents([Query(picture) for picture in pictures])  # [K, C, H, W]
    solver = losses.pair.base.solver
    noise = initial_noise(range(_SEED, _SEED + PURE_NOISE + len(renoised)), losses.pair.base.latent_shape)
    noise = noise.to(renoised.device, renoised.dtype)
    pure, noisy = noise[:PURE_NOISE], solver.add_noise(renoised, noise[PURE_NOISE:], RENOISED_T)
    differences = [
        losses.difference("pure noise", pure, NOISY_T),
        losses.difference(_digest(pictures), noisy, RENOISED_T),
    ]
    units = _units(losses, references, pictures, renoised)
    scores = np.empty((len(differences), len(references)), np.float32)
    for row, difference in zip(scores, differences, strict=True):
        # Unit vectors from the base's to the tuned model's idea of the picture behind x_t.
        directions = functional.normalize(_coarse(difference.float()).flatten(1), dim=1)  # [K, D]
        for at in range(0, len(references), _BLOCK):
            block = units[at : at + _BLOCK].to(directions.device).float()
            row[at : at + _BLOCK] = (block @ directions.T).amax(dim=1).cpu().numpy()
    spread = scores.std(axis=1, keepdims=True)
    total = ((scores - scores.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-9)).sum(axis=0)
    return np.sort(np.argsort(-total, kind="stable")[:kept])


def _units(
    losses: Losses, references: Sequence[Picture], pictures: Sequence[Picture], renoised: Tensor
) -> Tensor:
    """Unit vectors of the references' latents, less the background's mean, float16 [R, D]; cached."""
    name = _digest((*references, *pictures))
    if name not in losses.cache.directions:
        centre = _coarse(renoised.float()).mean(dim=0)
        rows = []
        for at in range(0, len(references), _BLOCK):
            latents = losses.latents([Query(picture) for picture in references[at : at + _BLOCK]])
            unit = functional.normalize((_coarse(latents.float()) - centre).flatten(1), dim=1)
            rows.append(unit.half().cpu())
        losses.cache.directions = {name: torch.cat(rows)}  # of the last corpus alone
    return losses.cache.directions[name]


def _digest(pictures: Sequence[Picture]) -> str:
    return hashlib.sha256("\n".join(picture.key for picture in pictures).encode()).hexdigest()


def _coarse(latents: Tensor) -> Tensor:
    height, width = (min(_SIDE, side) for side in latents.shape[2:])
    return functional.adaptive_avg_pool2d(latents, (height, width))
