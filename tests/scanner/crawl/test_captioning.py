"""The captions that a worker samples with, and what the row of a scan says of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finextract.caption_model import caption_model_id
from finextract.errors import RequestError
from finextract.extract import ExtractionSettings
from finextract.metadata.phrases import captions_of
from finextract.models.base import CopiedPair, TunableModel
from finextract.models.loading import load_base, tune
from scanner.config import ScanConfig
from scanner.crawl.captioning import Captions, subjects_of
from scanner.crawl.service import CrawlOptions, effective_config
from scanner.errors import Unavailable
from scanner.records import Checkpoint, InspectionStatus, now
from scanner.store.store import Store

ZOO = Path(__file__).resolve().parents[2] / "zoo"
MODEL = ZOO / "caption_model"
UNNAMED = Checkpoint(
    "0" * 64, "hf", "someone/my-lora", "", "pytorch_lora_weights.safetensors", "", None, 1, "lora", "sd1",
    "lab/base", "", 5, None, None, now(), "{}", InspectionStatus.READY,
)  # fmt: skip
SETTINGS = ExtractionSettings()
FEW = 2  # training images, for which the common subjects cost too much


@pytest.fixture(scope="module")
def pair() -> CopiedPair[TunableModel]:
    base = load_base(ZOO / "base", torch.device("cpu"), torch.float32)
    return tune(base, ZOO / "checkpoints/flowers-lora")


def test_a_stated_caption_is_used_alone(pair: CopiedPair[TunableModel]) -> None:
    found = Captions(ScanConfig(), None).of(pair, replace(UNNAMED, caption="sks flower"), SETTINGS, 5)
    assert found == (("sks flower",), {"caption_origin": "stated"})


def test_without_a_stated_one_the_caption_is_recovered_from_names_and_tags(
    pair: CopiedPair[TunableModel],
) -> None:
    tagged = replace(UNNAMED, raw=json.dumps({"tags": ["lora", "license:mit", "flowers"]}))
    captions, facts = Captions(ScanConfig(), None).of(pair, tagged, SETTINGS, FEW)
    assert captions == (facts["caption"], "")
    assert facts["caption"] in captions_of("flower")
    assert facts["caption_origin"] == "recovered"
    assert facts["caption_score"] > 1
    assert 0 < facts["caption_evaluations"] <= 210


def test_where_nothing_can_be_guessed_the_samples_have_no_prompt(pair: CopiedPair[TunableModel]) -> None:
    captions, facts = Captions(ScanConfig(), None).of(pair, UNNAMED, SETTINGS, FEW)
    assert (captions, facts["caption_origin"], facts["caption_evaluations"]) == (("",), "none", 0)
    off = ScanConfig(recover_captions=False)
    assert Captions(off, None).of(pair, replace(UNNAMED, repo="a/flowers"), SETTINGS, 5).captions == ("",)


def test_a_caption_model_recovers_what_no_name_says(pair: CopiedPair[TunableModel]) -> None:
    config = ScanConfig(caption_model=caption_model_id(MODEL))
    captions, _ = Captions(config, str(MODEL)).of(pair, UNNAMED, SETTINGS, 5)
    assert captions[0] in captions_of("flower")


def test_another_caption_model_than_that_of_the_crawl_fails_the_scan(pair: CopiedPair[TunableModel]) -> None:
    with pytest.raises(Unavailable, match="not that of the crawl"):
        Captions(ScanConfig(caption_model="0" * 16), str(MODEL)).of(pair, UNNAMED, SETTINGS, 5)
    with pytest.raises(Unavailable, match="cannot be used"):
        Captions(ScanConfig(caption_model="0" * 16), str(ZOO)).of(pair, UNNAMED, SETTINGS, 5)


def test_a_crawl_with_a_folder_that_is_no_caption_model_ends_before_it_lists(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", create=True)
    options = CrawlOptions(source=f"folder:{ZOO}", store=store.uri, caption_model=str(tmp_path))
    with pytest.raises(RequestError, match="hf download"):
        effective_config(options, store)


def test_the_entries_of_all_hubs_give_their_names_and_tags() -> None:
    civitai = {"model": {"name": "Sunny Beaches", "tags": ["sea", "islands"]}, "version": {"name": "v2"}}
    row = replace(UNNAMED, repo="123@456", raw=json.dumps(civitai))
    assert subjects_of(row) == ("sunny beaches", "beach", "sea", "island")
    for raw in ("", "[]", '{"model": 3, "tags": {"a": 1}, "name": ["x"]}', "[" * 5000, '{"tags": [1, null]}'):
        assert subjects_of(replace(UNNAMED, raw=raw)) == ()
