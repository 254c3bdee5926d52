"""Chroma: its published configuration, a tiny pipeline with random weights, and its own key names."""

from __future__ import annotations

from typing import Any

import torch
from tiny.flow_pipelines import FLUX_SHAPE, _moved, _t5, _vae, t5_tokenizer

from finextract.single_files import published_config

TRANSFORMER: dict[str, Any] = {
    "approximator_hidden_dim": 5120, "approximator_layers": 5, "approximator_num_channels": 64,
    "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56), "in_channels": 64,
    "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38,
    "patch_size": 1,
}  # fmt: skip
SCHEDULERS: dict[str, dict[str, Any]] = {
    "dynamic shift": {"use_dynamic_shifting": True},
    "beta sigmas": {"shift": 1.0, "use_beta_sigmas": True},
}


INDEX = {
    "_class_name": "ChromaPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "ChromaTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip


def configs() -> dict[str, dict[str, Any]]:
    """The configuration files of a published Chroma, as far as they are known here, with FLUX.1's VAE."""
    return {
        "transformer/config.json": {"_class_name": "ChromaTransformer2DModel", **TRANSFORMER},
        "text_encoder/config.json": published_config("flux-dev", "text_encoder_2/config.json"),
        "vae/config.json": published_config("flux-dev", "vae/config.json"),
        "scheduler/scheduler_config.json": {
            "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000,
            **SCHEDULERS["dynamic shift"],
        },
    }  # fmt: skip


def components() -> dict[str, Any]:
    """The parts of a tiny ChromaPipeline but the scheduler."""
    import diffusers

    torch.manual_seed(0)
    shape = {k: v for k, v in FLUX_SHAPE.items() if k != "pooled_projection_dim"}
    transformer = diffusers.ChromaTransformer2DModel(
        **shape, approximator_num_channels=16, approximator_hidden_dim=24, approximator_layers=2
    )
    return {
        "transformer": _moved(transformer),
        "vae": _vae(),
        "text_encoder": _t5(),
        "tokenizer": t5_tokenizer(),
    }


def pipeline(schedule: str = "dynamic shift") -> Any:
    """A tiny ChromaPipeline."""
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULERS[schedule])
    made = diffusers.ChromaPipeline(scheduler=scheduler, **components())
    made.set_progress_bar_config(disable=True)
    return made


def original_names() -> dict[str, tuple[int, ...]]:
    """The key names and shapes of the published single file."""
    w, hidden = 3072, TRANSFORMER["approximator_hidden_dim"]
    layers: dict[str, tuple[int, ...]] = {
        "img_in": (w, 64), "txt_in": (w, 4096), "final_layer.linear": (64, w),
        "distilled_guidance_layer.in_proj": (hidden, 64), "distilled_guidance_layer.out_proj": (w, hidden),
    }  # fmt: skip
    scales: dict[str, tuple[int, ...]] = {}
    for i in range(5):
        one = f"distilled_guidance_layer.layers.{i}"
        layers |= {f"{one}.in_layer": (hidden, hidden), f"{one}.out_layer": (hidden, hidden)}
        scales[f"distilled_guidance_layer.norms.{i}.scale"] = (hidden,)
    for i in range(19):
        for side in ("img", "txt"):
            one = f"double_blocks.{i}.{side}"
            layers |= {
                f"{one}_attn.qkv": (3 * w, w), f"{one}_attn.proj": (w, w), f"{one}_mlp.0": (4 * w, w),
                f"{one}_mlp.2": (w, 4 * w),
            }  # fmt: skip
            scales |= {f"{one}_attn.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    for i in range(38):
        one = f"single_blocks.{i}"
        layers |= {f"{one}.linear1": (7 * w, w), f"{one}.linear2": (w, 5 * w)}
        scales |= {f"{one}.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    weights = {f"{layer}.weight": shape for layer, shape in layers.items()}
    return {**weights, **{f"{layer}.bias": shape[:1] for layer, shape in layers.items()}, **scales}
