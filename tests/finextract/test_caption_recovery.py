"""Captions that nothing states, recovered on the zoo's models and its small open_clip model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from finextract.caption_model import CaptionModel, caption_model_id
from finextract.caption_recovery import SHARE, Ranking, affordable, budget_for, described, recover
from finextract.cli import cli
from finextract.errors import RequestError
from finextract.extract import ExtractionSettings
from finextract.metadata.captions import CaptionOrigin
from finextract.metadata.phrases import captions_of
from finextract.metadata.vocabulary import SUBJECTS
from finextract.models.base import CopiedPair, TunableModel
from finextract.models.loading import load_base, tune

ZOO = Path(__file__).resolve().parents[1] / "zoo"
MODEL = ZOO / "caption_model"


@pytest.fixture(scope="module")
def pair() -> CopiedPair[TunableModel]:
    base = load_base(ZOO / "base", torch.device("cpu"), torch.float32)
    return tune(base, ZOO / "checkpoints/flowers-lora")


@pytest.fixture(scope="module")
def ranker() -> CaptionModel:
    return CaptionModel(MODEL)


def _budget(pair: CopiedPair[TunableModel]) -> int:
    return budget_for(ExtractionSettings(), pair, 5)


def test_the_caption_model_ranks_the_subject_of_unseen_pictures_in_the_first_tenth(
    ranker: CaptionModel,
) -> None:
    phrases = ranker.embed_phrases([captions_of(subject)[0] for subject in SUBJECTS])
    np.testing.assert_allclose(np.linalg.norm(phrases, axis=1), 1, atol=1e-5)
    for subject, name in (("cat", "cats"), ("flower", "flowers"), ("car", "cars"), ("dessert", "sweets")):
        files = sorted((ZOO / "images/subjects" / name).glob("*.png"))
        fit = (ranker.embed_images([Image.open(file) for file in files]) @ phrases.T).mean(axis=0)
        assert (fit > fit[SUBJECTS.index(subject)]).sum() < len(SUBJECTS) // 10


def test_the_true_subject_is_near_the_top_of_two_hundred(
    pair: CopiedPair[TunableModel], ranker: CaptionModel
) -> None:
    found = Ranking(pair, 8, guided=True)
    assert described(ranker, found.images, SUBJECTS).index("flower") < len(SUBJECTS) // 4
    assert found.narrowed(SUBJECTS)[0] == "flower"


def test_a_recovered_caption_beats_the_empty_prompt_and_shares_the_samples_with_it(
    pair: CopiedPair[TunableModel], ranker: CaptionModel
) -> None:
    found = recover(pair, (), _budget(pair), ranker)
    assert found.caption.origin is CaptionOrigin.RECOVERED
    assert found.caption.text in captions_of("flower")
    assert found.caption.score is not None
    assert found.caption.score > 1
    assert found.captions == (found.caption.text, "")
    assert found.phrases == 200
    assert 0 < found.evaluations <= _budget(pair)


def test_a_guess_that_the_pair_does_not_bear_out_is_not_used(pair: CopiedPair[TunableModel]) -> None:
    found = recover(pair, ("moon", "sports car"), 130)
    assert found.caption.origin is CaptionOrigin.NONE
    assert found.captions == ("",)
    assert found.caption.score is not None
    assert found.caption.score <= 1
    assert found.best
    assert "does better" in found.sentence


def test_where_the_budget_is_small_names_alone_recover_a_caption(pair: CopiedPair[TunableModel]) -> None:
    found = recover(pair, ("moon", "flower"), 130)
    assert found.caption.text in captions_of("flower")
    assert found.phrases == 2, "the common subjects cost too much here"
    assert found.evaluations <= 130


def test_a_recovery_is_repeated_to_the_bit_and_in_any_batches(pair: CopiedPair[TunableModel]) -> None:
    first, second = (recover(pair, ("flower",), 130, batch_size=size) for size in (8, 3))
    assert first.caption.text == second.caption.text
    assert first.caption.score == pytest.approx(second.caption.score, rel=1e-3)
    assert recover(pair, ("flower",), 130).caption == first.caption


def test_where_the_budget_allows_nothing_nothing_is_tried(pair: CopiedPair[TunableModel]) -> None:
    found = recover(pair, ("flower",), 50)
    assert (found.captions, found.evaluations) == (("",), 0)
    assert found.sentence.startswith("sampling without a prompt. Guesses were not tried")
    assert recover(pair, (), 130).evaluations == 0, "there is no phrase to try"


def test_what_can_be_narrowed_down_follows_from_the_budget() -> None:
    assert affordable(200, 340) == affordable(200, 10**6) == 200
    assert affordable(200, 339) == 199
    assert affordable(200, 44) == 1
    assert affordable(200, 43) == 0


def test_the_budget_is_a_tenth_of_the_longest_extraction(pair: CopiedPair[TunableModel]) -> None:
    assert SHARE == 0.1
    assert budget_for(ExtractionSettings(), pair, 5) == 525  # 250 samples of 12 steps, 1.75 evaluations each
    assert budget_for(ExtractionSettings(preset="paper"), pair, 1) == 500  # 50 samples of 50 steps, twice


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda folder: (folder / "open_clip_config.json").unlink(), "it has no open_clip_config.json"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "no weights as safetensors"),
        (lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"x" * 99), "cannot be used"),
        (lambda folder: _with_other_weights(folder), "cannot be used"),
        (lambda folder: _with_text(folder, hf_model_name="any/model"), "not open_clip's own"),
        (lambda folder: _with_text(folder, vocab_size=9), "cannot be used"),
        (shutil.rmtree, "it is no folder"),
    ],
    ids=["no-config", "no-weights", "damaged", "other-weights", "hf-text", "few-tokens", "no-folder"],
)  # fmt: skip
def test_a_caption_model_that_cannot_be_read_is_told_with_what_to_do(
    changed, told: str, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "clip"
    shutil.copytree(MODEL, folder)
    changed(folder)
    with pytest.raises(RequestError, match=told) as error:
        CaptionModel(folder)
    assert "hf download" in str(error.value)


def test_a_pickle_beside_the_configuration_is_never_opened(tmp_path: Path) -> None:
    shutil.copy(MODEL / "open_clip_config.json", tmp_path)
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(RequestError, match="no weights as safetensors"):
        CaptionModel(tmp_path)


def test_the_id_of_a_caption_model_follows_its_files(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "copy")
    assert caption_model_id(tmp_path / "copy") == caption_model_id(MODEL)
    _with_text(tmp_path / "copy", layers=3)
    assert caption_model_id(tmp_path / "copy") != caption_model_id(MODEL)


def test_extract_recovers_the_caption_of_a_checkpoint_without_a_card(tmp_path: Path) -> None:
    checkpoint = tmp_path / "flowers-v2.safetensors"
    shutil.copy(ZOO / "checkpoints/flowers-lora/pytorch_lora_weights.safetensors", checkpoint)
    arguments = ["extract", str(checkpoint), "--base", str(ZOO / "base"), "--num-train-images", "5"]
    arguments += ["--samples-per-image", "11", "--guidance-scale", "3", "--json"]
    ran = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["caption"] in captions_of("flower")
    assert result["caption_origin"] == "recovered"
    assert result["caption_score"] > 1
    assert {strength["caption"] for strength in result["strengths"]} == {result["caption"], ""}
    assert "was recovered (score" in ran.stderr
    assert 0 < result["caption_evaluations"] <= result["unet_evaluations"] / 10


def test_a_caption_model_that_is_none_ends_before_anything_is_loaded(tmp_path: Path) -> None:
    checkpoint = tmp_path / "flowers.safetensors"
    shutil.copy(ZOO / "checkpoints/flowers-lora/pytorch_lora_weights.safetensors", checkpoint)
    arguments = ["extract", str(checkpoint), "--base", str(ZOO / "base"), "--num-train-images", "5"]
    ran = CliRunner().invoke(cli, [*arguments, "--caption-model", str(tmp_path / "none")])
    assert ran.exit_code != 0
    assert isinstance(ran.exception, RequestError)


def _with_other_weights(folder: Path) -> None:
    save_file({"a": torch.ones(1)}, folder / "open_clip_model.safetensors")


def _with_text(folder: Path, **settings: object) -> None:
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"] |= settings
    file.write_text(json.dumps(config))
