"""The configuration files of Stable Diffusion 3 medium, 3.5 medium, 3.5 large, FLUX.1 dev and schnell.

As they were published, without the fields that only say which version wrote them.
"""

from __future__ import annotations

from typing import Any

type Configs = dict[str, dict[str, Any]]

_SD3_TRANSFORMER: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel", "attention_head_dim": 64, "caption_projection_dim": 1536,
    "in_channels": 16, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 24,
    "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
    "sample_size": 128,
}  # fmt: skip
_FLUX_TRANSFORMER: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "guidance_embeds": True,
    "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19,
    "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768,
}  # fmt: skip
TRANSFORMERS: Configs = {
    "sd3-medium": _SD3_TRANSFORMER,
    "sd35-medium": {
        **_SD3_TRANSFORMER, "dual_attention_layers": list(range(13)), "pos_embed_max_size": 384,
        "qk_norm": "rms_norm",
    },
    "sd35-large": {
        **_SD3_TRANSFORMER, "caption_projection_dim": 2432, "dual_attention_layers": [],
        "num_attention_heads": 38, "num_layers": 38, "qk_norm": "rms_norm",
    },
    "flux-dev": _FLUX_TRANSFORMER,
    "flux-schnell": {**_FLUX_TRANSFORMER, "guidance_embeds": False},
}  # fmt: skip
CLIP_L: dict[str, Any] = {
    "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0,
    "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0,
    "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "vocab_size": 49408,
}  # fmt: skip
CLIP_L_PROJECTED = {**CLIP_L, "architectures": ["CLIPTextModelWithProjection"]}
CLIP_G = {
    **CLIP_L_PROJECTED, "hidden_act": "gelu", "hidden_size": 1280, "intermediate_size": 5120,
    "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280,
}  # fmt: skip
T5: dict[str, Any] = {
    "architectures": ["T5EncoderModel"], "classifier_dropout": 0.0, "d_ff": 10240, "d_kv": 64,
    "d_model": 4096, "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1,
    "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0,
    "is_encoder_decoder": True, "is_gated_act": True, "layer_norm_epsilon": 1e-06, "model_type": "t5",
    "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24, "output_past": True, "pad_token_id": 0,
    "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False, "use_cache": True, "vocab_size": 32128,
}  # fmt: skip
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "force_upcast": True, "in_channels": 3,
    "latent_channels": 16, "latents_mean": None, "latents_std": None, "layers_per_block": 2,
    "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024, "scaling_factor": 1.5305,
    "shift_factor": 0.0609, "up_block_types": ["UpDecoderBlock2D"] * 4, "use_post_quant_conv": False,
    "use_quant_conv": False,
}  # fmt: skip
FLUX_VAE = {**VAE, "mid_block_add_attention": True, "scaling_factor": 0.3611, "shift_factor": 0.1159}
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
_DEV = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
_CLIP_TOKENIZER = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
_T5_TOKENIZER = {"extra_ids": 100, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}


def pipeline_configs(name: str) -> Configs:
    """The configuration files of one of TRANSFORMERS, by their place in the pipeline's folder."""
    sd3 = name.startswith("sd3")
    scheduler: dict[str, Any] = {**_SCHEDULER, "shift": 3.0}
    if name == "flux-dev":
        scheduler |= {**_DEV, "use_dynamic_shifting": True}
    elif name == "flux-schnell":
        scheduler |= {**_DEV, "shift": 1.0, "use_dynamic_shifting": False}
    shared = {
        "transformer/config.json": TRANSFORMERS[name],
        "scheduler/scheduler_config.json": scheduler,
        "tokenizer/tokenizer_config.json": _CLIP_TOKENIZER,
    }
    if sd3:
        return {
            **shared,
            "text_encoder/config.json": CLIP_L_PROJECTED,
            "text_encoder_2/config.json": CLIP_G,
            "text_encoder_3/config.json": T5,
            "tokenizer_2/tokenizer_config.json": _CLIP_TOKENIZER,
            "tokenizer_3/tokenizer_config.json": _T5_TOKENIZER,
            "vae/config.json": VAE,
        }
    return {
        **shared,
        "text_encoder/config.json": CLIP_L,
        "text_encoder_2/config.json": T5,
        "tokenizer_2/tokenizer_config.json": _T5_TOKENIZER,
        "vae/config.json": FLUX_VAE,
    }


def model_index(name: str) -> dict[str, Any]:
    """The model_index.json of one of TRANSFORMERS."""
    sd3 = name.startswith("sd3")
    clip = "CLIPTextModelWithProjection" if sd3 else "CLIPTextModel"
    parts = {"text_encoder": clip, "tokenizer": "CLIPTokenizer"}
    if sd3:
        parts |= {"text_encoder_2": clip, "tokenizer_2": "CLIPTokenizer"}
    last = "3" if sd3 else "2"
    parts |= {f"text_encoder_{last}": "T5EncoderModel", f"tokenizer_{last}": "T5TokenizerFast"}
    return {
        "_class_name": "StableDiffusion3Pipeline" if sd3 else "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", TRANSFORMERS[name]["_class_name"]],
        "vae": ["diffusers", "AutoencoderKL"],
        **{part: ["transformers", cls] for part, cls in parts.items()},
    }
