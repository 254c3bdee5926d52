"""Stable Diffusion 1, 2 and SDXL against the pipelines of diffusers: small random weights, the same noise."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import single_files
from tiny.checks import calls_of, far
from tiny.unet_pipelines import stable_diffusion_1, stable_diffusion_2, stable_diffusion_xl

from finextract.errors import BaseMismatch
from finextract.guidance import DIRECT, Guidance
from finextract.guided import guided_predictor
from finextract.models.base import CopiedPair, Model, TunableModel
from finextract.models.loading import load_base, tune
from finextract.models.parts import TextStates
from finextract.sampling import initial_noise, sample_latents

PROMPT = "a picture of a cat"
STEPS = 5
MAKERS = {"sd1": stable_diffusion_1, "sd2": stable_diffusion_2, "sdxl": stable_diffusion_xl}
FAMILIES = [(family, velocity) for family in MAKERS for velocity in (False, True)]


def saved(pipeline: Any, folder: Path) -> TunableModel:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return load_base(folder, torch.device("cpu"), torch.float32)


Loaded = Callable[[str, bool], tuple[Any, TunableModel]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Gives a pipeline of a family, and our model of it. Both are made once, and no test changes them."""

    @cache
    def load(family: str, velocity: bool) -> tuple[Any, TunableModel]:
        pipeline = MAKERS[family](velocity)
        return pipeline, saved(pipeline, tmp_path_factory.mktemp("pipeline"))

    return load


@pytest.fixture(params=FAMILIES, ids=[f"{f}-{'velocity' if v else 'noise'}" for f, v in FAMILIES])
def both(request: pytest.FixtureRequest, loaded: Loaded) -> tuple[Any, TunableModel]:
    return loaded(*request.param)


def theirs_sampled(pipeline: Any, noise: torch.Tensor, scale: float) -> torch.Tensor:
    """The latents that diffusers' pipeline makes of the noise."""
    made: torch.Tensor = pipeline(
        PROMPT, num_images_per_prompt=len(noise), latents=noise, guidance_scale=scale,
        num_inference_steps=STEPS, output_type="latent",
    ).images  # fmt: skip
    return made


@torch.inference_mode()
def test_a_prediction_is_that_of_the_pipelines_unet(both: tuple[Any, TunableModel]) -> None:
    """The pipeline gives it the empty prompt and the other one in one call."""
    pipeline, model = both
    with calls_of(pipeline.unet) as calls:
        theirs_sampled(pipeline, initial_noise((3, 4), model.latent_shape), 3.0)
    assert [float(call.inputs[1]) for call in calls] == list(model.solver.timesteps(STEPS)[:-1])
    prompts = [model.condition(prompt) for prompt in ("", PROMPT)]
    for call in calls:
        x, t = call.inputs[0].chunk(2), float(call.inputs[1])
        ours = [model.predict(half, t, words) for half, words in zip(x, prompts, strict=True)]
        assert far(torch.cat(ours), call.output[0]) < 1e-5


@pytest.mark.parametrize(("scale", "method"), [(1.0, "direct"), (3.0, "finextract"), (3.0, "cfg")])
def test_a_trajectory_is_that_of_diffusers_from_the_same_noise(
    both: tuple[Any, TunableModel], scale: float, method: str
) -> None:
    """Model guidance with tuned = base is classifier-free guidance, and a scale of 1 is the model alone."""
    pipeline, model = both
    noise = initial_noise((3, 4), model.latent_shape)
    with torch.inference_mode():
        theirs = theirs_sampled(pipeline, noise, scale)
        guidance = DIRECT if method == "direct" else Guidance(scale, 0.0, "given")
        predict = guided_predictor(CopiedPair(model, model, "full"), PROMPT, method, guidance)  # type: ignore[arg-type]
        ours = sample_latents(predict, noise, model.solver, STEPS)
        assert far(ours, theirs) < 1e-5
        images = pipeline.image_processor.postprocess(
            pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample, output_type="pt"
        )
        assert (model.decode(ours).float() - 255 * images).abs().max() < 1


def test_the_losses_target_is_what_the_scheduler_of_diffusers_trains(both: tuple[Any, TunableModel]) -> None:
    from diffusers import DDPMScheduler

    pipeline, model = both
    theirs = DDPMScheduler.from_config(pipeline.scheduler.config)
    latents, noise = torch.randn(2, 1, *model.latent_shape)
    t = torch.tensor([350])
    torch.testing.assert_close(
        model.solver.add_noise(latents, noise, 350), theirs.add_noise(latents, noise, t)
    )
    velocity = pipeline.scheduler.config.prediction_type == "v_prediction"
    target = theirs.get_velocity(latents, noise, t) if velocity else noise
    torch.testing.assert_close(model.solver.target(latents, noise, 350), target)


