"""Pipelines of the shapes of Stable Diffusion 1, 2 and SDXL: small random weights, the zoo's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

ZOO = Path(__file__).resolve().parents[1] / "zoo"
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
            "set_alpha_to_one": False, "steps_offset": 1}  # fmt: skip
# v prediction with a schedule that ends without a signal, as of NoobAI XL.
VELOCITY = {**SCHEDULE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing"}  # fmt: skip


def tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(ZOO / "base/tokenizer")


def text_encoder(width: int, layers: int, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=2414, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=16, projection_dim=width, hidden_act="gelu",
        bos_token_id=2412, eos_token_id=2413, pad_token_id=2413,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def unet(context: int, **further: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=8, cross_attention_dim=context,
        **{"use_linear_projection": True, "attention_head_dim": [2, 4], **further},
    ).eval()  # fmt: skip


def vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=16,
        scaling_factor=0.18,
    ).eval()  # fmt: skip


def stable_diffusion_1(velocity: bool, seed: int = 0) -> Any:
    """A StableDiffusionPipeline with text embeddings of 24, and as many heads in every layer."""
    return _stable_diffusion(velocity, seed, 24, use_linear_projection=False, attention_head_dim=4)


def stable_diffusion_2(velocity: bool, seed: int = 0) -> Any:
    """A StableDiffusionPipeline whose text embeddings are 1024 wide."""
    return _stable_diffusion(velocity, seed, 1024)


def _stable_diffusion(velocity: bool, seed: int, context: int, **of_unet: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(seed)
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=text_encoder(context, 2), tokenizer=tokenizer(),
        unet=unet(context, **of_unet), scheduler=DDIMScheduler(**(VELOCITY if velocity else SCHEDULE)),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(velocity: bool, seed: int = 0, zeros: bool = True) -> Any:
    """A StableDiffusionXLPipeline with text encoders of 24 and 40."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    torch.manual_seed(seed)
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=text_encoder(24, 3), text_encoder_2=text_encoder(40, 3, projected=True),
        tokenizer=tokenizer(), tokenizer_2=tokenizer(),
        unet=unet(64, addition_embed_type="text_time", addition_time_embed_dim=8,
                  projection_class_embeddings_input_dim=40 + 6 * 8, transformer_layers_per_block=[1, 2]),
        scheduler=DDIMScheduler(**(VELOCITY if velocity else SCHEDULE)),
        force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip
