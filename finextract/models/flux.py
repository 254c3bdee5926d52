"""FLUX.1 dev and schnell: a transformer over packed latents and T5's tokens, CLIP's pooled state, a KL VAE.

Black Forest Labs (2024). N = samples, C, H, W = channels, height and width of the latents, L = text
positions, D = text width, P = pooled width. Prompts are encoded, and latents packed, as diffusers'
FluxPipeline does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from finextract.metadata.untrusted import number_of
from finextract.models import parts
from finextract.models.component_loaders import ComponentLoader
from finextract.models.packed_latents import (
    T5_TOKENS,
    PackedModel,
    image_places,
    load_packed,
    packed,
    unpacked,
)
from finextract.models.parts import TextStates
from finextract.sampling import TRAINED_TIMES
from finextract.single_files import TEXT_ENCODER_PREFIXES
from finextract.weights.kinds import Family

MAX_GUIDANCE = 100.0  # that a file may state
_SINGLE_FILE_PREFIXES = TEXT_ENCODER_PREFIXES["flux"]


@dataclass(frozen=True, kw_only=True)
class Flux(PackedModel):
    """The parts of a pipeline. Implements finextract.models.base.TunableModel."""

    text_encoder: Any  # transformers.CLIPTextModel: CLIP-L
    text_encoder_2: Any  # transformers.T5EncoderModel
    tokenizer: Any  # transformers.CLIPTokenizer
    tokenizer_2: Any  # transformers.T5TokenizerFast
    guidance: float = 1.0  # the scale that dev's guidance embedding is given

    components: ClassVar[tuple[str, ...]] = (
        "transformer",
        *_SINGLE_FILE_PREFIXES,
    )  # what fine-tuning changes
    encoders: ClassVar[Mapping[str, str]] = {"clip_l": "text_encoder", "t5": "text_encoder_2"}

    @property
    def family(self) -> Family:
        """The model family."""
        return "flux"

    @torch.inference_mode()
    def condition(self, prompt: str) -> TextStates:
        """The text encoders' states for a prompt; a longer prompt is cut."""
        length = parts.prompt_length(self.tokenizer, self.text_encoder)
        clip = parts.token_ids(self.tokenizer, prompt, length).to(self.device)
        length = parts.t5_length(self.tokenizer_2, T5_TOKENS)
        t5 = parts.token_ids(self.tokenizer_2, prompt, length).to(self.device)
        with self.using(self.text_encoder_2):
            sequence = self.text_encoder_2(t5)[0]
        with self.using(self.text_encoder):
            return TextStates(sequence, self.text_encoder(clip).pooler_output)

    def predict(self, x: Tensor, t: float, conditioning: TextStates) -> Tensor:
        """v_theta(x_t, t, c): latents [N, C, H, W], both sides even -> velocity [N, C, H, W]."""
        n, _, height, width = x.shape
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full((n,), self.guidance, device=x.device)
        velocity: Tensor = self.transformer(
            hidden_states=packed(x),
            timestep=torch.full((n,), t, device=x.device, dtype=x.dtype) / TRAINED_TIMES,
            guidance=guidance,
            encoder_hidden_states=conditioning.sequence.expand(n, -1, -1),
            pooled_projections=conditioning.pooled.expand(n, -1),
            txt_ids=torch.zeros(conditioning.sequence.shape[1], 3, device=x.device),
            img_ids=image_places(height // 2, width // 2, x.device),
        ).sample
        return unpacked(velocity, height, width)

    def as_trained(self, metadata: Mapping[str, str]) -> Self:
        """This model, with the guidance scale at which it was trained, as kohya's trainers state it."""
        scale = number_of(metadata.get("ss_guidance_scale"), 0, MAX_GUIDANCE)
        return self if scale is None else replace(self, guidance=scale)

    def load_single_file(self, weights: dict[str, Tensor]) -> None:
        """Replaces the weights by those of one file in Black Forest Labs' own names, but the VAE.

        Raises BaseMismatch.
        """
        from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

        converted = {
            "transformer": parts.converted(weights, convert_flux_transformer_checkpoint_to_diffusers)
        }
        for component, prefix in _SINGLE_FILE_PREFIXES.items():
            converted[component] = parts.inner_keys(weights, prefix)
        converted["text_encoder"].pop("text_projection.weight", None)  # ComfyUI writes one; nothing uses it
        self.load_components(converted)


def load(loader: ComponentLoader, dtype: torch.dtype) -> Flux:
    """Loads a pipeline of this family.

    Raises PickledWeights where its weights are pickles, CorruptWeights where a part is missing or damaged.
    """
    import diffusers
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    return Flux(
        **load_packed(loader, dtype, diffusers.FluxTransformer2DModel),
        text_encoder=loader.module("text_encoder", CLIPTextModel, dtype, attn_implementation="sdpa"),
        text_encoder_2=loader.module("text_encoder_2", T5EncoderModel, dtype),
        tokenizer=loader.tokenizer("tokenizer", CLIPTokenizer),
        tokenizer_2=loader.tokenizer("tokenizer_2", T5TokenizerFast),
    )
