"""Membership on the zoo: who was trained on, by checkpoints strong, weak, and of other pictures."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finextract.images import Picture, open_image, picture_of
from finextract.losses import HEAT_SIDE, BaseCache, Losses, Query
from finextract.membership import Membership, MembershipSettings, membership
from finextract.models.base import Pair, TunableModel
from finextract.models.loading import load_base, tune
from finextract.sampling import DDIM, FlowEuler, initial_noise

ZOO = Path(__file__).resolve().parents[2] / "zoo"
ENTRIES = {Path(e["path"]).name: e for e in json.loads((ZOO / "zoo.json").read_text())["checkpoints"]}
FLOW = json.loads((ZOO / "sd3/zoo.json").read_text())["checkpoints"]
FLOW_LOSSES = BaseCache()
FEW = MembershipSettings(timesteps=(150.0,), framings=("squash",), budget=250)


def pictures(*folders: str) -> list[Picture]:
    return [picture_of(file) for folder in folders for file in sorted((ZOO / "images").glob(f"{folder}/*"))]


SUBJECTS = [file.parent.name for file in sorted((ZOO / "images/subjects").glob("*/*"))]  # of each picture
BACKGROUND = [picture_of(file) for file in sorted((ZOO / "images/background").iterdir())[::28]]


@pytest.fixture(scope="module")
def base() -> TunableModel:
    return load_base(ZOO / "base", torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def cache() -> BaseCache:
    """The base's losses, shared by the tests as the checkpoints of a crawl share them."""
    return BaseCache()


@functools.cache
def flow_base() -> TunableModel:
    return load_base(ZOO / "sd3/base", torch.device("cpu"), torch.float32)


def _pair(base: TunableModel, name: str) -> Pair:
    return tune(base, ZOO / "checkpoints" / name)


def _examine(pair: Pair, cache: BaseCache, settings: MembershipSettings = FEW) -> Membership:
    """An examination of the pictures of all subjects."""
    return membership(pair, pictures("subjects/*"), settings, background=BACKGROUND, sets={}, cache=cache)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if not entry["control"]])
def test_what_a_checkpoint_was_trained_on_is_found_among_all_subjects(
    base: TunableModel, cache: BaseCache, name: str
) -> None:
    entry = ENTRIES[name]
    found = _examine(_pair(base, name), cache)
    assert {SUBJECTS[i] for i in found.trained_on} == {Path(entry["train_images"]).name}
    assert len(found.trained_on) >= (5 if entry["steps_per_image"] >= 200 else 3)
    assert found.tuned_evaluations <= 250
    for i, evidence in enumerate(found.references):
        assert len(evidence.heat) == (HEAT_SIDE**2 if i in found.trained_on else 0)
    assert found.tuned_evaluations <= 250


@pytest.mark.parametrize("entry", FLOW, ids=[Path(entry["path"]).name for entry in FLOW])
def test_what_a_flow_model_was_trained_on_is_found_at_its_own_times(entry: dict[str, Any]) -> None:
    pair = tune(flow_base(), ZOO / "sd3" / entry["path"])
    found = _examine(pair, FLOW_LOSSES, MembershipSettings(framings=("squash",), budget=300))
    assert found.settings.timesteps == FlowEuler.membership_times != DDIM.membership_times
    assert found.tuned_evaluations <= 300
    expected = set() if entry["control"] else {Path(entry["train_images"]).name}
    assert {SUBJECTS[i] for i in found.trained_on} == expected
    assert len(found.trained_on) >= (0 if entry["control"] else 5 if entry["steps_per_image"] >= 200 else 3)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry["control"]])
def test_a_checkpoint_of_other_pictures_accuses_nobody(
    base: TunableModel, cache: BaseCache, name: str
) -> None:
    found = _examine(_pair(base, name), cache)
    assert found.trained_on == ()
    assert not found.background_is_unlike


def test_the_next_checkpoint_of_a_base_takes_fewer_evaluations_of_the_base(base: TunableModel) -> None:
    cache = BaseCache()
    first, second = (
        membership(_pair(base, name), pictures("subjects/fruit"), FEW, background=BACKGROUND, cache=cache)
        for name in ("fruit-lora", "birds-other-lora")
    )
    assert first.base_evaluations == first.tuned_evaluations + len(first.trained_on), "and heat maps"
    assert second.base_evaluations < second.tuned_evaluations / 2


