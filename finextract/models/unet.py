"""What the families with a UNet share: Stable Diffusion 1.x and 2.x, and SDXL. Latents of a VAE, DDIM steps.

N = samples, L = text positions, D = text width. Loads safetensors only, from local folders only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from finextract.errors import BaseMismatch, CorruptWeights, UnsupportedWeights
from finextract.metadata.untrusted import whole_of
from finextract.models.base import Conditioning
from finextract.pipeline_folder import read_config, refuse_pickles
from finextract.reasons import ReasonCode
from finextract.sampling import DDIM, initial_noise
from finextract.support import component_class
from finextract.text import first_line

LAYOUT = torch.channels_last  # of the UNet's weights and of all latents; the faster one for convolutions
_MAX_STEPS_OFFSET = 999
_NOISE_ALIKE = 0.5  # cosine of noise and of the noise that is predicted in it, at least


@dataclass(frozen=True, kw_only=True)
class UNetModel:
    """The parts of a pipeline; a family adds text encoders, `condition`, `predict` and `load_single_file`."""

    unet: Any  # diffusers.UNet2DConditionModel
    vae: Any  # diffusers.AutoencoderKL or AutoencoderTiny
    solver: DDIM

    components: ClassVar[tuple[str, ...]]  # what fine-tuning changes: "unet", and the text encoders

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

    def condition(self, prompt: str) -> Conditioning:
        """What the family computes from a prompt. See finextract.models.base.Model."""
        raise NotImplementedError

    def predict(self, x: Tensor, t: float, conditioning: Any) -> Tensor:
        """The noise or velocity in x_t, [N, C, H, W] -> [N, C, H, W]."""
        raise NotImplementedError

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, C, H, W] -> RGB images uint8 [N, 3, H', W'] on the CPU."""
        config = self.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        latents = latents.to(self.vae.dtype, memory_format=LAYOUT)
        images = self.vae.decode(latents / config.scaling_factor + shift).sample
        result: Tensor = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        return result

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """RGB images uint8 [N, 3, H', W'] -> their latents [N, C, H, W], as a trainer scales them."""
        config = self.vae.config
        pixels = images.to(self.device, self.vae.dtype, memory_format=LAYOUT) / 127.5 - 1
        encoded = self.vae.encode(pixels)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        shift = getattr(config, "shift_factor", None) or 0.0
        result: Tensor = ((latents - shift) * config.scaling_factor).to(self.dtype)
        return result

    def layers(self) -> dict[str, nn.Module]:
        """The linear, convolutional and normalisation layers of the components, "unet.mid_block....".

        Each has a `weight`.
        """
        return {
            f"{component}.{name}": layer
            for component in self.components
            for name, layer in getattr(self, component).named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm)
            and layer.weight is not None
        }

    def copy_for_tuning(self) -> Self:
        """The same model with a UNet and text encoders of its own; tokenizers and VAE are shared."""
        copies = {component: copy.deepcopy(getattr(self, component)) for component in self.components}
        return replace(self, **copies)

    @torch.inference_mode()
    def with_measured_prediction(self) -> Self:
        """This model, with a solver for what its weights predict: the noise or the velocity.

        At the last timestep x is nearly noise alone. A prediction of the noise is nearly x itself there, one
        of the velocity is nearly the negative of a picture.
        """
        t = len(self.solver.alphas_cumprod) - 1
        x = initial_noise([0], self.latent_shape).to(self.device, self.dtype)
        predicted = self.predict(x, t, self.condition(""))
        alike = torch.cosine_similarity(x.flatten().float(), predicted.flatten().float(), dim=0)
        return replace(self, solver=replace(self.solver, predicts_velocity=bool(alike < _NOISE_ALIKE)))

    def load_components(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replaces the weights of the UNet and of the text encoders, where they are given.

        A checkpoint without a text encoder was trained with that of its base. Raises BaseMismatch.
        """
        for component in self.components:
            if weights.get(component) or component == "unet":
                load_into(getattr(self, component), weights.get(component, {}))


def tokenize(tokenizer: Any, text_encoder: Any, prompt: str) -> Tensor:
    """The token ids of a prompt [1, L]; a longer prompt is cut, a shorter one padded."""
    ids: Tensor = tokenizer(
        prompt,
        padding="max_length",
        max_length=min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings),
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids


def load_parts(
    folder: Path, device: torch.device, dtype: torch.dtype, text_encoders: Mapping[str, type[Any]]
) -> dict[str, Any]:
    """The UNet, the VAE, the solver, the text encoders and their tokenizers of a diffusers pipeline folder.

    `text_encoders` maps their components to their classes; the tokenizer of "text_encoder_2" is
    "tokenizer_2". The safety checker and custom code are never loaded. A VAE whose configuration says that
    it overflows in float16 (`force_upcast`) is kept in float32 then.

    Raises PickledWeights where its weights are pickles, CorruptWeights where a part is missing or damaged.
    """
    import diffusers
    from transformers import CLIPTokenizer

    vae_class = getattr(diffusers, component_class(read_config(folder, "model_index.json"), "vae"))
    scheduler = read_config(folder, "scheduler/scheduler_config.json")
    refuse_pickles(folder, ("unet", "vae", *text_encoders))
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    upcast = dtype == torch.float16 and read_config(folder, "vae/config.json").get("force_upcast")
    try:
        parts = {
            "unet": diffusers.UNet2DConditionModel.from_pretrained(
                folder, subfolder="unet", torch_dtype=dtype, **options
            ),
            "vae": vae_class.from_pretrained(
                folder, subfolder="vae", torch_dtype=torch.float32 if upcast else dtype, **options
            ),
        }
        for name, encoder in text_encoders.items():
            parts[name] = encoder.from_pretrained(
                folder, subfolder=name, dtype=dtype, attn_implementation="sdpa", **options
            )
        for module in parts.values():
            module.to(device).eval().requires_grad_(False)
        parts["unet"].to(memory_format=LAYOUT)
        for name in text_encoders:
            tokenizer = name.replace("text_encoder", "tokenizer")
            parts[tokenizer] = CLIPTokenizer.from_pretrained(
                folder, subfolder=tokenizer, local_files_only=True
            )
        parts["solver"] = _solver(folder.name, scheduler)
    except (CorruptWeights, UnsupportedWeights):
        raise
    except Exception as error:  # diffusers and transformers raise errors of any class for a damaged folder
        raise CorruptWeights(f"{folder.name} cannot be loaded as a pipeline: {first_line(error)}.") from error
    return parts


def _solver(where: str, scheduler: Mapping[str, Any]) -> DDIM:
    """DDIM with the noise schedule, the prediction and the spacing that a scheduler's configuration has."""
    from diffusers import DDIMScheduler

    offset = whole_of(scheduler.get("steps_offset", 0), 0, _MAX_STEPS_OFFSET)
    if offset is None:
        raise CorruptWeights(f"{where}/scheduler/scheduler_config.json has no usable steps_offset.")
    noise = DDIMScheduler.from_config(
        {k: v for k, v in scheduler.items() if k not in ("_class_name", "_diffusers_version")}
    )
    alphas = tuple(noise.alphas_cumprod.tolist())
    velocity = scheduler.get("prediction_type") == "v_prediction"
    if alphas[-1] <= 0 and not velocity:
        raise UnsupportedWeights(
            f"{where} predicts the noise under a schedule that ends without a signal: it cannot be sampled.",
            ReasonCode.UNSUPPORTED_FAMILY,
        )
    return DDIM(
        alphas, offset, float(noise.final_alpha_cumprod), velocity,
        scheduler.get("timestep_spacing") == "trailing",
    )  # fmt: skip


def load_into(module: nn.Module, state: Mapping[str, Tensor]) -> None:
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


def unet_of_single_file(weights: dict[str, Tensor], unet: Any) -> dict[str, Tensor]:
    """The tensors of a UNet in one file with the original key names, under the names of diffusers.

    Raises BaseMismatch.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    try:
        converted: dict[str, Tensor] = convert_ldm_unet_checkpoint(weights, dict(unet.config))
    except (KeyError, IndexError, AttributeError) as error:
        raise BaseMismatch(f"it lacks {first_line(error)}, which the base model has") from error
    return converted


def clip_of_single_file(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of OpenAI's CLIP in one file with the original key names; empty where it holds none."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint

    converted: dict[str, Tensor] = convert_ldm_clip_checkpoint(weights)
    return converted


def open_clip_of_single_file(weights: dict[str, Tensor], text_encoder: Any, prefix: str) -> dict[str, Tensor]:
    """The tensors of OpenCLIP's text encoder in one file under the names of transformers; empty for none.

    Stable Diffusion 2 takes the states before the last layer, so its text encoder has one layer less than the
    file; layers and a projection that `text_encoder` does not have are left out. Raises BaseMismatch.
    """
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    if not any(key.startswith(prefix) for key in weights):
        return {}
    try:
        converted: dict[str, Tensor] = convert_open_clip_checkpoint(text_encoder, weights, prefix)
    except (KeyError, IndexError, AttributeError) as error:
        raise BaseMismatch(f"it lacks {first_line(error)}, which the base model has") from error
    layers = text_encoder.config.num_hidden_layers
    names = text_encoder.state_dict()

    def is_there(key: str) -> bool:
        _, _, layer = key.partition("encoder.layers.")
        number = layer.partition(".")[0]
        return int(number) < layers if number.isdigit() else key != "text_projection.weight" or key in names

    return {key: tensor for key, tensor in converted.items() if is_there(key)}
