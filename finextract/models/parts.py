"""What the models of several families share: latents and images, tokens, and weights that replace others.

N = samples, C, H, W = channels, height and width of the latents. Knows no model family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finextract.errors import BaseMismatch, CorruptWeights
from finextract.pipeline_folder import refuse_pickles
from finextract.text import first_line

_ORIGINAL_PREFIX = "model.diffusion_model."
_OTHER_PARTS = ("first_stage_model.", "vae.", "text_encoders.")  # beside the transformer in a single file


def image_factor(vae: Any) -> int:
    """How many pixels, in each direction, one latent stands for."""
    levels: int = len(vae.config.block_out_channels)
    return 1 << (levels - 1)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents [N, C, H, W], scaled as a trainer scales them -> RGB images uint8 [N, 3, H', W'] on the CPU."""
    shift = vae.config.shift_factor or 0.0
    images = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor + shift).sample
    result: Tensor = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    return result


def encode(vae: Any, images: Tensor) -> Tensor:
    """RGB images uint8 [N, 3, H', W'] -> the mode of their latents [N, C, H, W], in the VAE's dtype."""
    pixels = images.to(vae.device, vae.dtype) / 127.5 - 1
    shift = vae.config.shift_factor or 0.0
    latents: Tensor = (vae.encode(pixels).latent_dist.mode() - shift) * vae.config.scaling_factor
    return latents


def vae_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """The precision of a VAE: float32 where its configuration asks for it, as those of SD3 and FLUX.1 do."""
    return torch.float32 if config.get("force_upcast", True) else dtype


def token_ids(tokenizer: Any, prompt: str, length: int) -> Tensor:
    """The token ids int64 [1, length] of a prompt, padded or cut."""
    tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = tokens.input_ids
    return ids


def layers_of(components: Mapping[str, nn.Module | None]) -> dict[str, nn.Module]:
    """The linear, convolutional and normalisation layers of components that have a weight."""
    return {
        f"{component}.{name}": layer
        for component, module in components.items()
        if module is not None
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm) and layer.weight is not None
    }


@contextmanager
def loading(folder: Path, components: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The options with which a component of a pipeline folder is loaded: safetensors only, from disk only.

    Raises PickledWeights where a component's weights are pickles, and CorruptWeights for whatever diffusers
    and transformers raise within the block.
    """
    refuse_pickles(folder, components)
    try:
        yield {"use_safetensors": True, "local_files_only": True}
    except Exception as error:  # they raise errors of any class for a damaged folder
        raise CorruptWeights(f"{folder.name} cannot be loaded as a pipeline: {first_line(error)}.") from error


def load_into(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Replaces all weights of a module by those of another file, cast to the module's precision.

    A text encoder's keys have a `text_model.` prefix or none, depending on the transformers version that
    wrote them: they are mapped to those of the module. Position ids are no weights, and of tensors that a
    module stores under two names (T5's embedding) one is enough. Raises BaseMismatch, with a tensor that does
    not fit and why.
    """
    wanted = module.state_dict()
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.endswith("position_ids"):
            continue
        names = (key, key.removeprefix("text_model."), f"text_model.{key}")
        name = next((name for name in names if name in wanted), None)
        if name is None:
            raise BaseMismatch(f"it has {key[:120]}, which the base model lacks")
        named[name] = tensor
    given = {id(module.get_parameter(name)) for name in named if _is_parameter(module, name)}
    for name, tensor in wanted.items():
        if name.endswith("position_ids"):
            continue
        if name not in named:
            if _is_parameter(module, name) and id(module.get_parameter(name)) in given:
                continue
            raise BaseMismatch(f"it lacks {name}, which the base model has")
        if named[name].shape != tensor.shape:
            raise BaseMismatch(f"{name} is {list(named[name].shape)}, the base model's {list(tensor.shape)}")
    module.load_state_dict({name: t.to(wanted[name].dtype) for name, t in named.items()}, strict=False)


def _is_parameter(module: nn.Module, name: str) -> bool:
    owner, _, last = name.rpartition(".")
    return last in module.get_submodule(owner)._parameters


def converted(
    weights: Mapping[str, Tensor], convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """A transformer's tensors in a single file of the original names, under the names of diffusers.

    `convert` is diffusers' converter, which takes the tensors that it knows out of its argument. Raises
    BaseMismatch where tensors are missing or left over: those of another model, or of a quantised file.
    """
    inner = inner_keys(weights, _ORIGINAL_PREFIX) or {
        key: tensor for key, tensor in weights.items() if not key.startswith(_OTHER_PARTS)
    }
    inner = {key: tensor.half() if _is_eighth(tensor) else tensor for key, tensor in inner.items()}
    try:
        result = convert(inner)
    except KeyError as error:
        raise BaseMismatch(f"it lacks {first_line(error)}, which the base model has") from error
    except (IndexError, ValueError, RuntimeError, AttributeError) as error:
        raise BaseMismatch(f"its layers are not those of the base model ({first_line(error)})") from error
    if inner:
        raise BaseMismatch(f"it has {min(inner)[:120]}, which the base model lacks")
    return result


def _is_eighth(tensor: Tensor) -> bool:
    """Whether it holds floating point numbers of 8 bits, which few operations of torch take."""
    return tensor.is_floating_point() and tensor.itemsize == 1


def inner_keys(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
