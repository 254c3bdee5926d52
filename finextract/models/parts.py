"""What the models of several families share: latents and images, tokens, and weights that replace others.

N = samples, C, H, W = channels, height and width of the latents, L = text positions, D = text width, P =
pooled width. Knows no model family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from finextract.errors import BaseMismatch, CorruptWeights
from finextract.finite import require_finite
from finextract.models.component_loaders import ComponentLoader
from finextract.models.learned_words import LearnedWord, learn
from finextract.models.offloading import Offloading, device_of, on_device
from finextract.models.scaled_weights import is_eighth
from finextract.sharing import copy_sharing, replace_tensors
from finextract.single_files import DENOISER_PREFIX, VAE_PREFIXES
from finextract.support import component_class
from finextract.text import first_line
from finextract.weights.kinds import Family

PIXELS_AT_ONCE = 1 << 20  # that a VAE decodes or encodes
_OTHER_PARTS = (*VAE_PREFIXES, "text_encoders.")  # beside the transformer in a single file


@dataclass(frozen=True)
class TextStates:
    """What several text encoders make of one prompt."""

    sequence: Tensor  # [1, L, D]
    pooled: Tensor  # [1, P]


@dataclass(frozen=True, kw_only=True)
class LatentModel:
    """What the models of all families share. A family adds its other parts, and the rest of TunableModel."""

    vae: Any  # diffusers.AutoencoderKL or AutoencoderTiny
    offloading: Offloading = "nothing"

    components: ClassVar[tuple[str, ...]]  # what fine-tuning changes; the denoiser first
    encoders: ClassVar[Mapping[str, str]]  # what files of embeddings call the text encoders -> components
    layout: ClassVar[torch.memory_format] = torch.preserve_format  # of latents and images

    @property
    def family(self) -> Family:
        """The model family."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        return device_of(self._modules[self.components[0]])

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the denoiser's weights."""
        dtype: torch.dtype = next(self._modules[self.components[0]].parameters()).dtype
        return dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample's latents at the model's own image size."""
        raise NotImplementedError

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that the model is made for."""
        factor = image_factor(self.vae)
        _, height, width = self.latent_shape
        return height * factor, width * factor

    @property
    def _modules(self) -> dict[str, nn.Module]:
        """The components that the model has."""
        found = {name: getattr(self, name) for name in self.components}
        return {name: module for name, module in found.items() if module is not None}

    @contextmanager
    def using(self, module: nn.Module) -> Iterator[None]:
        """A text encoder or the VAE is on the device within the block."""
        if self.offloading == "nothing":
            yield
            return
        with on_device(module, self.device):
            yield

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, C, H, W] -> RGB images uint8 [N, 3, H', W'] on the CPU. Raises NotFinite."""
        config, images = self.vae.config, []
        with self.using(self.vae):
            for some in torch.split(latents, self._at_once):
                some = some.to(self.vae.dtype, memory_format=self.layout)
                decoded = self.vae.decode(some / config.scaling_factor + _shift(config)).sample
                require_finite(decoded, "the pictures that the VAE makes of sampled latents")
                images.append(((decoded.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
        return torch.cat(images)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """RGB images uint8 [N, 3, H', W'] -> their latents [N, C, H, W], as a trainer scales them."""
        config, latents = self.vae.config, []
        with self.using(self.vae):
            for some in torch.split(images, self._at_once):
                pixels = some.to(self.device, self.vae.dtype, memory_format=self.layout) / 127.5 - 1
                encoded = self.vae.encode(pixels)
                found = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
                latents.append(((found - _shift(config)) * config.scaling_factor).to(self.dtype))
        return torch.cat(latents)

    @property
    def _at_once(self) -> int:
        """How many pictures the VAE takes at once; it needs far more memory for one than the denoiser."""
        height, width = self.image_size
        return max(1, PIXELS_AT_ONCE // (height * width))

    def layers(self) -> dict[str, nn.Module]:
        """The linear, convolutional and normalisation layers that have a weight, "unet.mid_block...."."""
        return {
            f"{component}.{name}": layer
            for component, module in self._modules.items()
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm)
            and layer.weight is not None
        }

    def copy_for_tuning(self) -> Self:
        """The same model with modules of its own, which share their tensors until they are replaced."""
        copies: dict[str, Any] = {name: copy_sharing(module) for name, module in self._modules.items()}
        return replace(self, **copies)

    def with_words(self, words: Sequence[LearnedWord]) -> Self:
        """This model with learned words in its text encoders. For a copy: its own encoders are changed.

        Raises BaseMismatch, UnsupportedWeights.
        """
        names = [*self.encoders.values()]
        names += [name.replace("text_encoder", "tokenizer") for name in names]
        tokenizers: dict[str, Any] = learn({n: getattr(self, n) for n in names}, self.encoders, words)
        return replace(self, **tokenizers)

    def as_trained(self, metadata: Mapping[str, str]) -> Self:
        """This model; a family that is told how it was trained reads it there."""
        return self

    def with_measured_prediction(self) -> Self:
        """This model; a family whose files do not tell what their weights predict measures it."""
        return self

    def load_components(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replaces the weights of the denoiser, and of the text encoders where they are given.

        A checkpoint without a text encoder was trained with that of its base. Raises BaseMismatch.
        """
        for component, module in self._modules.items():
            if weights.get(component) or component == self.components[0]:
                load_into(module, weights.get(component, {}))

    def load_vae(self, weights: Mapping[str, Tensor]) -> None:
        """Replaces the VAE's weights by those of one file in the original names. Raises BaseMismatch."""
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        inner = {k: t for k, t in weights.items() if k.startswith(VAE_PREFIXES)}
        try:
            named: dict[str, Tensor] = convert_ldm_vae_checkpoint(inner, self.vae.config)
        except (KeyError, IndexError, AttributeError, RuntimeError) as error:
            raise BaseMismatch(f"its VAE lacks {first_line(error)}, which the base model has") from error
        load_into(self.vae, named)


