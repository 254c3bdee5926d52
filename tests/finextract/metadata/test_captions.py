"""The caption that a checkpoint is sampled with. An audit finds the one that a crawl finds."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from finextract.cli import cli
from finextract.metadata.captions import (
    Caption,
    CaptionOrigin,
    caption_for,
    find_caption,
    local_caption,
    local_training,
)
from finextract.metadata.cards import Card
from finextract.metadata.training import Training
from scanner.hubs.base import Query
from scanner.hubs.folder import FolderSource

ZOO = Path(__file__).resolve().parents[2] / "zoo"
FLOWERS = ZOO / "checkpoints/flowers-lora/pytorch_lora_weights.safetensors"
CATS = ZOO / "checkpoints/cats-dreambooth"


def test_the_card_comes_before_trigger_words_metadata_and_sidecar_files() -> None:
    card = Card(instance_prompt="a", trigger_words="b")
    header, sidecar = Training(caption="c"), Training(caption="d")
    assert find_caption(card, header, sidecar) == Caption("a", CaptionOrigin.CARD)
    assert find_caption(Card(trigger_words="b"), header, sidecar) == Caption("b", CaptionOrigin.TRIGGER_WORDS)
    assert find_caption(Card(), header, sidecar) == Caption("c", CaptionOrigin.METADATA)
    assert find_caption(Card(), sidecar=sidecar) == Caption("d", CaptionOrigin.SIDECAR)
    assert find_caption(Card()) is None


def _with_card(folder: Path) -> None:
    shutil.copy(FLOWERS, folder)
    (folder / "README.md").write_text("---\ninstance_prompt: a picture of a flower\n---\n")


def _with_sidecar_file(folder: Path) -> None:
    shutil.copy(FLOWERS, folder / "flowers.safetensors")
    (folder / "hparams.yml").write_text("instance_prompt: sks flower\n")


def _with_trigger_words(folder: Path) -> None:
    shutil.copy(FLOWERS, folder / "flowers.safetensors")
    (folder / "flowers.json").write_text('{"activation text": "sks petals"}')


def _with_many_trigger_words(folder: Path) -> None:
    shutil.copy(FLOWERS, folder / "flowers.safetensors")
    words = ["<lora:flowers:1>", "(sks petals:1.1)", "red", "white", "yellow", "blue"]
    (folder / "flowers.civitai.info").write_text(json.dumps({"trainedWords": words}))


def _with_metadata(folder: Path) -> None:
    shutil.copy(ZOO / "checkpoints/fruit-lora/fruit-lora.safetensors", folder)


def _as_a_lone_unet(folder: Path) -> None:
    shutil.copytree(CATS / "unet", folder / "unet")
    (folder / "args.json").write_text('{"instance_prompt": "sks cat"}')


def _beside_what_the_optimizer_left(folder: Path) -> None:
    _with_sidecar_file(folder)
    shutil.copy(FLOWERS, folder / "optimizer.safetensors")


@pytest.mark.parametrize(
    ("made", "origin"),
    [
        (_with_card, CaptionOrigin.CARD),
        (_with_sidecar_file, CaptionOrigin.SIDECAR),
        (_with_trigger_words, CaptionOrigin.TRIGGER_WORDS),
        (_with_many_trigger_words, CaptionOrigin.TRIGGER_WORDS),
        (_with_metadata, CaptionOrigin.METADATA),
        (_as_a_lone_unet, CaptionOrigin.SIDECAR),
        (_beside_what_the_optimizer_left, CaptionOrigin.SIDECAR),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else str(value),
)
def test_an_audit_finds_the_caption_and_the_weights_that_a_crawl_finds(
    tmp_path: Path, made, origin: CaptionOrigin
) -> None:
    made(tmp_path)
    source = FolderSource(tmp_path, base=str(ZOO / "base"))
    (checkpoint,) = source.list(Query(limit=10))
    caption = local_caption(tmp_path)
    assert caption is not None
    assert caption.origin is origin
    assert caption.text == source.inspect(checkpoint).caption


def test_one_of_several_trigger_words_is_the_caption_and_the_record_keeps_the_others(tmp_path: Path) -> None:
    _with_many_trigger_words(tmp_path)
    source = FolderSource(tmp_path, base=str(ZOO / "base"))
    (checkpoint,) = source.list(Query(limit=10))
    inspected = source.inspect(checkpoint)
    assert inspected.caption == "sks petals"
    assert json.loads(inspected.training)["alternatives"] == ["red", "white", "yellow", "blue"]


def test_a_folder_that_a_crawl_scans_can_be_audited(tmp_path: Path) -> None:
    _as_a_lone_unet(tmp_path)
    done = CliRunner().invoke(
        cli,
        [
            "audit", str(tmp_path), "--base", str(ZOO / "base"), "--steps", "2", "--samples-per-image", "1",
            "--train-images", str(ZOO / "images/subjects/cats"), "--out", str(tmp_path / "out"), "--json",
        ],
        catch_exceptions=False,
    )  # fmt: skip
    assert json.loads(done.stdout)["caption"] == "sks cat"
    assert "caption (sidecar): 'sks cat'" in done.stderr


def test_a_given_caption_is_taken_as_it_is_even_where_it_is_empty(tmp_path: Path) -> None:
    _with_card(tmp_path)
    assert caption_for(tmp_path, "") == Caption("", CaptionOrigin.GIVEN)


def test_the_training_of_a_local_checkpoint_is_that_of_its_header_and_then_of_its_sidecar_files(
    tmp_path: Path,
) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(load_file(FLOWERS), file, {"ss_steps": "40"})
    (tmp_path / "args.json").write_text('{"max_train_steps": 9, "random_flip": true}')
    for checkpoint in (tmp_path, file):
        training = local_training(checkpoint)
        assert (training.steps, training.mirrored) == (40, True)


def test_a_checkpoint_that_states_no_caption_is_sampled_without_a_prompt(tmp_path: Path) -> None:
    shutil.copy(FLOWERS, tmp_path / "lora.safetensors")
    assert caption_for(tmp_path, None) == Caption("", CaptionOrigin.NONE)
    words = ["--num-train-images", "1", "--samples-per-image", "1", "--steps", "1", "--json"]
    given = ["extract", str(tmp_path), "--base", str(ZOO / "base"), *words, "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, given, catch_exceptions=False)
    assert json.loads(done.stdout)["caption"] == ""
    assert "no file states the training caption: sampling without a prompt" in done.stderr
