"""The formulas, and their effect on densities with known scores."""

import numpy as np
import pytest
import torch
from tiny.checks import stating

from finextract.errors import RequestError
from finextract.guidance import classifier_free_guidance, correct, model_guidance
from finextract.models.base import Solver
from finextract.sampling import DDIM, FlowEuler, initial_noise, sample_latents

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0).tolist()


def test_a_scale_of_one_is_the_tuned_model_alone() -> None:
    base, tuned = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(model_guidance(base, tuned, 1.0), tuned)


def test_a_scale_of_zero_is_the_base_model_alone() -> None:
    base, tuned = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(model_guidance(base, tuned, 0.0), base)


def test_a_correction_of_zero_is_off_and_another_adds_its_share_of_the_base() -> None:
    x, base, guided = torch.randn(3, 2, 3)
    assert correct(DDIM(ALPHAS), x, guided, base, 0.0, 500) is guided
    torch.testing.assert_close(correct(DDIM(ALPHAS), x, guided, base, -0.02, 500), guided - 0.02 * base)


def test_model_guidance_is_the_published_formula() -> None:
    x, u, e, w, k = *torch.randn(3, 4), 2.5, -0.1
    guided = correct(DDIM(ALPHAS), x, model_guidance(u, e, w), u, k, 500)
    torch.testing.assert_close(guided, u + w * (e - u) + k * u)


def test_predictions_of_the_velocity_are_guided_and_corrected_as_those_of_the_noise_are() -> None:
    x, base, tuned = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
    of_noise, of_velocity = DDIM(ALPHAS), DDIM(ALPHAS, predicts_velocity=True)
    for t in (20, 500, 980):
        velocities = [stating(of_velocity, x, noise, t) for noise in (base, tuned)]
        guided = correct(of_noise, x, model_guidance(base, tuned, 3.0), base, -0.02, t)
        other = correct(of_velocity, x, model_guidance(*velocities, 3.0), velocities[0], -0.02, t)
        torch.testing.assert_close(of_velocity.noise(x, other, t), guided)
        torch.testing.assert_close(of_velocity.step(x, other, t, t - 20), of_noise.step(x, guided, t, t - 20))


@pytest.mark.parametrize("t", [993.0, 964.0, 500.0])
@pytest.mark.parametrize(
    "solver",
    [DDIM(ALPHAS), DDIM(ALPHAS, predicts_velocity=True), FlowEuler(shift=3.0)],
    ids=["noise", "velocity", "flow"],
)
def test_a_correction_in_half_precision_is_the_exact_one_rounded_once(solver: Solver, t: float) -> None:
    x, base, tuned = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    guided = model_guidance(base, tuned, 1.5)
    found = correct(solver, x, guided, base, -0.02, t)
    exact = stating(
        solver,
        x.double(),
        solver.noise(x.double(), guided.double(), t) - 0.02 * solver.noise(x.double(), base.double(), t),
        t,
    )
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)


def test_where_there_is_noise_alone_nothing_is_corrected() -> None:
    solver, (x, base, guided) = DDIM([*ALPHAS[:-1], 0.0], predicts_velocity=True), torch.randn(3, 4)
    assert solver.signal(999) == 0
    assert correct(solver, x, guided, base, -0.02, 999) is guided
    assert torch.isfinite(solver.step(x, guided, 999, 979)).all()


@pytest.mark.parametrize("velocity", [False, True])
def test_the_target_is_the_prediction_that_states_the_noise_that_was_added(velocity: bool) -> None:
    latents, noise = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    solver = DDIM(ALPHAS, predicts_velocity=velocity)
    for t in (20, 500, 980):
        x, target = solver.add_noise(latents, noise, t), solver.target(latents, noise, t)
        torch.testing.assert_close(solver.noise(x, target, t), noise)
        torch.testing.assert_close(stating(solver, x, noise, t), target)
        torch.testing.assert_close(solver.step(x, target, t, 0), solver.add_noise(latents, noise, 0))


def test_with_the_tuned_models_own_empty_prompt_it_is_classifier_free_guidance() -> None:
    empty, caption = torch.randn(4), torch.randn(4)
    torch.testing.assert_close(
        model_guidance(empty, caption, 3.0), classifier_free_guidance(empty, caption, 3.0)
    )


def test_fifty_steps_of_a_thousand_are_those_of_stable_diffusion() -> None:
    steps = DDIM(ALPHAS).timesteps(50)
    assert steps[:2] == (981, 961)
    assert steps[-2] == 1
    assert steps[-1] < 0, "the last step ends at the image"
    assert len(steps) == 50 + 1


def test_trailing_steps_begin_with_the_last_timestep() -> None:
    steps = DDIM(ALPHAS, trailing=True).timesteps(50)
    assert (steps[:2], steps[-2:], len(steps)) == ((999, 979), (19, -1), 51)
    assert DDIM(ALPHAS, trailing=True).timesteps(3) == (999, 666, 332, -1)


def test_as_many_steps_as_there_are_timesteps_can_be_taken_but_no_more() -> None:
    assert max(DDIM(ALPHAS).timesteps(1000)) == 999
    with pytest.raises(RequestError, match="choose 1 to 1000"):
        DDIM(ALPHAS).timesteps(1001)


def test_noise_depends_on_its_seed_and_not_on_its_neighbours() -> None:
    together = initial_noise([3, 4, 5], (2, 4, 4))
    assert torch.equal(together[1], initial_noise([4], (2, 4, 4))[0])
    assert not torch.equal(together[0], together[1])


def _mixture(modes: list[tuple[float, float, float]]):
    """The exact noise prediction of a mixture of one-dimensional Gaussians (weight, mean, deviation)."""

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        a = float(ALPHAS[t])
        means = torch.tensor([m for _, m, _ in modes]) * a**0.5
        variances = torch.tensor([s * s for _, _, s in modes]) * a + 1 - a
        weights = torch.tensor([w for w, _, _ in modes])
        logits = weights.log() - 0.5 * variances.log() - (x[..., None] - means) ** 2 / (2 * variances)
        score = (logits.softmax(-1) * (means - x[..., None]) / variances).sum(-1)
        return -((1 - a) ** 0.5) * score

    return predict


def test_exact_scores_sample_the_density_they_belong_to() -> None:
    noise = initial_noise(range(2000), (1, 1, 1))
    samples = sample_latents(_mixture([(1.0, 0.5, 0.3)]), noise, DDIM(ALPHAS), 50)
    assert samples.mean() == pytest.approx(0.5, abs=0.05)
    assert samples.std() == pytest.approx(0.3, abs=0.05)


def test_model_guidance_lands_on_the_sharp_modes_that_fine_tuning_added() -> None:
    """theta' = (1 - l) theta + l q with sharp q: guiding with w > 1 samples q more often than theta' does."""
    broad = (1.0, 0.0, 1.0)
    base = _mixture([broad])
    tuned = _mixture([(0.7, 0.0, 1.0), (0.15, -1.5, 0.02), (0.15, 1.5, 0.02)])
    noise = initial_noise(range(2000), (1, 1, 1))

    def share_on_modes(scale: float) -> float:
        def guided(x: torch.Tensor, t: int) -> torch.Tensor:
            return model_guidance(base(x, t), tuned(x, t), scale)

        samples = sample_latents(guided, noise, DDIM(ALPHAS), 100).flatten().numpy()
        return float((np.abs(np.abs(samples) - 1.5) < 0.1).mean())

    direct, guided = share_on_modes(1.0), share_on_modes(2.0)
    assert direct == pytest.approx(0.3 + 0.7 * 0.05, abs=0.06)
    assert guided > direct + 0.2
