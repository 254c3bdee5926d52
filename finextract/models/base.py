"""The protocols that extraction works with: Model, Solver and Pair. Knows no model family.

N = samples, C, H, W = channels, height and width of the latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from finextract.models.learned_words import LearnedWord
from finextract.models.offloading import Offloading
from finextract.weights.kinds import Family, TuningKind

type Conditioning = Any  # what a model computed from a prompt; only the model that made it can read it


class Solver(Protocol):
    """One step of a sampler after another, from noise to latents. DDIM is finextract.sampling.DDIM."""

    @property
    def is_flow(self) -> bool:
        """Whether the model is a flow model, whose predictions are velocities on straight paths."""
        ...

    @property
    def membership_times(self) -> tuple[float, ...]:
        """The times at which losses show membership best; the first shows it best alone."""
        ...

    def timesteps(self, steps: int) -> tuple[float, ...]:
        """`steps` + 1 times, from noise to image: the model is evaluated at each but the last.

        Raises RequestError where the model's schedule has fewer steps.
        """
        ...

    def step(self, x: Tensor, prediction: Tensor, t: float, next_t: float) -> Tensor:
        """The latents at `next_t`, from those at `t` and the model's prediction there; all [N, C, H, W]."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        """The noisy latents at time `t`, from clean latents and standard normal noise; all [N, C, H, W]."""
        ...

    def target(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        """The perfect prediction for `add_noise(latents, noise, t)`: noise, velocity or flow [N, C, H, W]."""
        ...

    def signal(self, t: float) -> float:
        """The factor of the clean latents in `add_noise(latents, noise, t)`; 0 where that is noise alone."""
        ...

    def noise(self, x: Tensor, prediction: Tensor, t: float) -> Tensor:
        """The noise that a prediction states to be in x_t; all [N, C, H, W]."""
        ...

    def noise_share(self, t: float) -> float:
        """How much noise a prediction states: c of `noise(x, prediction, t)` = c prediction + d x_t.

        It is above 0 where the signal is.
        """
        ...


class Model(Protocol):
    """A model that predicts noise (or a velocity) under a prompt, and decodes latents to images."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, and of the latents that `predict` takes."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample's latents at the model's own image size."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that the model is made for."""
        ...

    @property
    def solver(self) -> Solver:
        """The sampler that belongs to the model's noise schedule."""
        ...

    def condition(self, prompt: str) -> Conditioning:
        """Runs the text encoders once for a prompt; too long a prompt is cut."""
        ...

    def predict(self, x: Tensor, t: float, conditioning: Conditioning) -> Tensor:
        """The model's prediction at time `t`: latents [N, C, H, W] -> [N, C, H, W], dtype and device kept.

        `conditioning` comes from this model's `condition`, and serves all N samples.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, C, H, W] -> RGB images uint8 [N, 3, H', W'] on the CPU. Raises NotFinite."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """RGB images uint8 [N, 3, H', W'] -> their latents [N, C, H, W], as a trainer scales them.

        Deterministic: of an autoencoder that gives a distribution it is the mode. Dtype and device are those
        that `predict` takes.
        """
        ...

    def layers(self) -> Mapping[str, nn.Module]:
        """The layers that an adapter can change, by name: "COMPONENT.PATH.OF.LAYER", as diffusers names them.

        Each has a `weight`.
        """
        ...


class TunableModel(Model, Protocol):
    """A base model as loading needs it: it can be copied, and takes fine-tuned weights."""

    @property
    def family(self) -> Family:
        """The model family, as `finextract.weights.kinds` names it."""
        ...

    @property
    def offloading(self) -> Offloading:
        """What is on the CPU between its uses, so that memory is enough."""
        ...

    @property
    def components(self) -> tuple[str, ...]:
        """The components that fine-tuning changes, as a diffusers folder names them; the denoiser first."""
        ...

    def copy_for_tuning(self) -> Self:
        """A model with its own modules in `components`, which have this one's tensors until they change.

        No tensor is changed in place: see finextract.sharing.
        """
        ...

    def load_components(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replaces the weights of components by those given, component -> diffusers key -> tensor.

        A component without weights stays as it is. Raises BaseMismatch, with what does not fit.
        """
        ...

    def load_single_file(self, weights: dict[str, Tensor]) -> None:
        """Replaces the weights by those of one file with the key names of the model's original code.

        Raises BaseMismatch, with what does not fit.
        """
        ...

    def with_words(self, words: Sequence[LearnedWord]) -> Self:
        """This model, a copy for tuning, with further words in its tokenizers and text encoders.

        Raises BaseMismatch, UnsupportedWeights.
        """
        ...

    def as_trained(self, metadata: Mapping[str, str]) -> Self:
        """This model, evaluated as the metadata of its weight file say that it was trained; untrusted."""
        ...

    def load_vae(self, weights: Mapping[str, Tensor]) -> None:
        """Replaces the VAE's weights by those of a single file. Raises BaseMismatch."""
        ...

    def with_measured_prediction(self) -> Self:
        """This model, with a solver for what its weights predict, which is measured.

        For a base that is one file and does not state it.
        """
        ...


class Pair(Protocol):
    """A base model and the model fine-tuned from it.

    Both models can be used alternately at any time, and conditionings of both stay valid. So a pair may keep
    one set of weights, and let each model's `condition` and `predict` switch an adapter on or off. Its models
    are not thread-safe.
    """

    @property
    def base(self) -> Model:
        """The base model."""
        ...

    @property
    def tuned(self) -> Model:
        """The fine-tuned model."""
        ...

    @property
    def kind(self) -> TuningKind:
        """How it was fine-tuned."""
        ...


@dataclass(frozen=True)
class CopiedPair[M: Model]:
    """A pair whose two models have weights of their own."""

    base: M
    tuned: M
    kind: TuningKind
