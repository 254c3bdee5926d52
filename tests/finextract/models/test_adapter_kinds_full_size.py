"""Every kind of adapter, under the names of every tool, on every family in full size and without weights.

The tensors are those that LyCORIS and PEFT make for such a layer. They go through the code that reads files,
and each adapter is computed with the layer's shapes: a width that does not fit is an error of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from tiny.adapter_kinds import LYCORIS, LYCORIS_NORMS, OFT_OF_KOHYA, PEFT, parts_of, plain_layer
from tiny.full_models import FAMILIES
from torch import Tensor, nn

from finextract.adapters.fused import whole_layer
from finextract.adapters.parsing import parse_adapter
from finextract.errors import BaseMismatch
from finextract.weights.formats import Header, TensorInfo, classify, settled
from finextract.weights.layer_names import original_unet_names
from finextract.weights.original_names import FileLayer, file_layers, original_layers

TRANSFORMERS = ("sd3", "flux", "chroma", "z_image")
KINDS = {**LYCORIS, **OFT_OF_KOHYA, **PEFT}
# What PEFT's configuration says beside such a file; nothing else of it is needed.
CONFIGS: dict[str, dict[str, object]] = {
    "OFT, PEFT": {"oft_block_size": 4, "use_cayley_neumann": True},
    "(IA)3 of outputs, PEFT": {"feedforward_modules": []},
    "(IA)3 of inputs, PEFT": {"feedforward_modules": [""]},  # the end of every name
}
# The ends of the names of one layer of each sort: attention, feed-forward, convolutions, time, text encoder.
ENDS = (
    *("attn2.to_k", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "attentions.0.proj_in", "time_emb_proj"),
    *("resnets.0.conv1", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "unet.conv_in"),
    *("blocks.0.attn.to_q", "blocks.0.attn.to_out.0", "attn.to_add_out", "ff_context.net.0.proj"),
    *("norm1.linear", "norm.linear", "proj_mlp", "blocks.0.proj_out", "pos_embed.proj", "norm_out.linear"),
    *("attention.to_q", "attention.to_out.0", "feed_forward.w1", "feed_forward.w2", "adaLN_modulation.0"),
    *("distilled_guidance_layer.in_proj", "distilled_guidance_layer.layers.0.linear_1"),
    *("self_attn.q_proj", "mlp.fc1", "SelfAttention.q", "DenseReluDense.wo"),
)
NORM_ENDS = ("attentions.0.norm", "resnets.0.norm1", "blocks.0.norm1", "conv_norm_out", "layer_norm1")
# The same of the models' own code.
ORIGINAL_ENDS = (
    *("0.img_attn.qkv", "0.txt_attn.proj", "0.img_mlp.0", "0.txt_mod.lin", "0.linear1", "0.linear2"),
    *("0.modulation.lin", "img_in", "final_layer.adaLN_modulation.1", "x_block.attn.qkv", "x_embedder.proj"),
    "x_embedder",
    *("x_block.attn2.qkv", "context_block.attn.qkv", "context_block.mlp.fc2", "x_block.adaLN_modulation.1"),
    *("0.attention.qkv", "0.attention.out", "final_layer.linear", "layers.0.in_layer"),
)


@cache
def layers_of(family: str) -> dict[str, nn.Module]:
    return dict(FAMILIES[family]().layers())


def chosen(family: str, ends: tuple[str, ...]) -> list[str]:
    """The first layer with each of the ends, the denoiser's before those of text encoders."""
    found = (next((name for name in layers_of(family) if name.endswith(end)), None) for end in ends)
    return list(dict.fromkeys(name for name in found if name))


@cache
def original_names(family: str) -> dict[str, FileLayer]:
    """The name in the model's own code of one layer of each sort."""
    layers = layers_of(family)
    if family in ("sd1", "sd2", "sdxl"):
        names = original_unet_names(layers)
        wanted = [*chosen(family, ENDS), *chosen(family, NORM_ENDS)]
        return {names[layer]: FileLayer((layer,)) for layer in wanted if layer in names}
    targets = original_layers(layers)
    found = (next((name for name in targets if name.endswith(end)), None) for end in ORIGINAL_ENDS)
    return {name: targets[name] for name in found if name}


def in_kohyas_names(family: str, start: str) -> Iterator[tuple[str, FileLayer]]:
    """As kohya's scripts, LyCORIS and OneTrainer name the layers, `start` before those of the denoiser."""
    te = {"text_encoder": "lora_te" if family in ("sd1", "sd2") else "lora_te1", "text_encoder_2": "lora_te2"}
    for layer in (*chosen(family, ENDS), *chosen(family, NORM_ENDS)):
        component, _, name = layer.partition(".")
        if component in ("unet", "transformer"):
            yield f"{start}_{name.replace('.', '_')}", FileLayer((layer,))
        elif component in te and family not in ("chroma", "z_image") and start == "lora_unet":
            yield f"{te[component]}_text_model_{name.replace('.', '_')}", FileLayer((layer,))


