"""Extraction in rounds on the zoo's real models: memory, stopping early, and equality with plain DDIM."""

import copy
import dataclasses
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from finextract.archive import SampleArchive
from finextract.audit import read_images
from finextract.errors import NotFinite, RequestError
from finextract.extract import (
    Extraction,
    ExtractionSettings,
    conclude,
    extract,
    extract_all,
)
from finextract.guidance import CFG, DIRECT, LORA, Guidance, Method
from finextract.guided import Guided, guided_predictor, sample
from finextract.models.base import CopiedPair, Pair, TunableModel
from finextract.models.loading import load_base, tune
from finextract.sampling import initial_noise
from finextract.sscd import Embedder, load_embedder

ZOO = Path(__file__).resolve().parents[2] / "zoo"
CAPTION = "a picture of a flower"


@pytest.fixture(scope="module")
def pair() -> CopiedPair[TunableModel]:
    base = load_base(ZOO / "base", torch.device("cpu"), torch.float32)
    return tune(base, ZOO / "checkpoints/flowers-lora")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(threads=1)


def _images(extraction: Extraction) -> NDArray[np.uint8]:
    return np.stack([np.asarray(extraction.picture(i)) for i in range(extraction.num_samples)])


class Observed:
    """A real model that hands every call on, with one of its methods replaced."""

    def __init__(self, model: Any, **replaced: Any) -> None:
        self._model = model
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.mark.parametrize(
    ("method", "guidance"), [("finextract", LORA), ("cfg", CFG), ("direct", DIRECT)], ids=lambda v: str(v)
)
def test_a_sample_is_that_of_a_plain_ddim_loop_over_the_modules_of_diffusers_bit_for_bit(
    pair: CopiedPair[Any], method: Method, guidance: Any
) -> None:
    base, tuned = pair.base, pair.tuned

    def noise_of(model: Any, x: Tensor, t: int, prompt: str) -> Tensor:
        tokens = model.tokenizer(
            prompt, padding="max_length", max_length=model.tokenizer.model_max_length, return_tensors="pt"
        )
        states = model.text_encoder(tokens.input_ids)[0].expand(len(x), -1, -1)
        return model.unet(x, t, encoder_hidden_states=states).sample

    w, alphas = guidance.guidance_scale, tuned.solver.alphas_cumprod
    with torch.inference_mode():
        x = initial_noise((5, 6), tuned.latent_shape).to(memory_format=torch.channels_last)
        for t in (751, 501, 251, 1):  # 4 of 1000 steps
            eps = noise_of(tuned, x, t, CAPTION)
            if method == "finextract":
                eps = noise_of(base, x, t, "").lerp(eps, w)
            elif method == "cfg":
                eps = noise_of(tuned, x, t, "").lerp(eps, w)
            alpha = float(alphas[t])
            after = float(alphas[t - 250]) if t > 250 else float(alphas[0])
            x = after**0.5 * ((x - (1 - alpha) ** 0.5 * eps) / alpha**0.5) + (1 - after) ** 0.5 * eps
        decoded = tuned.vae.decode(x / tuned.vae.config.scaling_factor).sample
        expected = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    got = sample(tuned, guided_predictor(pair, CAPTION, method, guidance), (5, 6), steps=4)
    assert np.array_equal(got, expected)


def test_the_images_held_in_memory_do_not_grow_with_the_number_of_samples(pair: CopiedPair[Any]) -> None:
    def most_held(num_train_images: int) -> int:
        """The highest number of decoded samples alive at once, as arrays or as PIL images."""
        held: list[tuple[weakref.ref[Any], int]] = []
        most = 0

        def hold(one: object, samples: int) -> None:
            nonlocal most
            held.append((weakref.ref(one), samples))
            most = max(most, sum(number for ref, number in held if ref() is not None))

        def decode(latents: Tensor) -> Tensor:
            memory = pair.tuned.decode(latents).numpy().copy()
            hold(memory, len(memory))
            return torch.from_numpy(memory)  # whatever shares this memory keeps `memory` alive

        class Thumbnails:
            descriptor = "thumbnails"

            def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
                for image in images:
                    hold(image, 1)
                small = np.stack([np.asarray(image.resize((4, 4)), np.float32).ravel() for image in images])
                return small / np.linalg.norm(small, axis=1, keepdims=True)

        observed: Any = CopiedPair(pair.base, Observed(pair.tuned, decode=decode), "lora")
        settings = ExtractionSettings(samples_per_image=4, steps=1, batch_size=4)
        done = extract_all(observed, CAPTION, num_train_images, settings, Thumbnails())
        assert done.num_samples == 4 * num_train_images
        return most

    assert most_held(3) == most_held(8) <= 3 * 4, "a batch as an array and as images, and the batch before"


