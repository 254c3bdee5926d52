"""The layers of FLUX.1, Chroma, Stable Diffusion 3 and Z-Image under the names of the models' own code.

Many adapters have these names. The code keeps several layers of diffusers in one: the rows of "qkv" are those
of to_q, to_k and to_v, one after another. Works on names alone and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from finextract.weights.layer_names import KOHYA_STARTS, layer_names

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
# Original name inside a block -> the layers of diffusers whose rows are its rows, in their order.
type _Names = Mapping[str, tuple[str, ...]]
_FLUX_DOUBLE: _Names = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": _QKV,
    "txt_attn.qkv": _ADDED_QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    # XLabs' attention processors: 1 is the image's, 2 the text's.
    "processor.qkv_lora1": _QKV,
    "processor.qkv_lora2": _ADDED_QKV,
    "processor.proj_lora1": ("attn.to_out.0",),
    "processor.proj_lora2": ("attn.to_add_out",),
}
_FLUX_SINGLE: _Names = {
    "modulation.lin": ("norm.linear",),
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "processor.qkv_lora": _QKV,
    "processor.proj_lora": ("proj_out",),
}
_FLUX_OUTSIDE: _Names = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    # Chroma's, which has neither of the modulations above nor the embeddings of time, text and guidance.
    "distilled_guidance_layer.in_proj": ("distilled_guidance_layer.in_proj",),
    "distilled_guidance_layer.out_proj": ("distilled_guidance_layer.out_proj",),
    **{
        f"distilled_guidance_layer.layers.{i}.{original}": (f"distilled_guidance_layer.layers.{i}.{own}",)
        for i in range(5)
        for original, own in (("in_layer", "linear_1"), ("out_layer", "linear_2"))
    },
}
_SD3_BLOCK: _Names = {
    "x_block.attn.qkv": _QKV,
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.attn.qkv": _ADDED_QKV,
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}
_SD3_OUTSIDE: _Names = {
    "x_embedder.proj": ("pos_embed.proj",),
    "context_embedder": ("context_embedder",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
# All others have one name in both.
_Z_IMAGE_BLOCK: _Names = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
}
_Z_IMAGE_OUTSIDE: _Names = {
    "x_embedder": ("all_x_embedder.2-1",),
    "final_layer.linear": ("all_final_layer.2-1.linear",),
    "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
}
# (original block, diffusers' block, layers inside) of each family.
_FLUX_BLOCKS = (
    ("double_blocks", "transformer_blocks", _FLUX_DOUBLE),
    ("single_blocks", "single_transformer_blocks", _FLUX_SINGLE),
)
_SD3_BLOCKS = (("joint_blocks", "transformer_blocks", _SD3_BLOCK),)
_Z_IMAGE_BLOCKS = tuple((b, b, _Z_IMAGE_BLOCK) for b in ("layers", "noise_refiner", "context_refiner"))
_COMPONENT = "transformer."
_BLOCK = re.compile(r"(\w+)\.(\d+)\.")
# What tools write before the original names.
_PREFIXES = ("", "diffusion_model.", "model.diffusion_model.", "transformer.", "base_model.model.")


@dataclass(frozen=True, slots=True)
class FileLayer:
    """A layer as an adapter file names it, in terms of the model's own layers."""

    layers: tuple[str, ...]  # as of `Model.layers()`: their rows, one after another, are its rows
    swapped: bool = False  # scale before shift: the halves of its rows are the other way round in the model


def file_layers(layers: Iterable[str]) -> dict[str, FileLayer]:
    """Every name that an adapter file may have for one or several of a model's layers.

    `layers` are names as of `Model.layers()`. The names are those of finextract.weights.layer_names, and for
    a transformer of FLUX.1, Stable Diffusion 3 or Z-Image those of its own code, as kohya
    ("lora_unet_double_blocks_0_img_attn_qkv"), ai-toolkit ("diffusion_model.double_blocks.0.img_attn.qkv")
    and XLabs ("double_blocks.0.processor.qkv_lora1") write them.
    """
    layers = list(layers)
    names = {name: FileLayer((layer,)) for name, layer in layer_names(layers).items()}
    for original, target in original_layers(layers).items():
        for prefix in _PREFIXES:
            names.setdefault(f"{prefix}{original}", target)
        for start in KOHYA_STARTS["transformer"]:
            names.setdefault(f"{start}_{original.replace('.', '_')}", target)
    return names


def original_layers(layers: Iterable[str]) -> dict[str, FileLayer]:
    """Original name -> the layers of diffusers, for a transformer of FLUX.1, Stable Diffusion 3 or Z-Image.

    Of Z-Image, the layers whose names differ. Empty for the layers of any other model.
    """
    own = {name.removeprefix(_COMPONENT) for name in layers if name.startswith(_COMPONENT)}
    counts: dict[str, int] = {}
    for name in own:
        if match := _BLOCK.match(name):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    if "single_transformer_blocks" in counts:
        found = _expanded(_FLUX_BLOCKS, _FLUX_OUTSIDE, counts)
    elif "pos_embed.proj" in own:
        found = _expanded(_SD3_BLOCKS, _SD3_OUTSIDE, counts)
    elif "all_x_embedder.2-1" in own:
        found = _expanded(_Z_IMAGE_BLOCKS, _Z_IMAGE_OUTSIDE, counts)
    else:
        return {}
    # The norms that come last have shift and scale the other way round in diffusers: the one after
    # all blocks, and the text's in SD3's last block, which has no feed-forward of the text. Z-Image's last
    # norm has a scale alone.
    swapped = {f"joint_blocks.{counts.get('transformer_blocks', 0) - 1}.context_block.adaLN_modulation.1"}
    if "layers" not in counts:
        swapped.add("final_layer.adaLN_modulation.1")
    return {
        original: FileLayer(tuple(_COMPONENT + name for name in names), swapped=original in swapped)
        for original, names in found
        if own.issuperset(names)
    }


def _expanded(
    blocks: Iterable[tuple[str, str, _Names]], outside: _Names, counts: Mapping[str, int]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from outside.items()
    for original, block, inside in blocks:
        for i in range(counts.get(block, 0)):
            for name, layers in inside.items():
                yield f"{original}.{i}.{name}", tuple(f"{block}.{i}.{layer}" for layer in layers)