def names_of(family: str, style: str) -> dict[str, FileLayer]:
    """One layer of each sort under the names of a style."""
    layers = [*chosen(family, ENDS), *chosen(family, NORM_ENDS)]
    plain = {layer: FileLayer((layer,)) for layer in layers}
    if style in ("lora_unet", "lycoris", "oft_unet", "lora_transformer"):
        return dict(in_kohyas_names(family, style))
    if style.endswith("original"):
        start = style.removesuffix(", original")
        joined = "." not in start
        return {
            f"{start}{name.replace('.', '_') if joined else name}": target
            for name, target in original_names(family).items()
        }
    denoiser = {n.partition(".")[2]: t for n, t in plain.items() if n.startswith(("unet", "transformer"))}
    return {f"{style}{name}": t for name, t in denoiser.items()} if style else plain


OF_LYCORIS = (
    *("lora_unet", "lycoris", "diffusion_model."),
    *("lora_unet_, original", "lycoris_, original", "diffusion_model., original"),
)
OF_KOHYAS_OFT = ("oft_unet", "oft_unet_, original")
OF_PEFT = ("base_model.model.", "", "diffusion_model., original")  # "": as diffusers names them
# Kinds whose tensors show the width of one side alone.
OF_OUTPUTS = {"(IA)3 of outputs", "(IA)3 of outputs, PEFT", "OFT", "OFT, constrained and rescaled", "BOFT",
              "BOFT, rescaled", "kohya's OFT"}  # fmt: skip
OF_INPUTS = {"(IA)3 of inputs", "(IA)3 of inputs, PEFT", "OFT, PEFT"}


def styles_of(family: str, kind: str) -> tuple[str, ...]:
    """The styles of names in which files of a kind occur; OneTrainer's for a transformer too."""
    if kind in LYCORIS:
        return (*OF_LYCORIS, "lora_transformer") if family in TRANSFORMERS else OF_LYCORIS
    return OF_KOHYAS_OFT if kind in OFT_OF_KOHYA else OF_PEFT


@cache
def parts_for(
    kind: str, layer_type: type[nn.Module], shape: tuple[int, ...], bias: bool
) -> dict[str, Tensor]:
    """The tensors that a kind has for a layer of a shape."""
    weight = torch.empty(shape, device="meta")
    like = layer_type(8, 8) if layer_type is nn.GroupNorm else layer_type.__new__(layer_type)
    layer = plain_layer(weight, weight[..., 0] if bias else None, like)
    norm = len(shape) == 1
    return parts_of(LYCORIS_NORMS if norm else KINDS[kind], layer)


def file_of(family: str, kind: str, style: str) -> tuple[dict[str, Tensor], dict[str, FileLayer]]:
    """An adapter file of a kind under the names of a style, and the layers that its names are for."""
    state: dict[str, Tensor] = {}
    names: dict[str, FileLayer] = {}
    for name, target in names_of(family, style).items():
        weight, bias = whole_layer(layers_of(family), target)
        layer = layers_of(family)[target.layers[0]]
        if weight.dim() > 1 or kind in LYCORIS:
            parts = parts_for(kind, type(layer), tuple(weight.shape), bias is not None)
            state |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
            names[name] = target
    return state, names


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_every_kind_and_key_style_fits_the_layers_that_it_names(family: str, kind: str) -> None:
    known = file_layers(layers_of(family))
    for style in styles_of(family, kind):
        state, names = file_of(family, kind, style)
        assert len(names) >= 4
        adapters = parse_adapter(state, {}, CONFIGS.get(kind, {}))
        assert {adapter.layer for adapter in adapters} == names.keys()
        for adapter in adapters:
            assert known[adapter.layer] == names[adapter.layer], adapter.layer
            weight, bias = whole_layer(layers_of(family), names[adapter.layer])
            new, new_bias = adapter(weight, bias)
            assert new.shape == weight.shape, adapter.layer
            assert (new_bias is None) == (bias is None), adapter.layer
            assert bias is None or new_bias is None or new_bias.shape == bias.shape, adapter.layer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_inspection_names_no_other_family_and_takes_the_stated_one(family: str, kind: str) -> None:
    for style in styles_of(family, kind):
        state, _ = file_of(family, kind, style)
        shapes = {key: TensorInfo("F32", tuple(tensor.shape)) for key, tensor in state.items()}
        says = classify(Header({}, shapes, 0))
        assert says.is_adapter, style
        assert says.family in (family, "unknown"), style
        assert settled(says, [family]).family == family, style


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["output", "input"])
def test_an_adapter_for_a_layer_of_another_width_is_a_mismatch(kind: str, side: str) -> None:
    if kind in (OF_INPUTS if side == "output" else OF_OUTPUTS):
        return  # the file does not show it
    layer = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    wrong = (1280, 640) if side == "output" else (640, 1280)
    parts = parts_for(kind, nn.Linear, wrong, bias=False)
    state = {f"{layer}.{part}": t for part, t in parts.items()}
    (adapter,) = parse_adapter(state, {}, CONFIGS.get(kind, {}))
    with pytest.raises(BaseMismatch, match="does not fit its base"):
        adapter(torch.empty(640, 640, device="meta"), None)
