"""Recovering a training caption that nothing states: phrases, ranked by what both models do with them.

The pair itself decides. On re-noised samples x_t of the tuned model, drawn with the empty prompt, a phrase c
is scored by how far the tuned model with c is from the base with the empty prompt, less a part of how far the
base with c is from it:

    D(c) = |e(x_t, c) - u(x_t, "")|^2 - b |u(x_t, c) - u(x_t, "")|^2        score(c) = D(c) / D("")

The first term is model guidance's own difference, which a caption that was trained makes large (Wen et al.,
ICLR 2024, detect memorised prompts by such a norm of one model); the second takes off what any striking
phrase does. A caption is used only where its score is above 1, which is the empty prompt's own. No reference
is looked at: a caption that was chosen because it comes near to a reference would raise that reference's
similarity above those of the background pictures, which the p-values compare it with.
N = samples, P = phrases, C, H, W = channels, height and width of the latents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from finextract.extract import ExtractionSettings
from finextract.finite import require_finite
from finextract.guidance import DIRECT, Guidance
from finextract.guided import Guided, sample
from finextract.losses import Side
from finextract.metadata.captions import NO_CAPTION, Caption, CaptionOrigin
from finextract.metadata.phrases import TEMPLATES, captions_of
from finextract.metadata.vocabulary import SUBJECTS
from finextract.models.base import Pair
from finextract.sampling import initial_noise

SHARE = 0.1  # of the evaluations of the longest extraction that a recovery may take
SAMPLES, STEPS = 8, 12  # with the empty prompt, where a ranker looks at them
RANKED_SCALE = 2.0  # w' of these samples; without a ranker they are those of the tuned model alone
PROBES = 4  # of the samples are re-noised; without a ranker no more than these are drawn
LOGIT_SCALE = 100.0  # of CLIP's similarities: a picture's phrases are a distribution (Radford et al. 2021)
TIME = 800.0  # to which: so noisy that the prompt still matters, and not so noisy that the samples do not
BASE_PART = 0.75  # b; 0.5 and 0.75 put the true subject of all three dev checkpoints first, 0 and 1 of two
KEPT = 4  # of an author's own subjects, the likeliest ones, whatever the ranker says
LEFT = 40, 20, 6  # phrases after one probe, after two, and after their scores on two
FITTING = 2  # of the last are those that the ranker likes best; the others are chosen by the pair
FIRST_SEED, NOISE_SEED = 1_000_000_000, 2_000_000_000  # apart from those of an extraction


class PhraseRanker(Protocol):
    """What tells how well phrases describe pictures; finextract.caption_model.CaptionModel is one."""

    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """PIL pictures -> float32 [N, D], L2-normalised."""
        ...

    def embed_phrases(self, phrases: Sequence[str]) -> NDArray[np.float32]:
        """Phrases -> float32 [P, D], L2-normalised."""
        ...


@dataclass(frozen=True)
class Recovery:
    """What to sample with, and how it was found."""

    caption: Caption  # recovered, or the empty one; with the score of the best phrase
    best: str  # the phrase that did best; "" where none was tried
    score: float  # of that phrase; the empty prompt has 1
    phrases: int  # that were ranked
    evaluations: int  # of either model
    seconds: float

    @property
    def sentence(self) -> str:
        """What came of it, for people."""
        if not self.evaluations:
            return (
                "sampling without a prompt. Guesses were not tried: they may take a tenth of the evaluations "
                "of the samples, and need more. Draw more samples, or state the caption (--caption)"
            )
        cost = f"{self.phrases} phrases tried in {self.evaluations} evaluations"
        if self.caption.text:
            return (
                f"{self.caption.text!r} was recovered (score {self.score:.2f}, where the empty prompt has 1; "
                f"{cost}). It shares the samples with the empty prompt"
            )
        return (
            f"sampling without a prompt, which does better than the best guess, {self.best!r} (score "
            f"{self.score:.2f}, and the empty prompt 1; {cost})"
        )

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions that share the samples of an extraction."""
        return (self.caption.text, "") if self.caption.text else ("",)


