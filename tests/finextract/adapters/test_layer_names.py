"""The names that adapter files have for layers: those of every tool, and of the models' original code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from finextract.weights.layer_names import layer_names, original_unet_names

SD1 = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (8, 16, 16, 24),
}
SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16, 24),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 24,
}


def small_unet(layers_per_block: int = 2, **options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        layers_per_block=layers_per_block,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
        **options,
    )


@pytest.mark.parametrize("layers_per_block", [1, 2, 3])
@pytest.mark.parametrize("options", [SD1, SDXL], ids=["sd1", "sdxl"])
def test_the_original_names_of_a_unet_are_those_that_diffusers_converts(
    options: dict[str, Any], layers_per_block: int
) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = small_unet(layers_per_block, **options)
    modules = {
        f"unet.{name}": layer
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm)
    }
    names = original_unet_names(modules)
    assert names.keys() == modules.keys()  # every layer has an original name
    assert len(set(names.values())) == len(names)
    original = {
        f"model.diffusion_model.{names[layer]}.{part}": tensor
        for layer, module in modules.items()
        for part, tensor in module.state_dict().items()
    }
    back = convert_ldm_unet_checkpoint(original, dict(unet.config))
    state = unet.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("options", [SD1, SDXL], ids=["sd1", "sdxl"])
def test_kohyas_names_of_the_original_blocks_are_read_as_diffusers_reads_them(
    options: dict[str, Any],
) -> None:
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    unet = small_unet(2, **options)
    layers = [f"unet.{n}" for n, m in unet.named_modules() if isinstance(m, nn.Linear) and "attn" in n]
    original, names = original_unet_names(layers_of_all(unet)), layer_names(layers_of_all(unet))
    kohya = {layer: "lora_unet_" + original[layer].replace(".", "_") for layer in layers}
    assert all(names[kohya[layer]] == layer for layer in layers)
    stored = {f"{name}.lora_down.weight": torch.tensor(i) for i, name in enumerate(kohya.values())}
    for key, number in _maybe_map_sgm_blocks_to_diffusers(stored, unet.config).items():
        theirs = key.removesuffix(".lora_down.weight")
        for old, new in (("input_blocks", "down_blocks"), ("middle_block", "mid_block"), ("output_", "up_")):
            theirs = theirs.replace(old, new)
        assert names[theirs] == layers[int(number)]


def layers_of_all(unet: Any) -> list[str]:
    return [f"unet.{name}" for name, m in unet.named_modules() if getattr(m, "weight", None) is not None]


FLUX_LAYERS = [
    "transformer.transformer_blocks.0.attn.to_q",
    "text_encoder.encoder.layers.0.mlp.fc1",
    "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
]
SD3_LAYERS = [
    *FLUX_LAYERS[:2],
    "text_encoder_2.encoder.layers.0.mlp.fc1",
    "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q",
]
UNET = "unet.down_blocks.0.resnets.0.conv1"


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("lora_unet_down_blocks_0_resnets_0_conv1", UNET),
        ("lora_unet_input_blocks_1_0_in_layers_2", UNET),
        ("lycoris_down_blocks_0_resnets_0_conv1", UNET),
        ("unet.down_blocks.0.resnets.0.conv1", UNET),
        ("base_model.model.down_blocks.0.resnets.0.conv1", UNET),
        ("down_blocks.0.resnets.0.conv1", UNET),
        ("diffusion_model.down_blocks.0.resnets.0.conv1", UNET),
        ("diffusion_model.input_blocks.1.0.in_layers.2", UNET),
    ],
)
def test_a_layer_of_a_unet_is_found_under_the_names_of_every_tool(name: str, layer: str) -> None:
    assert layer_names([UNET])[name] == layer


@pytest.mark.parametrize(
    ("layers", "name", "layer"),
    [
        (FLUX_LAYERS, "lora_transformer_transformer_blocks_0_attn_to_q", FLUX_LAYERS[0]),
        (FLUX_LAYERS, "lora_unet_transformer_blocks_0_attn_to_q", FLUX_LAYERS[0]),
        (FLUX_LAYERS, "transformer.transformer_blocks.0.attn.to_q", FLUX_LAYERS[0]),
        (FLUX_LAYERS, "diffusion_model.transformer_blocks.0.attn.to_q", FLUX_LAYERS[0]),
        (FLUX_LAYERS, "lycoris_transformer_blocks_0_attn_to_q", FLUX_LAYERS[0]),
        (FLUX_LAYERS, "lora_te_text_model_encoder_layers_0_mlp_fc1", FLUX_LAYERS[1]),
        (FLUX_LAYERS, "lora_te1_text_model_encoder_layers_0_mlp_fc1", FLUX_LAYERS[1]),
        (FLUX_LAYERS, "text_encoder.text_model.encoder.layers.0.mlp.fc1", FLUX_LAYERS[1]),
        (FLUX_LAYERS, "lora_te2_encoder_block_0_layer_0_SelfAttention_q", FLUX_LAYERS[2]),
        (FLUX_LAYERS, "lora_te3_encoder_block_0_layer_0_SelfAttention_q", FLUX_LAYERS[2]),
        (SD3_LAYERS, "lora_te2_text_model_encoder_layers_0_mlp_fc1", SD3_LAYERS[2]),
        (SD3_LAYERS, "text_encoder_2.text_model.encoder.layers.0.mlp.fc1", SD3_LAYERS[2]),
        (SD3_LAYERS, "lora_te3_encoder_block_0_layer_0_SelfAttention_q", SD3_LAYERS[3]),
    ],
)
def test_transformers_and_several_text_encoders_are_found_under_their_names(
    layers: list[str], name: str, layer: str
) -> None:
    assert layer_names(layers)[name] == layer
