"""Tiny pipelines of the flow families with random weights, made without a network."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path
from typing import Any

import torch

ZOO_TOKENIZER = Path(__file__).resolve().parents[1] / "zoo" / "base" / "tokenizer"
SIDE = 16  # of the images, in pixels
T5_WIDTH = 48
SD3_SHAPE: dict[str, Any] = {
    "sample_size": 8, "in_channels": 16, "out_channels": 16, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": T5_WIDTH, "caption_projection_dim": 32,
    "pooled_projection_dim": 16 + 24, "pos_embed_max_size": 12,
}  # fmt: skip
FLUX_SHAPE: dict[str, Any] = {
    "in_channels": 64, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": T5_WIDTH, "pooled_projection_dim": 16,
    "axes_dims_rope": (2, 2, 4),
}  # fmt: skip
SD3_VARIANTS: dict[str, dict[str, Any]] = {
    "3 medium": {},
    "3.5 medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
    "3.5 large": {"qk_norm": "rms_norm"},
}
# Their schedulers' fields; FLUX.1 dev moves its schedule with the number of image tokens.
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd3": {"shift": 3.0},
    "flux dev": {
        "shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096,
    },
    "flux schnell": {"shift": 1.0},
}  # fmt: skip


def sd3_pipeline(variant: str = "3.5 medium", with_t5: bool = True) -> Any:
    """A StableDiffusion3Pipeline of one of SD3_VARIANTS."""
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULERS["sd3"])
    return diffusers.StableDiffusion3Pipeline(scheduler=scheduler, **sd3_components(variant, with_t5))


def flux_pipeline(variant: str = "dev") -> Any:
    """A FluxPipeline, of "dev" with its guidance embedding, or of "schnell" without."""
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULERS[f"flux {variant}"])
    return diffusers.FluxPipeline(scheduler=scheduler, **flux_components(variant))


def sd3_components(variant: str = "3.5 medium", with_t5: bool = True) -> dict[str, Any]:
    """The parts of such a pipeline but the scheduler."""
    import diffusers
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    return {
        "transformer": _moved(diffusers.SD3Transformer2DModel(**SD3_SHAPE, **SD3_VARIANTS[variant])),
        "vae": _vae(),
        "text_encoder": _clip(CLIPTextModelWithProjection, 16),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": _clip(CLIPTextModelWithProjection, 24),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_3": _t5() if with_t5 else None,
        "tokenizer_3": t5_tokenizer() if with_t5 else None,
    }


def flux_components(variant: str = "dev") -> dict[str, Any]:
    """The parts of such a pipeline but the scheduler."""
    import diffusers
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(**FLUX_SHAPE, guidance_embeds=variant == "dev")
    return {
        "transformer": _moved(transformer),
        "vae": _vae(),
        "text_encoder": _clip(CLIPTextModel, 16),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": _t5(),
        "tokenizer_2": t5_tokenizer(),
    }


@cache
def clip_tokenizer() -> Any:
    """The zoo's byte-pair encoding, padded to CLIP's length."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(ZOO_TOKENIZER, local_files_only=True)


@cache
def t5_tokenizer() -> Any:
    """A Unigram model of single letters, built in memory."""
    from transformers import T5TokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(letter, -3.0) for letter in "▁" + string.ascii_letters + string.digits + string.punctuation]
    return T5TokenizerFast(vocab=[*special, *letters], extra_ids=0, model_max_length=512)


def _clip(cls: Any, width: int) -> Any:
    from transformers import CLIPTextConfig

    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, projection_dim=width, max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return cls(config).eval()


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(t5_tokenizer()), d_model=T5_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    return T5EncoderModel(config).eval()


def _vae() -> Any:
    """Latents of half the size with 16 channels and a shift, without the outer convolutions."""
    import diffusers

    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), latent_channels=16, norm_num_groups=4, sample_size=SIDE,
        scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip


def _moved(transformer: Any) -> Any:
    """The transformer with noise in every weight, so that none is 0 or 1 as it is made."""
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return transformer.eval()
