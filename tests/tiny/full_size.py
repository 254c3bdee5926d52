"""The real configurations of Stable Diffusion 1.5, 2.1 and SDXL, as models that take no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tiny.no_numbers import on_meta

from finextract.single_files import published_config

FOLDERS = {"sd1": "sd1", "sd2": "sd2-v", "sdxl": "sdxl"}  # of finextract/published


def _config(family: str, component: str) -> dict[str, Any]:
    return published_config(FOLDERS[family], f"{component}/config.json")


UNETS = {family: _config(family, "unet") for family in FOLDERS}
TEXT_ENCODERS = {
    family: {
        name: _config(family, name)
        for name in (("text_encoder", "text_encoder_2") if family == "sdxl" else ("text_encoder",))
    }
    for family in FOLDERS
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
        found = {"unet": UNet2DConditionModel.from_config(UNETS[family])}
        for name, config in TEXT_ENCODERS[family].items():
            cls = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
            found[name] = cls(CLIPTextConfig(**config))
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

    with made_on(device, dtype):
        return AutoencoderKL.from_config(_config(family, "vae"))