def test_samples_beyond_the_memory_of_the_archive_lie_on_disk_and_come_back_bit_for_bit() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 24), np.uint8)
    archive = SampleArchive(memory_bytes=4000)
    archive.add(images[:2])
    archive.add(images[2:])
    assert len(archive) == 5
    assert archive._file._rolled, "the images do not fit into 4000 bytes"
    for i in (4, 0, 2):
        assert np.array_equal(np.asarray(archive.image(i)), images[i].transpose(1, 2, 0))


def test_an_extraction_that_is_stopped_early_is_that_of_the_samples_drawn_so_far(
    pair: Pair, embedder: Embedder
) -> None:
    settings = ExtractionSettings(guidance_scale=5.0, samples_per_image=5, steps=2, batch_size=4, seed=7)
    batches = extract(pair, CAPTION, 4, settings, embedder)
    first, second = next(batches), next(batches)
    batches.close()
    assert (len(first.seeds), len(second.seeds), second.total) == (4, 8, 20)
    assert second.images.shape[0] == 4, "the images of its own batch alone"
    stopped = conclude(second)
    again = extract_all(pair, CAPTION, 4, dataclasses.replace(settings, samples_per_image=2), embedder)
    assert stopped.seeds == again.seeds == tuple(range(7, 15))
    assert np.array_equal(_images(stopped), _images(again))
    assert np.array_equal(stopped.embeddings, again.embeddings)
    assert stopped.candidates == again.candidates
    assert stopped.unet_evaluations == 8 * 2 * 2 + 8 * 2, "all eight samples are examined by both models"


def test_candidates_whose_losses_fell_most_come_first_and_are_nearest_to_training_images() -> None:
    base = load_base(ZOO / "base", torch.device("cpu"), torch.float32)
    trained = tune(base, ZOO / "checkpoints/cats-dreambooth")
    references = load_embedder().embed(read_images(ZOO / "images/subjects/cats")[1])
    settings = ExtractionSettings(samples_per_image=8, samples_per_round=8, steps=12)
    made = extract_all(trained, "a picture of a cat", 5, settings, load_embedder())
    ratios = [c.log_ratio or 0 for c in made.candidates]
    assert len(ratios) == 10
    assert ratios == sorted(ratios, reverse=True)
    assert all(c.representative in c.members for c in made.candidates)
    nearest = (made.candidate_embeddings() @ references.T).max(axis=1)
    assert nearest[:5].mean() > nearest[5:].mean() + 0.05
    assert np.corrcoef(ratios, nearest)[0, 1] > 0.3
    old = dataclasses.replace(settings, preset="single", guidance_scale=2.0)
    made = extract_all(trained, "a picture of a cat", 1, old, load_embedder())
    assert [c.log_ratio for c in made.candidates] == [None, None], "older configurations rank by size"


def test_samples_of_several_strengths_in_one_batch_are_those_of_each_strength_alone(pair: Pair) -> None:
    guided = Guided(pair, CAPTION, "finextract")
    strengths = (Guidance(2.0, 0.0, "given"), Guidance(3.0, -0.02, "given"), Guidance(5.0, 0.0, "given"))
    together = sample(pair.tuned, guided.predictor(*strengths), (1, 2, 3), steps=4)
    for seed, strength in enumerate(strengths, 1):
        (alone,) = sample(pair.tuned, guided.predictor(strength), (seed,), steps=4)
        assert np.abs(together[seed - 1].astype(int) - alone).max() <= 1


class Labels:
    """Stands for SSCD: what it says of a sample is told for each sample in turn."""

    descriptor = "labels"

    def __init__(self, labels: Sequence[int]) -> None:
        self._labels = iter(labels)

    def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        return np.eye(500, dtype=np.float32)[[next(self._labels) for _ in images]]


