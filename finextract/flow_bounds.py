"""What the configuration files of pipelines of the flow families may state. Imports no torch.

The largest values are those of the published models: Stable Diffusion 3.5 large with CLIP-L, CLIP-G and
T5-XXL, FLUX.1 with CLIP-L and T5-XXL, Chroma with T5-XXL, and Z-Image with Qwen3 4B. Smaller models of the
same shape are of the families too.
"""

from __future__ import annotations

from collections.abc import Mapping

from finextract.bounds import SD1_BOUNDS, Bound, Bounds, names_of

_OFF = Bound(off=True)
_SCHEDULER: Mapping[str, Bound] = {
    "_class_name": names_of("FlowMatchEulerDiscreteScheduler"),
    "num_train_timesteps": Bound(1000, 1000),
    "shift": Bound(0.01, 100, whole=False),
    "base_shift": Bound(0, 10, whole=False),
    "max_shift": Bound(0, 10, whole=False),
    "base_image_seq_len": Bound(1, 65_536),
    "max_image_seq_len": Bound(1, 65_536),
    "shift_terminal": Bound(0, 0.99, whole=False),
    "time_shift_type": names_of("exponential", "linear"),
    "invert_sigmas": _OFF,
    "use_karras_sigmas": _OFF,
    "use_exponential_sigmas": _OFF,
    "use_beta_sigmas": _OFF,
    "stochastic_sampling": _OFF,
}
_SD3_VAE: Mapping[str, Bound] = {**SD1_BOUNDS["vae/config.json"], "sample_size": Bound(8, 2048)}
_FLUX_VAE: Mapping[str, Bound] = {  # its sample_size is that of the model, which the transformer has none of
    **_SD3_VAE,
    "_class_name": names_of("AutoencoderKL"),
    "sample_size": Bound(8, 2048, needed=True),
}
_T5: Mapping[str, Bound] = {
    "architectures": names_of("T5EncoderModel"),
    "model_type": names_of("t5"),
    "d_model": Bound(1, 4096),
    "d_kv": Bound(1, 64),
    "d_ff": Bound(1, 10_240),
    "num_layers": Bound(1, 24),
    "num_heads": Bound(1, 64),
    "vocab_size": Bound(1, 65_536),
    "relative_attention_num_buckets": Bound(1, 128),
    "relative_attention_max_distance": Bound(1, 4096),
    "feed_forward_proj": names_of("gated-gelu", "relu"),
    "dense_act_fn": names_of("gelu_new", "gelu", "relu"),
    "dropout_rate": Bound(0, 1, whole=False),
}
_CLIP_TOKENIZER = SD1_BOUNDS["tokenizer/tokenizer_config.json"]
_T5_TOKENIZER: Mapping[str, Bound] = {
    "tokenizer_class": names_of("T5Tokenizer", "T5TokenizerFast"),
    "extra_ids": Bound(0, 1000),
}
_CLIP_L: Mapping[str, Bound] = SD1_BOUNDS["text_encoder/config.json"]
_CLIP_L_PROJECTED: Mapping[str, Bound] = {
    **_CLIP_L,
    "architectures": names_of("CLIPTextModelWithProjection"),
}
_CLIP_G_PROJECTED: Mapping[str, Bound] = {
    **_CLIP_L_PROJECTED,
    "hidden_size": Bound(1, 1280),
    "intermediate_size": Bound(1, 5120),
    "num_hidden_layers": Bound(1, 32),
    "num_attention_heads": Bound(1, 20),
    "projection_dim": Bound(1, 1280),
}

SD3_BOUNDS: Bounds = {
    "transformer/config.json": {
        "_class_name": names_of("SD3Transformer2DModel"),
        "sample_size": Bound(8, 192, needed=True),
        "patch_size": Bound(2, 2),
        "in_channels": Bound(1, 16),
        "out_channels": Bound(1, 16),
        "num_layers": Bound(1, 38),
        "attention_head_dim": Bound(1, 64),
        "num_attention_heads": Bound(1, 38),
        "joint_attention_dim": Bound(1, 4096),
        "caption_projection_dim": Bound(1, 2432),
        "pooled_projection_dim": Bound(1, 2048),
        "pos_embed_max_size": Bound(1, 384),
        "qk_norm": names_of("rms_norm"),
    },
    "text_encoder/config.json": _CLIP_L_PROJECTED,
    "text_encoder_2/config.json": _CLIP_G_PROJECTED,
    "text_encoder_3/config.json": _T5,
    "vae/config.json": _SD3_VAE,
    "scheduler/scheduler_config.json": _SCHEDULER,
    "tokenizer/tokenizer_config.json": _CLIP_TOKENIZER,
    "tokenizer_2/tokenizer_config.json": _CLIP_TOKENIZER,
    "tokenizer_3/tokenizer_config.json": _T5_TOKENIZER,
}
FLUX_BOUNDS: Bounds = {
    "transformer/config.json": {
        "_class_name": names_of("FluxTransformer2DModel"),
        "patch_size": Bound(1, 1),
        "in_channels": Bound(4, 64, needed=True),
        "out_channels": Bound(4, 64),
        "num_layers": Bound(1, 19),
        "num_single_layers": Bound(1, 38),
        "attention_head_dim": Bound(1, 128),
        "num_attention_heads": Bound(1, 24),
        "joint_attention_dim": Bound(1, 4096),
        "pooled_projection_dim": Bound(1, 768),
        "axes_dims_rope": Bound(2, 64, longest=3),
    },
    "text_encoder/config.json": _CLIP_L,
    "text_encoder_2/config.json": _T5,
    "vae/config.json": _FLUX_VAE,
    "scheduler/scheduler_config.json": _SCHEDULER,
    "tokenizer/tokenizer_config.json": _CLIP_TOKENIZER,
    "tokenizer_2/tokenizer_config.json": _T5_TOKENIZER,
}
_FLUX_TRANSFORMER = FLUX_BOUNDS["transformer/config.json"]
CHROMA_BOUNDS: Bounds = {
    "transformer/config.json": {
        **{name: bound for name, bound in _FLUX_TRANSFORMER.items() if name != "pooled_projection_dim"},
        "_class_name": names_of("ChromaTransformer2DModel"),
        "approximator_num_channels": Bound(4, 64),
        "approximator_hidden_dim": Bound(1, 5120),
        "approximator_layers": Bound(1, 5),
    },
    "text_encoder/config.json": _T5,
    "vae/config.json": _FLUX_VAE,
    "scheduler/scheduler_config.json": {k: v for k, v in _SCHEDULER.items() if k != "use_beta_sigmas"},
    "tokenizer/tokenizer_config.json": _T5_TOKENIZER,
}
_QWEN3: Mapping[str, Bound] = {
    "architectures": names_of("Qwen3Model", "Qwen3ForCausalLM"),
    "model_type": names_of("qwen3"),
    "hidden_size": Bound(1, 2560),
    "intermediate_size": Bound(1, 9728),
    "num_hidden_layers": Bound(1, 36),
    "num_attention_heads": Bound(1, 32),
    "num_key_value_heads": Bound(1, 32),
    "head_dim": Bound(1, 128),
    "vocab_size": Bound(1, 151_936),
    "max_position_embeddings": Bound(1, 262_144),
    "hidden_act": names_of("silu"),
    "rms_norm_eps": Bound(0, 0.1, whole=False),
    "rope_theta": Bound(1, 1e9, whole=False),
    "attention_dropout": Bound(0, 1, whole=False),
}
Z_IMAGE_BOUNDS: Bounds = {
    "transformer/config.json": {
        "_class_name": names_of("ZImageTransformer2DModel"),
        "all_patch_size": Bound(2, 2, longest=1),
        "all_f_patch_size": Bound(1, 1, longest=1),
        "in_channels": Bound(1, 16),
        "dim": Bound(1, 3840),
        "n_layers": Bound(1, 30),
        "n_refiner_layers": Bound(1, 2),
        "n_heads": Bound(1, 30),
        "n_kv_heads": Bound(1, 30),
        "norm_eps": Bound(0, 0.1, whole=False),
        "cap_feat_dim": Bound(1, 2560),
        "siglip_feat_dim": Bound(1, 2560),  # of layers that a prompt does not use
        "rope_theta": Bound(1, 1e6, whole=False),
        "t_scale": Bound(0, 10_000, whole=False),
        "axes_dims": Bound(2, 128, longest=3),
        "axes_lens": Bound(512, 4096, longest=3),  # places: of fewer, a large image would be beyond the last
    },
    "text_encoder/config.json": _QWEN3,
    "vae/config.json": _FLUX_VAE,
    "scheduler/scheduler_config.json": _SCHEDULER,
    "tokenizer/tokenizer_config.json": {"tokenizer_class": names_of("Qwen2Tokenizer", "Qwen2TokenizerFast")},
}
