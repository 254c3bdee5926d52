"""Models of every family in their published sizes, without weights: for key names and shapes."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import diffusers
import torch
import tried_formats
from tiny import chroma, full_size, no_numbers, z_image
from tiny.flow_configs import CLIP_G, CLIP_L, CLIP_L_PROJECTED, T5
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from finextract.models.chroma import Chroma
from finextract.models.flux import Flux
from finextract.models.stable_diffusion import StableDiffusion
from finextract.models.stable_diffusion_3 import StableDiffusion3
from finextract.models.stable_diffusion_xl import StableDiffusionXL
from finextract.models.unet import UNetModel
from finextract.models.z_image import ZImage
from finextract.sampling import DDIM, FlowEuler

LACKING: dict[str, Any] = {"tokenizer": None, "vae": None}


@cache
def unet_model(family: str) -> UNetModel:
    """Stable Diffusion 1.5 ("sd1"), 2.1 ("sd2") or SDXL ("sdxl")."""
    solver = DDIM(torch.linspace(0.999, 0.005, 1000).tolist())
    modules: dict[str, Any] = {**full_size.parts(family), **LACKING, "solver": solver}
    if family == "sdxl":
        return StableDiffusionXL(**modules, tokenizer_2=None)
    return StableDiffusion(**modules)


@cache
def flow_model(name: str) -> StableDiffusion3 | Flux:
    """One of tiny.flow_configs.TRANSFORMERS."""
    with no_numbers.on_meta():
        t5 = T5EncoderModel(T5Config(**T5))
        parts: dict[str, Any] = {**LACKING, "tokenizer_2": None, "solver": FlowEuler()}
        parts["transformer"] = tried_formats.full_transformer(name)
        if name.startswith("flux"):
            return Flux(text_encoder=CLIPTextModel(CLIPTextConfig(**CLIP_L)), text_encoder_2=t5, **parts)
        clip_l, clip_g = (
            CLIPTextModelWithProjection(CLIPTextConfig(**c)) for c in (CLIP_L_PROJECTED, CLIP_G)
        )
        return StableDiffusion3(
            text_encoder=clip_l, text_encoder_2=clip_g, text_encoder_3=t5, tokenizer_3=None, **parts
        )


@cache
def chroma_model() -> Chroma:
    """Chroma with its T5."""
    with no_numbers.on_meta():
        transformer = diffusers.ChromaTransformer2DModel(**chroma.TRANSFORMER)
        t5 = T5EncoderModel(T5Config(**T5))
    return Chroma(transformer=transformer, text_encoder=t5, solver=FlowEuler(), **LACKING)


@cache
def z_image_model() -> ZImage:
    """Z-Image with its Qwen3."""
    with no_numbers.on_meta():
        transformer = diffusers.ZImageTransformer2DModel(**z_image.TRANSFORMER)
        qwen = Qwen3Model(Qwen3Config(**z_image.QWEN3))
    return ZImage(transformer=transformer, text_encoder=qwen, solver=FlowEuler(), **LACKING)


# One model of each family.
FAMILIES = {
    **{family: partial(unet_model, family) for family in full_size.FOLDERS},
    "sd3": partial(flow_model, "sd35-medium"),
    "flux": partial(flow_model, "flux-dev"),
    "chroma": chroma_model,
    "z_image": z_image_model,
}
