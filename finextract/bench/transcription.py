"""How the published pipeline works, transcribed plainly from a description of the method, to be timed.

Two float32 networks one after the other on batches of five, PNG files, SSCD on one picture at a time, and
all maximal cliques. Nothing of it is used by an extraction. Where the description leaves a choice, the
cheaper one is taken: prompts are conditioned once, and an adapter is merged into the weights.
N = samples, B = samples of one batch, D = embedding size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from finextract.bench.published_cliques import Cover, published_cover
from finextract.bench.stopwatch import Stopwatch
from finextract.errors import RequestError
from finextract.guidance import Guidance, choose_guidance
from finextract.models.base import Pair, Solver
from finextract.models.stable_diffusion import StableDiffusion
from finextract.sampling import DDIM, as_published, initial_noise
from finextract.sscd import Embedder

BATCH_SIZE, STEPS = 5, 50


@dataclass(frozen=True)
class Networks:
    """The parts of a pair that the published pipeline uses, in float32 and in the default memory layout."""

    pair: Pair
    base: Any  # diffusers.UNet2DConditionModel
    tuned: Any
    vae: Any
    solver: Solver  # with the published end
    guidance: Guidance

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.pair.tuned.device


@dataclass(frozen=True)
class Published:
    """What the published pipeline found."""

    images: NDArray[np.uint8]  # [N, 3, H, W]
    embeddings: NDArray[np.float32]  # [N, D], L2-normalised
    cover: Cover

    def candidate_embeddings(self) -> NDArray[np.float32]:
        """Embeddings of the representatives, [K, D]."""
        result: NDArray[np.float32] = self.embeddings[list(self.cover.representatives)]
        return result


def networks_of(pair: Pair) -> Networks:
    """Copies of a pair's networks. Raises RequestError for another family than Stable Diffusion 1.x."""
    base, tuned = pair.base, pair.tuned
    if not (isinstance(base, StableDiffusion) and isinstance(tuned, StableDiffusion)) or (
        base.family != "sd1" or not isinstance(base.solver, DDIM) or base.solver.predicts_velocity
    ):
        raise RequestError(
            "the published pipeline samples Stable Diffusion 1.x alone, which predicts the noise.\n"
            "Name a checkpoint of that family with --zoo and --only."
        )
    return Networks(
        pair,
        _plain(base.unet),
        _plain(tuned.unet),
        _plain(tuned.vae),
        as_published(base.solver),
        choose_guidance("finextract", pair.kind, is_flow=False),
    )


def _plain(network: Any) -> Any:
    return copy.deepcopy(network).to(dtype=torch.float32, memory_format=torch.contiguous_format)


def draw_published(
    networks: Networks, caption: str, samples: int, steps: int, folder: Path, stopwatch: Stopwatch
) -> Iterator[int]:
    """Draws `samples` samples with the seeds from 0 on into a folder, and yields how many after each batch.

    The stages on `stopwatch` are sample, decode and files. What the caller does between batches does not
    count.
    """
    stopwatch.lap(None)
    empty = networks.pair.base.condition("").float()  # [1, L, D]
    captioned = networks.pair.tuned.condition(caption).float()
    for first in range(0, samples, BATCH_SIZE):
        seeds = range(first, min(first + BATCH_SIZE, samples))
        latents = sample_plainly(networks, empty, captioned, list(seeds), steps)
        stopwatch.lap("sample")
        images = _decode(networks.vae, latents)
        stopwatch.lap("decode")
        for seed, image in zip(seeds, images, strict=True):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{seed}.png")
        stopwatch.lap("files")
        yield seeds[-1] + 1
        stopwatch.lap(None)


def find_published(
    folder: Path, samples: int, num_train_images: int, embedder: Embedder, stopwatch: Stopwatch
) -> Published:
    """The candidates among the samples in a folder. The stages are files, embed and cliques."""
    stopwatch.lap(None)
    read, embedded = [], []
    for seed in range(samples):
        with Image.open(folder / f"{seed}.png") as opened:
            picture = opened.convert("RGB")
        stopwatch.lap("files")
        embedded.append(embedder.embed([picture]))
        stopwatch.lap("embed")
        read.append(np.asarray(picture).transpose(2, 0, 1))
    embeddings = np.concatenate(embedded)
    stopwatch.lap("files")
    cover = published_cover(embeddings, num_train_images)
    stopwatch.lap("cliques")
    return Published(np.stack(read), embeddings, cover)


@torch.no_grad()
def sample_plainly(
    networks: Networks, empty: Tensor, captioned: Tensor, seeds: list[int], steps: int
) -> Tensor:
    """Latents float32 [B, C, H, W] of the seeds, from the states of the empty prompt and of the caption.

    u = base network, empty prompt; e = tuned network, caption; the prediction is u + w'(e - u) + k u.
    """
    scale, correction = networks.guidance.guidance_scale, networks.guidance.correction
    x = initial_noise(seeds, networks.pair.tuned.latent_shape).to(networks.device)
    empty, captioned = (states.expand(len(seeds), -1, -1) for states in (empty, captioned))
    for t, next_t in pairwise(networks.solver.timesteps(steps)):
        u = networks.base(x, t, encoder_hidden_states=empty).sample
        e = networks.tuned(x, t, encoder_hidden_states=captioned).sample
        x = networks.solver.step(x, u + scale * (e - u) + correction * u, t, next_t)
    return x


@torch.no_grad()
def _decode(vae: Any, latents: Tensor) -> NDArray[np.uint8]:
    """Latents [B, C, H, W] -> RGB images uint8 [B, 3, H', W']."""
    decoded = vae.decode(latents / vae.config.scaling_factor).sample
    images: NDArray[np.uint8] = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    return images