def image_factor(vae: Any) -> int:
    """How many pixels, in each direction, one latent stands for."""
    config = vae.config
    levels = config.get("encoder_block_out_channels") or config.block_out_channels  # a tiny VAE's, a KL VAE's
    return 1 << (len(levels) - 1)


def _shift(config: Any) -> float:
    shift: float = getattr(config, "shift_factor", None) or 0.0
    return shift


def prompt_length(tokenizer: Any, text_encoder: Any) -> int:
    """The number of tokens to which a CLIP text encoder's prompts are padded or cut."""
    length: int = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    return length


def token_ids(tokenizer: Any, prompt: str, length: int) -> Tensor:
    """The token ids int64 [1, length] of a prompt, padded or cut."""
    tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = tokens.input_ids
    return ids


def t5_length(tokenizer: Any, most: int) -> int:
    """The number of tokens to which a T5's prompts are padded or cut.

    That of its pipeline, `most`, or fewer where the tokenizer says so, as that of a small model does.
    """
    length: int = min(most, tokenizer.model_max_length)
    return length


def vae_of(loader: ComponentLoader, precision: torch.dtype) -> Any:
    """The VAE of a pipeline, of the class that its index names."""
    import diffusers

    vae_class = getattr(diffusers, component_class(loader.config("model_index.json"), "vae"))
    return loader.module("vae", vae_class, precision)


def flow_vae_of(loader: ComponentLoader, dtype: torch.dtype) -> Any:
    """The VAE of a pipeline of a flow family, in the precision that it needs. See `vae_dtype`."""
    return vae_of(loader, vae_dtype(loader.config("vae/config.json"), dtype))


def vae_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """The precision of a VAE: float32 where its configuration asks for it, as those of SD3 and FLUX.1 do."""
    return torch.float32 if config.get("force_upcast", True) else dtype


def load_into(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Replaces all weights of a module by those of another file, cast to the module's precision.

    A text encoder's keys have a `text_model.` prefix or none, depending on the transformers version that
    wrote them: they are mapped to those of the module. Position ids are no weights, and of tensors that a
    module stores under two names (T5's embedding) one is enough. Raises BaseMismatch, with a tensor that does
    not fit and why, CorruptWeights for numbers that are not finite in the module's precision.
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
    for name, tensor in named.items():
        dtype = wanted[name].dtype
        if not tensor.is_meta and not torch.isfinite(tensor.to(dtype)).all():
            precision = str(dtype).removeprefix("torch.")
            raise CorruptWeights(f"its {name[:120]} holds numbers that are not finite in {precision}")
    replace_tensors(module, named)


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
    inner = inner_keys(weights, DENOISER_PREFIX) or {
        key: tensor for key, tensor in weights.items() if not key.startswith(_OTHER_PARTS)
    }
    inner = {key: tensor.half() if is_eighth(tensor) else tensor for key, tensor in inner.items()}
    try:
        result = convert(inner)
    except KeyError as error:
        raise BaseMismatch(f"it lacks {first_line(error)}, which the base model has") from error
    except (IndexError, ValueError, RuntimeError, AttributeError) as error:
        raise BaseMismatch(f"its layers are not those of the base model ({first_line(error)})") from error
    if inner:
        raise BaseMismatch(f"it has {min(inner)[:120]}, which the base model lacks")
    return result


def inner_keys(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
