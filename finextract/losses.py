"""Log-ratios of denoising losses under common noise, and the cache of what depends on the base alone.

N = queries, C, H, W = channels, height and width of latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finextract.finite import require_finite
from finextract.framing import frame, variant
from finextract.images import Picture
from finextract.models.base import Conditioning, Model, Pair
from finextract.sampling import initial_noise

ENCODED_AT_ONCE = 8  # pictures: an autoencoder needs far more memory for a picture than a denoiser
HEAT_SIDE = 8  # cells of a heat map across, and down
LATENT_BYTES = 1 << 29  # of latents that a cache keeps: 16,000 pictures of 512 pixels in half precision

Side = Literal["base", "tuned"]  # of a pair


@dataclass(frozen=True, slots=True)
class Query:
    """One view of one picture at one time."""

    picture: Picture
    framing: str = "squash"
    variant: str = ""  # "" is the framed picture itself
    t: float = 0.0

    @property
    def view(self) -> tuple[str, str, str]:
        """What its latents depend on."""
        return self.picture.key, self.framing, self.variant


class BaseCache:
    """Latents and base losses of pictures. It serves all pairs of one base, and is not thread-safe.

    A loss is stored under the picture's key, framing and variant, the timestep and the noise seed.
    """

    def __init__(self, latent_bytes: int = LATENT_BYTES) -> None:
        self.losses: dict[tuple[str, str, str, float, int], float] = {}
        self.directions: dict[str, Tensor] = {}  # of the prefilter: name of a corpus -> float16 [R, D]
        self.predictions: dict[tuple[str, float], Tensor] = {}  # of the base, by a name of x_t and by t
        self._latents: dict[tuple[str, str, str], Tensor] = {}
        self._left = latent_bytes

    def latents(self, view: tuple[str, str, str]) -> Tensor | None:
        """The latents [C, H, W] of a view, where they are kept."""
        return self._latents.get(view)

    def keep(self, view: tuple[str, str, str], latents: Tensor) -> None:
        """Keeps the latents [C, H, W] of a view while there is room; the first ones are those used again."""
        size = latents.numel() * latents.element_size()
        if view not in self._latents and size <= self._left:
            self._left -= size
            self._latents[view] = latents.cpu()


class Losses:
    """The log-ratios of one pair, with the number of evaluations that they took."""

    def __init__(
        self,
        pair: Pair,
        noise_seed: int,
        caption: str,
        batch_size: int,
        cache: BaseCache,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.pair, self.cache, self.noise_seed = pair, cache, noise_seed
        self.tuned_evaluations = self.base_evaluations = 0
        self._batch_size, self._progress = batch_size, progress
        self._tuned: dict[tuple[tuple[str, str, str], float], float] = {}
        self._tuned_maps: dict[tuple[tuple[str, str, str], float], Tensor] = {}  # alike, by place
        self._caption = caption
        self._conditioning: tuple[Conditioning, Conditioning] | None = None

    def log_ratios(self, queries: Sequence[Query], stage: str = "") -> NDArray[np.float32]:
        """log of the base's loss over the tuned model's, float32 [N], in the order of the queries.

        The loss is the squared error of the prediction, averaged over the latents; all queries of a timestep
        have the same noise. The base has the empty prompt. In the ratio the parametrisation cancels: at one
        x_t the errors of noise, velocity and flow are multiples of each other.
        Raises NotFinite where a loss is not finite, and what a picture's `open` raises.
        """
        todo = [q for q in dict.fromkeys(queries) if (q.view, q.t) not in self._tuned]
        todo.sort(key=lambda q: (q.t, q.framing if "x" in q.framing else ""))
        done = 0
        for (t, _), alike in groupby(todo, key=lambda q: (q.t, q.framing if "x" in q.framing else "")):
            group = list(alike)
            while group:
                batch = group[: self._batch_size]
                try:
                    self._evaluate(batch, t)
                except torch.OutOfMemoryError:
                    if self._batch_size == 1:
                        raise
                    self._batch_size //= 2
                    continue
                group, done = group[len(batch) :], done + len(batch)
                if self._progress:
                    self._progress(stage, done, len(todo))
        base = self.cache.losses
        ratios = [np.log(base[self._key(q)] / self._tuned[q.view, q.t]) for q in queries]
        return np.array(ratios, np.float32)

    def heat_maps(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        """Where the fine-tuning lowered the losses of views: the log-ratio of each cell, float32 [N, S, S].

        S = HEAT_SIDE cells across and down, with the mean squared error of each (Kim and Lee 2026 localise
        what a model memorised by the same contrast). The views must have been evaluated before; the base is
        evaluated once more for each.
        """
        found = []
        for query in queries:
            x, target, base, _ = self._noised([query], query.t)
            _, (cells,) = self._losses("base", x, target, query.t, base)
            self.base_evaluations += 1
            found.append((cells / self._tuned_maps[query.view, query.t]).log())
        return torch.stack(found).numpy() if found else np.empty((0, HEAT_SIDE, HEAT_SIDE), np.float32)

    def latents(self, queries: Sequence[Query]) -> Tensor:
        """The latents of views that have one size, [N, C, H, W]. Raises NotFinite."""
        base = self.pair.base
        found = [self.cache.latents(q.view) for q in queries]
        missing = [i for i, latents in enumerate(found) if latents is None]
        size = min(self._batch_size, ENCODED_AT_ONCE)
        for at in range(0, len(missing), size):
            batch = missing[at : at + size]
            pixels = np.stack([_pixels(queries[i], base.image_size) for i in batch])  # [n, H, W, 3]
            encoded = base.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
            require_finite(encoded, "the latents that the base model's VAE makes of the pictures")
            for i, latents in zip(batch, encoded, strict=True):
                found[i] = latents
                self.cache.keep(queries[i].view, latents)
        return torch.stack([x.to(base.device) for x in found if x is not None])

    def difference(self, name: str, x: Tensor, t: float) -> Tensor:
        """The base's prediction less the tuned model's, for noisy latents x_t [N, C, H, W] that `name` names.

        The base's prediction is kept in the cache under that name. Raises NotFinite.
        """
        base, tuned = self._conditionings()
        known, parts = self.cache.predictions, torch.split(x, self._batch_size)
        with torch.inference_mode():
            if (name, t) not in known:
                found = torch.cat([self.pair.base.predict(part, t, base) for part in parts])
                known[name, t] = require_finite(found, f"the base model's predictions at t = {t:g}")
                self.base_evaluations += len(x)
            made = torch.cat([self.pair.tuned.predict(part, t, tuned) for part in parts])
            require_finite(made, f"the tuned model's predictions at t = {t:g}")
        self.tuned_evaluations += len(x)
        return known[name, t] - made

    def noise(self, t: float, shape: torch.Size) -> Tensor:
        """The noise [C, H, W] of all pictures at one time."""
        seed = self.noise_seed * 65536 + round(t * 16)
        channels, height, width = shape
        return initial_noise([seed], (channels, height, width))[0]

    def _conditionings(self) -> tuple[Conditioning, Conditioning]:
        if self._conditioning is None:
            self._conditioning = self.pair.base.condition(""), self.pair.tuned.condition(self._caption)
        return self._conditioning

    def _noised(self, batch: Sequence[Query], t: float) -> tuple[Tensor, Tensor, Conditioning, Conditioning]:
        """x_t and the target of views, both [N, C, H, W], and the conditionings of the base and the other."""
        latents, solver = self.latents(batch), self.pair.base.solver
        noise = self.noise(t, latents.shape[1:]).to(latents.device, latents.dtype).expand_as(latents)
        x, target = solver.add_noise(latents, noise, t), solver.target(latents, noise, t)
        return x, target, *self._conditionings()

    def _evaluate(self, batch: Sequence[Query], t: float) -> None:
        x, target, base, tuned = self._noised(batch, t)
        losses = zip(*self._losses("tuned", x, target, t, tuned), strict=True)
        for query, (loss, cells) in zip(batch, losses, strict=True):
            self._tuned[query.view, t] = loss
            self._tuned_maps[query.view, t] = cells
        self.tuned_evaluations += len(batch)
        missing = [i for i, query in enumerate(batch) if self._key(query) not in self.cache.losses]
        if missing:
            found, _ = self._losses("base", x[missing], target[missing], t, base)
            self.cache.losses.update(zip((self._key(batch[i]) for i in missing), found, strict=True))
            self.base_evaluations += len(missing)

    @torch.inference_mode()
    def _losses(
        self, side: Side, x: Tensor, target: Tensor, t: float, conditioning: Conditioning
    ) -> tuple[list[float], Tensor]:
        """The mean squared error of predictions for x_t [N, C, H, W], one number a picture, above 0.

        And that of each cell of a heat map, float32 [N, HEAT_SIDE, HEAT_SIDE] on the CPU.
        """
        predicted = getattr(self.pair, side).predict(x, t, conditioning)
        error = (predicted.float() - target.float()).square().mean(dim=1)
        require_finite(error, f"the {side} model's losses at t = {t:g}")
        losses: list[float] = error.mean(dim=(1, 2)).clamp(min=1e-20).tolist()
        return losses, torch.nn.functional.adaptive_avg_pool2d(error, HEAT_SIDE).clamp(min=1e-20).cpu()

    def _key(self, query: Query) -> tuple[str, str, str, float, int]:
        return *query.view, query.t, self.noise_seed


def _pixels(query: Query, size: tuple[int, int]) -> NDArray[np.uint8]:
    framed = frame(query.picture.open(), query.framing, size)
    return variant(framed, query.variant) if query.variant else framed


@torch.inference_mode()
def fingerprint(model: Model) -> str:
    """Names a loaded model by its weights, precision and autoencoder, 32 hex digits.

    Two models with the same fingerprint have the same losses. It reads a sample of every layer's weights, and
    the latents of one picture, so it takes a fraction of a second and serves as a key, not as a proof.
    """
    digest = hashlib.sha256(f"{model.dtype} {model.device.type} {model.image_size}".encode())
    for name, layer in sorted(model.layers().items()):
        weight = layer.weight
        assert isinstance(weight, Tensor)
        flat = weight.detach().reshape(-1)
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(flat[:: max(1, flat.numel() // 256)].float().cpu().numpy().tobytes())
    height, width = model.image_size
    ramp = torch.arange(height * width * 3).remainder(256).to(torch.uint8).reshape(1, 3, height, width)
    digest.update(model.encode(ramp).float().cpu().numpy().round(2).tobytes())
    return digest.hexdigest()[:32]
