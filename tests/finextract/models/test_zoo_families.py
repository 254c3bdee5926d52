"""The zoo's larger families: checkpoints load as what they are and predict what diffusers predicts."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from finextract.metadata.captions import local_caption
from finextract.models import loading
from finextract.models.base import Pair, TunableModel
from finextract.models.loading import load_base, tune

ZOO = Path(__file__).resolve().parents[2] / "zoo"
sys.path.append(str(ZOO.parent))
from servers.hub import family_zoos  # noqa: E402

PIPELINES = {"sdxl": "StableDiffusionXLPipeline", "sd3": "StableDiffusion3Pipeline"}
ENTRIES = [
    (zoo.name, entry)
    for zoo in family_zoos(ZOO)
    for entry in json.loads((zoo / "zoo.json").read_text())["checkpoints"]
]
# diffusers leaves the DoRA out of kohya's files, and knows no LoKr.
LOADED_BY_DIFFUSERS = [
    (family, entry)
    for family, entry in ENTRIES
    if entry["algorithm"] == "lora" or (entry["algorithm"] == "dora" and entry["format"] == "diffusers")
]
IDS = [Path(entry["path"]).name for _, entry in ENTRIES]


@cache
def base_of(family: str) -> TunableModel:
    return load_base(ZOO / family / "base", torch.device("cpu"), torch.float32)


def pair_of(family: str, entry: dict[str, Any]) -> Pair:
    return tune(base_of(family), ZOO / family / entry["path"])


def test_there_is_a_zoo_of_sdxl_and_one_of_a_flow_model() -> None:
    assert {family for family, _ in ENTRIES} == {"sdxl", "sd3"}


@pytest.mark.parametrize(("family", "entry"), ENTRIES, ids=IDS)
def test_every_checkpoint_changes_the_denoiser_alone_and_its_caption_is_found(
    family: str, entry: dict[str, Any]
) -> None:
    pair = pair_of(family, entry)
    assert pair.kind == ("lora" if entry["kind"] == "lora" else "full")
    before, after = pair.base.layers(), pair.tuned.layers()
    assert before.keys() == after.keys()
    changed = {
        name
        for name in before
        if not torch.equal(before[name].get_parameter("weight"), after[name].get_parameter("weight"))
    }
    assert all(name.startswith(("unet.", "transformer.")) for name in changed)
    assert len(changed) > 0.3 * len(before)
    caption = local_caption(ZOO / family / entry["path"])
    assert caption is not None
    assert caption.text == entry["caption"]


ADAPTERS = [(family, entry) for family, entry in ENTRIES if entry["kind"] == "lora"]


@pytest.mark.parametrize(("family", "entry"), ADAPTERS, ids=[Path(e["path"]).name for _, e in ADAPTERS])
def test_an_adapter_on_an_offloaded_base_needs_no_second_copy_and_predicts_the_same(
    family: str, entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: Any = pair_of(family, entry).tuned
    monkeypatch.setattr(loading, "offloading_for", lambda *_: "encoders and VAE")
    base: Any = load_base(ZOO / family / "base", torch.device("cpu"), torch.float32)
    tuned: Any = tune(base, ZOO / family / entry["path"]).tuned
    own = "unet" if family == "sdxl" else "transformer"
    of_base = {tensor.data_ptr() for tensor in getattr(base, own).parameters()}
    assert {tensor.data_ptr() for tensor in getattr(tuned, own).parameters()} == of_base
    x = torch.randn(2, *tuned.latent_shape, generator=torch.Generator().manual_seed(0))
    states = tuned.condition(entry["caption"])
    with torch.inference_mode():
        found, before = (m.predict(x, 500.0, states) for m in (tuned, base))
        assert torch.equal(found, kept.predict(x, 500.0, states))
        assert not torch.equal(found, before)
        assert torch.equal(before, base_of(family).predict(x, 500.0, states))


@pytest.mark.parametrize(
    ("family", "entry"),
    LOADED_BY_DIFFUSERS,
    ids=[Path(entry["path"]).name for _, entry in LOADED_BY_DIFFUSERS],
)
def test_an_adapter_makes_the_predictions_that_diffusers_makes_with_it(
    family: str, entry: dict[str, Any]
) -> None:
    theirs = getattr(diffusers, PIPELINES[family]).from_pretrained(
        ZOO / family / "base", torch_dtype=torch.float32, local_files_only=True
    )
    (file,) = (ZOO / family / entry["path"]).glob("*.safetensors")
    theirs.load_lora_weights(file.parent, weight_name=file.name)
    tuned: Any = pair_of(family, entry).tuned
    x = torch.randn(2, *tuned.latent_shape, generator=torch.Generator().manual_seed(0))
    states = tuned.condition(entry["caption"])
    found = tuned.predict(x, 500.0, states)
    own = "unet" if family == "sdxl" else "transformer"
    expected = replace(tuned, **{own: getattr(theirs, own).eval()}).predict(x, 500.0, states)
    assert (found - base_of(family).predict(x, 500.0, states)).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
