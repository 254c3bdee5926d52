"""Stable Diffusion 1.x-shaped models: one CLIP text encoder, a UNet with cross-attention, a KL or tiny VAE.

N = samples, L = text positions, D = text width. Loads safetensors only, from local folders only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finextract.errors import BaseMismatch, CorruptWeights
from finextract.metadata.untrusted import whole_of
from finextract.pipeline_folder import read_config, refuse_pickles
from finextract.sampling import DDIM
from finextract.support import component_class
from finextract.text import first_line

_LAYOUT = torch.channels_last  # of the UNet's weights and of all latents; the faster one for convolutions
_MAX_STEPS_OFFSET = 999


@dataclass(frozen=True)
class StableDiffusion:
    """The parts of a pipeline. Implements finextract.models.base.TunableModel."""

    unet: Any  # diffusers.UNet2DConditionModel
    text_encoder: Any  # transformers.CLIPTextModel
    tokenizer: Any  # transformers.CLIPTokenizer
    vae: Any  # diffusers.AutoencoderKL or AutoencoderTiny
    solver: DDIM

    components = ("unet", "text_encoder")  # what fine-tuning changes

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the UNet's weights."""
        dtype: torch.dtype = next(self.unet.parameters()).dtype
        return dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample's latents at the model's own image size."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that the model is made for."""
        config = self.vae.config
        levels = (
            config.get("encoder_block_out_channels") or config.block_out_channels
        )  # a tiny VAE's, a KL VAE's
        factor = 2 ** (len(levels) - 1)
        _, height, width = self.latent_shape
        return height * factor, width * factor

    @torch.inference_mode()
    def condition(self, prompt: str) -> Tensor:
        """The text encoder's last hidden states for a prompt, [1, L, D]; a longer prompt is cut."""
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings),
            truncation=True,
            return_tensors="pt",
        )
        states: Tensor = self.text_encoder(tokens.input_ids.to(self.device))[0]
        return states

    def predict(self, x: Tensor, t: float, conditioning: Tensor) -> Tensor:
        """eps_theta(x_t, t, c): latents [N, C, H, W], conditioning [1, L, D] -> noise [N, C, H, W]."""
        context = conditioning.expand(len(x), -1, -1)
        eps: Tensor = self.unet(x.to(memory_format=_LAYOUT), t, encoder_hidden_states=context).sample
        return eps

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, C, H, W] -> RGB images uint8 [N, 3, H', W'] on the CPU."""
        config = self.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        latents = latents.to(self.vae.dtype, memory_format=_LAYOUT)
        images = self.vae.decode(latents / config.scaling_factor + shift).sample
        result: Tensor = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        return result

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """RGB images uint8 [N, 3, H', W'] -> their latents [N, C, H, W], as a trainer scales them."""
        config = self.vae.config
        pixels = images.to(self.device, self.vae.dtype, memory_format=_LAYOUT) / 127.5 - 1
        encoded = self.vae.encode(pixels)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        shift = getattr(config, "shift_factor", None) or 0.0
        result: Tensor = ((latents - shift) * config.scaling_factor).to(self.dtype)
        return result

    def layers(self) -> dict[str, nn.Module]:
        """The linear, convolutional and normalisation layers of the UNet and the text encoder."""
        return {
            f"{component}.{name}": layer
            for component in self.components
            for name, layer in getattr(self, component).named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm)
        }

    def copy_for_tuning(self) -> StableDiffusion:
        """The same model with a UNet and a text encoder of its own; tokenizer and VAE are shared."""
        return replace(self, unet=copy.deepcopy(self.unet), text_encoder=copy.deepcopy(self.text_encoder))

    def load_components(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replaces the weights of the UNet and the text encoder, where they are given.

        A checkpoint without a text encoder was trained with that of its base. Raises BaseMismatch.
        """
        for component in self.components:
            if weights.get(component) or component == "unet":
                _load_into(getattr(self, component), weights.get(component, {}))

    def load_single_file(self, weights: dict[str, Tensor]) -> None:
        """Replaces the weights by those of one file in the original Stable Diffusion names.

        Raises BaseMismatch.
        """
        from diffusers.loaders.single_file_utils import (
            convert_ldm_clip_checkpoint,
            convert_ldm_unet_checkpoint,
        )

        try:
            unet = convert_ldm_unet_checkpoint(weights, dict(self.unet.config))
            text_encoder = convert_ldm_clip_checkpoint(weights)
        except (KeyError, IndexError, AttributeError) as error:
            raise BaseMismatch(f"it lacks {first_line(error)}, which the base model has") from error
        self.load_components({"unet": unet, "text_encoder": text_encoder})


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> StableDiffusion:
    """Loads a diffusers pipeline folder of this family. The safety checker and custom code are never loaded.

    Raises PickledWeights where its weights are pickles, CorruptWeights where a part is missing or damaged.
    """
    import diffusers
    from transformers import CLIPTextModel, CLIPTokenizer

    vae_class = getattr(diffusers, component_class(read_config(folder, "model_index.json"), "vae"))
    scheduler = read_config(folder, "scheduler/scheduler_config.json")
    offset = whole_of(scheduler.get("steps_offset", 0), 0, _MAX_STEPS_OFFSET)
    if offset is None:
        raise CorruptWeights(f"{folder.name}/scheduler/scheduler_config.json has no usable steps_offset.")
    refuse_pickles(folder, ("unet", "text_encoder", "vae"))
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    try:
        unet = diffusers.UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", torch_dtype=dtype, **options
        )
        text = CLIPTextModel.from_pretrained(
            folder, subfolder="text_encoder", dtype=dtype, attn_implementation="sdpa", **options
        )
        vae = vae_class.from_pretrained(folder, subfolder="vae", torch_dtype=dtype, **options)
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
        noise = diffusers.DDIMScheduler.from_config(
            {k: v for k, v in scheduler.items() if k not in ("_class_name", "_diffusers_version")}
        )
    except Exception as error:  # diffusers and transformers raise errors of any class for a damaged folder
        raise CorruptWeights(f"{folder.name} cannot be loaded as a pipeline: {first_line(error)}.") from error
    for module in (unet, text, vae):
        module.to(device).eval().requires_grad_(False)
    unet.to(memory_format=_LAYOUT)
    solver = DDIM(noise.alphas_cumprod.float().cpu(), offset, float(noise.final_alpha_cumprod))
    return StableDiffusion(unet, text, tokenizer, vae, solver)


def _load_into(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads weights by name. Raises BaseMismatch, with a tensor that does not fit and why.

    Text encoders are stored with and without a `text_model.` prefix, depending on the transformers version
    that wrote them: keys are mapped to those of the module. Position ids are no weights.
    """
    wanted = module.state_dict()
    named = {}
    for key, tensor in state.items():
        if key.endswith("position_ids"):
            continue
        for name in (key, key.removeprefix("text_model."), f"text_model.{key}"):
            if name in wanted:
                named[name] = tensor
                break
        else:
            raise BaseMismatch(f"it has {key}, which the base model lacks")
    for name, tensor in wanted.items():
        if name.endswith("position_ids"):
            continue
        if name not in named:
            raise BaseMismatch(f"it lacks {name}, which the base model has")
        if named[name].shape != tensor.shape:
            raise BaseMismatch(f"{name} is {list(named[name].shape)}, the base model's {list(tensor.shape)}")
    module.load_state_dict(named, strict=False)
