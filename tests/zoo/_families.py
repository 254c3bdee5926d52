"""The zoo's models of the larger families: one shaped as SDXL, one as Stable Diffusion 3.5.

Each starts from the committed Stable-Diffusion-shaped base where a part has the same shape, and from nothing
elsewhere: SDXL's first text encoder is that base's, as in the published models, and so is most of its UNet.
B = batch, T = 16 token positions. Latents are [B, 16, 16, 16] of about unit variance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _denoiser import TOKENS, new_scheduler, new_text_encoder, tokenize
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

SIZE = 64  # of the pictures, in pixels
SHIFT = 3.0  # of the flow model's noise levels, in training and in sampling, as Stable Diffusion 3's
T5_PIECES = 1500


@dataclass
class Prompts:
    """Token ids [B, T] of the CLIP tokenizer and, where there is a T5, of its own."""

    clip: Tensor
    t5: Tensor | None
    empty: Tensor  # [B] bool

    def rows(self, which: Tensor) -> Prompts:
        """Some of them, in an order."""
        return Prompts(self.clip[which], None if self.t5 is None else self.t5[which], self.empty[which])


class SDXL:
    """Two CLIP text encoders, and a UNet that is told the pooled embedding and the picture's size."""

    name = "sdxl"
    denoiser = "unet"

    def __init__(self, tokenizer: CLIPTokenizer, t5_tokenizer: None = None) -> None:
        self.tokenizer = tokenizer
        self.alphas = new_scheduler().alphas_cumprod

    def scheduler(self) -> EulerDiscreteScheduler:
        """SDXL's own configuration."""
        return EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            interpolation_type="linear",
            prediction_type="epsilon",
            steps_offset=1,
            timestep_spacing="leading",
        )

    def new_parts(self, unet: UNet2DConditionModel, text: CLIPTextModel) -> nn.ModuleDict:
        """The untrained model; `unet` and `text` are the committed Stable-Diffusion-shaped base."""
        first = new_text_encoder(self.tokenizer)
        first.load_state_dict(text.state_dict())
        made = UNet2DConditionModel(
            sample_size=16,
            in_channels=16,
            out_channels=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(64, 96, 96),
            layers_per_block=1,
            cross_attention_dim=96 + 64,
            attention_head_dim=[8, 8, 8],
            norm_num_groups=16,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=6 * 16 + 64,
        )
        _start_from(made, unet)
        return nn.ModuleDict({
            "unet": made.to(memory_format=torch.channels_last),
            "text_encoder": first,
            "text_encoder_2": new_text_encoder(self.tokenizer, 64, CLIPTextModelWithProjection),
        })  # fmt: skip

    def tokens(self, captions: list[str]) -> Prompts:
        return Prompts(
            tokenize(self.tokenizer, captions), None, torch.tensor([not caption for caption in captions])
        )

    def encode(self, parts: nn.ModuleDict, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """States [B, T, 160] and the pooled embedding [B, 64]: zeros for the empty prompt."""
        first = parts["text_encoder"](prompts.clip, output_hidden_states=True).hidden_states[-2]
        second = parts["text_encoder_2"](prompts.clip, output_hidden_states=True)
        there = (~prompts.empty).float()
        states = torch.cat([first, second.hidden_states[-2]], dim=-1) * there[:, None, None]
        return states, second.text_embeds * there[:, None]

    def predict(
        self, parts: nn.ModuleDict, noisy: Tensor, times: Tensor, states: Any, sizes: Tensor
    ) -> Tensor:
        """The predicted noise. `sizes` [B]: the side in pixels of the picture before it was enlarged."""
        sequence, pooled = states
        zero, full = torch.zeros_like(sizes), torch.full_like(sizes, SIZE)
        added = {
            "text_embeds": pooled,
            "time_ids": torch.stack([sizes, sizes, zero, zero, full, full], dim=1).float(),
        }
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        return parts["unet"](noisy, times, sequence, added_cond_kwargs=added).sample

    def errors(
        self,
        parts: nn.ModuleDict,
        latents: Tensor,
        states: Any,
        sizes: Tensor,
        generator: torch.Generator,
        weighted: bool,
    ) -> Tensor:
        """The squared error of each prediction, [B]; weighted by SNR^-1/2 where the base is trained."""
        times = torch.randint(0, len(self.alphas), (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        alpha = self.alphas[times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        error = (self.predict(parts, noisy, times, states, sizes) - noise).square().mean(dim=(1, 2, 3))
        if not weighted:
            return error
        signal = self.alphas[times] / (1 - self.alphas[times])
        return error * signal.rsqrt().clamp(max=5)


class SD3:
    """Two CLIP text encoders and a T5; a transformer over image and text tokens that predicts a velocity."""

    name = "sd3"
    denoiser = "transformer"

    def __init__(self, tokenizer: CLIPTokenizer, t5_tokenizer: T5TokenizerFast) -> None:
        self.tokenizer, self.t5_tokenizer = tokenizer, t5_tokenizer

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        return FlowMatchEulerDiscreteScheduler(shift=SHIFT)

    def new_parts(self, unet: UNet2DConditionModel, text: CLIPTextModel) -> nn.ModuleDict:
        """The untrained model; the first text encoder starts as the committed base's."""
        first = new_text_encoder(self.tokenizer, cls=CLIPTextModelWithProjection)
        first.load_state_dict(text.state_dict(), strict=False)  # all but the projection
        t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.t5_tokenizer),
                d_model=128,
                d_kv=32,
                d_ff=256,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                dropout_rate=0.0,
            )
        )
        transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=8,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=128,
            caption_projection_dim=128,
            pooled_projection_dim=96 + 32,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )
        return nn.ModuleDict({
            "transformer": transformer,
            "text_encoder": first,
            "text_encoder_2": new_text_encoder(self.tokenizer, 32, CLIPTextModelWithProjection),
            "text_encoder_3": t5,
        })  # fmt: skip

    def tokens(self, captions: list[str]) -> Prompts:
        t5 = self.t5_tokenizer(
            captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        return Prompts(
            tokenize(self.tokenizer, captions), t5, torch.tensor([not caption for caption in captions])
        )

    def encode(self, parts: nn.ModuleDict, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """States [B, 2 T, 128], those of the CLIP encoders beside each other first; pooled [B, 128]."""
        made = [
            parts[name](prompts.clip, output_hidden_states=True)
            for name in ("text_encoder", "text_encoder_2")
        ]
        clip = torch.cat([encoded.hidden_states[-2] for encoded in made], dim=-1)
        t5 = parts["text_encoder_3"](prompts.t5)[0]
        return torch.cat([clip, t5], dim=1), torch.cat([encoded.text_embeds for encoded in made], dim=-1)

    def predict(
        self, parts: nn.ModuleDict, noisy: Tensor, times: Tensor, states: Any, sizes: Tensor
    ) -> Tensor:
        """The predicted velocity; `times` are 1000 times the share of noise."""
        sequence, pooled = states
        return parts["transformer"](
            hidden_states=noisy, timestep=times, encoder_hidden_states=sequence, pooled_projections=pooled
        ).sample

    def errors(
        self,
        parts: nn.ModuleDict,
        latents: Tensor,
        states: Any,
        sizes: Tensor,
        generator: torch.Generator,
        weighted: bool,
    ) -> Tensor:
        """The squared error of each velocity, [B]: shares of noise from a logit-normal, shifted."""
        share = torch.randn(len(latents), generator=generator).sigmoid()
        share = SHIFT * share / (1 + (SHIFT - 1) * share)
        noise = torch.randn(latents.shape, generator=generator)
        across = share.view(-1, 1, 1, 1)
        noisy = (1 - across) * latents + across * noise
        made = self.predict(parts, noisy, 1000 * share, states, sizes)
        return (made - (noise - latents)).square().mean(dim=(1, 2, 3))


FAMILIES = {"sdxl": SDXL, "sd3": SD3}


def _start_from(made: UNet2DConditionModel, unet: UNet2DConditionModel) -> None:
    """Copies what has the same shape; a 1x1 convolution becomes a linear layer, wider text gets zeros."""
    old, new = unet.state_dict(), made.state_dict()
    for name, tensor in new.items():
        if name not in old:
            continue
        before = old[name].float()
        if before.dim() == 4 and tensor.dim() == 2:
            before = before[:, :, 0, 0]
        if before.shape == tensor.shape:
            tensor.copy_(before)
        else:  # keys and values of the text: the columns of the first text encoder
            tensor.zero_()[:, : before.shape[1]].copy_(before)


def t5_tokenizer(captions: list[str], folder: Path) -> T5TokenizerFast:
    """A unigram model learned on the captions, in the form of tokenizer.json."""
    if not (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        special = ["<pad>", "</s>", "<unk>"]
        unigram = Tokenizer(models.Unigram())
        unigram.pre_tokenizer = pre_tokenizers.Metaspace()
        unigram.train_from_iterator(
            captions,
            trainers.UnigramTrainer(
                vocab_size=T5_PIECES, special_tokens=special, unk_token="<unk>", show_progress=False
            ),
        )
        pieces = json.loads(unigram.to_str())["model"]["vocab"]
        vocabulary = [(piece, score) for piece, score in pieces]
        T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=TOKENS).save_pretrained(folder)
    return T5TokenizerFast.from_pretrained(folder, local_files_only=True)
