"""The real configurations of Stable Diffusion 1.5, 2.1 and SDXL, as models that take no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tiny.no_numbers import on_meta

_UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {**_UNET, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        **_UNET, "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True, "upcast_attention": True,
    },
    "sdxl": {
        **_UNET, "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True, "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
_VIT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_VIT_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
          "hidden_act": "gelu"}  # fmt: skip
_BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
          "hidden_act": "gelu", "projection_dim": 1280}  # fmt: skip
TEXT_ENCODERS: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {"text_encoder": _VIT_L},
    "sd2": {"text_encoder": _VIT_H},
    "sdxl": {"text_encoder": _VIT_L, "text_encoder_2": _BIG_G},
}


@contextmanager
def made_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """What is made within has its weights there, in that precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with on_meta() if device == "meta" else torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def parts(family: str, device: str = "meta", dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The UNet and the text encoders; by default on the meta device."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with made_on(device, dtype):
        found = {"unet": UNet2DConditionModel(**UNETS[family])}
        for name, config in TEXT_ENCODERS[family].items():
            cls = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
            found[name] = cls(CLIPTextConfig(vocab_size=49408, **config))
    return found


def open_clip_text(name: str, prefix: str) -> dict[str, torch.Tensor]:
    """The text tower of an OpenCLIP model under its own names, as files of Stability AI hold it."""
    import open_clip

    with on_meta():
        model = open_clip.CLIP(**open_clip.get_model_config(name))
    return {prefix + key: t for key, t in model.state_dict().items() if not key.startswith("visual.")}


def vae(family: str, device: str = "meta", dtype: torch.dtype = torch.float32) -> Any:
    """The VAE of the family, of its published configuration."""
    from diffusers import AutoencoderKL

    xl = {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
    with made_on(device, dtype):
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=2,
            **(xl if family == "sdxl" else {"sample_size": 512, "scaling_factor": 0.18215}),
        )  # fmt: skip
