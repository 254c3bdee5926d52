"""Adapters whose shapes show no family, with the layer names of the published models in full size."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tiny import full_size
from torch import nn

from finextract.reasons import ReasonCode
from finextract.support import why_unsupported
from finextract.weights.formats import WeightsKind, classify, settled
from finextract.weights.headers import Header, TensorInfo
from finextract.weights.layer_names import original_unet_names

FAMILIES = ("sd1", "sd2", "sdxl")
Shapes = dict[str, tuple[int, ...]]


@cache
def layers(family: str) -> dict[str, torch.Size]:
    """The linear and convolutional layers of a published model -> the shapes of their weights."""
    return {
        f"{component}.{name}": layer.weight.shape
        for component, module in full_size.parts(family).items()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def kohya(family: str, name: str, original: dict[str, str]) -> str:
    """A layer as kohya's scripts name it; `original` has the names of the model's own code."""
    component, _, inside = name.partition(".")
    start = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}[component]
    if family == "sdxl" and component == "text_encoder":
        start = "lora_te1"
    inside = inside.removeprefix("text_model.")
    text = "text_model_" if component != "unet" else ""
    return f"{start}_{text}{original.get(name, inside).replace('.', '_')}"


def oft(layer: str, weight: torch.Size) -> Shapes:
    return {f"{layer}.oft_blocks": (4, weight[0] // 4, weight[0] // 4), f"{layer}.alpha": ()}


def boft(layer: str, weight: torch.Size) -> Shapes:
    return {f"{layer}.oft_blocks": (2, weight[0] // 4, 4, 4), f"{layer}.alpha": ()}


def ia3(layer: str, weight: torch.Size) -> Shapes:
    return {f"{layer}.weight": (weight[0],), f"{layer}.on_input": ()}


def peft_ia3(layer: str, weight: torch.Size) -> Shapes:
    return {f"{layer}.ia3_l": (weight[0], 1)}


MAKERS = {"OFT": oft, "BOFT": boft, "IA3": ia3}


def found(shapes: Shapes, **metadata: str) -> WeightsKind:
    return classify(Header(metadata, {k: TensorInfo("F16", s) for k, s in shapes.items()}, 0))


def made(family: str, kind: str, original: bool, parts: tuple[str, ...]) -> Shapes:
    shapes: Shapes = {}
    names = original_unet_names(layers(family)) if original else {}
    for name, weight in layers(family).items():
        if name.startswith(parts):
            shapes |= MAKERS[kind](kohya(family, name, names), weight)
    return shapes


UNET, BOTH = ("unet.",), ("unet.", "text_encoder")


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("parts", [UNET, BOTH])
@pytest.mark.parametrize("kind", MAKERS)
def test_an_adapter_of_sdxl_is_known_by_the_names_of_its_blocks(
    kind: str, parts: tuple[str, ...], original: bool
) -> None:
    told = found(made("sdxl", kind, original, parts))
    assert (told.kind, told.family, told.detail) == ("lycoris", "sdxl", kind)
    assert why_unsupported(told, "a") is None


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize("kind", MAKERS)
def test_stable_diffusion_1_and_2_are_told_apart_by_their_text_encoder_or_kohyas_metadata(
    kind: str, family: str
) -> None:
    assert found(made(family, kind, False, BOTH)).family == family
    alone = made(family, kind, False, UNET)
    assert found(alone, ss_v2=str(family == "sd2")).family == family
    assert found(alone, ss_base_model_version="sd_v2").family == "sd2"
    assert found(alone, ss_base_model_version="sdxl_base_v1-0").family == "unknown"


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_an_adapter_that_fits_two_families_is_settled_by_its_base(family: str) -> None:
    told = found(made(family, "OFT", False, UNET))
    assert (told.family, told.fits) == ("unknown", ("sd1", "sd2"))
    why = why_unsupported(told, "a.safetensors")
    assert why is not None
    assert why.reason_code == ReasonCode.UNKNOWN_FAMILY
    assert "Stable Diffusion 1.x or Stable Diffusion 2, and neither" in why.sentence
    known = settled(told, [None, "sdxl", family, "sd1"])
    assert (known.family, known.fits) == (family, ())
    assert why_unsupported(known, "a") is None
    assert settled(told, ["sdxl", "flux", None]) == told


def test_the_attention_of_one_block_that_all_of_them_have_shows_nothing() -> None:
    names = [f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn{i}_to_v" for i in (1, 2)]
    assert found({f"{name}.oft_blocks": (4, 320, 320) for name in names}).fits == ("sd1", "sd2", "sdxl")
    deeper = names[0].replace("transformer_blocks_0", "transformer_blocks_1")
    assert found({f"{deeper}.oft_blocks": (4, 320, 320)}).family == "sdxl"
    assert found({f"{deeper}.oft_blocks": (4, 320, 320)}, ss_base_model_version="kolors").model == "Kolors"
    beyond = names[0].replace("mid_block", "down_blocks_7")
    assert found({f"{beyond}.oft_blocks": (4, 320, 320)}).fits == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_pefts_ia3_of_the_keys_and_values_is_known_by_the_names_of_its_blocks(family: str) -> None:
    shapes: Shapes = {}
    for name, weight in layers(family).items():
        if name.endswith(("to_k", "to_v")):
            shapes |= peft_ia3(f"base_model.model.{name.removeprefix('unet.')}", weight)
    told = found(shapes)
    assert (told.family, told.fits) == (("sdxl", ()) if family == "sdxl" else ("unknown", ("sd1", "sd2")))


DOWN, UP = ".lora_down.weight", ".lora_up.weight"


def small(layer: str, context: int) -> Shapes:
    return {f"{layer}{DOWN}": (4, context), f"{layer}{UP}": (64, 4), f"{layer}.alpha": ()}


ORIGINAL = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
PLAIN = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
TE2 = "lora_te2_text_model_encoder_layers_0_mlp_fc1"


@pytest.mark.parametrize("context", [64, 96])
def test_an_adapter_of_a_small_sdxl_is_known_by_the_names_of_its_unet(context: int) -> None:
    assert found(small(ORIGINAL, context)).family == "sdxl"


def test_names_of_sdxl_with_the_text_width_of_stable_diffusion_1_leave_the_family_to_the_base() -> None:
    told = found(small(ORIGINAL, 768))
    assert (told.family, told.fits) == ("unknown", ("sd1", "sdxl"))


@pytest.mark.parametrize("context", [64, 96, 768])
@pytest.mark.parametrize(
    ("shapes", "metadata"),
    [
        ({PLAIN: None, TE2: 48}, {}),
        ({PLAIN: None}, {"ss_base_model_version": "sdxl_base_v1-0"}),
        ({PLAIN: None}, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}),
    ],
)
def test_an_adapter_of_a_small_sdxl_is_known_by_names_or_metadata(
    shapes: dict[str, int | None], metadata: dict[str, str], context: int
) -> None:
    tensors: Shapes = {}
    for layer, width in shapes.items():
        tensors |= small(layer, width or context)
    assert found(tensors, **metadata).family == "sdxl"


@pytest.mark.parametrize("context", [96, 768])
def test_an_adapter_of_stable_diffusion_1_stays_one_under_names_of_either_style(context: int) -> None:
    assert found(small(PLAIN, context)).family == "sd1"
    comfy = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k"
    assert found(small(comfy, context)).family == "sd1"


def test_a_small_unet_with_sdxls_second_conditioning_is_one_of_sdxl() -> None:
    for width in (96, 768, 2048):
        tensors: Shapes = {
            "conv_in.weight": (32, 4, 3, 3),
            "add_embedding.linear_1.weight": (128, 224),
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (64, width),
        }
        assert found(tensors).family == "sdxl"


@pytest.mark.parametrize(
    ("layer", "stated", "family"),
    [
        ("transformer.transformer_blocks.0.attn.to_q", "sd3", "sd3"),
        ("transformer.transformer_blocks.0.attn.to_q", "flux1", "flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "sd3", "sd3"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "flux1", "flux"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "sd3", "unknown"),
        ("transformer.transformer_blocks.0.attn.to_q", "", "unknown"),
        ("transformer.transformer_blocks.0.attn.to_q", "sd_v1", "unknown"),
    ],
)
def test_an_adapter_of_a_small_transformer_is_known_by_names_and_metadata_together(
    layer: str, stated: str, family: str
) -> None:
    told = found({f"{layer}{DOWN}": (4, 64), f"{layer}{UP}": (192, 4)}, ss_base_model_version=stated)
    assert told.family == family
