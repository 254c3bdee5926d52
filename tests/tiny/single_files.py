"""A pipeline of Stable Diffusion or SDXL as one file under the names of the models' own code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "zoo"))
from _formats import _ldm_key

ADDED = {"add_embedding.linear_1.": "label_emb.0.0.", "add_embedding.linear_2.": "label_emb.0.2."}
OPEN_CLIP = {
    "text_model.": "",
    "encoder.layers.": "transformer.resblocks.",
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "text_projection.weight": "text_projection",
}  # fmt: skip


def unet_names(unet: Any) -> dict[str, Tensor]:
    """The UNet's tensors under the names of CompVis' and Stability's code."""
    levels, layers = len(unet.config.block_out_channels), unet.config.layers_per_block
    state, named = unet.state_dict(), {}
    for key, tensor in state.items():
        added = next((e for e in ADDED if key.startswith(e)), None)
        name = ADDED[added] + key.removeprefix(added) if added else _ldm_key(key, levels, layers)
        block = key.partition(".upsamplers.")[0]
        if block != key and not any(k.startswith(f"{block}.attentions.") for k in state):
            name = name.replace(".2.conv.", ".1.conv.")  # it follows the residual block at once
        named[f"model.diffusion_model.{name}"] = tensor
    return named


def clip_names(text_encoder: Any, prefix: str) -> dict[str, Tensor]:
    """A text encoder's tensors under the names of transformers before its version 5."""
    return {
        f"{prefix}text_model.{key.removeprefix('text_model.')}": tensor
        for key, tensor in text_encoder.state_dict().items()
    }


def open_clip_names(text_encoder: Any, prefix: str) -> dict[str, Tensor]:
    """A text encoder's tensors under the names of OpenCLIP."""
    state, named = dict(text_encoder.state_dict()), {}
    for key in [k for k in state if ".q_proj." in k]:
        parts = [state.pop(key.replace(".q_proj.", f".{p}_proj.")) for p in "qkv"]
        state[key.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    for key, tensor in state.items():
        name = key
        for ours, theirs in OPEN_CLIP.items():
            name = name.replace(ours, theirs)
        name = name.replace("self_attn.in_proj_", "attn.in_proj_")
        named[prefix + name] = tensor.T.contiguous() if name == "text_projection" else tensor
    return named


def stable_diffusion_2(pipeline: Any) -> dict[str, Tensor]:
    """Everything but the VAE; the text encoder has a last layer and a projection that no model here uses."""
    prefix = "cond_stage_model.model."
    text = open_clip_names(pipeline.text_encoder, prefix)
    last = pipeline.text_encoder.config.num_hidden_layers - 1
    block = f"{prefix}transformer.resblocks."
    text |= {k.replace(f"{block}{last}.", f"{block}{last + 1}."): t.clone()
             for k, t in text.items() if k.startswith(f"{block}{last}.")}  # fmt: skip
    width = pipeline.text_encoder.config.hidden_size
    text |= {f"{prefix}text_projection": torch.zeros(width, width), f"{prefix}logit_scale": torch.zeros(())}
    return {**unet_names(pipeline.unet), **text}


def stable_diffusion_xl(pipeline: Any) -> dict[str, Tensor]:
    """Everything but the VAE."""
    first, second = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
    return {
        **unet_names(pipeline.unet),
        **clip_names(pipeline.text_encoder, first),
        **open_clip_names(pipeline.text_encoder_2, second),
        f"{second}logit_scale": torch.zeros(()),
    }
