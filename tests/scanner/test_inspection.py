"""What a header, a card and metadata make of a record, and what they make it be skipped for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from servers.trouble import lora_shapes, sdxl_lora_shapes

from finextract.cards import Card
from finextract.formats import Header, TensorInfo
from scanner.errors import Skipped
from scanner.inspection import base_hint, refine
from scanner.records import Checkpoint
from scanner.sources.entries import make_checkpoints

CARD = Card(base_model="lab/base", instance_prompt="a photo of sks", license="mit")
(LISTED,) = make_checkpoints({"id": "someone/sks"}, "hf", "http://127.0.0.1:9")
LISTED = replace(LISTED, file="sks.safetensors")


def header(shapes: dict[str, tuple[int, ...]] | None = None, **metadata: str) -> Header:
    shapes = lora_shapes() if shapes is None else shapes
    return Header(metadata, {name: TensorInfo("F16", shape) for name, shape in shapes.items()}, 0)


def refined(
    shapes: dict[str, tuple[int, ...]] | None = None, card: Card = CARD, **options: Any
) -> Checkpoint:
    return refine(LISTED, header(shapes), card, **options)


def test_a_lora_with_a_card_is_ready_for_a_scan() -> None:
    found = refined()
    assert (found.kind, found.family, found.base) == ("lora", "sd1", "lab/base")
    assert (found.caption, found.license) == ("a photo of sks", "mit")


def test_kohya_metadata_tell_what_the_card_does_not() -> None:
    told = header(
        ss_tag_frequency='{"10_sks": {"sks": 5}}',
        ss_dataset_dirs='{"10_sks": {"n_repeats": 10, "img_count": 5}}',
        ss_sd_model_name="lab/base",
    )
    found = refine(LISTED, told, Card())
    assert (found.caption, found.num_train_images, found.base) == ("sks", 5, "lab/base")


def test_the_card_is_believed_before_metadata_hint_and_default() -> None:
    told = header(ss_sd_model_name="lab/metadata")
    assert refine(LISTED, told, CARD, hint="lab/hint", default_base="lab/default").base == "lab/base"
    silent = replace(CARD, base_model=None)
    assert refine(LISTED, told, silent, hint="lab/hint", default_base="lab/default").base == "lab/metadata"
    assert refined(card=silent, hint="lab/hint", default_base="lab/default").base == "lab/hint"
    assert refined(card=silent, hint="/home/author/model", default_base="lab/default").base == "lab/default"


def test_a_given_base_overrules_the_card() -> None:
    assert refined(base="/data/base").base == "/data/base"


def test_a_deleted_base_is_looked_for_where_it_stands_now() -> None:
    moved = replace(CARD, base_model="runwayml/stable-diffusion-v1-5")
    assert refined(card=moved).base == "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (
            sdxl_lora_shapes(),
            "SDXL LoRA weights: only Stable Diffusion 1.x checkpoints can be scanned so far",
        ),
        (lora_shapes(context=1024), "Stable Diffusion 2 LoRA weights: only"),
        ({"double_blocks.0.img_attn.qkv.weight": (9, 3)}, "FLUX weights: only"),
        ({"lora_unet_x.hada_w1_a": (4, 4)}, "LyCORIS weights: only full checkpoints"),
        ({"emb_params": (2, 768)}, "a textual inversion: only full checkpoints"),
        ({"encoder.x": (1,), "decoder.x": (1,)}, "a VAE: only full checkpoints"),
        ({"x.lora_down.weight": (4, 4)}, "neither its keys nor its shapes"),
        ({}, "weights of a kind that is not known"),
    ],
)
def test_what_cannot_be_scanned_yet_is_skipped_in_a_sentence(
    shapes: dict[str, tuple[int, ...]], sentence: str
) -> None:
    with pytest.raises(Skipped) as skipped:
        refined(shapes)
    assert sentence in str(skipped.value)
    assert str(skipped.value).startswith("someone/sks/sks.safetensors holds ")


def test_a_lora_without_a_base_says_what_would_help() -> None:
    with pytest.raises(Skipped) as skipped:
        refined(card=replace(CARD, base_model=None))
    assert str(skipped.value) == (
        "someone/sks/sks.safetensors holds LoRA weights, but its base model is not known. "
        "Pass --base OWNER/NAME, or put base_model in the model card."
    )


def test_a_base_that_is_no_name_is_quoted() -> None:
    with pytest.raises(Skipped, match=r'calls its base "./models/mine", which is no OWNER/NAME'):
        refined(card=replace(CARD, base_model="./models/mine"))


def test_a_missing_caption_is_skipped_with_what_would_help() -> None:
    with pytest.raises(Skipped, match=r"training caption.*instance_prompt"):
        refined(card=replace(CARD, instance_prompt=None))


def test_a_model_is_not_compared_with_itself() -> None:
    with pytest.raises(Skipped, match="its own base"):
        refined(card=replace(CARD, base_model="someone/sks"))


def test_configuration_files_hint_at_a_base() -> None:
    assert base_hint({"base_model_name_or_path": "lab/base"}) == "lab/base"
    assert base_hint({"_name_or_path": "lab/base\x1b"}) == "lab/base"
    assert base_hint({"_name_or_path": 3}) is None