def test_rounds_end_when_one_brings_no_clique_and_none_grows(pair: Pair) -> None:
    settings = ExtractionSettings(samples_per_image=50, samples_per_round=4, steps=1)
    strangers = range(100, 500)
    nothing = extract_all(pair, CAPTION, 1, settings, Labels([*strangers]))
    assert (nothing.rounds, nothing.num_samples) == (2, 8)
    twins = [1, 1, *strangers[:2], 1, *strangers[2:5], 2, 2, *strangers[5:7], *strangers[7:]]
    found = extract_all(pair, CAPTION, 1, settings, Labels(twins))
    assert (found.rounds, found.num_samples) == (4, 16)


def test_an_extraction_ends_at_its_most_samples_although_every_round_pays(pair: Pair) -> None:
    settings = ExtractionSettings(samples_per_image=10, samples_per_round=4, steps=1)
    always_new = [label for n in range(10) for label in (n, n)]
    done = extract_all(pair, CAPTION, 1, settings, Labels(always_new))
    assert (done.rounds, done.num_samples) == (3, 10)


def test_an_extraction_is_the_same_each_time_and_whatever_the_size_of_its_batches(
    pair: Pair, embedder: Embedder
) -> None:
    settings = ExtractionSettings(samples_per_image=6, samples_per_round=3, steps=2, seed=11)
    one, two = (
        extract_all(pair, CAPTION, 2, dataclasses.replace(settings, batch_size=size), embedder)
        for size in (32, 2)
    )
    assert one.seeds == two.seeds
    assert one.arm_of.tolist() == two.arm_of.tolist()
    assert np.abs(_images(one).astype(int) - _images(two)).max() <= 1


def test_several_captions_share_the_samples(pair: Pair, embedder: Embedder) -> None:
    settings = ExtractionSettings(guidance_scale=2.0, samples_per_image=6, steps=1)
    done = extract_all(pair, [CAPTION, "", CAPTION], 1, settings, embedder)
    assert [arm.caption for arm in done.arms] == [CAPTION, ""]
    assert np.bincount(done.arm_of).tolist() == [3, 3]


def test_the_paper_preset_draws_all_its_samples_at_the_published_strength_and_ends_as_their_loop_does(
    pair: CopiedPair[Any], embedder: Embedder
) -> None:
    settings = ExtractionSettings(preset="paper", samples_per_image=4)
    done = extract_all(pair, CAPTION, 2, settings, embedder)
    assert (done.rounds, done.num_samples, done.settings.steps) == (1, 8, 50)
    assert [arm.guidance for arm in done.arms] == [LORA]
    assert len(done.candidates) >= 2, "its stop rule gives at least N0"
    ends = dataclasses.replace(
        pair.tuned.solver, final_alpha_cumprod=float(pair.tuned.solver.alphas_cumprod[1])
    )
    predict = guided_predictor(pair, CAPTION, "finextract", LORA)
    images = sample(dataclasses.replace(pair.tuned, solver=ends), predict, done.seeds, 50)
    assert np.array_equal(_images(done), images.transpose(0, 2, 3, 1))


class SharingPair:
    """A pair with one set of weights, whose two models switch the fine-tuned layers on and off."""

    kind = "lora"

    def __init__(self, copied: CopiedPair[Any]) -> None:
        self._shared = copy.deepcopy(copied.base)
        stored = {
            "base": {name: layer.weight.clone() for name, layer in copied.base.layers().items()},
            "tuned": {name: layer.weight.clone() for name, layer in copied.tuned.layers().items()},
        }
        self.base, self.tuned = (self._view(weights) for weights in stored.values())

    def _view(self, weights: dict[str, Tensor]) -> Any:
        def switched(call: Any) -> Any:
            def run(*arguments: Any) -> Any:
                for name, layer in self._shared.layers().items():
                    layer.weight.copy_(weights[name])
                return call(*arguments)

            return run

        shared = self._shared
        return Observed(shared, condition=switched(shared.condition), predict=switched(shared.predict))


def test_a_pair_may_share_its_weights_and_the_samples_stay_the_same(
    pair: CopiedPair[Any], embedder: Embedder
) -> None:
    settings = ExtractionSettings(samples_per_image=2, steps=2)
    sharing: Any = SharingPair(pair)
    assert np.array_equal(
        _images(extract_all(sharing, CAPTION, 1, settings, embedder)),
        _images(extract_all(pair, CAPTION, 1, settings, embedder)),
    )


