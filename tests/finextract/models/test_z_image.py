"""Z-Image against diffusers' own pipeline with tiny random weights, and its keys in full size."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import tried_formats
from safetensors.torch import save_file
from tiny import z_image as tiny
from tiny.checks import assert_adapter_fits, calls_of, far, ones_of_rank_1
from tiny.flow_pipelines import SIDE
from tiny.full_models import z_image_model
from torch import Tensor

from finextract.errors import BaseMismatch, CorruptWeights, UnsupportedWeights
from finextract.guidance import model_guidance
from finextract.models.component_loaders import FolderLoader
from finextract.models.loading import gpu_precision, load_base, load_pair, tune
from finextract.models.offloading import blocks_of
from finextract.models.z_image import framed, load
from finextract.sampling import initial_noise, sample_latents
from finextract.support import family_of_pipeline, why_unsupported_configs, why_unsupported_pipeline
from finextract.weights.formats import Header, TensorInfo, classify
from finextract.weights.original_names import file_layers, original_layers

CPU = torch.device("cpu")
PROMPT = "a red house beside the sea, painted in Oil!"
STEPS = 5


@pytest.fixture(scope="module", params=tiny.SCHEDULERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """diffusers' pipeline, and our model of the folder that it saves."""
    pipeline = tiny.pipeline(request.param)
    folder = tmp_path_factory.mktemp("z-image") / "base"
    pipeline.save_pretrained(folder)
    assert gpu_precision(folder) == torch.bfloat16
    return pipeline, load_base(folder, CPU, torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder."""
    path = tmp_path_factory.mktemp("z-image") / "base"
    tiny.pipeline().save_pretrained(path)
    return path


def theirs_sampled(pipeline: Any, noise: Tensor, guidance_scale: float, prompt: str = PROMPT) -> Tensor:
    """With a guidance scale of s, this pipeline extrapolates as others do with s + 1."""
    made: Tensor = pipeline(
        prompt=[prompt] * len(noise), negative_prompt=[""] * len(noise), height=SIDE, width=SIDE,
        num_inference_steps=STEPS, guidance_scale=guidance_scale, latents=noise, output_type="latent",
    ).images  # fmt: skip
    return made


def sampled(model: Any, noise: Tensor, prompt: str = PROMPT) -> Tensor:
    with torch.inference_mode():
        words = model.condition(prompt)
        return sample_latents(lambda x, t: model.predict(x, t, words), noise, model.solver, STEPS)


@torch.inference_mode()
def test_a_prediction_is_what_the_pipelines_transformer_says_at_the_same_time(both: tuple[Any, Any]) -> None:
    """The pipeline gives both prompts to one call, so that the shorter one is padded and masked."""
    pipeline, model = both
    words, empty = model.condition(PROMPT), model.condition("")
    with calls_of(pipeline.transformer) as calls:
        theirs_sampled(pipeline, initial_noise([3, 4], model.latent_shape), 2.0)
    assert len(calls) == STEPS
    for call in calls:
        x, t = torch.stack(call.inputs[0]).squeeze(2), 1000 * (1 - float(call.inputs[1][0]))
        ours = torch.cat([model.predict(x[:2], t, words), model.predict(x[2:], t, empty)])
        assert far(ours, -torch.stack(call.output[0]).squeeze(2)) < 5e-6


@torch.inference_mode()
def test_a_trajectory_is_that_of_the_pipeline_alone_and_under_guidance(both: tuple[Any, Any]) -> None:
    """Model guidance with tuned = base is the pipeline's classifier-free guidance.

    The scheduler rounds its times to float32, and the embedding of the time has sines of up to 1000.
    """
    pipeline, model = both
    noise = initial_noise([3, 4], model.latent_shape)
    assert far(sampled(model, noise), theirs_sampled(pipeline, noise, 0.0)) < 3e-5
    words, empty = model.condition(PROMPT), model.condition("")

    def guided(x: Tensor, t: float) -> Tensor:
        return model_guidance(model.predict(x, t, empty), model.predict(x, t, words), 3.0)

    latents = sample_latents(guided, noise, model.solver, STEPS)
    assert far(latents, theirs_sampled(pipeline, noise, 2.0)) < 5e-5
    assert model.decode(latents).shape == (2, 3, SIDE, SIDE)
    assert model.encode(model.decode(latents)).shape[1:] == model.latent_shape


@torch.inference_mode()
def test_samples_are_evaluated_in_one_call_and_each_is_what_it_is_alone(both: tuple[Any, Any]) -> None:
    _, model = both
    words, noise = model.condition(PROMPT), initial_noise([1, 2, 3], model.latent_shape)
    with calls_of(model.transformer) as calls:
        together = model.predict(noise, 700.0, words)
    assert len(calls) == 1
    alone = torch.cat([model.predict(one, 700.0, words) for one in noise.split(1)])
    assert far(together, alone) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("prompt", [PROMPT, "", "x" * 700])
def test_a_prompt_is_encoded_and_cut_as_the_pipeline_does(both: tuple[Any, Any], prompt: str) -> None:
    pipeline, model = both
    (theirs,), _ = pipeline.encode_prompt([prompt], do_classifier_free_guidance=False)
    assert far(model.condition(prompt), theirs) < 1e-5


@torch.inference_mode()
def test_a_prompt_that_fills_all_places_of_the_smallest_allowed_model_is_still_sampled(
    both: tuple[Any, Any],
) -> None:
    """Of 512 places, the image's needs one after those of the text and its padding."""
    config = {**both[1].transformer.config, "axes_lens": [512, 512, 512]}
    model = replace(both[1], transformer=diffusers.ZImageTransformer2DModel.from_config(config))
    words = model.condition("x" * 700)
    assert len(words) == 480
    assert model.predict(initial_noise([1], model.latent_shape), 500.0, words).isfinite().all()


def test_a_prompt_is_framed_as_the_chat_template_of_qwen3_does() -> None:
    for prompt in (PROMPT, "", " two\nlines "):
        message = [{"role": "user", "content": prompt}]
        theirs = tiny.tokenizer().apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        assert framed(prompt) == theirs


def test_a_folders_own_chat_template_is_not_run(folder: Path, tmp_path: Path) -> None:
    pipeline = tiny.pipeline()
    pipeline.tokenizer = copy.deepcopy(pipeline.tokenizer)
    pipeline.tokenizer.chat_template = "{{ raise_exception('it was run') }}"
    pipeline.save_pretrained(tmp_path / "base")
    model = load_base(tmp_path / "base", CPU, torch.float32)
    assert torch.equal(model.condition(PROMPT), load_base(folder, CPU, torch.float32).condition(PROMPT))


def test_a_text_encoder_stored_with_its_head_is_loaded_and_replaced_without_it(
    both: tuple[Any, Any], folder: Path, tmp_path: Path
) -> None:
    tiny.pipeline(head=True).save_pretrained(tmp_path / "base")
    pair = load_pair(folder, tmp_path / "base", CPU)
    with_head: Any = load_base(tmp_path / "base", CPU, torch.float32)
    tuned: Any = pair.tuned
    words = with_head.condition(PROMPT)
    assert torch.equal(tuned.condition(PROMPT), words)
    assert not torch.equal(both[1].condition(PROMPT), words)


def moved_pipeline() -> Any:
    """The pipeline with another transformer."""
    pipeline = tiny.pipeline()
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in pipeline.transformer.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return pipeline


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_one_file_in_the_models_own_names_gives_the_trajectory_of_the_pipeline_that_it_is_of(
    folder: Path, tmp_path: Path, prefix: str
) -> None:
    pipeline = moved_pipeline()
    state = tiny.original(pipeline.transformer.state_dict())
    path = tmp_path / "tuned.safetensors"
    save_file({f"{prefix}{key}": tensor.contiguous() for key, tensor in state.items()}, path)
    tuned: Any = load_pair(folder, path, CPU).tuned
    noise = initial_noise([3], tuned.latent_shape)
    assert far(sampled(tuned, noise), theirs_sampled(pipeline, noise, 0.0)) < 3e-5
    assert far(sampled(load_base(folder, CPU, torch.float32), noise), sampled(tuned, noise)) > 1e-2


def test_a_transformer_of_diffusers_and_a_text_encoder_in_one_file_are_loaded(
    folder: Path, tmp_path: Path
) -> None:
    pipeline = moved_pipeline()
    path = tmp_path / "tuned.safetensors"
    save_file(pipeline.transformer.state_dict(), path)
    tuned: Any = load_pair(folder, path, CPU).tuned
    assert torch.equal(tuned.transformer.x_pad_token, pipeline.transformer.x_pad_token)
    text = {k: t + 1 for k, t in pipeline.text_encoder.state_dict().items()}
    own = {
        f"model.diffusion_model.{k}": t for k, t in tiny.original(pipeline.transformer.state_dict()).items()
    }
    start = "text_encoders.qwen3_4b.transformer.model."
    save_file(
        {**{k: t.contiguous() for k, t in own.items()}, **{start + k: t for k, t in text.items()}}, path
    )
    tuned = load_pair(folder, path, CPU).tuned
    assert torch.equal(tuned.text_encoder.norm.weight, text["norm.weight"])


def test_one_file_is_refused_as_a_base_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    state = tiny.original(tiny.components()["transformer"].state_dict())
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    with pytest.raises(UnsupportedWeights, match="holds Z-Image weights: only a full checkpoint of"):
        load_base(path, CPU, torch.float32)


LAYERS = {"layers.0.attention.to_q": (32, 32), "layers.1.attention.to_out.0": (32, 32),
          "noise_refiner.1.feed_forward.w2": (85, 32), "context_refiner.0.attention.to_v": (32, 32),
          "layers.1.adaLN_modulation.0": (32, 128)}  # fmt: skip
ORIGINAL = {"layers.0.attention.qkv": (32, 96), "layers.1.attention.out": (32, 32),
            "noise_refiner.1.feed_forward.w2": (85, 32)}  # fmt: skip


def lora(
    layers: dict[str, tuple[int, int]], name: str, parts: tuple[str, str], alpha: bool
) -> dict[str, Tensor]:
    """A LoRA of rank 4; `name` is what stands before a layer's name, "lora_unet_" also for its dots."""
    torch.manual_seed(9)
    state: dict[str, Tensor] = {}
    for layer, (wide, out) in layers.items():
        key = name + (layer.replace(".", "_") if name.endswith("_") else layer)
        state[f"{key}.{parts[0]}.weight"] = 0.3 * torch.randn(4, wide)
        state[f"{key}.{parts[1]}.weight"] = 0.3 * torch.randn(out, 4)
        if alpha:
            state[f"{key}.alpha"] = torch.tensor(2.0)
    return state


PEFT, KOHYA = ("lora_A", "lora_B"), ("lora_down", "lora_up")
ADAPTERS = {
    "diffusers": lora(LAYERS, "transformer.", PEFT, False),
    "ai-toolkit": lora(LAYERS, "diffusion_model.", PEFT, False),
    "ai-toolkit with alpha": lora(LAYERS, "diffusion_model.", PEFT, True),
    "kohya": lora(LAYERS, "lora_unet_", KOHYA, True),
    "own names": lora(ORIGINAL, "diffusion_model.", KOHYA, True),
    "kohya, own names": lora(ORIGINAL, "lora_unet_", KOHYA, True),
    "kohya, own names, dots": lora(ORIGINAL, "lora_unet_", ("lora.down", "lora.up"), True),
}


@pytest.mark.parametrize("style", ADAPTERS)
def test_an_adapter_gives_the_trajectory_that_the_pipeline_has_after_loading_it(
    folder: Path, tmp_path: Path, style: str
) -> None:
    state = ADAPTERS[style]
    path = tmp_path / "a.safetensors"
    save_file(state, path, {"ss_base_model_version": "zimage"})
    pair = load_pair(folder, path, CPU)
    tuned: Any = pair.tuned
    pipeline = tiny.pipeline()
    pipeline.load_lora_weights(as_diffusers_reads(state))
    noise = initial_noise([3, 4], tuned.latent_shape)
    ours, theirs = sampled(tuned, noise), theirs_sampled(pipeline, noise, 0.0)
    assert far(ours, theirs) < 3e-5
    assert far(sampled(pair.base, noise), theirs) > 1e-2


def as_diffusers_reads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the rows of the fused layer apart, which diffusers' loader does for `lora.up` alone."""
    if any(".lora.up" in key for key in state):
        return state
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if "qkv" not in key:
            found[key] = tensor
            continue
        rows = tensor.chunk(3) if "lora_up" in key else [tensor] * 3
        found |= {key.replace("qkv", f"to_{part}"): r.clone() for part, r in zip("qkv", rows, strict=True)}
    return found


def test_an_adapter_that_has_a_layer_alone_and_in_a_fused_one_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    layers = {"layers.0.attention.qkv": (32, 96), "layers.0.attention.to_q": (32, 32)}
    path = tmp_path / "a.safetensors"
    save_file(lora(layers, "lora_unet_", ("lora.down", "lora.up"), False), path)
    with pytest.raises(CorruptWeights, match=r"'transformer.layers.0.attention.to_q' twice"):
        load_pair(folder, path, CPU)


def test_the_published_configuration_is_that_of_the_class_but_for_the_places_of_the_text() -> None:
    default = dict(diffusers.ZImageTransformer2DModel.from_config({"dim": 32, "n_heads": 1, "n_layers": 1,
        "axes_dims": [8, 12, 12]}).config)  # fmt: skip
    changed = {"dim", "n_heads", "n_layers", "axes_dims", "axes_lens"}
    for name in tiny.TRANSFORMER.keys() - changed:
        assert default[name] == tiny.TRANSFORMER[name], name


def test_every_tensor_of_the_published_file_fits_a_parameter_of_the_full_model() -> None:
    keys, model = tiny.original_names(), z_image_model()
    for prefix in ("", "model.diffusion_model."):
        file = {f"{prefix}{k}": torch.empty(s, device="meta") for k, s in keys.items()}
        kind = classify(Header({}, {k: TensorInfo("BF16", tuple(t.shape)) for k, t in file.items()}, 0))
        assert (kind.kind, kind.family, kind.style, kind.detail) == ("full", "z_image", "ldm", "")
        model.load_single_file(file)
    empty = {k: torch.empty(s, device="meta") for k, s in keys.items()}
    with pytest.raises(BaseMismatch, match="it has scaled_fp8"):
        model.load_single_file({**empty, "scaled_fp8": torch.empty(2)})
    with pytest.raises(BaseMismatch, match="it lacks x_pad_token"):
        model.load_single_file({k: t for k, t in empty.items() if k != "x_pad_token"})


def test_every_layer_has_a_name_in_the_models_own_code() -> None:
    """The layers that keep their names have them among the names of diffusers."""
    model = z_image_model()
    own = {f"transformer.{key}" for key in model.transformer.state_dict()}
    names = file_layers(model.layers())
    placed = {
        layer
        for key in tiny.original_names()
        if (target := names.get(f"diffusion_model.{key.removesuffix('.weight')}"))
        for layer in target.layers
    }
    assert placed == {name for name in model.layers() if name.startswith("transformer.")}
    assert {f"{name}.weight" for name in placed} <= own
    assert not any(target.swapped for target in original_layers(model.layers()).values())


@pytest.mark.parametrize("adapter", [n for n in tried_formats.MAKERS if n.startswith("lora-z-image-")])
def test_every_layer_of_an_adapter_is_one_of_the_full_models_layers(adapter: str) -> None:
    assert_adapter_fits(adapter, z_image_model().layers())


def test_a_denoiser_that_comes_to_the_gpu_by_blocks_gives_the_same_velocities(folder: Path) -> None:
    kept, offloaded = (
        load(FolderLoader(folder, CPU, offloading=some), torch.float32) for some in ("nothing", "denoiser")
    )
    assert (kept.offloading, offloaded.offloading) == ("nothing", "denoiser")
    noise = initial_noise([3, 4], kept.latent_shape)
    expected = sampled(kept, noise)
    assert torch.equal(sampled(offloaded, noise), expected)
    assert torch.equal(sampled(offloaded.copy_for_tuning(), noise), expected)
    called: set[int] = set()
    for block in blocks_of(offloaded.transformer):
        block.register_forward_hook(lambda module, *_: called.add(id(module)))
    sampled(offloaded, noise)
    assert called == {id(block) for block in blocks_of(offloaded.transformer)}


def test_what_an_adapter_leaves_alone_is_shared_with_the_base(both: tuple[Any, Any], tmp_path: Path) -> None:
    _, base = both
    path = tmp_path / "a.safetensors"
    layer = "transformer.layers.0.attention.to_q"
    save_file(ones_of_rank_1(layer), path)
    tuned: Any = tune(base, path).tuned  # nothing but the base says for which family the adapter is
    own, shared = (m.transformer.layers[0].attention.to_q.weight for m in (tuned, base))
    torch.testing.assert_close(own, shared + 1)
    assert tuned.transformer.x_pad_token is base.transformer.x_pad_token


def test_an_adapter_with_learned_words_is_refused(folder: Path, tmp_path: Path) -> None:
    layer, path = "transformer.layers.0.attention.to_q", tmp_path / "a.safetensors"
    save_file({**ones_of_rank_1(layer), "bundle_emb.sks.string_to_param.*": torch.ones(2, 24)}, path)
    with pytest.raises(UnsupportedWeights, match="learned words are known for no text encoder of Z-Image"):
        load_pair(folder, path, CPU)


def test_the_published_pipeline_can_be_loaded_and_one_that_takes_an_image_is_refused() -> None:
    configs = tiny.configs()
    denoiser = configs["transformer/config.json"]
    assert family_of_pipeline(tiny.INDEX, denoiser) == "z_image"
    scheduler = configs["scheduler/scheduler_config.json"]
    assert why_unsupported_pipeline(tiny.INDEX, scheduler, denoiser, "p") is None
    assert why_unsupported_configs("z_image", configs, "p") is None
    omni = {
        **tiny.INDEX, "_class_name": "ZImageOmniPipeline", "siglip": ["transformers", "Siglip2VisionModel"],
        "siglip_processor": ["transformers", "Siglip2ImageProcessorFast"],
    }  # fmt: skip
    found = why_unsupported_pipeline(omni, scheduler, denoiser, "p")
    assert found is not None
    assert "with siglip and siglip_processor" in found.sentence


@pytest.mark.parametrize(
    ("file", "name", "value", "words"),
    [
        ("transformer/config.json", "n_layers", 9000, "1 to 30"),
        ("transformer/config.json", "all_patch_size", [2, 4], "it may be 2 to 2"),
        ("transformer/config.json", "axes_lens", [8, 512, 512], "512 to 4,096"),
        ("transformer/config.json", "axes_lens", [10**9, 512, 512], "512 to 4,096"),
        ("text_encoder/config.json", "vocab_size", 10**9, "1 to 151,936"),
        ("text_encoder/config.json", "model_type", "llama", "it may be qwen3"),
        ("text_encoder/config.json", "auto_map", {"AutoModel": "evil.Model"}, "could load further code"),
        ("vae/config.json", "sample_size", None, "does not state sample_size"),
        ("scheduler/scheduler_config.json", "use_beta_sigmas", True, "it may be false"),
        ("tokenizer/tokenizer_config.json", "tokenizer_class", "EvilTokenizer", "Qwen2Tokenizer or"),
    ],
)
def test_a_configuration_out_of_bounds_is_refused(file: str, name: str, value: object, words: str) -> None:
    configs = tiny.configs()
    found = why_unsupported_configs("z_image", {**configs, file: {**configs[file], name: value}}, "p")
    assert found is not None
    assert f"p/{file}" in found.sentence
    assert words in found.sentence
