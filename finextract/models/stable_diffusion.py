"""Stable Diffusion 1.x-shaped models: one CLIP text encoder, a UNet with cross-attention, a KL or tiny VAE.

N = samples, L = text positions, D = text width. Loads safetensors only, from local folders only.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finextract.errors import CheckpointError, CorruptWeights, PickledWeights, UnsupportedWeights
from finextract.weights.formats import PICKLE_SUFFIXES

CHANNELS_LAST = torch.channels_last


@dataclass(frozen=True)
class StableDiffusion:
    """A model that predicts noise for a prompt and turns latents into pictures."""

    unet: Any  # diffusers.UNet2DConditionModel
    text_encoder: Any  # transformers.CLIPTextModel
    tokenizer: Any  # transformers.CLIPTokenizer
    vae: Any  # diffusers.AutoencoderKL or AutoencoderTiny
    alphas_cumprod: Tensor  # [T] float32, on the CPU
    steps_offset: int
    final_alpha_cumprod: float

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one sample's latents at the model's own size."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @torch.inference_mode()
    def embed_prompt(self, prompt: str) -> Tensor:
        """The text encoder's last hidden states for a prompt, [1, L, D]; longer prompts are cut."""
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        states: Tensor = self.text_encoder(tokens.input_ids.to(self.device))[0]
        return states

    def predict_noise(self, latents: Tensor, t: int, context: Tensor) -> Tensor:
        """eps_theta(x_t, t, c): latents [N, C, H, W], context [1, L, D] -> [N, C, H, W]."""
        context = context.expand(len(latents), -1, -1)
        eps: Tensor = self.unet(latents, t, encoder_hidden_states=context).sample
        return eps

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, C, H, W] -> pictures [N, 3, H', W'] uint8, on the CPU."""
        config = self.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        pictures = self.vae.decode(latents.to(self.vae.dtype) / config.scaling_factor + shift).sample
        result: Tensor = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        return result

    def copy_for_tuning(self) -> StableDiffusion:
        """The same model with a UNet and a text encoder of its own; the rest is shared."""
        return StableDiffusion(
            copy.deepcopy(self.unet),
            copy.deepcopy(self.text_encoder),
            self.tokenizer,
            self.vae,
            self.alphas_cumprod,
            self.steps_offset,
            self.final_alpha_cumprod,
        )


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> StableDiffusion:
    """Loads a diffusers pipeline folder.

    Raises UnsupportedWeights where it is no epsilon-predicting SD1-shaped pipeline, PickledWeights where
    its weights are pickles, CorruptWeights where a part is missing or damaged.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    index = _read_json(folder / "model_index.json")
    vae_class = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}.get(_part(index, "vae"))
    parts = (_part(index, "unet"), _part(index, "text_encoder"), _part(index, "tokenizer"))
    # The safety checker and what a custom pipeline brings along are never loaded.
    if vae_class is None or parts != ("UNet2DConditionModel", "CLIPTextModel", "CLIPTokenizer"):
        raise UnsupportedWeights(
            f"{folder.name} is a {index.get('_class_name')!s:.60}; "
            "only Stable Diffusion 1.x-shaped pipelines can be scanned so far."
        )
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    if scheduler.get("prediction_type", "epsilon") != "epsilon":
        raise UnsupportedWeights(
            f"{folder.name} predicts {scheduler['prediction_type']!s:.40}; only epsilon is known so far."
        )
    _refuse_pickles(folder)
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    try:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype, **options)
        text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype, **options)
        vae = vae_class.from_pretrained(folder, subfolder="vae", torch_dtype=dtype, **options)
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
        noise = DDIMScheduler.from_config(
            {k: v for k, v in scheduler.items() if k not in ("_class_name", "_diffusers_version")}
        )
    except CheckpointError:
        raise
    except Exception as error:  # diffusers and transformers raise of every kind for a damaged folder
        raise CorruptWeights(
            f"{folder.name} cannot be loaded as a pipeline: {_first_line(error)}."
        ) from error
    for module in (unet, text, vae):
        module.to(device).eval().requires_grad_(False)
    unet.to(memory_format=CHANNELS_LAST)
    return StableDiffusion(
        unet,
        text,
        tokenizer,
        vae,
        noise.alphas_cumprod.float().cpu(),
        int(scheduler.get("steps_offset", 0)),
        float(noise.final_alpha_cumprod),
    )


def load_into(module: nn.Module, state: dict[str, Tensor]) -> str | None:
    """Loads weights by name; returns what does not fit (a tensor and why), or None where all fit.

    Text encoders are stored with and without a `text_model.` prefix, depending on the transformers version
    that wrote them: keys are mapped to what the module has. Position ids are no weights.
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
            return f"it has {key}, which the base model has not"
    for name, tensor in wanted.items():
        if name.endswith("position_ids"):
            continue
        if name not in named:
            return f"it has no {name}, which the base model has"
        if named[name].shape != tensor.shape:
            return f"{name} is {list(named[name].shape)}, the base model's {list(tensor.shape)}"
    module.load_state_dict(named, strict=False)
    return None


def _refuse_pickles(folder: Path) -> None:
    for part in ("unet", "text_encoder", "vae"):
        files = list((folder / part).glob("*")) if (folder / part).is_dir() else []
        if files and not any(f.suffix == ".safetensors" for f in files):
            pickles = [f.name for f in files if f.suffix in PICKLE_SUFFIXES]
            if pickles:
                raise PickledWeights(
                    f"{folder.name}/{part}/{pickles[0]} is a pickle, which can run code when it is opened; "
                    "it was not opened. Ask its author for safetensors."
                )


def _read_json(path: Path) -> dict[str, Any]:
    where = f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorruptWeights(f"{where} is missing: this is no complete diffusers pipeline folder.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptWeights(f"{where} cannot be read: {_first_line(error)}.") from error
    if not isinstance(value, dict):
        raise CorruptWeights(f"{where} holds no JSON object.")
    return value


def _part(index: dict[str, Any], name: str) -> str:
    entry = index.get(name)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
