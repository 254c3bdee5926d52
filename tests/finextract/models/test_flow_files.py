"""Tuned weights of Stable Diffusion 3 and FLUX.1 as files hold them: folders, single files and adapters."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from adapter_comparisons import lora
from safetensors.torch import save_file
from tiny.flow_pipelines import SIDE, flux_pipeline, sd3_pipeline
from tiny.single_files import sd3_names as under_original_names
from torch import Tensor

from finextract.adapters.merge import merge
from finextract.adapters.parsing import parse_adapter
from finextract.errors import BaseMismatch, CorruptWeights, PickledWeights, UnsupportedWeights
from finextract.guidance import DIRECT, Guidance
from finextract.guided import guided_predictor, sample
from finextract.models.flux import Flux
from finextract.models.loading import gpu_precision, load_base, load_pair, tune
from finextract.models.parts import prompt_length
from finextract.models.stable_diffusion_3 import StableDiffusion3

CPU = torch.device("cpu")
PIPELINES = {"sd3": sd3_pipeline, "flux": flux_pipeline}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline folder of each family."""
    root = tmp_path_factory.mktemp("bases")
    for name, make in PIPELINES.items():
        make().save_pretrained(root / name)
    return {name: root / name for name in PIPELINES}


def changed(module: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of a module after some training."""
    torch.manual_seed(1)
    state = module.state_dict()
    return {key: t + 0.1 * torch.randn_like(t) if t.is_floating_point() else t for key, t in state.items()}


def changed_names(base: StableDiffusion3) -> dict[str, Tensor]:
    """The weights of a transformer after some training, under the names of a single file."""
    return under_original_names(changed(base.transformer), list(base.layers()))


@pytest.mark.parametrize("family", PIPELINES)
def test_a_tuned_folder_in_shards_replaces_the_weights_and_leaves_the_base_as_it_is(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    pipe = PIPELINES[family]()
    pipe.transformer.load_state_dict(changed(pipe.transformer))
    pipe.text_encoder_2.load_state_dict(changed(pipe.text_encoder_2), strict=False)
    pipe.save_pretrained(tmp_path / "tuned", max_shard_size="100KB")
    assert len(list((tmp_path / "tuned" / "transformer").glob("*-of-*.safetensors"))) > 1
    pair = load_pair(folders[family], tmp_path / "tuned", CPU)
    again = load_base(folders[family], CPU, torch.float32)
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        tuned, base = getattr(pair.tuned, name), getattr(pair.base, name)
        for key, tensor in getattr(pipe, name).state_dict().items():
            assert torch.equal(tuned.state_dict()[key], tensor), key
        for key, tensor in getattr(again, name).state_dict().items():
            assert torch.equal(base.state_dict()[key], tensor), key
    assert pair.kind == "full"


def test_a_transformer_in_shards_needs_no_pipeline_around_it_but_a_folder_of_its_name(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base = load_base(folders["sd3"], CPU, torch.float32)
    assert isinstance(base, StableDiffusion3)
    other = type(base.transformer).from_config(base.transformer.config)
    other.load_state_dict(changed(base.transformer))
    other.save_pretrained(tmp_path / "tuned/transformer", max_shard_size="100KB")
    pair = tune(base, tmp_path / "tuned")
    assert isinstance(pair.tuned, StableDiffusion3)
    for key, tensor in other.state_dict().items():
        assert torch.equal(pair.tuned.transformer.state_dict()[key], tensor), key
    shard = min((tmp_path / "tuned/transformer").glob("*.safetensors"))
    for elsewhere in (shard, shard.parent):
        with pytest.raises(UnsupportedWeights, match=f"{shard} is one of several shards.*name the folder"):
            tune(base, elsewhere)


def without(folder: Path, into: Path, *parts: str) -> Path:
    """A copy of a pipeline folder that does without some text encoders and their tokenizers."""
    shutil.copytree(folder, into)
    index = json.loads((into / "model_index.json").read_text())
    for part in (*parts, *(part.replace("text_encoder", "tokenizer") for part in parts)):
        shutil.rmtree(into / part)
        index[part] = [None, None]
    (into / "model_index.json").write_text(json.dumps(index))
    return into


def test_a_tuned_folder_with_a_t5_is_refused_for_a_base_without_one_and_the_other_way_round_not(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    bare = without(folders["sd3"], tmp_path / "bare", "text_encoder_3")
    with pytest.raises(BaseMismatch, match="sd3 has a text_encoder_3, and its base model has none"):
        load_pair(bare, folders["sd3"], CPU)
    assert load_pair(folders["sd3"], bare, CPU).kind == "full"
    assert load_pair(bare, bare, CPU).kind == "full"
    index = json.loads((bare / "model_index.json").read_text())
    (bare / "model_index.json").write_text(json.dumps({**index, "vae": [None, None]}))
    with pytest.raises(UnsupportedWeights, match=r"model_index\.json names no vae, without which"):
        load_base(bare, CPU, torch.float32)


@pytest.mark.parametrize(
    "absent",
    [
        ("text_encoder",),
        ("text_encoder_2",),
        ("text_encoder", "text_encoder_3"),
        ("text_encoder", "text_encoder_2"),
        ("text_encoder", "text_encoder_2", "text_encoder_3"),
    ],
    ids=" ".join,
)
@torch.inference_mode()
def test_stable_diffusion_3_reads_zeros_for_each_text_encoder_that_it_does_without(
    absent: tuple[str, ...], folders: dict[str, Path], tmp_path: Path
) -> None:
    whole = load_base(folders["sd3"], CPU, torch.float32)
    bare = load_base(without(folders["sd3"], tmp_path / "bare", *absent), CPU, torch.float32)
    assert isinstance(whole, StableDiffusion3)
    expected, found = whole.condition("a sks dog"), bare.condition("a sks dog")
    first, both = (getattr(whole, f"text_encoder{n}").config.projection_dim for n in ("", "_2"))
    both += first
    has_clip = not {"text_encoder", "text_encoder_2"} <= set(absent)
    tokens = prompt_length(whole.tokenizer, whole.text_encoder)
    clip, t5 = expected.sequence[:, :tokens], expected.sequence[:, tokens:]
    for name, channels in (("text_encoder", slice(0, first)), ("text_encoder_2", slice(first, both))):
        if name in absent:
            clip[..., channels] = expected.pooled[:, channels] = 0
    tokens = tokens if has_clip else 77
    assert torch.equal(found.sequence[:, :tokens], clip if has_clip else torch.zeros(1, 77, clip.shape[2]))
    assert torch.equal(found.pooled, expected.pooled)
    if "text_encoder_3" in absent:
        assert not found.sequence[:, tokens:].any()
    else:
        assert torch.equal(found.sequence[:, tokens:], t5)
    assert torch.isfinite(bare.predict(torch.zeros(1, *bare.latent_shape), 500.0, found)).all()


def test_a_tuned_file_with_a_text_encoder_that_its_base_lacks_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base = load_base(folders["sd3"], CPU, torch.float32)
    assert isinstance(base, StableDiffusion3)
    file = {f"model.diffusion_model.{k}": t for k, t in changed_names(base).items()}
    t5 = changed(base.text_encoder_3)
    file |= {f"text_encoders.t5xxl.transformer.{k}": t.contiguous().clone() for k, t in t5.items()}
    save_file(file, tmp_path / "tuned.safetensors")
    bare = without(folders["sd3"], tmp_path / "bare", "text_encoder_3")
    with pytest.raises(BaseMismatch, match="has a text_encoder_3, and its base model has none"):
        tune(load_base(bare, CPU, torch.float32), tmp_path / "tuned.safetensors")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn], ids=str)
def test_a_single_file_of_the_original_names_is_that_transformer_in_the_models_precision(
    dtype: torch.dtype, prefix: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    base = load_base(folders["sd3"], CPU, torch.float32)
    assert isinstance(base, StableDiffusion3)
    state = {key: tensor.to(dtype) for key, tensor in changed(base.transformer).items()}
    wide = {key: tensor.float() for key, tensor in state.items()}
    named = under_original_names(wide, list(base.layers()))
    clip = {f"text_model.{k.removeprefix('text_model.')}": t for k, t in changed(base.text_encoder).items()}
    clip = {key: t for key, t in clip.items() if "text_projection" not in key}
    file = {f"{prefix}{key}": tensor.to(dtype) for key, tensor in named.items()}
    file |= {f"text_encoders.clip_l.transformer.{key}": t.contiguous() for key, t in clip.items()}
    file["first_stage_model.decoder.conv_in.weight"] = torch.zeros(4, 4, 3, 3)
    save_file(file, tmp_path / "tuned.safetensors")
    pair = tune(base, tmp_path / "tuned.safetensors")
    assert isinstance(pair.tuned, StableDiffusion3)
    for key, tensor in pair.tuned.transformer.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, wide[key]), key
    projection = pair.tuned.text_encoder.text_projection.weight
    assert torch.equal(projection, torch.eye(len(projection)))
    for key, tensor in base.text_encoder_3.state_dict().items():  # the file has no T5
        assert torch.equal(pair.tuned.text_encoder_3.state_dict()[key], tensor), key


@pytest.mark.parametrize(
    ("factor", "of_inputs", "by_row"),
    [("scale_weight", "scale_input", False), ("weight_scale", "input_scale", True)],
)
def test_weights_of_scaled_8_bits_are_multiplied_by_their_factors_as_comfyui_does(
    factor: str, of_inputs: str, by_row: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    base = load_base(folders["sd3"], CPU, torch.float32)
    assert isinstance(base, StableDiffusion3)
    file = {"model.diffusion_model.scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    file |= {f"model.diffusion_model.{k}": t for k, t in changed_names(base).items()}
    t5 = changed(base.text_encoder_3)
    file |= {f"text_encoders.t5xxl.transformer.{k}": t.contiguous().clone() for k, t in t5.items()}
    plain = {key: tensor for key, tensor in file.items() if "scaled_fp8" not in key}
    for key, tensor in list(plain.items()):
        if key.endswith(".weight") and tensor.dim() == 2:
            layer = key.removesuffix("weight")
            largest = tensor.abs().amax(dim=1, keepdim=True) if by_row else tensor.abs().max()
            scale = (largest / 448).float()
            file[key] = (tensor / scale).to(torch.float8_e4m3fn)
            file[layer + factor] = scale.flatten() if by_row else scale
            file[layer + of_inputs] = torch.ones(())
            plain[key] = (file[key].float() * scale).half()
    save_file(file, tmp_path / "scaled.safetensors")
    save_file(plain, tmp_path / "plain.safetensors")
    found, wanted = (tune(base, tmp_path / f"{name}.safetensors").tuned for name in ("scaled", "plain"))
    assert isinstance(found, StableDiffusion3)
    assert isinstance(wanted, StableDiffusion3)
    for part in ("transformer", "text_encoder_3"):
        for key, tensor in getattr(wanted, part).state_dict().items():
            assert torch.equal(getattr(found, part).state_dict()[key], tensor), key
        assert any(
            not torch.equal(tensor, getattr(base, part).state_dict()[key])
            for key, tensor in getattr(wanted, part).state_dict().items()
        )
    file[f"{layer}weight"] = file[f"{layer}weight"].float().to(torch.int8)  # another quantisation
    save_file(file, tmp_path / "int8.safetensors")
    with pytest.raises(UnsupportedWeights, match=r"int8.safetensors holds .* quantised to integers \(I8\)"):
        tune(base, tmp_path / "int8.safetensors")


def test_a_transformer_file_of_diffusers_needs_no_text_encoder(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base = load_base(folders["sd3"], CPU, torch.float32)
    assert isinstance(base, StableDiffusion3)
    state = changed(base.transformer)
    save_file(state, tmp_path / "tuned.safetensors")
    pair = tune(base, tmp_path / "tuned.safetensors")
    assert isinstance(pair.tuned, StableDiffusion3)
    assert all(torch.equal(t, state[k]) for k, t in pair.tuned.transformer.state_dict().items())
    del state["proj_out.bias"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(BaseMismatch, match=r"short.safetensors does not fit .* lacks proj_out.bias"):
        tune(base, tmp_path / "short.safetensors")


DIFFUSERS = {
    "transformer.transformer_blocks.0.attn.to_q": (32, 32),
    "transformer.transformer_blocks.1.attn.to_add_out": (32, 32),
    "transformer.transformer_blocks.1.ff.net.0.proj": (32, 128),
}


def test_an_adapter_changes_the_weights_of_stable_diffusion_3_as_diffusers_changes_them(
    folders: dict[str, Path],
) -> None:
    """The key styles of FLUX.1 are compared in tests/adapter_comparisons.py."""
    state = lora(DIFFUSERS, ("lora_A", "lora_B"), False)
    model = load_base(folders["sd3"], CPU, torch.float32)
    before = copy.deepcopy(model.layers())
    merge(model.layers(), parse_adapter(state, {}, {}))
    pipe: diffusers.DiffusionPipeline = sd3_pipeline()
    pipe.load_lora_weights(dict(state))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    theirs = dict(pipe.transformer.named_modules())
    moved = 0
    for name, layer in model.layers().items():
        if name.startswith("transformer."):
            expected = theirs[name.removeprefix("transformer.")].weight
            torch.testing.assert_close(layer.weight, expected, rtol=1e-5, atol=1e-5)
            moved += not torch.equal(layer.weight, before[name].weight)
    assert moved >= 3


def test_a_fused_layer_of_a_single_block_is_split_into_its_four_layers(folders: dict[str, Path]) -> None:
    model = load_base(folders["flux"], CPU, torch.float32)
    assert isinstance(model, Flux)
    before = copy.deepcopy(model.layers())
    layer = "diffusion_model.single_blocks.1.linear1"
    state = lora({layer: (32, 3 * 32 + 128)}, ("lora_A", "lora_B"), False)
    merge(model.layers(), parse_adapter(state, {}, {}))
    delta = state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"]
    block = "transformer.single_transformer_blocks.1"
    names = [f"{block}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    for name, rows in zip(names, delta.split([32, 32, 32, 128]), strict=True):
        torch.testing.assert_close(model.layers()[name].weight, before[name].weight + rows)
    others = model.layers().keys() - set(names)
    assert all(torch.equal(model.layers()[name].weight, before[name].weight) for name in others)


def test_an_adapter_of_every_text_encoder_reaches_it(folders: dict[str, Path]) -> None:
    for family, layers in {
        "sd3": {
            "lora_te1_text_model_encoder_layers_0_mlp_fc1": ("text_encoder.", (16, 32)),
            "lora_te2_text_model_encoder_layers_0_mlp_fc1": ("text_encoder_2.", (24, 48)),
            "lora_te3_encoder_block_0_layer_0_SelfAttention_q": ("text_encoder_3.", (48, 32)),
        },
        "flux": {
            "lora_te1_text_model_encoder_layers_0_mlp_fc1": ("text_encoder.", (16, 32)),
            "lora_te3_encoder_block_0_layer_0_SelfAttention_q": ("text_encoder_2.", (48, 32)),
        },
    }.items():
        model = load_base(folders[family], CPU, torch.float32)
        before = copy.deepcopy(model.layers())
        state = lora({name: widths for name, (_, widths) in layers.items()}, ("lora_down", "lora_up"), True)
        merge(model.layers(), parse_adapter(state, {}, {}))
        moved = {n for n, layer in model.layers().items() if not torch.equal(layer.weight, before[n].weight)}
        assert sorted(n[: n.index(".") + 1] for n in moved) == sorted(start for start, _ in layers.values())


def test_a_pipeline_with_pickles_or_without_a_part_is_refused(tmp_path: Path) -> None:
    flux_pipeline().save_pretrained(tmp_path / "base")
    weights = tmp_path / "base" / "text_encoder_2" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    with pytest.raises(CorruptWeights, match="base cannot be loaded as a pipeline"):
        load_base(tmp_path / "base", CPU, torch.float32)
    weights.with_name("pytorch_model.bin").write_bytes(content)
    with pytest.raises(PickledWeights, match=r"pytorch_model.bin is a pickle"):
        load_base(tmp_path / "base", CPU, torch.float32)


@pytest.mark.parametrize("family", PIPELINES)
def test_a_pair_of_the_family_is_sampled_with_model_guidance(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    pipe = PIPELINES[family]()
    pipe.transformer.load_state_dict(changed(pipe.transformer))
    pipe.save_pretrained(tmp_path / "tuned")
    pair = load_pair(folders[family], tmp_path / "tuned", CPU)
    predict = guided_predictor(pair, "a red house", "finextract", Guidance(2.0, 0.0, "given"))
    images = sample(pair.tuned, predict, (1, 2), 3)
    assert (images.shape, images.dtype) == ((2, 3, SIDE, SIDE), "uint8")
    tuned_alone = guided_predictor(pair, "a red house", "direct", DIRECT)
    assert (images != sample(pair.tuned, tuned_alone, (1, 2), 3)).any()


def test_a_gpu_computes_with_the_flow_families_in_bfloat16_and_with_others_in_float16(
    folders: dict[str, Path],
) -> None:
    assert {gpu_precision(folder) for folder in folders.values()} == {torch.bfloat16}
    assert gpu_precision(Path(__file__).resolve().parents[2] / "zoo/base") == torch.float16


def test_stable_diffusion_3_without_t5_can_be_tuned(tmp_path: Path) -> None:
    pipe = sd3_pipeline(with_t5=False)
    pipe.save_pretrained(tmp_path / "base")
    pipe.transformer.load_state_dict(changed(pipe.transformer))
    pipe.save_pretrained(tmp_path / "tuned")
    pair = load_pair(tmp_path / "base", tmp_path / "tuned", CPU)
    assert pair.tuned.text_encoder_3 is None  # type: ignore[attr-defined]
    x = torch.randn(1, *pair.base.latent_shape)
    with torch.inference_mode():
        base, tuned = (m.predict(x, 500.0, m.condition("a cat")) for m in (pair.base, pair.tuned))
    assert not torch.allclose(base, tuned, atol=1e-3)


@pytest.mark.parametrize(
    ("stated", "scale"), [("3.5", 3.5), ("0", 0.0), ("nan", 1.0), ("-1", 1.0), ("1e9", 1.0), (None, 1.0)]
)
def test_a_flux_lora_is_evaluated_at_the_guidance_scale_at_which_it_was_trained(
    folders: dict[str, Path], tmp_path: Path, stated: str | None, scale: float
) -> None:
    base: Any = load_base(folders["flux"], CPU, torch.float32)
    layer = "lora_unet_double_blocks_0_img_mlp_0"
    shapes = {"lora_down.weight": (1, 32), "lora_up.weight": (128, 1)}
    metadata = {"ss_base_model_version": "flux1"} | ({"ss_guidance_scale": stated} if stated else {})
    (tmp_path / "lora").mkdir()
    save_file(
        {f"{layer}.{part}": torch.ones(shape) for part, shape in shapes.items()},
        tmp_path / "lora/lora.safetensors",
        metadata,
    )
    tuned: Any = tune(base, tmp_path / "lora").tuned
    assert (tuned.guidance, base.guidance) == (scale, 1.0)
