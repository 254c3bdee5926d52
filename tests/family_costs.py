"""Bytes and operations of each model family at full size, counted on models that take no memory.

    python tests/family_costs.py          # prints the table of docs/scale.md

Operations are those of one evaluation of the denoiser for one picture of the model's own size, 2 for a
multiply-add, as torch's own counter has them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tried_formats  # noqa: E402
from tiny import full_size  # noqa: E402
from tiny.flow_configs import CLIP_G, CLIP_L, CLIP_L_PROJECTED, T5, TRANSFORMERS, VAE  # noqa: E402

NAMES = {
    "sd1": "Stable Diffusion 1.5, 512 x 512", "sd2": "Stable Diffusion 2.1, 768 x 768",
    "sdxl": "SDXL, 1024 x 1024", "sd3-medium": "Stable Diffusion 3 medium, 1024 x 1024",
    "sd35-medium": "Stable Diffusion 3.5 medium, 1024 x 1024",
    "sd35-large": "Stable Diffusion 3.5 large, 1024 x 1024", "flux-dev": "FLUX.1 dev, 1024 x 1024",
    "flux-schnell": "FLUX.1 schnell, 1024 x 1024",
}  # fmt: skip


def meta(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta")


def with_unet(family: str) -> tuple[dict[str, nn.Module], Callable[[], object]]:
    modules = full_size.parts(family)
    unet: Any = modules["unet"]
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    added = {"text_embeds": meta(1, 1280), "time_ids": meta(1, 6)} if family == "sdxl" else None
    return {**modules, "vae": full_size.vae(family)}, lambda: unet(
        meta(1, 4, side, side), meta(1), encoder_hidden_states=meta(1, 77, width), added_cond_kwargs=added
    )


def with_transformer(name: str) -> tuple[dict[str, nn.Module], Callable[[], object]]:
    from diffusers import AutoencoderKL
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
    )

    with torch.device("meta"):
        transformer: Any = tried_formats.full_transformer(name)
        modules = {"denoiser": transformer, "t5": T5EncoderModel(T5Config(**T5)),
                   "vae": AutoencoderKL.from_config(VAE)}  # fmt: skip
        if name.startswith("flux"):
            modules["clip"] = CLIPTextModel(CLIPTextConfig(**CLIP_L))
        else:
            for key, config in (("clip", CLIP_L_PROJECTED), ("clip_2", CLIP_G)):
                modules[key] = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    if name.startswith("flux"):
        guidance = meta(1) if transformer.config.guidance_embeds else None
        return modules, lambda: transformer(
            hidden_states=meta(1, 64 * 64, 64), timestep=meta(1), guidance=guidance,
            encoder_hidden_states=meta(1, 512, 4096), pooled_projections=meta(1, 768), txt_ids=meta(512, 3),
            img_ids=meta(64 * 64, 3),
        )  # fmt: skip
    return modules, lambda: transformer(
        hidden_states=meta(1, 16, 128, 128), timestep=meta(1), encoder_hidden_states=meta(1, 333, 4096),
        pooled_projections=meta(1, 2048),
    )  # fmt: skip


def gigabytes(*modules: nn.Module) -> float:
    """In half precision."""
    return 2 * sum(p.numel() for module in modules for p in module.parameters()) / 1e9


def main() -> None:
    print("| model | denoiser | text encoders | VAE | one evaluation |\n|---|---|---|---|---|")
    for name, title in NAMES.items():
        modules, evaluate = (with_transformer if name in TRANSFORMERS else with_unet)(name)
        denoiser = modules.get("denoiser", modules.get("unet"))
        assert denoiser is not None
        texts = [m for m in modules.values() if m is not denoiser and m is not modules["vae"]]
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            evaluate()
        print(
            f"| {title} | {gigabytes(denoiser):.2f} GB | {gigabytes(*texts):.2f} GB | "
            f"{gigabytes(modules['vae']):.2f} GB | {counter.get_total_flops() / 1e12:.2f} TFLOP |"
        )


if __name__ == "__main__":
    main()
