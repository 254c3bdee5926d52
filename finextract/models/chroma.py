"""Chroma: FLUX.1's transformer without pooled state and guidance, T5's tokens with a mask, a KL VAE.

Lodestone Rock (2025). N = samples, C, H, W = channels, height and width of the latents, L = text positions,
D = text width. Prompts are encoded and masked, and latents packed, as diffusers' ChromaPipeline does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

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
from finextract.sampling import TRAINED_TIMES
from finextract.weights.kinds import Family

_SINGLE_FILE_PREFIX = "text_encoders.t5xxl.transformer."


@dataclass(frozen=True)
class MaskedText:
    """What T5 makes of a prompt, and which of its positions the transformer attends to."""

    sequence: Tensor  # [1, L, D]
    mask: Tensor  # [1, L]: 1 for the prompt's tokens and one token of padding, 0 for the rest


@dataclass(frozen=True, kw_only=True)
class Chroma(PackedModel):
    """The parts of a pipeline. Implements finextract.models.base.TunableModel."""

    text_encoder: Any  # transformers.T5EncoderModel
    tokenizer: Any  # transformers.T5TokenizerFast

    components: ClassVar[tuple[str, ...]] = ("transformer", "text_encoder")  # what fine-tuning changes
    encoders: ClassVar[Mapping[str, str]] = {"t5": "text_encoder"}

    @property
    def family(self) -> Family:
        """The model family."""
        return "chroma"

    @torch.inference_mode()
    def condition(self, prompt: str) -> MaskedText:
        """T5's states for a prompt, without attention to padding; a longer prompt is cut."""
        length = parts.t5_length(self.tokenizer, T5_TOKENS)
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        attended = tokens.attention_mask.to(self.device)
        with self.using(self.text_encoder):
            states = self.text_encoder(tokens.input_ids.to(self.device), attention_mask=attended)[0]
        places = torch.arange(length, device=self.device)[None]
        return MaskedText(states, (places <= attended.sum(dim=1, keepdim=True)).to(states.dtype))

    def predict(self, x: Tensor, t: float, conditioning: MaskedText) -> Tensor:
        """v_theta(x_t, t, c): latents [N, C, H, W], both sides even -> velocity [N, C, H, W].

        The mask is a number for each token, as diffusers gives it to the transformer: it adds 1 to the
        attention between two tokens that count, and 0 to any other.
        """
        n, _, height, width = x.shape
        tokens = packed(x)
        mask = conditioning.mask.expand(n, -1)
        velocity: Tensor = self.transformer(
            hidden_states=tokens,
            timestep=torch.full((n,), t, device=x.device, dtype=x.dtype) / TRAINED_TIMES,
            encoder_hidden_states=conditioning.sequence.expand(n, -1, -1),
            txt_ids=torch.zeros(conditioning.sequence.shape[1], 3, device=x.device),
            img_ids=image_places(height // 2, width // 2, x.device),
            attention_mask=torch.cat([mask, mask.new_ones(n, tokens.shape[1])], dim=1),
        ).sample
        return unpacked(velocity, height, width)

    def load_single_file(self, weights: dict[str, Tensor]) -> None:
        """Replaces the weights by those of one file in the model's own names; its VAE is not used.

        Raises BaseMismatch.
        """
        from diffusers.loaders.single_file_utils import convert_chroma_transformer_checkpoint_to_diffusers

        self.load_components({
            "transformer": parts.converted(weights, convert_chroma_transformer_checkpoint_to_diffusers),
            "text_encoder": parts.inner_keys(weights, _SINGLE_FILE_PREFIX),
        })  # fmt: skip


def load(loader: ComponentLoader, dtype: torch.dtype) -> Chroma:
    """Loads a pipeline of this family.

    Raises PickledWeights where its weights are pickles, CorruptWeights where a part is missing or damaged.
    """
    import diffusers
    from transformers import T5EncoderModel, T5TokenizerFast

    return Chroma(
        **load_packed(loader, dtype, diffusers.ChromaTransformer2DModel),
        text_encoder=loader.module("text_encoder", T5EncoderModel, dtype),
        tokenizer=loader.tokenizer("tokenizer", T5TokenizerFast),
    )
