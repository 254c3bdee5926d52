"""Z-Image and Z-Image Turbo: a transformer over one row of image and text tokens, Qwen3's states, a KL VAE.

Alibaba's Z-Image team (2025). N = samples, C, H, W = channels, height and width of the latents, L = text
positions, D = text width. Prompts are encoded as diffusers' ZImagePipeline does, as a message of a chat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from finextract.errors import UnsupportedWeights
from finextract.models import parts
from finextract.models.component_loaders import ComponentLoader
from finextract.models.learned_words import LearnedWord
from finextract.models.parts import LatentModel, flow_vae_of, image_factor
from finextract.sampling import TRAINED_TIMES, FlowEuler
from finextract.weights.kinds import Family

TOKENS = 512  # of a prompt in its frame
_PADDED_TO = 32  # the transformer pads text and image to a multiple of so many tokens
_SINGLE_FILE_PREFIX = "text_encoders.qwen3_4b.transformer."


@dataclass(frozen=True, kw_only=True)
class ZImage(LatentModel):
    """The parts of a pipeline. Implements finextract.models.base.TunableModel."""

    transformer: Any  # diffusers.ZImageTransformer2DModel
    text_encoder: Any  # transformers.Qwen3Model
    tokenizer: Any  # transformers.Qwen2Tokenizer
    solver: FlowEuler

    components: ClassVar[tuple[str, ...]] = ("transformer", "text_encoder")  # what fine-tuning changes
    encoders: ClassVar[Mapping[str, str]] = {}  # no trainer is known to write embeddings for it

    @property
    def family(self) -> Family:
        """The model family."""
        return "z_image"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample's latents at the model's own image size, which is that of its VAE."""
        side = _latent_side(self.vae)
        return self.transformer.config.in_channels, side, side

    @torch.inference_mode()
    def condition(self, prompt: str) -> Tensor:
        """Qwen's last states but one of a prompt in its frame, [L, D]; a longer prompt is cut.

        Qwen's attention is causal, so that padding would change no state, and there is none.
        """
        # The transformer has places for the text and its padding, for one token between, and for the image.
        places = self.transformer.config.axes_lens[0] - 2
        tokens = self.tokenizer(
            framed(prompt), truncation=True, max_length=min(TOKENS, places // _PADDED_TO * _PADDED_TO),
            return_tensors="pt",
        )  # fmt: skip
        with self.using(self.text_encoder):
            states = self.text_encoder(
                tokens.input_ids.to(self.device), output_hidden_states=True, use_cache=False
            )
        text: Tensor = states.hidden_states[-2][0]
        return text

    def predict(self, x: Tensor, t: float, conditioning: Tensor) -> Tensor:
        """v_theta(x_t, t, c): latents [N, C, H, W], both sides even -> velocity [N, C, H, W].

        The transformer's time is 0 at the noise and 1 at the image, and it predicts the way to the image.
        """
        n = len(x)
        to_image = self.transformer(
            list(x.unsqueeze(2)),  # one frame each
            torch.full((n,), 1 - t / TRAINED_TIMES, device=x.device),
            [conditioning] * n,
            return_dict=False,
        )[0]
        return -torch.stack(to_image).squeeze(2)

    def with_words(self, words: Sequence[LearnedWord]) -> Self:
        """Raises UnsupportedWeights."""
        raise UnsupportedWeights(
            f"the embedding {words[0].key[:120]!r} beside the adapter cannot be used: learned words are "
            "known for no text encoder of Z-Image."
        )

    def load_components(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replaces the weights of the transformer, and of the text encoder where they are given.

        A text encoder may be stored with a head that predicts words, which is not used. Raises BaseMismatch.
        """
        text = weights.get("text_encoder", {})
        own = {key.removeprefix("model."): tensor for key, tensor in text.items() if key != "lm_head.weight"}
        super().load_components({**weights, "text_encoder": own})

    def load_single_file(self, weights: dict[str, Tensor]) -> None:
        """Replaces the weights by those of one file in the model's own names; its VAE is not used.

        Raises BaseMismatch.
        """
        from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers

        self.load_components({
            "transformer": parts.converted(weights, convert_z_image_transformer_checkpoint_to_diffusers),
            "text_encoder": parts.inner_keys(weights, _SINGLE_FILE_PREFIX),
        })  # fmt: skip


def framed(prompt: str) -> str:
    """A prompt as Qwen3's published chat template puts it: one message of a user, and the answer's opening.

    A folder's own template is not read: it is a program of whoever made the folder.
    """
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def load(loader: ComponentLoader, dtype: torch.dtype) -> ZImage:
    """Loads a pipeline of this family.

    Raises PickledWeights where its weights are pickles, CorruptWeights where a part is missing or damaged.
    """
    import diffusers
    from transformers import Qwen2TokenizerFast, Qwen3Model

    vae = flow_vae_of(loader, dtype)
    scheduler = loader.scheduler(diffusers.FlowMatchEulerDiscreteScheduler)
    return ZImage(
        offloading=loader.offloading,
        transformer=loader.module("transformer", diffusers.ZImageTransformer2DModel, dtype),
        text_encoder=loader.module("text_encoder", Qwen3Model, dtype, attn_implementation="sdpa"),
        tokenizer=loader.tokenizer("tokenizer", Qwen2TokenizerFast),
        vae=vae,
        solver=FlowEuler.of_scheduler(scheduler.config, (_latent_side(vae) // 2) ** 2, to_last_time=False),
    )


def _latent_side(vae: Any) -> int:
    side: int = vae.config.sample_size // image_factor(vae)
    return side