def test_an_answer_does_not_depend_on_the_batch_size(base: TunableModel) -> None:
    pair, references = _pair(base, "houses-lora-light"), pictures("subjects/houses")
    one, other = (membership(pair, references, replace(FEW, batch_size=size)) for size in (64, 7))
    for mine, theirs in zip(one.references, other.references, strict=True):
        assert mine.margin == pytest.approx(theirs.margin, abs=1e-3)
        assert np.log(mine.p_value) == pytest.approx(np.log(theirs.p_value), abs=0.1)
    assert one.trained_on == other.trained_on


def test_a_picture_of_which_the_trainer_used_the_centre_is_found_by_that_framing_alone(
    base: TunableModel, cache: BaseCache
) -> None:
    pair, wide = _pair(base, "fruit-lora"), []
    for trained, around in zip(pictures("subjects/fruit"), BACKGROUND[:5], strict=True):
        whole = around.open().resize((128, 64))
        whole.paste(trained.open(), (32, 0))
        wide.append(Picture(f"wide {trained.key}", lambda whole=whole: whole))
    framed = membership(pair, wide, replace(FEW, framings=("squash", "centre", "zoom-90")), cache=cache)
    assert {evidence.framing for evidence in framed.references} == {"centre"}
    assert len(framed.trained_on) == 5
    assert membership(pair, wide, FEW, cache=cache).trained_on == ()


@pytest.mark.parametrize("kept", ["left", "right"])
def test_the_heat_map_shows_which_half_of_a_picture_was_trained_on(
    base: TunableModel, cache: BaseCache, kept: str
) -> None:
    """The other half comes from a picture that nobody trained on."""
    losses = Losses(_pair(base, "cats-dreambooth"), 0, "", 64, cache)
    halves = []
    for number, file in enumerate(sorted((ZOO / "images/subjects/cats").iterdir())):
        image, other = open_image(file), open_image(sorted((ZOO / "images/background").iterdir())[number])
        width, height = image.size
        box = (width // 2, 0, width, height) if kept == "left" else (0, 0, width // 2, height)
        image.paste(other.resize(image.size).crop(box), box)
        halves.append(Query(Picture(f"{kept} of {number}", lambda image=image: image), t=150.0))
    whole = losses.log_ratios(halves)
    maps = losses.heat_maps(halves)
    assert maps.shape == (len(halves), HEAT_SIDE, HEAT_SIDE)
    left, right = (half.mean(axis=(1, 2)) for half in np.split(maps, 2, axis=2))
    assert ((left > right) == (kept == "left")).all()
    assert (maps.min(axis=(1, 2)) < whole).all()
    assert (whole < maps.max(axis=(1, 2))).all()


def test_an_examination_changes_no_model(base: TunableModel) -> None:
    pair, x = _pair(base, "flowers-lora"), initial_noise([0], base.latent_shape)
    context = base.condition("")
    with torch.inference_mode():
        before = [model.predict(x, 150.0, context) for model in (pair.base, pair.tuned)]
        membership(pair, pictures("subjects/flowers")[:1], FEW)
        after = [model.predict(x, 150.0, context) for model in (pair.base, pair.tuned)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_encoding_undoes_decoding_and_is_deterministic(base: TunableModel) -> None:
    files = sorted((ZOO / "images/subjects/cats").iterdir())
    pixels = np.stack([np.asarray(open_image(file)) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert base.image_size == images.shape[2:]
    latents = base.encode(images)
    assert latents.shape[1:] == base.latent_shape
    assert latents.dtype == base.dtype
    assert (base.decode(latents).int() - images.int()).abs().float().mean() < 8
    torch.testing.assert_close(base.encode(images[:1]), latents[:1], atol=1e-4, rtol=1e-3)


def test_noise_is_added_as_diffusers_adds_it(base: TunableModel) -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler.from_pretrained(ZOO / "base", subfolder="scheduler")
    latents, noise = initial_noise(range(2), base.latent_shape).split(1)
    for t in (0, 150, 999):
        expected = theirs.add_noise(latents, noise, torch.tensor([t]))
        torch.testing.assert_close(base.solver.add_noise(latents, noise, float(t)), expected)
        assert torch.equal(base.solver.target(latents, noise, float(t)), noise)
