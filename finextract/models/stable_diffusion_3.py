"""Stable Diffusion 3 and 3.5: three text encoders, a transformer over image and text tokens, a KL VAE.

Esser et al. (ICML 2024). N = samples, L = text positions, D = text width, P = pooled width. Prompts are
encoded as diffusers' StableDiffusion3Pipeline encodes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from finextract.models import parts
from finextract.models.component_loaders import ComponentLoader
from finextract.models.parts import LatentModel, TextStates
from finextract.sampling import FlowEuler
from finextract.single_files import TEXT_ENCODER_PREFIXES
from finextract.weights.kinds import Family

T5_TOKENS, CLIP_TOKENS = 256, 77
_SINGLE_FILE_PREFIXES = TEXT_ENCODER_PREFIXES["sd3"]


@dataclass(frozen=True, kw_only=True)
class StableDiffusion3(LatentModel):
    """The parts of a pipeline. Implements finextract.models.base.TunableModel."""

    transformer: Any  # diffusers.SD3Transformer2DModel
    # A text encoder that the pipeline does without is None, and so is its tokenizer.
    text_encoder: Any  # transformers.CLIPTextModelWithProjection: CLIP-L
    text_encoder_2: Any  # transformers.CLIPTextModelWithProjection: CLIP-G
    text_encoder_3: Any  # transformers.T5EncoderModel
    tokenizer: Any  # transformers.CLIPTokenizer
    tokenizer_2: Any  # transformers.CLIPTokenizer
    tokenizer_3: Any  # transformers.T5TokenizerFast
    solver: FlowEuler

    components: ClassVar[tuple[str, ...]] = (
        "transformer",
        *_SINGLE_FILE_PREFIXES,
    )  # what fine-tuning changes
    encoders: ClassVar[Mapping[str, str]] = {
        "clip_l": "text_encoder",
        "clip_g": "text_encoder_2",
        "t5": "text_encoder_3",
    }

    @property
    def family(self) -> Family:
        """The model family."""
        return "sd3"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample's latents at the model's own image size."""
        config = self.transformer.config
        return config.in_channels, config.sample_size, config.sample_size

    @torch.inference_mode()
    def condition(self, prompt: str) -> TextStates:
        """The text encoders' states for a prompt; a longer prompt is cut.

        The states of a text encoder that the pipeline does without are 0, as diffusers has them for T5.
        """
        clip_l, pooled_l = self._clip_states(self.tokenizer, self.text_encoder, prompt)
        clip_g, pooled_g = self._clip_states(self.tokenizer_2, self.text_encoder_2, prompt)
        clip = torch.cat([clip_l, clip_g], dim=-1)
        if self.text_encoder_3 is None:
            t5 = clip.new_zeros(1, T5_TOKENS, self.transformer.config.joint_attention_dim)
        else:
            ids = parts.token_ids(self.tokenizer_3, prompt, parts.t5_length(self.tokenizer_3, T5_TOKENS))
            with self.using(self.text_encoder_3):
                t5 = self.text_encoder_3(ids.to(self.device))[0].to(clip.dtype)
        clip = nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return TextStates(torch.cat([clip, t5], dim=1), torch.cat([pooled_l, pooled_g], dim=-1))

    def _clip_states(self, tokenizer: Any, encoder: Any, prompt: str) -> tuple[Tensor, Tensor]:
        """The last hidden states but one [1, L, D] and the projected pooled state [1, P] of one encoder.

        The first tokenizer's length is that of both.
        """
        if encoder is None:
            return self._absent_states()
        length = parts.prompt_length(self.tokenizer or tokenizer, encoder)
        ids = parts.token_ids(tokenizer, prompt, length)
        with self.using(encoder):
            states = encoder(ids.to(self.device), output_hidden_states=True)
        return states.hidden_states[-2], states.text_embeds

    def _absent_states(self) -> tuple[Tensor, Tensor]:
        """The states of a CLIP text encoder that the pipeline does without: 0, in the width left for it."""
        other, width = self.text_encoder or self.text_encoder_2, self.transformer.config.pooled_projection_dim
        if other is None:
            width, length = width // 2, CLIP_TOKENS
        else:
            width -= other.config.projection_dim
            length = parts.prompt_length(self.tokenizer or self.tokenizer_2, other)
        zeros = torch.zeros(1, length, width, device=self.device, dtype=self.dtype)
        return zeros, zeros[:, 0]

    def predict(self, x: Tensor, t: float, conditioning: TextStates) -> Tensor:
        """v_theta(x_t, t, c): latents [N, C, H, W] -> velocity [N, C, H, W]."""
        velocity: Tensor = self.transformer(
            hidden_states=x,
            timestep=torch.full((len(x),), t, device=x.device),
            encoder_hidden_states=conditioning.sequence.expand(len(x), -1, -1),
            pooled_projections=conditioning.pooled.expand(len(x), -1),
        ).sample
        return velocity

    def load_single_file(self, weights: dict[str, Tensor]) -> None:
        """Replaces the weights by those of one file in Stability's own names, but the VAE.

        Raises BaseMismatch.
        """
        from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

        converted = {"transformer": parts.converted(weights, convert_sd3_transformer_checkpoint_to_diffusers)}
        for component, prefix in _SINGLE_FILE_PREFIXES.items():
            converted[component] = parts.inner_keys(weights, prefix)
        clip_l = converted["text_encoder"]
        if clip_l and "text_projection.weight" not in clip_l:  # the published files leave out the identity
            clip_l["text_projection.weight"] = torch.eye(self.text_encoder.config.projection_dim)
        self.load_components(converted)


def load(loader: ComponentLoader, dtype: torch.dtype) -> StableDiffusion3:
    """Loads a pipeline of this family.

    Raises PickledWeights where its weights are pickles, CorruptWeights where a part is missing or damaged.
    """
    import diffusers
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    transformer = loader.module("transformer", diffusers.SD3Transformer2DModel, dtype)
    text: dict[str, Any] = {}
    for n, encoder, tokenizer, options in (
        ("", CLIPTextModelWithProjection, CLIPTokenizer, {"attn_implementation": "sdpa"}),
        ("_2", CLIPTextModelWithProjection, CLIPTokenizer, {"attn_implementation": "sdpa"}),
        ("_3", T5EncoderModel, T5TokenizerFast, {}),
    ):
        has = loader.has(f"text_encoder{n}")
        text[f"text_encoder{n}"] = (
            loader.module(f"text_encoder{n}", encoder, dtype, **options) if has else None
        )
        text[f"tokenizer{n}"] = loader.tokenizer(f"tokenizer{n}", tokenizer) if has else None
    scheduler = loader.scheduler(diffusers.FlowMatchEulerDiscreteScheduler)
    tokens = (transformer.config.sample_size // transformer.config.patch_size) ** 2
    return StableDiffusion3(
        offloading=loader.offloading,
        transformer=transformer,
        **text,
        vae=parts.flow_vae_of(loader, dtype),
        solver=FlowEuler.of_scheduler(scheduler.config, tokens),
    )
