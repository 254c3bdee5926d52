"""A pipeline of Stable Diffusion as one file under the names of the models' own code."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from finextract.adapters.fused import whole_layer
from finextract.weights.original_names import original_layers

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


VAE_NAMES = (
    (r"mid_block\.resnets\.0\.", "mid.block_1."), (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."), (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"), (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"down_blocks\.(\d+)\.resnets\.(\d+)\.", r"down.\1.block.\2."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)\.", r"up.\1.block.\2."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"conv_shortcut", "nin_shortcut"), (r"conv_norm_out", "norm_out"),
)  # fmt: skip


def vae_names(vae: Any, prefix: str = "first_stage_model.") -> dict[str, Tensor]:
    """A KL autoencoder's tensors under the names of CompVis' code, whose upper levels count backwards."""
    last, named = len(vae.config.block_out_channels) - 1, {}
    for key, tensor in vae.state_dict().items():
        name = key
        for ours, theirs in VAE_NAMES:
            name = re.sub(ours, theirs, name)
        name = re.sub(r"\.up\.(\d+)\.", lambda found: f".up.{last - int(found[1])}.", name)
        is_convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)
        named[prefix + name] = tensor[:, :, None, None] if is_convolution else tensor
    return named


def stable_diffusion_1(pipeline: Any) -> dict[str, Tensor]:
    """Everything but the VAE."""
    return {
        **unet_names(pipeline.unet),
        **clip_names(pipeline.text_encoder, "cond_stage_model.transformer."),
    }


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


def sd3_names(state: dict[str, Tensor], layers: list[str]) -> dict[str, Tensor]:
    """A transformer of Stable Diffusion 3 in Stability's own names."""
    made = {"pos_embed": state["pos_embed.pos_embed"]}
    for original, target in original_layers(layers).items():
        for part in ("weight", "bias"):
            named: Any = {
                layer: SimpleNamespace(weight=state[f"{layer.removeprefix('transformer.')}.{part}"])
                for layer in target.layers
            }
            made[f"{original}.{part}"] = whole_layer(named, target)[0].clone()
    sides = {"attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
             "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
             "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k"}  # fmt: skip
    for key, tensor in state.items():
        block, _, rest = key.removeprefix("transformer_blocks.").partition(".")
        if (side := sides.get(rest.removesuffix(".weight"))) is not None:
            made[f"joint_blocks.{block}.{side}.weight"] = tensor
    return made


def stable_diffusion_3(pipeline: Any) -> dict[str, Tensor]:
    """Everything, with the prefixes that a file of all components has."""
    layers = [f"transformer.{name}" for name, _ in pipeline.transformer.named_modules()]
    transformer = sd3_names(dict(pipeline.transformer.state_dict()), layers)
    named = {f"model.diffusion_model.{key}": tensor for key, tensor in transformer.items()}
    for name, prefix in {
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.clip_g.transformer.",
        "text_encoder_3": "text_encoders.t5xxl.transformer.",
    }.items():
        if (encoder := getattr(pipeline, name)) is not None:
            named |= {prefix + key: tensor for key, tensor in encoder.state_dict().items()}
    return {**named, **vae_names(pipeline.vae)}
