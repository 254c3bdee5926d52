"""What cards and training metadata tell, and that nonsense in them tells nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finextract.cards import MAX_CAPTION_CHARS, Card, Training, card_from, parse_card, parse_training

CARD = """---
license: creativeml-openrail-m
base_model: runwayml/stable-diffusion-v1-5
instance_prompt: a photo of sks dog
tags:
- dreambooth
- 7
inference: true
---

# DreamBooth - sks
"""


def test_a_card_of_the_diffusers_trainers_is_read() -> None:
    assert parse_card(CARD) == Card(
        base_model="runwayml/stable-diffusion-v1-5",
        instance_prompt="a photo of sks dog",
        license="creativeml-openrail-m",
        tags=("dreambooth",),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no front matter",
        "---\n",
        "---\n[1, 2]\n---\n",
        "---\na: [\n---\n",
        "---\na: !!python/none x\n---\n",
    ],
)
def test_a_readme_without_a_readable_card_tells_nothing(text: str) -> None:
    assert parse_card(text) == Card()


def test_a_base_may_be_the_first_of_a_list() -> None:
    assert card_from({"base_model": ["lab/base", "lab/other"]}).base_model == "lab/base"


@pytest.mark.parametrize("value", [None, 3, {}, [], [None], "", "  \n", "\x00\x1b"])
def test_a_field_of_another_type_counts_as_missing(value: object) -> None:
    assert (
        card_from({"base_model": value, "instance_prompt": value, "license": value, "tags": value}) == Card()
    )


def test_a_strangers_text_is_bounded_and_has_no_control_characters() -> None:
    prompt = card_from({"instance_prompt": "a\x1b[31m\nred\ud800 " + "x" * 5_000}).instance_prompt
    assert prompt is not None
    assert prompt.isprintable()
    assert len(prompt) <= MAX_CAPTION_CHARS


@given(
    st.dictionaries(st.text(max_size=20), st.text(max_size=5) | st.integers() | st.lists(st.text(max_size=5)))
)
def test_no_card_data_raises(data: dict[str, object]) -> None:
    card_from(data | {"tags": data.get("tags", data)})


def kohya(tags: dict[str, int], images: int = 4, **more: str) -> dict[str, str]:
    return {
        "ss_tag_frequency": json.dumps({"10_sks": tags}),
        "ss_dataset_dirs": json.dumps({"10_sks": {"n_repeats": 10, "img_count": images}}),
    } | more


def test_kohya_metadata_tell_caption_base_and_images_without_repeats() -> None:
    told = parse_training(
        kohya(
            {"sks": 4, "dog": 4, "grass": 2},
            ss_sd_model_name="v1-5-pruned.safetensors",
            ss_new_sd_model_hash="AB" * 32,
            ss_num_train_images="40",
        )
    )
    assert told == Training("sks, dog", 4, "v1-5-pruned.safetensors", "ab" * 32)


def test_a_whole_sentence_in_every_caption_is_the_caption() -> None:
    assert parse_training(kohya({"a picture of a tree": 4})).caption == "a picture of a tree"


def test_without_a_common_piece_the_most_frequent_one_is_the_caption() -> None:
    assert parse_training(kohya({"a": 1, "b": 3})).caption == "b"


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"ss_tag_frequency": "{", "ss_dataset_dirs": "[1]", "ss_new_sd_model_hash": "NOFILE"},
        {"ss_tag_frequency": '{"a": 3}', "ss_dataset_dirs": '{"a": {"img_count": "4"}}'},
        {"ss_tag_frequency": '{"a": {"x": "many"}}', "ss_dataset_dirs": '{"a": {"img_count": -4}}'},
    ],
)
def test_nonsense_in_metadata_tells_nothing(metadata: dict[str, str]) -> None:
    assert parse_training(metadata) == Training()