def test_sdxl_encodes_the_empty_prompt_where_the_pipeline_does(tmp_path: Path) -> None:
    pipeline = stable_diffusion_xl(False, zeros=False)
    model = saved(pipeline, tmp_path / "pipeline")
    with torch.inference_mode():
        states, _, pooled, _ = pipeline.encode_prompt("", device=torch.device("cpu"))
    found = model.condition("")
    torch.testing.assert_close(found.sequence, states)
    torch.testing.assert_close(found.pooled, pooled)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("sd1", torch.float16), ("sd2", torch.float16), ("sdxl", torch.float32), ("sdxl", torch.float8_e4m3fn)],
    ids=str,
)
def test_a_file_in_the_original_names_is_read_in_every_precision(
    family: str, dtype: torch.dtype, loaded: Loaded, tmp_path: Path
) -> None:
    _, base = loaded(family, False)
    other = MAKERS[family](False, seed=1)
    for part in (other.unet, other.text_encoder, getattr(other, "text_encoder_2", other.unet)):
        for tensor in part.state_dict().values():
            tensor.copy_(tensor.to(dtype).to(tensor.dtype))
    kept = {
        k: t.to(dtype).contiguous() for k, t in getattr(single_files, MAKERS[family].__name__)(other).items()
    }
    save_file(kept, tmp_path / "tuned.safetensors")
    tuned = tune(base, tmp_path / "tuned.safetensors").tuned
    same_as(tuned, saved(other, tmp_path / "other"))


@pytest.mark.parametrize("family", MAKERS)
def test_a_pruned_file_without_text_encoders_takes_those_of_its_base(
    family: str, loaded: Loaded, tmp_path: Path
) -> None:
    pipeline, base = loaded(family, False)
    other = MAKERS[family](False, seed=1)
    save_file(single_files.unet_names(other.unet), tmp_path / "tuned.safetensors")
    parts = {**pipeline.components, "unet": other.unet}
    same_as(
        tune(base, tmp_path / "tuned.safetensors").tuned, saved(type(pipeline)(**parts), tmp_path / "other")
    )


@pytest.mark.parametrize("base_has_velocity", [False, True])
def test_weights_that_state_another_prediction_than_their_bases_are_refused(
    base_has_velocity: bool, loaded: Loaded, tmp_path: Path
) -> None:
    _, base = loaded("sd2", base_has_velocity)
    pipeline, _ = loaded("sd2", False)
    file = tmp_path / "tuned.safetensors"
    weights = single_files.unet_names(pipeline.unet)
    for key, stated, velocity in (
        ("modelspec.prediction_type", "v", True),
        ("modelspec.prediction_type", "epsilon", False),
        ("ss_v_parameterization", "True", True),
        ("ss_v_parameterization", "False", False),
    ):
        save_file(weights, file, {key: stated})
        if velocity == base_has_velocity:
            tune(base, file)
            continue
        with pytest.raises(BaseMismatch, match=r"tuned.safetensors was trained to predict the (noise|vel)"):
            tune(base, file)
    save_file({**weights, "v_pred": torch.zeros(())}, file)
    with contextlib.nullcontext() if base_has_velocity else pytest.raises(BaseMismatch, match="the velocity"):
        tune(base, file)


@pytest.mark.parametrize("base_has_velocity", [False, True])
def test_a_folder_whose_scheduler_states_another_prediction_than_its_base_is_refused(
    base_has_velocity: bool, loaded: Loaded, tmp_path: Path
) -> None:
    _, base = loaded("sdxl", base_has_velocity)
    for velocity in (False, True):
        pipeline, _ = loaded("sdxl", velocity)
        pipeline.save_pretrained(tmp_path / str(velocity))
    tune(base, tmp_path / str(base_has_velocity))
    other = tmp_path / str(not base_has_velocity)
    with pytest.raises(
        BaseMismatch, match=rf"^{other.name} was trained to predict the (noise|velocity), and"
    ):
        tune(base, other)
    scheduler = other / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "sample"}))
    with pytest.raises(BaseMismatch, match="was trained to predict sample, and its base model predicts the"):
        tune(base, other)
    scheduler.unlink()  # nothing is stated, as where the folder holds the weights alone
    tune(base, other)


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "100KB"}], ids=["files", "shards"])
def test_a_base_that_was_saved_in_half_precision_alone_is_loaded_and_beside_it_the_full_one_is_preferred(
    shards: dict[str, str], tmp_path: Path
) -> None:
    pipeline = stable_diffusion_xl(False, seed=1).to(torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16", **shards)
    files = [file.name for file in (tmp_path / "half").rglob("*.safetensors")]
    assert all(".fp16" in file and ("-of-" in file) == bool(shards) for file in files)
    half = load_base(tmp_path / "half", torch.device("cpu"), torch.float32)
    same_as(half, saved(pipeline.to(torch.float32), tmp_path / "whole"))
    full = stable_diffusion_xl(False, seed=2)
    full.save_pretrained(tmp_path / "half", **shards)
    same_as(load_base(tmp_path / "half", torch.device("cpu"), torch.float32), saved(full, tmp_path / "other"))


def test_a_file_of_another_size_does_not_fit_and_the_error_names_a_tensor(
    loaded: Loaded, tmp_path: Path
) -> None:
    pipeline, base = loaded("sdxl", False)
    kept = single_files.stable_diffusion_xl(pipeline)
    kept["model.diffusion_model.label_emb.0.0.weight"] = torch.zeros(3, 3)
    save_file(kept, tmp_path / "tuned.safetensors")
    with pytest.raises(BaseMismatch, match=r"add_embedding\.linear_1\.weight is \[3, 3\]"):
        tune(base, tmp_path / "tuned.safetensors")


def same_as(model: Model, other: Model) -> None:
    x, (found, wanted) = torch.randn(2, *model.latent_shape), (m.condition(PROMPT) for m in (model, other))
    if isinstance(found, TextStates):
        torch.testing.assert_close((found.sequence, found.pooled), (wanted.sequence, wanted.pooled))
    else:
        torch.testing.assert_close(found, wanted)
    with torch.inference_mode():
        torch.testing.assert_close(model.predict(x, 500, found), other.predict(x, 500, wanted))
