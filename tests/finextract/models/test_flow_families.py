"""Stable Diffusion 3 and FLUX.1 with tiny random weights, against diffusers' own pipelines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny.checks import far
from tiny.flow_pipelines import SD3_VARIANTS, SIDE, flux_pipeline, sd3_pipeline

from finextract.guidance import model_guidance
from finextract.models.base import TunableModel
from finextract.models.flux import Flux
from finextract.models.loading import load_base
from finextract.models.packed_latents import packed, unpacked
from finextract.sampling import initial_noise, sample_latents

PROMPT = "a red house beside the sea, painted in Oil! and then far too many further words to be read by CLIP"
STEPS = 5
CPU = torch.device("cpu")
SD3 = [f"sd3 {variant}" for variant in SD3_VARIANTS]
FLUX = ["flux dev", "flux schnell"]
ALL = [*SD3, "sd3 without T5", *FLUX]


def pipeline(name: str) -> Any:
    family, _, variant = name.partition(" ")
    if family == "flux":
        made = flux_pipeline(variant)
    elif variant == "without T5":
        made = sd3_pipeline(with_t5=False)
    else:
        made = sd3_pipeline(variant)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def of_name(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, TunableModel]]:
    """diffusers' pipeline of a name, and our model of the folder that it saves; each made once."""
    made: dict[str, tuple[Any, TunableModel]] = {}

    def get(name: str) -> tuple[Any, TunableModel]:
        if name not in made:
            theirs = pipeline(name)
            folder = tmp_path_factory.mktemp(name.replace(" ", "-")) / "base"
            theirs.save_pretrained(folder)
            made[name] = theirs, load_base(folder, CPU, torch.float32)
        return made[name]

    return get


def theirs_sampled(pipe: Any, noise: torch.Tensor, output: str, guidance_scale: float = 1.0) -> Any:
    """What diffusers' pipeline makes of the noise: latents, or pixels [N, H', W', 3] in [0, 1]."""
    is_flux = type(pipe).__name__ == "FluxPipeline"
    made = pipe(
        prompt=[PROMPT] * len(noise), height=SIDE, width=SIDE, num_inference_steps=STEPS,
        guidance_scale=guidance_scale, latents=packed(noise) if is_flux else noise, output_type=output,
    ).images  # fmt: skip
    if is_flux and output == "latent":
        return unpacked(made, *noise.shape[2:])
    return made


