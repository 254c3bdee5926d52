"""Solvers, and the sampling loop over any predictor. Knows no model, no prompt and no image.

N = samples of a batch, C, H, W = channels, height and width of the latents, T = training timesteps. Each
seed has a generator of its own on the CPU, so that a sample depends on its seed and not on its batch or
device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from finextract.errors import RequestError
from finextract.finite import require_finite
from finextract.models.base import Solver

Predictor = Callable[[Tensor, float], Tensor]  # (x_t [N, C, H, W], t) -> prediction [N, C, H, W]


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise float32 [N, *shape], one generator for each seed."""
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    )


def sample_latents(predict: Predictor, noise: Tensor, solver: Solver, steps: int) -> Tensor:
    """Solves from noise [N, C, H, W] to latents of the same shape, with `steps` predictions.

    Raises RequestError where the solver's schedule has fewer steps, NotFinite where a prediction is not
    finite.
    """
    timesteps = solver.timesteps(steps)
    x = noise
    for t, next_t in pairwise(timesteps):
        x = solver.step(x, predict(x, t), t, next_t)
    return require_finite(x, "the sampled latents")


@dataclass(frozen=True)
class DDIM:
    """Deterministic DDIM (Song et al., ICLR 2021, equation 12 with eta = 0): noise or velocity is predicted.

    The velocity is sqrt(alpha) noise - sqrt(1 - alpha) x_0 (Salimans and Ho, ICLR 2022, appendix D).
    """

    is_flow: ClassVar[bool] = False
    # Each shows members that the other one misses (docs/membership.md).
    membership_times: ClassVar[tuple[float, ...]] = (150.0, 350.0)

    # alpha of equation 12 for each of T timesteps; 0 at the end of a schedule that ends without a signal
    alphas_cumprod: Sequence[float]
    offset: int = 1  # added to each timestep; Stable Diffusion's `steps_offset`
    # alpha where sampling ends; None is alphas_cumprod[0], Stable Diffusion's `set_alpha_to_one = false`
    final_alpha_cumprod: float | None = None
    predicts_velocity: bool = False  # instead of the noise
    trailing: bool = False  # timesteps that begin with the last one (Lin et al., WACV 2024, section 3.3)

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """`steps` timesteps, descending, and where the last step ends, which may be below 0.

        "Leading" spacing, as Stable Diffusion is sampled, takes multiples of T // steps plus the offset: 50
        of 1000 are 981, 961, ..., 1. "Trailing" spacing takes 999, 979, ..., 19.
        """
        length = len(self.alphas_cumprod)
        if not 1 <= steps <= length:
            raise RequestError(f"{steps} sampling steps cannot be taken: choose 1 to {length}.")
        if self.trailing:
            return (*(round(i * length / steps) - 1 for i in range(steps, 0, -1)), -1)
        stride = length // steps
        times = [min(i * stride + self.offset, length - 1) for i in reversed(range(steps))]
        return (*times, times[-1] - stride)

    def step(self, x: Tensor, prediction: Tensor, t: float, next_t: float) -> Tensor:
        """x_t and the prediction there -> x at `next_t`; all [N, C, H, W]. Below 0 is the end."""
        alpha, next_alpha = self._alpha(t), self._alpha(next_t)
        noise = self.noise(x, prediction, t)
        if self.predicts_velocity:
            x0 = alpha**0.5 * x - (1 - alpha) ** 0.5 * prediction
        else:
            x0 = (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        result: Tensor = next_alpha**0.5 * x0 + (1 - next_alpha) ** 0.5 * noise
        return result

    def add_noise(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        """x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) noise; all [N, C, H, W]."""
        alpha = self._alpha(t)
        result: Tensor = alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise
        return result

    def target(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        """The noise or the velocity: what a model of this solver predicts. [N, C, H, W]."""
        if not self.predicts_velocity:
            return noise
        alpha = self._alpha(t)
        result: Tensor = alpha**0.5 * noise - (1 - alpha) ** 0.5 * latents
        return result

    def signal(self, t: float) -> float:
        """sqrt(alpha_t)."""
        return math.sqrt(self._alpha(t))

    def noise(self, x: Tensor, prediction: Tensor, t: float) -> Tensor:
        """The noise that a prediction states to be in x_t; all [N, C, H, W]."""
        if not self.predicts_velocity:
            return prediction
        alpha = self._alpha(t)
        result: Tensor = alpha**0.5 * prediction + (1 - alpha) ** 0.5 * x
        return result

    def noise_share(self, t: float) -> float:
        """1 of a prediction of the noise, sqrt(alpha_t) of one of the velocity."""
        return self.signal(t) if self.predicts_velocity else 1.0

    def _alpha(self, t: float) -> float:
        if t < 0 and self.final_alpha_cumprod is not None:
            return self.final_alpha_cumprod
        return float(self.alphas_cumprod[max(int(t), 0)])


def as_published(solver: Solver) -> Solver:
    """The solver with the end of FineXtract's own sampling loop: alpha of the second timestep.

    A solver other than DDIM has no such end, and stays as it is.
    """
    if not isinstance(solver, DDIM) or len(solver.alphas_cumprod) < 2:
        return solver
    return replace(solver, final_alpha_cumprod=float(solver.alphas_cumprod[1]))


_BETA = 0.6  # both parameters of the beta distribution, as diffusers has them
TRAINED_TIMES = 1000  # of every flow model: t = 1000 sigma


@dataclass(frozen=True)
class FlowEuler:
    """Euler steps along x_t = (1 - s) x_0 + s n, for predictions of the velocity v = n - x_0.

    Rectified flow (Liu et al., ICLR 2023; Esser et al., ICML 2024, sections 2 and 5.3.2), on the schedule of
    diffusers' FlowMatchEulerDiscreteScheduler. s = sigma, the share of noise n; times are t = 1000 s, from
    1000, which is noise alone, to 0.
    """

    is_flow: ClassVar[bool] = True
    # Chosen on weak LoRA of the zoo's flow model; those of DDIM show less there (docs/membership.md).
    membership_times: ClassVar[tuple[float, ...]] = (550.0, 350.0)

    shift: float = 1.0  # sigma -> shift sigma / (1 + (shift - 1) sigma): above 1, more steps near the noise
    last_sigma: float | None = 0.001  # the last before shifting; None is 1 / steps, as FLUX.1 is sampled
    terminal: float | None = None  # the last after shifting; None where it is not stretched to a value
    beta: bool = False  # between the first and the last as a beta distribution has them (Lee et al. 2024)

    @classmethod
    def of_scheduler(
        cls, config: Mapping[str, Any], image_tokens: int, to_last_time: bool = True
    ) -> FlowEuler:
        """The solver of a scheduler_config.json, for images of `image_tokens` tokens of the transformer.

        `to_last_time`: the sigmas reach the scheduler's last training time before they are shifted, as
        diffusers samples Stable Diffusion 3; otherwise 1 / steps, as it samples FLUX.1. A dynamic shift is
        exp(mu), or mu itself where the scheduler says "linear"; mu is a linear function of the tokens.
        """
        terminal, beta = config.get("shift_terminal") or None, bool(config.get("use_beta_sigmas"))
        if config.get("use_dynamic_shifting"):
            low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
            least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
            mu = least + (most - least) * (image_tokens - low) / (high - low)
            shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
            return cls(shift, 1 / TRAINED_TIMES if to_last_time else None, terminal, beta)
        shift = config.get("shift", 1.0)
        # The scheduler's own range of sigmas is shifted already, and set_timesteps shifts it once more.
        last = _shifted(1 / TRAINED_TIMES, shift) if to_last_time else None
        return cls(shift, last, terminal, beta)

    def timesteps(self, steps: int) -> tuple[float, ...]:
        """`steps` + 1 times, descending from 1000 to 0. Raises RequestError for more than 1000 steps."""
        if not 1 <= steps <= TRAINED_TIMES:
            raise RequestError(f"{steps} sampling steps cannot be taken: choose 1 to {TRAINED_TIMES}.")
        last = 1 / steps if self.last_sigma is None else self.last_sigma
        even = torch.linspace(1.0, last, steps, dtype=torch.float64).tolist()
        sigmas = [_shifted(sigma, self.shift) for sigma in even]
        if self.terminal is not None and steps > 1:
            stretch = (1 - self.terminal) / (1 - sigmas[-1])
            sigmas = [1 - (1 - sigma) * stretch for sigma in sigmas]
        if self.beta and steps > 1:
            from scipy.special import betaincinv

            quantiles = betaincinv(_BETA, _BETA, np.linspace(1, 0, steps))
            sigmas = [sigmas[-1] + float(q) * (sigmas[0] - sigmas[-1]) for q in quantiles]
        return (*(TRAINED_TIMES * sigma for sigma in sigmas), 0.0)

    def step(self, x: Tensor, prediction: Tensor, t: float, next_t: float) -> Tensor:
        """x_t and the velocity predicted in it -> x at `next_t`; all [N, C, H, W]. Computed in float32."""
        moved = x.float() + (next_t - t) / TRAINED_TIMES * prediction.float()
        return moved.to(x.dtype)

    def add_noise(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        """x_t = (1 - s) x_0 + s n; all [N, C, H, W]."""
        s = t / TRAINED_TIMES
        return (1 - s) * latents + s * noise

    def target(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        """The velocity n - x_0, which is the same at every time. [N, C, H, W]."""
        return noise - latents

    def signal(self, t: float) -> float:
        """1 - s."""
        return 1 - t / TRAINED_TIMES

    def noise(self, x: Tensor, prediction: Tensor, t: float) -> Tensor:
        """The noise that the predicted velocity sees in x_t: n = x_t + (1 - s) v; all [N, C, H, W]."""
        return x + (1 - t / TRAINED_TIMES) * prediction

    def noise_share(self, t: float) -> float:
        """1 - s."""
        return self.signal(t)


def _shifted(sigma: float, shift: float) -> float:
    """Sigma moved towards the noise, Esser et al. (ICML 2024), equation 23."""
    return shift * sigma / (1 + (shift - 1) * sigma)
