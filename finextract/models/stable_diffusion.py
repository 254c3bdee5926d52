"""Stable Diffusion 1.x- and 2.x-shaped models: one CLIP text encoder, a UNet with cross-attention, a VAE.

N = samples, L = text positions, D = text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from finextract.models.component_loaders import ComponentLoader
from finextract.models.parts import prompt_length, token_ids
from finextract.models.unet import (
    UNetModel,
    clip_of_single_file,
    load_parts,
    open_clip_of_single_file,
    unet_of_single_file,
)
from finextract.single_files import TEXT_ENCODER_PREFIXES
from finextract.weights.kinds import Family

_OPEN_CLIP = TEXT_ENCODER_PREFIXES["sd2"]["text_encoder"]


@dataclass(frozen=True, kw_only=True)
class StableDiffusion(UNetModel):
    """The parts of a pipeline. Implements finextract.models.base.TunableModel."""

    text_encoder: Any  # transformers.CLIPTextModel
    tokenizer: Any  # transformers.CLIPTokenizer

    components: ClassVar[tuple[str, ...]] = ("unet", "text_encoder")
    encoders: ClassVar[Mapping[str, str]] = {"clip_l": "text_encoder"}

    @property
    def family(self) -> Family:
        """The model family."""
        return "sd2" if self.unet.config.cross_attention_dim == 1024 else "sd1"

    @torch.inference_mode()
    def condition(self, prompt: str) -> Tensor:
        """The text encoder's last hidden states for a prompt, [1, L, D]; a longer prompt is cut."""
        ids = token_ids(self.tokenizer, prompt, prompt_length(self.tokenizer, self.text_encoder))
        with self.using(self.text_encoder):
            states: Tensor = self.text_encoder(ids.to(self.device))[0]
        return states

    def predict(self, x: Tensor, t: float, conditioning: Tensor) -> Tensor:
        """The noise or velocity in x_t: latents [N, C, H, W], conditioning [1, L, D] -> [N, C, H, W]."""
        context = conditioning.expand(len(x), -1, -1)
        time = torch.full((1,), t, device=x.device)
        predicted: Tensor = self.unet(
            x.to(memory_format=self.layout), time, encoder_hidden_states=context
        ).sample
        return predicted

    def load_single_file(self, weights: dict[str, Tensor]) -> None:
        """Replaces the weights by those of one file in the original Stable Diffusion names.

        Raises BaseMismatch.
        """
        text_encoder = clip_of_single_file(weights) or open_clip_of_single_file(
            weights, self.text_encoder, _OPEN_CLIP
        )
        self.load_components({"unet": unet_of_single_file(weights, self.unet), "text_encoder": text_encoder})


def load(loader: ComponentLoader, dtype: torch.dtype) -> StableDiffusion:
    """Loads a pipeline of this family. See `finextract.models.unet.load_parts`."""
    from transformers import CLIPTextModel

    return StableDiffusion(**load_parts(loader, dtype, {"text_encoder": CLIPTextModel}))
