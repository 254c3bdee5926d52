"""The sampling loop over any noise predictor. Knows no model, no prompt and no picture.

N = samples of a batch. One generator a seed, drawn on the CPU, so that a sample depends on its seed and not
on its batch, its device or its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Predictor = Callable[[Tensor, int], Tensor]  # (x_t [N, C, H, W], t) -> eps [N, C, H, W]


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise float32 [N, *shape], one generator a seed."""
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    )


def ddim_timesteps(steps: int, num_train_timesteps: int, offset: int = 1) -> list[int]:
    """Timesteps from high noise to low: `steps` multiples of T // steps, plus `offset` ("leading" spacing).

    As Stable Diffusion is sampled; 50 steps of 1000 are 981, 961, ..., 1.
    """
    stride = num_train_timesteps // steps
    return [i * stride + offset for i in reversed(range(steps))]


def ddim(
    predict: Predictor,
    noise: Tensor,
    alphas_cumprod: Tensor,
    steps: int,
    *,
    offset: int = 1,
    final_alpha_cumprod: float | None = None,
) -> Tensor:
    """Deterministic DDIM (Song et al., ICLR 2021, equation 12 with eta = 0).

    noise [N, C, H, W], alphas_cumprod [T] -> x_0 [N, C, H, W]. The last step goes to
    `final_alpha_cumprod`, by default alphas_cumprod[0] as Stable Diffusion's `set_alpha_to_one = false`.
    """
    timesteps = ddim_timesteps(steps, len(alphas_cumprod), offset)
    stride = len(alphas_cumprod) // steps
    final = float(alphas_cumprod[0]) if final_alpha_cumprod is None else final_alpha_cumprod
    x = noise
    for t in timesteps:
        alpha = float(alphas_cumprod[t])
        previous = float(alphas_cumprod[t - stride]) if t >= stride else final
        eps = predict(x, t)
        x0 = (x - (1 - alpha) ** 0.5 * eps) / alpha**0.5
        x = previous**0.5 * x0 + (1 - previous) ** 0.5 * eps
    return x
