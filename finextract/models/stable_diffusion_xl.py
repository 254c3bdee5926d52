"""SDXL-shaped models: two CLIP text encoders, and a UNet that is also told the size of the picture.

Podell et al. (ICLR 2024). N = samples, L = text positions, D = width of both text encoders together, P =
width of the pooled embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from finextract.models.component_loaders import ComponentLoader
from finextract.models.parts import TextStates, prompt_length, token_ids
from finextract.models.unet import (
    UNetModel,
    clip_of_single_file,
    load_parts,
    open_clip_of_single_file,
    unet_of_single_file,
)
from finextract.single_files import TEXT_ENCODER_PREFIXES
from finextract.weights.kinds import Family

_OPEN_CLIP = TEXT_ENCODER_PREFIXES["sdxl"]["text_encoder_2"]


@dataclass(frozen=True, kw_only=True)
class StableDiffusionXL(UNetModel):
    """The parts of a pipeline. Implements finextract.models.base.TunableModel."""

    text_encoder: Any  # transformers.CLIPTextModel
    text_encoder_2: Any  # transformers.CLIPTextModelWithProjection
    tokenizer: Any  # transformers.CLIPTokenizer
    tokenizer_2: Any
    zeros_for_empty_prompt: bool = True  # the pipeline's `force_zeros_for_empty_prompt`

    components: ClassVar[tuple[str, ...]] = ("unet", "text_encoder", "text_encoder_2")
    encoders: ClassVar[Mapping[str, str]] = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}

    @property
    def family(self) -> Family:
        """The model family."""
        return "sdxl"

    @torch.inference_mode()
    def condition(self, prompt: str) -> TextStates:
        """The embeddings of a prompt; a longer prompt is cut.

        The empty prompt has embeddings of zeros where the pipeline states that the model was trained so.
        """
        states = []
        for tokenizer, encoder in (
            (self.tokenizer, self.text_encoder),
            (self.tokenizer_2, self.text_encoder_2),
        ):
            ids = token_ids(tokenizer, prompt, prompt_length(tokenizer, encoder))
            with self.using(encoder):
                encoded = encoder(ids.to(self.device), output_hidden_states=True)
            states.append(encoded.hidden_states[-2])
        found = TextStates(torch.cat(states, dim=-1), encoded.text_embeds)
        if not prompt and self.zeros_for_empty_prompt:
            return TextStates(torch.zeros_like(found.sequence), torch.zeros_like(found.pooled))
        return found

    def predict(self, x: Tensor, t: float, conditioning: TextStates) -> Tensor:
        """The noise or velocity in x_t, for pictures of the model's own size that were not cut.

        Latents [N, C, H, W] -> [N, C, H, W].
        """
        height, width = self.image_size
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=x.dtype, device=x.device)
        count = len(x)
        predicted: Tensor = self.unet(
            x.to(memory_format=self.layout),
            torch.full((1,), t, device=x.device),
            encoder_hidden_states=conditioning.sequence.expand(count, -1, -1),
            added_cond_kwargs={
                "text_embeds": conditioning.pooled.expand(count, -1),
                "time_ids": sizes.expand(count, -1),
            },
        ).sample
        return predicted

    def load_single_file(self, weights: dict[str, Tensor]) -> None:
        """Replaces the weights by those of one file in the original SDXL names. Raises BaseMismatch."""
        self.load_components({
            "unet": unet_of_single_file(weights, self.unet),
            "text_encoder": clip_of_single_file(weights),
            "text_encoder_2": open_clip_of_single_file(weights, self.text_encoder_2, _OPEN_CLIP),
        })  # fmt: skip


def load(loader: ComponentLoader, dtype: torch.dtype) -> StableDiffusionXL:
    """Loads a pipeline of this family. See `finextract.models.unet.load_parts`."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    encoders = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    zeros = loader.config("model_index.json").get("force_zeros_for_empty_prompt", True)
    return StableDiffusionXL(**load_parts(loader, dtype, encoders), zeros_for_empty_prompt=zeros is not False)