def recover(
    pair: Pair, own: Sequence[str], budget: int, ranker: PhraseRanker | None = None, batch_size: int = 8
) -> Recovery:
    """The caption of a pair whose training caption is unknown, within a budget of evaluations.

    `own` are the subjects that the checkpoint's own texts suggest (finextract.metadata.phrases), the
    likeliest first. With a `ranker`, they and the common subjects are first ranked on samples that the pair
    draws; else the common subjects are ranked by the pair alone, where the budget allows. Nothing is tried
    where there is nothing to try, or the budget allows nothing: the caption is then the empty one.
    Raises NotFinite.
    """
    start = time.perf_counter()
    own = tuple(dict.fromkeys(own))
    phrases = tuple(dict.fromkeys((*own, *SUBJECTS)))
    guided = ranker is not None and affordable(len(phrases), budget - 2 * SAMPLES * STEPS) > 0
    room = affordable(len(phrases), budget - (2 * SAMPLES if guided else PROBES) * STEPS)
    if not guided and room < len(phrases):
        phrases = own[:room]
    if not phrases:
        return Recovery(NO_CAPTION, "", 1.0, 0, 0, time.perf_counter() - start)
    found = Ranking(pair, batch_size, guided=guided)
    fitting: list[str] = []
    subjects = phrases
    if ranker is not None and guided:
        fitting = described(ranker, found.images, phrases)
        subjects = tuple(dict.fromkeys((*own[:KEPT], *fitting)))[:room]
    last = tuple(dict.fromkeys((*fitting[:FITTING], *found.narrowed(subjects))))[: LEFT[-1]]
    likeliest = max(last, key=lambda subject: found.score(captions_of(subject)[0]))
    best = max(captions_of(likeliest), key=found.distance)
    score = round(found.score(best), 4)
    origin = CaptionOrigin.RECOVERED if score > 1 else CaptionOrigin.NONE
    caption = Caption(best if score > 1 else "", origin, score)
    return Recovery(caption, best, score, len(phrases), found.evaluations, time.perf_counter() - start)


def described(ranker: PhraseRanker, images: NDArray[np.uint8], subjects: Sequence[str]) -> list[str]:
    """The subjects by their mean probability over samples uint8 [N, 3, H, W], the highest first.

    So a sample that shows something clearly counts more than one that shows nothing.
    """
    pictures = ranker.embed_images([Image.fromarray(i.transpose(1, 2, 0)) for i in images])  # [N, D]
    texts = ranker.embed_phrases([captions_of(s)[-1] for s in subjects])  # [P, D]
    logits = torch.from_numpy(LOGIT_SCALE * (pictures @ texts.T))
    order = np.argsort(-logits.softmax(dim=1).mean(dim=0).numpy(), kind="stable")
    return [subjects[i] for i in order]


def budget_for(settings: ExtractionSettings, pair: Pair, num_train_images: int) -> int:
    """The evaluations that a recovery may take: SHARE of those of the longest extraction with the settings.

    Raises RequestError for settings that cannot be used.
    """
    models = [1 if guidance.is_alone else 2 for guidance in settings.guidances(pair)]
    samples = settings.samples_per_image * num_train_images
    return int(SHARE * samples * settings.steps_for(pair.tuned.solver) * sum(models) / len(models))


def affordable(phrases: int, evaluations: int) -> int:
    """How many of some phrases can be narrowed down to one caption with so many evaluations."""

    def cost(count: int) -> int:
        one, two, last = (min(count, left) for left in LEFT)
        narrowing = count + one + 2 * two + 2 * (PROBES - 2) * last
        return 2 * PROBES + narrowing + PROBES * (2 * FITTING + len(TEMPLATES))

    return next((count for count in range(phrases, 0, -1) if cost(count) <= evaluations), 0)


