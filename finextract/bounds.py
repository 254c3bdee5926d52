"""What the configuration files of a pipeline may state: bounded sizes, known names, nothing that loads code.

A base model may be anyone's, and a single number of its configuration (the size of its images, the number of
its layers) decides how much memory and time it takes. The files are checked before anything is loaded.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finextract.metadata.untrusted import number_of


@dataclass(frozen=True, slots=True)
class Bound:
    """The values that a field of a configuration may have: a range of numbers, or some names."""

    low: float = 0
    high: float = 0
    whole: bool = True  # whole numbers only
    longest: int = 0  # entries of a list of such values; 0 where a list is refused
    names: frozenset[str] = frozenset()  # instead of a range
    off: bool = False  # instead of a range: a switch that is off
    needed: bool = False  # a missing value is refused

    def __str__(self) -> str:
        if self.names:
            return " or ".join(sorted(self.names))
        if self.off:
            return "false"
        numbers = f"{self.low:,g} to {self.high:,g}"
        return f"{numbers}, or at most {self.longest} of such numbers" if self.longest else numbers


type Bounds = Mapping[str, Mapping[str, Bound]]  # file below the pipeline's folder -> field -> bound

# Fields that make diffusers or transformers load code, other weights or another kernel. Each may be empty.
_LOADS_CODE = ("auto_map", "custom_pipelines", "quantization_config", "text_config", "trust_remote_code")
# Where it is stated at all: the implementations of attention that are part of torch.
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_OWN_ATTENTION = ("eager", "sdpa", None)


def why_refused(bounds: Bounds, configs: Mapping[str, Mapping[str, Any]], where: str) -> str | None:
    """The sentence that says which field of which file is refused, and what it may be; None for none.

    `configs` maps the files that `bounds` names to their contents, which are untrusted; a file that is not
    there has no fields. `where` names the pipeline.
    """
    for file, fields in bounds.items():
        config = configs.get(file, {})
        for name in _LOADS_CODE:
            if config.get(name):
                return f"{where}/{file} states {name}, which could load further code or weights."
        for name in _ATTENTION:
            if config.get(name) not in _OWN_ATTENTION:
                return f"{where}/{file} states {name} {_shown(config[name])}; it may be eager or sdpa."
        for name, bound in fields.items():
            value = config.get(name)
            if value is None and bound.needed:
                return f"{where}/{file} does not state {name}; it may be {bound}."
            if value is not None and not _allows(bound, value):
                return f"{where}/{file} states {name} {_shown(value)}; it may be {bound}."
    return None


def _allows(bound: Bound, value: object) -> bool:
    if bound.off:
        return value is False
    if isinstance(value, list):
        return 0 < len(value) <= bound.longest and all(
            not isinstance(entry, list) and _allows(bound, entry) for entry in value
        )
    if bound.names:
        return isinstance(value, str) and value in bound.names
    if isinstance(value, str):  # the libraries would take a text for what it is
        return False
    number = number_of(value, bound.low, bound.high)
    return number is not None and (not bound.whole or number == int(number))


def _shown(value: object) -> str:
    return "".join(c for c in str(value)[:60] if c.isprintable())


def names_of(*names: str) -> Bound:
    """One of some names, or a list of at most four of them."""
    return Bound(names=frozenset(names), longest=4)


_WIDTHS = Bound(1, 1280, longest=4)
_ACTIVATIONS = names_of("silu", "swish", "mish", "gelu", "relu")
_CLIP_CLASSES = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
# Stable Diffusion and SDXL have a UNet of 3 or 4 levels up to 1280 wide, and a VAE of 4 levels up to 512.
# Stable Diffusion makes 512 x 512 pixels (fine-tunes up to 1024), SDXL 1024 x 1024 (fine-tunes up to 1536).
# Smaller models of the same shape are of a family too.
_UNET: Mapping[str, Bound] = {
    "_class_name": names_of("UNet2DConditionModel"),
    "sample_size": Bound(8, 128, longest=2, needed=True),
    "in_channels": Bound(1, 16),
    "out_channels": Bound(1, 16),
    "block_out_channels": _WIDTHS,
    "layers_per_block": Bound(1, 2, longest=4),
    "transformer_layers_per_block": Bound(1, 2, longest=4),
    "cross_attention_dim": Bound(1, 768),
    "attention_head_dim": Bound(1, 1280, longest=4),
    "num_attention_heads": Bound(1, 64, longest=4),
    "norm_num_groups": Bound(1, 64),
    "norm_eps": Bound(0, 0.1, whole=False),
    "dropout": Bound(0, 1, whole=False),
    "time_embedding_dim": Bound(1, 5120),
    "conv_in_kernel": Bound(1, 7),
    "conv_out_kernel": Bound(1, 7),
    "down_block_types": names_of("CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": names_of("UNetMidBlock2DCrossAttn"),
    "up_block_types": names_of("CrossAttnUpBlock2D", "UpBlock2D"),
    "act_fn": _ACTIVATIONS,
    "time_embedding_type": names_of("positional"),
    "attention_type": names_of("default"),
}
_VAE: Mapping[str, Bound] = {
    "_class_name": names_of("AutoencoderKL", "AutoencoderTiny"),
    "sample_size": Bound(8, 1024, longest=2),
    "in_channels": Bound(3, 3),
    "out_channels": Bound(3, 3),
    "latent_channels": Bound(1, 16),
    "block_out_channels": _WIDTHS,
    "encoder_block_out_channels": _WIDTHS,
    "decoder_block_out_channels": _WIDTHS,
    "num_encoder_blocks": Bound(0, 8, longest=4),
    "num_decoder_blocks": Bound(0, 8, longest=4),
    "layers_per_block": Bound(1, 4),
    "norm_num_groups": Bound(1, 64),
    "upsampling_scaling_factor": Bound(2, 2),
    "scaling_factor": Bound(0.001, 100, whole=False),
    "shift_factor": Bound(-100, 100, whole=False),
    "down_block_types": names_of("DownEncoderBlock2D"),
    "up_block_types": names_of("UpDecoderBlock2D"),
    "act_fn": _ACTIVATIONS,
}
_SCHEDULER: Mapping[str, Bound] = {
    "_class_name": names_of(
        "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler",
    ),
    "num_train_timesteps": Bound(10, 10_000),
    "beta_start": Bound(1e-6, 0.9, whole=False),
    "beta_end": Bound(1e-6, 0.999, whole=False),
    "beta_schedule": names_of("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": Bound(1e-6, 0.999, whole=False, longest=10_000),
    "steps_offset": Bound(0, 999),
    "timestep_spacing": names_of("leading", "linspace", "trailing"),
}  # fmt: skip
_TOKENIZER = {"tokenizer_class": names_of("CLIPTokenizer", "CLIPTokenizerFast")}


def _clip(component: str, width: int, layers: int) -> dict[str, Bound]:
    """A CLIP text encoder up to that size; 77 positions, which some models extend to 248."""
    return {
        "architectures": names_of(_CLIP_CLASSES[component]),
        "model_type": names_of("clip_text_model"),
        "hidden_size": Bound(1, width),
        "intermediate_size": Bound(1, 4 * width),
        "num_hidden_layers": Bound(1, layers),
        "num_attention_heads": Bound(1, 20),
        "max_position_embeddings": Bound(1, 248),
        "projection_dim": Bound(1, 1280),
        "vocab_size": Bound(1, 65_536),
        "hidden_act": names_of("quick_gelu", "gelu"),
        "attention_dropout": Bound(0, 1, whole=False),
    }


def _with_unet(context: int, text_encoders: Mapping[str, tuple[int, int]], **unet: Bound) -> Bounds:
    """The files of a pipeline with a UNet.

    `context` is the width of its text embeddings; `text_encoders` has the width and layers of each encoder.
    """
    bounds: dict[str, Mapping[str, Bound]] = {
        "unet/config.json": {**_UNET, "cross_attention_dim": Bound(1, context), **unet},
        "vae/config.json": _VAE,
        "scheduler/scheduler_config.json": _SCHEDULER,
    }
    for component, (width, layers) in text_encoders.items():
        tokenizer = component.replace("text_encoder", "tokenizer")
        bounds[f"{component}/config.json"] = _clip(component, width, layers)
        bounds[f"{tokenizer}/tokenizer_config.json"] = _TOKENIZER
    return bounds


# CLIP ViT-L/14 is 768 wide and has 12 layers; OpenCLIP's ViT-H/14 1024 and 24, its ViT-bigG/14 1280 and 32.
SD1_BOUNDS = _with_unet(768, {"text_encoder": (768, 12)})
SD2_BOUNDS = _with_unet(1024, {"text_encoder": (1024, 24)})
SDXL_BOUNDS = _with_unet(
    2048,
    {"text_encoder": (768, 12), "text_encoder_2": (1280, 32)},
    transformer_layers_per_block=Bound(1, 10, longest=4),
    sample_size=Bound(8, 192, longest=2, needed=True),
    addition_time_embed_dim=Bound(2, 512),
    projection_class_embeddings_input_dim=Bound(1, 4352),
)