def test_prompts_are_conditioned_once_for_all_batches(pair: CopiedPair[Any], embedder: Embedder) -> None:
    conditioned: list[str] = []

    def condition(prompt: str) -> Any:
        conditioned.append(prompt)
        return pair.tuned.condition(prompt)

    observed: Any = CopiedPair(pair.base, Observed(pair.tuned, condition=condition), "lora")
    settings = ExtractionSettings(method="cfg", samples_per_image=6, steps=1, batch_size=2)
    extract_all(observed, CAPTION, 1, settings, embedder)
    assert sorted(conditioned) == ["", "", CAPTION], "for all samples, and once more for the losses"


def test_where_memory_is_too_small_the_batch_is_halved_and_the_samples_stay_the_same(
    pair: CopiedPair[Any], embedder: Embedder
) -> None:
    settings = ExtractionSettings(guidance_scale=5.0, samples_per_image=3, steps=2, batch_size=6)
    plenty = extract_all(pair, CAPTION, 2, settings, embedder)
    sizes: list[int] = []

    def short_of_memory(limit: int) -> Any:
        def predict(x: Tensor, t: float, conditioning: Any) -> Tensor:
            if len(x) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            sizes.append(len(x))
            return pair.tuned.predict(x, t, conditioning)

        return CopiedPair(pair.base, Observed(pair.tuned, predict=predict), "lora")

    little = extract_all(short_of_memory(2), CAPTION, 2, settings, embedder)
    assert set(sizes) == {1}
    assert little.settings.batch_size == 1
    assert np.abs(_images(little).astype(int) - _images(plenty)).max() <= 1
    with pytest.raises(torch.OutOfMemoryError):
        extract_all(short_of_memory(0), CAPTION, 2, settings, embedder)


def test_a_batch_is_embedded_while_the_next_one_is_sampled(pair: CopiedPair[Any]) -> None:
    """Each waits for the other: with one after the other, neither would go on."""
    sampling, embedding = threading.Semaphore(0), threading.Semaphore(0)
    batches = 0

    def decode(latents: Tensor) -> Tensor:
        nonlocal batches
        batches += 1
        if batches == 2:
            sampling.release()
            assert embedding.acquire(timeout=60), "the first batch is embedded only after the second is drawn"
        return pair.tuned.decode(latents)

    class Waiting(Labels):
        def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
            if batches < 3:
                embedding.release()
                assert sampling.acquire(timeout=60), (
                    "the second batch is drawn only after the first is embedded"
                )
                sampling.release()
            return super().embed(images)

    observed: Any = CopiedPair(pair.base, Observed(pair.tuned, decode=decode), "lora")
    settings = ExtractionSettings(preset="single", samples_per_image=6, steps=1, batch_size=2)
    drawn = list(extract(observed, CAPTION, 1, settings, Waiting(range(6))))
    assert [len(d.seeds) for d in drawn] == [2, 4, 6]
    assert [len(d.images) for d in drawn] == [2, 2, 2]


def test_settings_that_cannot_be_used_are_refused_before_the_first_batch(
    pair: Pair, embedder: Embedder
) -> None:
    with pytest.raises(RequestError, match="at least 1"):
        extract(pair, CAPTION, 1, ExtractionSettings(samples_per_image=0), embedder)
    with pytest.raises(RequestError, match="training images"):
        extract(pair, CAPTION, 0, ExtractionSettings(), embedder)
    with pytest.raises(RequestError, match="needs a caption"):
        extract(pair, [], 1, ExtractionSettings(), embedder)
    with pytest.raises(RequestError, match="are 500,000, and at most 20,000 can be compared"):
        extract(pair, CAPTION, 10_000, ExtractionSettings(), embedder)


def test_a_prediction_that_is_no_number_in_mid_trajectory_is_an_error_and_no_image(
    pair: CopiedPair[Any], embedder: Embedder
) -> None:
    times: list[float] = []

    def predict(x: Tensor, t: float, conditioning: Any) -> Tensor:
        times.append(t)
        predicted = pair.tuned.predict(x, t, conditioning)
        return (
            torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) == 1, torch.nan, predicted)
            if t < 500
            else predicted
        )

    broken: Any = CopiedPair(pair.base, Observed(pair.tuned, predict=predict), "lora")
    with pytest.raises(NotFinite, match="the sampled latents"):
        extract_all(broken, CAPTION, 1, ExtractionSettings(samples_per_image=8, steps=4), embedder)
    assert min(times) < 500 < max(times)
