"""Z-Image: its published configuration, a tiny pipeline with random weights, and its own key names."""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import torch
from tiny.flow_pipelines import _moved, _vae

from finextract.single_files import published_config

WIDTH, TEXT_WIDTH = 32, 24  # of the tiny one
TRANSFORMER: dict[str, Any] = {
    "all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 16, "dim": 3840, "n_layers": 30,
    "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30, "norm_eps": 1e-5, "qk_norm": True,
    "cap_feat_dim": 2560, "rope_theta": 256.0, "t_scale": 1000.0, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}  # fmt: skip
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 2560,
    "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1000000,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": True,
}  # fmt: skip
SCHEDULERS: dict[str, dict[str, Any]] = {
    "Turbo's shift": {"shift": 3.0, "use_dynamic_shifting": False},
    "dynamic shift": {"shift": 6.0, "use_dynamic_shifting": True},
}
INDEX = {
    "_class_name": "ZImagePipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"], "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip
# What Qwen3's published template does with messages without tools and without thoughts.
TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def configs() -> dict[str, dict[str, Any]]:
    """The configuration files of the published Turbo, as far as they are known here, with FLUX.1's VAE."""
    return {
        "transformer/config.json": {
            "_class_name": "ZImageTransformer2DModel", **TRANSFORMER, "all_patch_size": [2],
            "all_f_patch_size": [1],
        },
        "text_encoder/config.json": QWEN3,
        "vae/config.json": published_config("flux-dev", "vae/config.json"),
        "scheduler/scheduler_config.json": {
            "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000,
            **SCHEDULERS["Turbo's shift"],
        },
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 131072},
    }  # fmt: skip


@cache
def tokenizer() -> Any:
    """Qwen's byte-pair encoding without merges: single letters, and the signs around a message."""
    from transformers import Qwen2TokenizerFast

    letters = [*string.ascii_letters, *string.digits, *string.punctuation, "Ġ", "Ċ"]
    signs = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = Qwen2TokenizerFast(
        vocab={token: i for i, token in enumerate([*letters, *signs])}, merges=[], pad_token=signs[0],
        eos_token=signs[2], unk_token=None, additional_special_tokens=signs[1:], model_max_length=131072,
    )  # fmt: skip
    made.chat_template = TEMPLATE
    return made


def components(head: bool = False) -> dict[str, Any]:
    """The parts of a tiny ZImagePipeline but the scheduler; `head`: Qwen as it predicts words."""
    import diffusers
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        dim=WIDTH, n_layers=2, n_refiner_layers=2, n_heads=2, n_kv_heads=2, cap_feat_dim=TEXT_WIDTH,
        axes_dims=[4, 6, 6], axes_lens=[1536, 512, 512],
    )  # fmt: skip
    text = Qwen3Config(
        vocab_size=len(tokenizer()), hidden_size=TEXT_WIDTH, intermediate_size=40, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=head,
    )  # fmt: skip
    return {
        "transformer": _moved(transformer),
        "vae": _vae(),
        "text_encoder": _moved((Qwen3ForCausalLM if head else Qwen3Model)(text)),
        "tokenizer": tokenizer(),
    }


def pipeline(schedule: str = "Turbo's shift", head: bool = False) -> Any:
    """A tiny ZImagePipeline."""
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULERS[schedule])
    made = diffusers.ZImagePipeline(scheduler=scheduler, **components(head))
    made.set_progress_bar_config(disable=True)
    return made


def original(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's tensors under the names of the model's own code."""
    found: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        if ".attention.to_q." in key:
            rows = [state[key.replace("to_q", f"to_{part}")] for part in "qkv"]
            found[key.replace("to_q", "qkv")] = torch.cat(rows)
        elif ".attention.to_k." not in key and ".attention.to_v." not in key:
            for ours, theirs in (
                ("all_x_embedder.2-1.", "x_embedder."), ("all_final_layer.2-1.", "final_layer."),
                (".to_out.0.", ".out."), (".norm_q.", ".q_norm."), (".norm_k.", ".k_norm."),
            ):  # fmt: skip
                key = key.replace(ours, theirs)
            found[key] = tensor
    return found


def original_names() -> dict[str, tuple[int, ...]]:
    """The key names and shapes of the published transformer in one file, written out by hand."""
    w = TRANSFORMER["dim"]
    block = {
        "attention.qkv.weight": (3 * w, w), "attention.out.weight": (w, w), "attention.q_norm.weight": (128,),
        "attention.k_norm.weight": (128,), "feed_forward.w1.weight": (10240, w),
        "feed_forward.w2.weight": (w, 10240), "feed_forward.w3.weight": (10240, w),
        **{f"{of}_norm{i}.weight": (w,) for of in ("attention", "ffn") for i in (1, 2)},
    }  # fmt: skip
    modulated = {**block, "adaLN_modulation.0.weight": (4 * w, 256), "adaLN_modulation.0.bias": (4 * w,)}
    found: dict[str, tuple[int, ...]] = {
        "x_embedder.weight": (w, 64), "x_embedder.bias": (w,), "cap_embedder.0.weight": (2560,),
        "cap_embedder.1.weight": (w, 2560), "cap_embedder.1.bias": (w,), "x_pad_token": (1, w),
        "cap_pad_token": (1, w), "t_embedder.mlp.0.weight": (1024, 256), "t_embedder.mlp.0.bias": (1024,),
        "t_embedder.mlp.2.weight": (256, 1024), "t_embedder.mlp.2.bias": (256,),
        "final_layer.linear.weight": (64, w), "final_layer.linear.bias": (64,),
        "final_layer.adaLN_modulation.1.weight": (w, 256), "final_layer.adaLN_modulation.1.bias": (w,),
        "norm_final.weight": (w,),  # of the code that it descends from; unused
    }  # fmt: skip
    for blocks, count, tensors in (
        ("layers", 30, modulated), ("noise_refiner", 2, modulated), ("context_refiner", 2, block),
    ):  # fmt: skip
        found |= {f"{blocks}.{i}.{name}": shape for i in range(count) for name, shape in tensors.items()}
    return found