@pytest.mark.parametrize("name", ALL)
@torch.inference_mode()
def test_a_prediction_is_that_of_the_pipelines_transformer(
    of_name: Callable[[str], tuple[Any, TunableModel]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, model = of_name(name)
    seen: list[tuple[torch.Tensor, float, torch.Tensor]] = []
    step = pipe.scheduler.step

    def noting(prediction: torch.Tensor, t: torch.Tensor, x: torch.Tensor, **options: Any) -> Any:
        seen.append((x, float(t), prediction))
        return step(prediction, t, x, **options)

    monkeypatch.setattr(pipe.scheduler, "step", noting)
    noise = initial_noise([1, 2], model.latent_shape)
    theirs_sampled(pipe, noise, "latent")
    words = model.condition(PROMPT)
    times = model.solver.timesteps(STEPS)
    assert [t for _, t, _ in seen] == pytest.approx(times[:-1], rel=1e-6)
    for x, t, prediction in seen:
        if "flux" in name:
            x, prediction = (unpacked(tokens, *noise.shape[2:]) for tokens in (x, prediction))
        assert far(model.predict(x, t, words), prediction) < 1e-5


@pytest.mark.parametrize("name", ALL)
@torch.inference_mode()
def test_a_trajectory_and_its_image_are_those_of_the_pipeline(
    of_name: Callable[[str], tuple[Any, TunableModel]], name: str
) -> None:
    pipe, model = of_name(name)
    noise = initial_noise([3, 4], model.latent_shape)
    words = model.condition(PROMPT)
    latents = sample_latents(lambda x, t: model.predict(x, t, words), noise, model.solver, STEPS)
    assert far(latents, theirs_sampled(pipe, noise, "latent")) < 1e-5
    images = model.decode(latents).permute(0, 2, 3, 1).float() / 255
    assert float((images - torch.from_numpy(theirs_sampled(pipe, noise, "np"))).abs().max()) < 0.51 / 255


@pytest.mark.parametrize("name", [*SD3, "sd3 without T5"])
@torch.inference_mode()
def test_model_guidance_of_a_model_with_itself_is_the_pipelines_classifier_free_guidance(
    of_name: Callable[[str], tuple[Any, TunableModel]], name: str
) -> None:
    pipe, model = of_name(name)
    noise = initial_noise([5], model.latent_shape)
    empty, words = model.condition(""), model.condition(PROMPT)

    def guided(x: torch.Tensor, t: float) -> torch.Tensor:
        return model_guidance(model.predict(x, t, empty), model.predict(x, t, words), 3.0)

    latents = sample_latents(guided, noise, model.solver, STEPS)
    assert far(latents, theirs_sampled(pipe, noise, "latent", 3.0)) < 1e-5


@pytest.mark.parametrize("name", ["sd3 3.5 medium", "flux dev"])
@torch.inference_mode()
def test_a_prediction_depends_on_its_prompt_and_time_and_not_on_its_batch(
    of_name: Callable[[str], tuple[Any, TunableModel]], name: str
) -> None:
    _, model = of_name(name)
    x = initial_noise([6, 7], model.latent_shape)
    red, blue = model.condition("a red house"), model.condition("a blue sea")
    both = model.predict(x, 500.0, red)
    assert far(model.predict(x[1:], 500.0, red), both[1:]) < 1e-5
    assert far(model.predict(x, 500.0, blue), both) > 1e-4
    assert far(model.predict(x, 400.0, red), both) > 1e-4


@torch.inference_mode()
def test_the_guidance_of_flux_dev_is_a_field_and_schnell_has_no_use_for_it(
    of_name: Callable[[str], tuple[Any, TunableModel]],
) -> None:
    for name, differs in (("flux dev", True), ("flux schnell", False)):
        pipe, model = of_name(name)
        assert isinstance(model, Flux)
        assert model.guidance == 1.0
        guided = replace(model, guidance=3.5)
        noise = initial_noise([8], model.latent_shape)
        words = model.condition(PROMPT)
        latents = sample_latents(lambda x, t: guided.predict(x, t, words), noise, model.solver, STEPS)  # noqa: B023
        assert far(latents, theirs_sampled(pipe, noise, "latent", 3.5)) < 1e-5
        same = torch.equal(guided.predict(noise, 500.0, words), model.predict(noise, 500.0, words))
        assert same != differs


@pytest.mark.parametrize("name", ["sd3 3.5 medium", "flux dev"])
def test_an_image_is_encoded_as_a_trainer_encodes_it(
    of_name: Callable[[str], tuple[Any, TunableModel]], name: str
) -> None:
    pipe, model = of_name(name)
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    latents = model.encode(images)
    assert latents.shape[1:] == model.latent_shape
    with torch.inference_mode():
        mode = pipe.vae.encode(pipe.image_processor.preprocess(images / 255)).latent_dist.mode()
    expected = (mode - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    assert far(latents, expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "tokenizer"), [("sd3 3.5 medium", "tokenizer_3"), ("flux dev", "tokenizer_2")]
)
@torch.inference_mode()
def test_a_t5_whose_tokenizer_states_fewer_tokens_reads_as_many(
    of_name: Callable[[str], tuple[Any, TunableModel]], name: str, tokenizer: str
) -> None:
    pipe, made = of_name(name)
    model: Any = made
    short = copy.deepcopy(getattr(model, tokenizer))
    short.model_max_length = 16
    found = replace(model, **{tokenizer: short}).condition(PROMPT).sequence
    further = {"prompt_3": None, "do_classifier_free_guidance": False} if name.startswith("sd3") else {}
    expected = pipe.encode_prompt(PROMPT, prompt_2=None, max_sequence_length=16, **further)[0]
    assert expected.shape[1] < model.condition(PROMPT).sequence.shape[1]
    torch.testing.assert_close(found, expected)
