"""What the families with a UNet share: Stable Diffusion 1.x and 2.x, and SDXL. Latents of a VAE, DDIM steps.

N = samples, L = text positions, D = text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from finextract.errors import BaseMismatch, CorruptWeights, UnsupportedWeights
from finextract.metadata.untrusted import whole_of
from finextract.models.base import Conditioning
from finextract.models.component_loaders import ComponentLoader
from finextract.models.parts import LatentModel, vae_of
from finextract.reasons import ReasonCode
from finextract.sampling import DDIM, initial_noise
from finextract.text import first_line

_MAX_STEPS_OFFSET = 999
_NOISE_ALIKE = 0.5  # cosine of noise and of the noise that is predicted in it, at least


@dataclass(frozen=True, kw_only=True)
class UNetModel(LatentModel):
    """The parts of a pipeline; a family adds text encoders, `condition`, `predict` and `load_single_file`."""

    unet: Any  # diffusers.UNet2DConditionModel
    solver: DDIM

    layout = torch.channels_last  # of the UNet's weights too; the faster one for convolutions

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample's latents at the model's own image size."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    def condition(self, prompt: str) -> Conditioning:
        """What the family computes from a prompt. See finextract.models.base.Model."""
        raise NotImplementedError

    def predict(self, x: Tensor, t: float, conditioning: Any) -> Tensor:
        """The noise or velocity in x_t, [N, C, H, W] -> [N, C, H, W]."""
        raise NotImplementedError

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


def load_parts(
    loader: ComponentLoader, dtype: torch.dtype, text_encoders: Mapping[str, type[Any]]
) -> dict[str, Any]:
    """The UNet, the VAE, the solver, the text encoders and their tokenizers of a pipeline.

    `text_encoders` maps their components to their classes; the tokenizer of "text_encoder_2" is
    "tokenizer_2". The safety checker and custom code are never loaded. A VAE whose configuration says that
    it overflows in float16 (`force_upcast`) is kept in float32 then.

    Raises PickledWeights where its weights are pickles, CorruptWeights where a part is missing or damaged.
    """
    import diffusers
    from transformers import CLIPTokenizer

    scheduler = loader.config("scheduler/scheduler_config.json")
    upcast = dtype == torch.float16 and loader.config("vae/config.json").get("force_upcast")
    parts = {
        "unet": loader.module("unet", diffusers.UNet2DConditionModel, dtype),
        "vae": vae_of(loader, torch.float32 if upcast else dtype),
    }
    parts["unet"].to(memory_format=UNetModel.layout)
    for name, encoder in text_encoders.items():
        parts[name] = loader.module(name, encoder, dtype, attn_implementation="sdpa")
        tokenizer = name.replace("text_encoder", "tokenizer")
        parts[tokenizer] = loader.tokenizer(tokenizer, CLIPTokenizer)
    noise = loader.scheduler(diffusers.DDIMScheduler)
    return {**parts, "solver": _solver(loader.name, scheduler, noise), "offloading": loader.offloading}


def _solver(where: str, scheduler: Mapping[str, Any], noise: Any) -> DDIM:
    """DDIM with what a scheduler's configuration states; `noise` is a diffusers scheduler made from it."""
    offset = whole_of(scheduler.get("steps_offset", 0), 0, _MAX_STEPS_OFFSET)
    if offset is None:
        raise CorruptWeights(f"{where}/scheduler/scheduler_config.json has no usable steps_offset.")
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
