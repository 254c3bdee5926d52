"""How the zoo's larger families are written down: pipelines, single files, and adapters in the hubs' names.

Knows file formats; knows no training.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from _families import SD3, SDXL
from _formats import Published, _ldm_key, finish_pipeline, half, lora_layers, write_card
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from torch import Tensor, nn

PUBLISHED = {
    "sdxl": Published(
        "finextract-zoo/tiny-sdxl",
        "A very small SDXL: 64x64 pictures, AutoencoderTiny, a UNet of 4 M parameters, two text encoders of"
        " three layers, trained on about 3,000 captioned clip arts. Most of its UNet started as"
        " finextract-zoo/tiny-sd.",
        ("stable-diffusion-xl", "stable-diffusion-xl-diffusers"),
    ),
    "sd3": Published(
        "finextract-zoo/tiny-sd3",
        "A very small Stable Diffusion 3.5: 64x64 pictures, AutoencoderTiny, a transformer of 5 M parameters,"
        " two CLIP text encoders and a T5, trained on about 3,000 captioned clip arts.",
        ("sd3", "sd3-diffusers"),
    ),
}
ADDED = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
# Stability's name of a layer in a block -> diffusers' layers, whose rows follow one another in it.
SD3_BLOCK = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}
SD3_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}


def write_pipeline(
    family: SDXL | SD3, folder: Path, parts: nn.ModuleDict, vae: Any, tokenizers: dict[str, Path]
) -> None:
    """A whole pipeline as `save_pretrained` writes it, in float16. `tokenizers`: component -> its files."""
    modules = {name: copy.deepcopy(module).half() for name, module in parts.items()}
    modules[family.denoiser].to(memory_format=torch.contiguous_format)
    shared = {
        **modules,
        "vae": copy.deepcopy(vae).half().to(memory_format=torch.contiguous_format),
        "scheduler": family.scheduler(),
        "tokenizer": family.tokenizer,
        "tokenizer_2": family.tokenizer,
    }
    if family.name == "sdxl":
        pipeline = StableDiffusionXLPipeline(**shared, force_zeros_for_empty_prompt=True)
    else:
        pipeline = StableDiffusion3Pipeline(**shared, tokenizer_3=family.t5_tokenizer)
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    finish_pipeline(folder, tokenizers)
    published = PUBLISHED[family.name]
    write_card(folder, published.repo, None, "base", base=published)


def unet_file(unet: Any) -> dict[str, Tensor]:
    """SDXL's UNet under the names of Stability's code; checked to be the inverse of diffusers' conversion."""
    state = half(unet.state_dict())
    named = {f"model.diffusion_model.{_xl_key(key, unet)}": tensor for key, tensor in state.items()}
    _check(convert_ldm_unet_checkpoint(dict(named), config=dict(unet.config)), state)
    return named


def _xl_key(key: str, unet: Any) -> str:
    for ours, theirs in ADDED.items():
        if key.startswith(ours + "."):
            return theirs + key[len(ours) :]
    levels, per_block = len(unet.config.block_out_channels), unet.config.layers_per_block
    return _ldm_key(key, levels, per_block)


def transformer_file(transformer: Any) -> dict[str, Tensor]:
    """SD3's transformer under the names of Stability's code; checked as `unet_file` is."""
    state = half(transformer.state_dict())
    last = transformer.config.num_layers - 1
    named = {"pos_embed": state["pos_embed.pos_embed"]}
    for block in range(last + 1):
        for name, layers in SD3_BLOCK.items():
            for part in ("weight", "bias"):
                keys = [f"transformer_blocks.{block}.{layer}.{part}" for layer in layers]
                if keys[0] in state:
                    joined = torch.cat([state[key] for key in keys])
                    swapped = block == last and name == "context_block.adaLN_modulation.1"
                    named[f"joint_blocks.{block}.{name}.{part}"] = _swapped(joined) if swapped else joined
    for name, layer in SD3_OUTSIDE.items():
        for part in ("weight", "bias"):
            tensor = state[f"{layer}.{part}"]
            named[f"{name}.{part}"] = _swapped(tensor) if "final_layer.adaLN" in name else tensor
    _check(convert_sd3_transformer_checkpoint_to_diffusers(dict(named)), state)
    return {f"model.diffusion_model.{key}": tensor for key, tensor in named.items()}


def _swapped(tensor: Tensor) -> Tensor:
    """Shift and scale the other way round."""
    return torch.cat(tuple(reversed(tensor.chunk(2))))


def _check(back: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    assert back.keys() == state.keys(), back.keys() ^ state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def kohya_layers(unet: Any, rank: int) -> dict[str, Tensor]:
    """LoRA, DoRA or LoKr of SDXL's UNet under sd-scripts' names, which are those of Stability's code."""
    made: dict[str, Tensor] = {}
    endings = {
        "lora_A.weight": "lora_down.weight",
        "lora_B.weight": "lora_up.weight",
        "lora_magnitude_vector.weight": "dora_scale",
        "lora_magnitude_vector": "dora_scale",
    }
    for key, tensor in lora_layers(unet).items():
        key = key.removeprefix("base_model.model.")
        ending = next((e for e in endings if key.endswith("." + e)), key.rpartition(".")[2])
        module = key.removesuffix("." + ending)
        plain = getattr(unet, "base_model", unet)
        plain = getattr(plain, "model", plain)
        name = "lora_unet_" + _xl_key(f"{module}.weight", plain).removesuffix(".weight").replace(".", "_")
        part = endings.get(ending, ending)
        if part == "dora_scale":  # as LyCORIS keeps it: one value for each output channel
            layer = plain.get_submodule(module)
            tensor = tensor.reshape(-1, *[1] * (layer.weight.dim() - 1))
        made[f"{name}.{part}"] = tensor.contiguous()
        made.setdefault(f"{name}.alpha", torch.tensor(float(rank), dtype=torch.float16))
    return made
