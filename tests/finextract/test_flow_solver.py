"""The flow solver: diffusers' schedule, and the algebra of x_t = (1 - s) x_0 + s n."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from tiny.checks import stating

from finextract.errors import RequestError
from finextract.guidance import correct
from finextract.sampling import FlowEuler, sample_latents

SCHEDULERS: dict[str, dict[str, Any]] = {
    "Stable Diffusion 3": {"shift": 3.0},
    "FLUX.1 schnell": {"shift": 1.0},
    "FLUX.1 dev": {"shift": 3.0, "use_dynamic_shifting": True},
    "other ends of the dynamic shift": {
        "use_dynamic_shifting": True, "base_shift": 0.7, "max_shift": 1.6, "base_image_seq_len": 64,
        "max_image_seq_len": 8192,
    },
    "a linear dynamic shift": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "a terminal": {"shift": 2.0, "shift_terminal": 0.1},
    "beta sigmas": {"shift": 1.0, "use_beta_sigmas": True},
    "shifted beta sigmas": {"use_dynamic_shifting": True, "use_beta_sigmas": True},
    "a dynamic shift and a terminal": {"use_dynamic_shifting": True, "shift_terminal": 0.02},
}  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 4, 28, 50])
@pytest.mark.parametrize("image_tokens", [256, 1024, 4096])
@pytest.mark.parametrize("to_last_time", [True, False])
@pytest.mark.parametrize("config", SCHEDULERS.values(), ids=SCHEDULERS)
def test_the_times_are_those_of_diffusers_scheduler(
    config: dict[str, Any], to_last_time: bool, image_tokens: int, steps: int
) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    stated = scheduler.config
    mu = calculate_shift(
        image_tokens, stated.base_image_seq_len, stated.max_image_seq_len, stated.base_shift, stated.max_shift
    )
    given: dict[str, Any] = {"mu": mu} if stated.use_dynamic_shifting else {}
    if to_last_time:
        given["num_inference_steps"] = steps
    else:
        given["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    times = FlowEuler.of_scheduler(stated, image_tokens, to_last_time).timesteps(steps)
    assert (times[0], times[-1]) == (1000, 0)
    if stated.shift_terminal and steps == 1:  # diffusers divides 0 by 0
        return
    scheduler.set_timesteps(**given)
    assert times[:-1] == pytest.approx(scheduler.timesteps.tolist(), rel=2e-6, abs=2e-4)
    assert [t / 1000 for t in times] == pytest.approx(scheduler.sigmas.tolist(), rel=2e-6, abs=2e-7)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_that_the_schedule_lacks_is_refused(steps: int) -> None:
    with pytest.raises(RequestError, match="choose 1 to 1000"):
        FlowEuler().timesteps(steps)


def test_a_perfect_prediction_leads_from_noise_to_the_image_in_any_number_of_steps() -> None:
    latents, noise = (
        torch.randn(2, 3, 4, 4, dtype=torch.float64),
        torch.randn(2, 3, 4, 4, dtype=torch.float64),
    )
    solver = FlowEuler(shift=3.0)
    for steps in (1, 7):
        made = sample_latents(lambda x, t: solver.target(latents, noise, t), noise, solver, steps)
        torch.testing.assert_close(made, latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("t", [0.0, 1.0, 250.0, 999.0])
def test_the_perfect_prediction_sees_the_noise_that_was_added_and_is_found_from_it(t: float) -> None:
    latents, noise = (
        torch.randn(2, 3, 4, 4, dtype=torch.float64),
        torch.randn(2, 3, 4, 4, dtype=torch.float64),
    )
    solver = FlowEuler()
    x = solver.add_noise(latents, noise, t)
    velocity = solver.target(latents, noise, t)
    torch.testing.assert_close(solver.noise(x, velocity, t), noise)
    torch.testing.assert_close(stating(solver, x, noise, t), velocity)
    torch.testing.assert_close(x - t / 1000 * velocity, latents)


def test_in_pure_noise_every_prediction_sees_that_noise_and_nothing_is_corrected() -> None:
    x, velocity, base = torch.randn(3, 1, 2, 4, 4)
    solver = FlowEuler()
    assert solver.signal(1000.0) == 0
    assert torch.equal(solver.noise(x, velocity, 1000.0), x)
    assert correct(solver, x, velocity, base, -0.02, 1000.0) is velocity


def test_a_correction_of_a_flow_adds_its_share_of_the_bases_noise() -> None:
    x, velocity, base = torch.randn(3, 1, 2, 4, 4, dtype=torch.float64)
    solver = FlowEuler()
    found = correct(solver, x, velocity, base, -0.02, 400.0)
    expected = solver.noise(x, velocity, 400.0) - 0.02 * solver.noise(x, base, 400.0)
    torch.testing.assert_close(solver.noise(x, found, 400.0), expected)


def test_a_step_in_half_precision_is_computed_in_full_and_rounded_once() -> None:
    x, velocity = torch.randn(1, 2, 8, 8).bfloat16(), torch.randn(1, 2, 8, 8).bfloat16()
    made = FlowEuler().step(x, velocity, 700.0, 690.0)
    assert made.dtype == torch.bfloat16
    exact = x.double() - 0.01 * velocity.double()
    assert float((made.double() - exact).abs().max()) <= float(exact.abs().max()) * 2**-8