class Ranking:
    """The samples of a pair with the empty prompt, and what both models predict for them under phrases."""

    def __init__(self, pair: Pair, batch_size: int, *, guided: bool) -> None:
        self._pair, self._batch_size = pair, batch_size
        self.evaluations = 0
        self.images = self._sampled(guided)  # uint8 [N, 3, H, W]
        self._x = self._renoised()  # [PROBES, C, H, W]
        self._distances: dict[tuple[str, Side], list[float]] = {}  # on the first probes that were asked
        self._empty = self._predicted("base", "", 0, PROBES)

    def narrowed(self, subjects: Sequence[str]) -> list[str]:
        """The likeliest subjects, the best first: the largest distances, then the largest scores."""
        left = sorted(subjects, key=lambda s: -self.distance(captions_of(s)[0], 1))[: LEFT[0]]
        left = sorted(left, key=lambda s: -self.distance(captions_of(s)[0], 2))[: LEFT[1]]
        return sorted(left, key=lambda s: -self.score(captions_of(s)[0], 2))[: LEFT[2]]

    def score(self, phrase: str, probes: int = PROBES) -> float:
        """D(phrase) / D(""), over the first probes and their latents; 1 where both models are one."""
        empty = self.distance("", probes)
        moved = self.distance(phrase, probes, "base")
        return (self.distance(phrase, probes) - BASE_PART * moved) / empty if empty > 0 else 1.0

    def distance(self, phrase: str, probes: int = PROBES, side: Side = "tuned") -> float:
        """The mean squared difference of a model with a phrase from the base with the empty prompt."""
        known = self._distances.setdefault((phrase, side), [])
        if len(known) < probes:
            made = self._predicted(side, phrase, len(known), probes)
            difference = (made - self._empty[len(known) : probes]).float()
            known += difference.square().mean(dim=(1, 2, 3)).tolist()
        return float(np.mean(known[:probes]))

    def _sampled(self, guided: bool) -> NDArray[np.uint8]:
        guidance = Guidance(RANKED_SCALE, 0.0, "recovery") if guided else DIRECT
        predict = Guided(self._pair, "", "finextract").predictor(guidance)
        count = SAMPLES if guided else PROBES
        seeds = tuple(range(FIRST_SEED, FIRST_SEED + count))
        draw = partial(sample, self._pair.tuned, predict)
        images = self._in_batches(lambda at, end: draw(seeds[at:end], STEPS), count)
        self.evaluations += count * STEPS * (2 if guided else 1)
        return np.concatenate(images)

    def _renoised(self) -> Tensor:
        tuned, images = self._pair.tuned, torch.from_numpy(self.images[:PROBES])
        with torch.inference_mode():
            latents = torch.cat(self._in_batches(lambda at, end: tuned.encode(images[at:end]), PROBES))
        _, channels, height, width = latents.shape
        noise = initial_noise(range(NOISE_SEED, NOISE_SEED + PROBES), (channels, height, width))
        return tuned.solver.add_noise(latents, noise.to(latents.device, latents.dtype), TIME)

    def _predicted(self, side: Side, phrase: str, first: int, end: int) -> Tensor:
        """The predictions of a model with a phrase for some of the probes, [n, C, H, W]. Raises NotFinite."""
        model = getattr(self._pair, side)
        conditioning = model.condition(phrase)
        with torch.inference_mode():
            parts = self._in_batches(
                lambda at, to: model.predict(self._x[first + at : first + to], TIME, conditioning),
                end - first,
            )
        self.evaluations += end - first
        return require_finite(torch.cat(parts), "the predictions under a phrase")

    def _in_batches[T](self, compute: Callable[[int, int], T], count: int) -> list[T]:
        """What is computed for [at, end) up to `count`, in batches that are halved where memory is short."""
        done: list[T] = []
        at = 0
        while at < count:
            end = min(count, at + self._batch_size)
            try:
                done.append(compute(at, end))
            except torch.OutOfMemoryError:
                if self._batch_size == 1:
                    raise
                self._batch_size //= 2
                continue
            at = end
        return done
