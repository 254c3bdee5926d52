"""A base model and a model tuned from it, loaded side by side. Safetensors only; never unpickles.

`load_pair(base, tuned)` reads the tuned weights as full weights (a diffusers folder, one file in the original
Stable Diffusion keys, a UNet file) or as a LoRA, and gives both models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finextract.adapters.lora import merge_lora, parse_lora
from finextract.errors import BaseMismatch, CorruptWeights, UnsupportedWeights
from finextract.metadata.local_files import read_object
from finextract.models.stable_diffusion import StableDiffusion, load_into, load_pipeline
from finextract.weights.files import component_paths, find_weights
from finextract.weights.formats import classify, read_header


@dataclass(frozen=True)
class Pair:
    """The base model, the tuned one, and how it was tuned."""

    base: StableDiffusion
    tuned: StableDiffusion
    kind: Literal["full", "lora"]


def load_pair(
    base: Path, tuned: Path, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Pair:
    """Loads a diffusers pipeline folder and weights tuned from it.

    Raises a CheckpointError (finextract.errors) that tells what is wrong with either.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return tune(load_pipeline(base, device, dtype), tuned)


def tune(base: StableDiffusion, tuned: Path) -> Pair:
    """The pair of a loaded base and tuned weights: a file, or a folder as a hub serves it."""
    path = find_weights(tuned)
    model = base.copy_for_tuning()
    if path.is_dir():
        _load_full(model, _load_component(path, "unet"), _load_component(path, "text_encoder"), path.name)
        return Pair(base, model, "full")
    header = read_header(path)
    kind = classify(header)
    state = _load_state(path)
    if kind.kind == "lora":
        merge_lora(
            parse_lora(state, header.metadata, read_object(path.parent / "adapter_config.json")),
            model.unet,
            model.text_encoder,
        )
        return Pair(base, model, "lora")
    if kind.kind == "unet":
        _load_full(model, state, {}, path.name)
    elif kind.kind == "full" and kind.style == "ldm" and kind.family in ("sd1", "sd2"):
        unet, text = _from_ldm(state, model)
        _load_full(model, unet, text, path.name)
    else:
        raise UnsupportedWeights(
            f"{path.name} holds {kind.family} weights of the kind {kind.kind}; "
            "only full weights and LoRA of Stable Diffusion 1.x can be scanned so far."
        )
    return Pair(base, model, "full")


def _load_state(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(path)
        return state
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptWeights(
            f"{path.name} cannot be read as safetensors: {error}. Fetch it again."
        ) from error


def _load_component(folder: Path, component: str) -> dict[str, Tensor]:
    """The tensors of one component of a pipeline folder, from one file or from shards."""
    state: dict[str, Tensor] = {}
    for file in component_paths(folder, component):
        read_header(file)
        state.update(_load_state(file))
    return state


def _load_full(model: StableDiffusion, unet: dict[str, Tensor], text: dict[str, Tensor], name: str) -> None:
    wrong = load_into(model.unet, unet)
    if wrong is None and text:  # a checkpoint without a text encoder was trained with the base's
        wrong = load_into(model.text_encoder, text)
    if wrong is not None:
        raise BaseMismatch(f"{name} does not fit its base model: {wrong}. Is the base the right one?")


def _from_ldm(
    state: dict[str, Tensor], model: StableDiffusion
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """UNet and text encoder in diffusers names, from one file in the original Stable Diffusion names."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_ldm_unet_checkpoint

    try:
        unet = convert_ldm_unet_checkpoint(state, dict(model.unet.config))
        text = convert_ldm_clip_checkpoint(state)
    except (KeyError, IndexError, AttributeError) as error:
        raise BaseMismatch(
            f"the file does not have the layers of its base model: {error} is missing."
        ) from error
    return unet, text
