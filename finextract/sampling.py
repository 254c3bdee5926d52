"""Solvers, and the sampling loop over any predictor. Knows no model, no prompt and no image.

N = samples of a batch, C, H, W = channels, height and width of the latents, T = training timesteps. Each
seed has a generator of its own on the CPU, so that a sample depends on its seed and not on its batch or
device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from finextract.errors import RequestError
from finextract.models.base import Solver

Predictor = Callable[[Tensor, float], Tensor]  # (x_t [N, C, H, W], t) -> prediction [N, C, H, W]


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise float32 [N, *shape], one generator for each seed."""
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    )


def sample_latents(predict: Predictor, noise: Tensor, solver: Solver, steps: int) -> Tensor:
    """Solves from noise [N, C, H, W] to latents of the same shape, with `steps` predictions.

    Raises RequestError where the solver's schedule has fewer steps.
    """
    timesteps = solver.timesteps(steps)
    x = noise
    for t, next_t in pairwise(timesteps):
        x = solver.step(x, predict(x, t), t, next_t)
    return x


@dataclass(frozen=True)
class DDIM:
    """Deterministic DDIM (Song et al., ICLR 2021, equation 12 with eta = 0) for predictions of the noise."""

    alphas_cumprod: Tensor  # [T] float32, on the CPU; alpha of equation 12
    offset: int = 1  # added to each timestep; Stable Diffusion's `steps_offset`
    # alpha where sampling ends; None is alphas_cumprod[0], Stable Diffusion's `set_alpha_to_one = false`
    final_alpha_cumprod: float | None = None

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """`steps` multiples of T // steps plus the offset, descending, and where the last step ends.

        The "leading" spacing, as Stable Diffusion is sampled: 50 steps of 1000 are 981, 961, ..., 1.
        """
        length = len(self.alphas_cumprod)
        if not 1 <= steps <= length:
            raise RequestError(f"{steps} sampling steps cannot be taken: choose 1 to {length}.")
        stride = length // steps
        times = [min(i * stride + self.offset, length - 1) for i in reversed(range(steps))]
        return (*times, times[-1] - stride)

    def step(self, x: Tensor, prediction: Tensor, t: float, next_t: float) -> Tensor:
        """x_t and the noise predicted in it -> x at `next_t`; all [N, C, H, W]. Below 0 is the end."""
        alpha, next_alpha = self._alpha(t), self._alpha(next_t)
        x0 = (x - (1 - alpha) ** 0.5 * prediction) / alpha**0.5
        result: Tensor = next_alpha**0.5 * x0 + (1 - next_alpha) ** 0.5 * prediction
        return result

    def add_noise(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        """x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) noise; all [N, C, H, W]."""
        alpha = self._alpha(t)
        result: Tensor = alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise
        return result

    def target(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        """The noise: what a model of this solver predicts. [N, C, H, W]."""
        return noise

    def _alpha(self, t: float) -> float:
        if t < 0 and self.final_alpha_cumprod is not None:
            return self.final_alpha_cumprod
        return float(self.alphas_cumprod[max(int(t), 0)])
