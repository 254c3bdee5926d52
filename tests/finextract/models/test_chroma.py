"""Chroma against diffusers' own pipeline with tiny random weights, and its keys in full size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import chroma as tiny
from tiny.checks import assert_adapter_fits, calls_of, far, ones_of_rank_1
from tiny.flow_pipelines import SIDE
from tiny.full_models import chroma_model

from finextract.errors import BaseMismatch
from finextract.guidance import model_guidance
from finextract.models.loading import gpu_precision, load_base, tune
from finextract.models.packed_latents import packed, unpacked
from finextract.sampling import initial_noise, sample_latents
from finextract.weights.formats import Header, TensorInfo, classify
from finextract.weights.original_names import file_layers, original_layers

PROMPT = "a red house beside the sea, painted in Oil!"
STEPS = 5


@pytest.fixture(scope="module", params=tiny.SCHEDULERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """diffusers' pipeline, and our model of the folder that it saves."""
    pipeline = tiny.pipeline(request.param)
    folder = tmp_path_factory.mktemp("chroma") / "base"
    pipeline.save_pretrained(folder)
    assert gpu_precision(folder) == torch.bfloat16
    return pipeline, load_base(folder, torch.device("cpu"), torch.float32)


def theirs_sampled(pipeline: Any, noise: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    made = pipeline(
        prompt=[PROMPT] * len(noise), negative_prompt=[""] * len(noise), height=SIDE, width=SIDE,
        num_inference_steps=STEPS, guidance_scale=guidance_scale, latents=packed(noise), output_type="latent",
    ).images  # fmt: skip
    return unpacked(made, *noise.shape[2:])


@torch.inference_mode()
def test_a_prediction_is_that_of_the_pipelines_transformer(both: tuple[Any, Any]) -> None:
    """The pipeline calls it for each of the two prompts in turn."""
    pipeline, model = both
    noise = initial_noise([3, 4], model.latent_shape)
    with calls_of(pipeline.transformer) as calls:
        theirs_sampled(pipeline, noise, 3.0)
    assert len(calls) == 2 * STEPS
    prompts = [model.condition(prompt) for prompt in (PROMPT, "")]
    for call, words in zip(calls, prompts * STEPS, strict=True):
        x, theirs = (unpacked(t, *noise.shape[2:]) for t in (call.named["hidden_states"], call.output[0]))
        assert far(model.predict(x, 1000 * float(call.named["timestep"][0]), words), theirs) < 1e-5


@torch.inference_mode()
def test_a_trajectory_is_that_of_the_pipeline_alone_and_under_guidance(both: tuple[Any, Any]) -> None:
    """Model guidance with tuned = base is the pipeline's classifier-free guidance."""
    pipeline, model = both
    noise = initial_noise([3, 4], model.latent_shape)
    words, empty = model.condition(PROMPT), model.condition("")
    alone = sample_latents(lambda x, t: model.predict(x, t, words), noise, model.solver, STEPS)
    assert far(alone, theirs_sampled(pipeline, noise, 1.0)) < 1e-5

    def guided(x: torch.Tensor, t: float) -> torch.Tensor:
        return model_guidance(model.predict(x, t, empty), model.predict(x, t, words), 3.0)

    latents = sample_latents(guided, noise, model.solver, STEPS)
    assert far(latents, theirs_sampled(pipeline, noise, 3.0)) < 1e-5
    assert model.decode(latents).shape == (2, 3, SIDE, SIDE)
    assert model.encode(model.decode(latents)).shape[1:] == model.latent_shape


def test_every_tensor_of_the_published_file_fits_a_parameter_of_the_full_model() -> None:
    keys, model = tiny.original_names(), chroma_model()
    for prefix in ("", "model.diffusion_model."):
        file = {f"{prefix}{k}": torch.empty(s, device="meta") for k, s in keys.items()}
        kind = classify(Header({}, {k: TensorInfo("BF16", tuple(t.shape)) for k, t in file.items()}, 0))
        assert (kind.kind, kind.family, kind.style, kind.detail) == ("full", "chroma", "ldm", "")
        model.load_single_file(file)
    with pytest.raises(BaseMismatch, match="it has scaled_fp8"):
        model.load_single_file(
            {**{k: torch.empty(s, device="meta") for k, s in keys.items()}, "scaled_fp8": torch.empty(2)}
        )
    placed = {name for target in original_layers(model.layers()).values() for name in target.layers}
    assert placed == {n for n in model.layers() if n.startswith("transformer.")}


def test_every_layer_of_an_adapter_is_one_of_the_full_models_layers() -> None:
    layers = chroma_model().layers()
    t5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    assert file_layers(layers)[t5].layers == ("text_encoder.encoder.block.0.layer.0.SelfAttention.q",)
    for adapter in ("lora-chroma-diffusers", "lora-chroma-kohya", "lora-chroma-kohya-unnamed"):
        assert_adapter_fits(adapter, layers)


def test_an_adapter_is_merged_and_the_unnamed_one_is_settled_by_its_base(
    both: tuple[Any, Any], tmp_path: Path
) -> None:
    _, base = both
    layer = "transformer.transformer_blocks.0.attn.to_q"
    path = tmp_path / "a.safetensors"
    save_file(ones_of_rank_1(layer), path, {"ss_base_model_version": "chroma"})
    tuned: Any = tune(base, path).tuned
    own, shared = (m.transformer.transformer_blocks[0].attn.to_q.weight for m in (tuned, base))
    torch.testing.assert_close(own, shared + 1)
    assert tuned.transformer.x_embedder.weight is base.transformer.x_embedder.weight
