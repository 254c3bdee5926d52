"""What FLUX.1 and the models built like it share: latents that are packed into tokens.

N = samples, C, H, W = channels, height and width of the latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finextract.models.component_loaders import ComponentLoader
from finextract.models.parts import LatentModel, flow_vae_of, image_factor
from finextract.sampling import FlowEuler

T5_TOKENS = 512  # of a prompt


@dataclass(frozen=True, kw_only=True)
class PackedModel(LatentModel):
    """The parts that such a pipeline has at least; a family adds the others, `condition` and `predict`."""

    transformer: Any  # of diffusers
    solver: FlowEuler

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample's latents at the model's own image size, which is that of its VAE."""
        side = self.vae.config.sample_size // image_factor(self.vae)
        return self.transformer.config.in_channels // 4, side, side


def packed(latents: Tensor) -> Tensor:
    """Each 2 x 2 square of latents as one token: [N, C, H, W] -> [N, H/2 * W/2, 4C]."""
    return nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The latents [N, C, height, width] of tokens [N, height/2 * width/2, 4C]."""
    n, _, channels = tokens.shape
    squares = tokens.transpose(1, 2).reshape(n, channels, height // 2, width // 2)
    return nn.functional.pixel_shuffle(squares, 2)


def image_places(height: int, width: int, device: torch.device) -> Tensor:
    """(0, row, column) of each image token, float32 [height * width, 3], for the rotary embedding."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.cartesian_prod(torch.zeros(1, device=device), rows.float(), columns.float())


def load_packed(loader: ComponentLoader, dtype: torch.dtype, transformer: type[Any]) -> dict[str, Any]:
    """The fields of a PackedModel, with a transformer of that class."""
    import diffusers

    vae = flow_vae_of(loader, dtype)
    scheduler = loader.scheduler(diffusers.FlowMatchEulerDiscreteScheduler)
    tokens = (vae.config.sample_size // image_factor(vae) // 2) ** 2
    return {
        "offloading": loader.offloading,
        "transformer": loader.module("transformer", transformer, dtype),
        "vae": vae,
        "solver": FlowEuler.of_scheduler(scheduler.config, tokens, to_last_time=False),
    }
