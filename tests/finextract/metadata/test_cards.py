"""Model cards, training metadata and sidecar files: valid values are read, all other content is ignored."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yardstick import cost

from finextract.metadata.cards import (
    MAX_CAPTION_CHARS,
    Card,
    Training,
    card_from,
    parse_card,
    parse_sidecar_file,
    parse_training,
)
from finextract.weights.formats import read_header

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


def front(text: str) -> str:
    return f"---\n{text}\n---\n"


LAUGHS = "\n".join(
    f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 9)}]}}" if i else "l0: &l0 {k: v}" for i in range(12)
)
HOSTILE_CARDS = {
    "nothing": "",
    "no front matter": "# A model",
    "front matter without an end": "---\nbase_model: lab/base\n",
    "a list": front("[1, 2]"),
    "broken YAML": front("base_model: ["),
    "a Python object": front("base_model: !!python/object/apply:os.system ['true']"),
    "an unknown tag": front("base_model: !secret x"),
    "an empty integer": front("base_model: !!int ''"),
    "an empty truth value": front("base_model: !!bool x"),
    "a time that is none": front("base_model: !!timestamp x"),
    "a date that is none": front("base_model: 2024-99-99"),
    "a list as key": front("? [a]\n: b"),
    "an alias": front("a: &a x\nbase_model: *a"),
    "merged aliases that grow without bound": front(LAUGHS),
    "brackets nested 20,000 deep": front("base_model: " + "[" * 20_000),
    "a number of 9,000 digits": front("base_model: " + "9" * 9_000),
    "megabytes of front matter": front("x: " + "y" * 900_000),
    "a million empty lines": "---" + "\n" * 1_000_000,
    "a million dashes": "---\n" + "-" * 1_000_000,
    "a number as base": front("base_model: 15"),
    "control characters": front('base_model: "\\x1b\\0"'),
    "a sentence without a prompt": "The weights were trained on  using [DreamBooth](x)",
    "a sentence that never ends": "weights were trained on " * 40_000,
}


@pytest.mark.parametrize("name", HOSTILE_CARDS)
def test_a_hostile_card_is_read_as_empty_within_seconds(name: str) -> None:
    read: list[Card] = []
    assert cost(lambda: read.append(parse_card(HOSTILE_CARDS[name]))) < 120
    assert read == [Card()]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("The weights were trained on a photo of sks dog using [DreamBooth](x).", "a photo of sks dog"),
        ("You should use `sks dog` to trigger the image generation.", "sks dog"),
        (front("instance_prompt: told") + "You should use `other` to trigger it.", "told"),
    ],
)
def test_the_prompt_is_read_from_the_sentences_of_the_training_scripts(text: str, prompt: str) -> None:
    assert parse_card(text).instance_prompt == prompt


HACKATHON = """
---
license: creativeml-openrail-m
tags:
- dreambooth-hackathon
widget:
- text: a photo of ccorgi dog in the Acropolis
---

# DreamBooth model for the ccorgi concept trained by lewtun.

This is a Stable Diffusion model. It can be used by modifying the `instance_prompt`: **a photo of ccorgi dog**
"""
SPACE = """---
license: creativeml-openrail-m
---
### jqkz Dreambooth model trained by someone with the Dreambooth Training Space with the v1-5 base model

Sample pictures of:
jqkz (use that on your prompt)\x20
![jqkz 0](https://example.org/concept_images/jqkz_%281%29.jpg)
"""


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (HACKATHON, "a photo of ccorgi dog"),
        (SPACE, "jqkz"),
        (SPACE.replace("jqkz (use", "another (use that on your prompt)\njqkz (use"), "another"),
        ("modifying the `instance_prompt`: ****", None),
        ("(use that on your prompt)", None),
    ],
)
def test_the_prompt_is_read_from_the_cards_of_the_classic_dreambooth_models(
    text: str, prompt: str | None
) -> None:
    assert parse_card(text).instance_prompt == prompt


@pytest.mark.parametrize("start", ["\n", "\r\n\r\n", "\ufeff", "  \n\n"])
def test_a_card_that_begins_with_an_empty_line_keeps_its_front_matter(start: str) -> None:
    assert parse_card(start + CARD) == parse_card(CARD)
    assert parse_card(start + CARD).base_model == "runwayml/stable-diffusion-v1-5"


def test_a_base_may_be_the_first_of_a_list() -> None:
    assert card_from({"base_model": ["lab/base", "lab/other"]}).base_model == "lab/base"


@pytest.mark.parametrize("value", [None, 3, {}, [], [None], "", "  \n", "\x00\x1b"])
def test_a_field_of_another_type_counts_as_missing(value: object) -> None:
    assert (
        card_from({"base_model": value, "instance_prompt": value, "license": value, "tags": value}) == Card()
    )


def test_untrusted_text_is_bounded_and_has_no_control_characters() -> None:
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


def test_caption_base_and_images_without_repeats_are_read_from_kohya_metadata() -> None:
    training = parse_training(
        kohya(
            {"sks": 4, "dog": 4, "grass": 2},
            ss_sd_model_name="v1-5-pruned.safetensors",
            ss_new_sd_model_hash="AB" * 32,
            ss_num_train_images="40",
        )
    )
    assert (training.caption, training.num_train_images, training.trigger) == ("sks, dog", 4, "sks")
    assert (training.base_name, training.base_sha256) == ("v1-5-pruned.safetensors", "ab" * 32)
    assert training.images_with_repeats == 40


def test_a_whole_sentence_in_every_caption_is_the_caption() -> None:
    assert parse_training(kohya({"a picture of a tree": 4})).caption == "a picture of a tree"


def test_without_a_common_piece_the_most_frequent_one_is_the_caption() -> None:
    assert parse_training(kohya({"a": 1, "b": 3})).caption == "b"


def test_a_real_header_of_kohya_is_read_whole() -> None:
    datasets = [
        {
            "is_dreambooth": True,
            "resolution": [512, 512],
            "bucket_info": {"buckets": {"0": {"resolution": [512, 512], "count": 460}}},
            "subsets": [
                {"img_count": 46, "num_repeats": 10, "image_dir": "Soraka_Classic", "is_reg": False},
                {"img_count": 300, "num_repeats": 1, "image_dir": "girls", "is_reg": True},
            ],
        }
    ]
    tags = {"Soraka_Classic": {"soraka_classic": 38, "1girl": 46, "bag": 3}, "girls": {"1girl": 300}}
    training = parse_training(
        {
            "ss_datasets": json.dumps(datasets),
            "ss_tag_frequency": json.dumps(tags),
            "ss_num_train_images": "460",
            "ss_num_batches_per_epoch": "230",
            "ss_max_train_steps": "2300",
            "ss_num_epochs": "10",
            "ss_epoch": "3",
            "ss_learning_rate": "0.0005",
            "ss_network_dim": "18",
            "ss_network_alpha": "9",
            "ss_network_module": "networks.lora",
            "ss_sd_model_hash": "0b1893f6",
            "ss_new_sd_model_hash": "NOFILE",
            "ss_clip_skip": "2",
            "ss_noise_offset": "None",
            "ss_v2": "False",
            "ss_min_snr_gamma": "5.0",
            "ss_zero_terminal_snr": "True",
            "ss_output_name": "Soraka_Classic",
        }
    )
    assert training == Training(
        caption="soraka_classic, 1girl",
        num_train_images=46,
        base_autov1="0b1893f6",
        trigger="soraka_classic",
        images_with_repeats=460,
        steps=690,
        epochs=3,
        batch_size=2,
        resolution=(512, 512),
        buckets=((512, 512, 460),),
        learning_rate=0.0005,
        network="networks.lora",
        network_dim=18,
        network_alpha=9.0,
        clip_skip=2,
        v2=False,
        zero_terminal_snr=True,
        min_snr_gamma=5.0,
        title="Soraka_Classic",
    )
    assert training.steps_per_image == 30.0
    assert json.loads(training.to_json())["steps_per_image"] == 30.0
    assert "caption" not in json.loads(training.to_json())


def test_a_folder_that_two_datasets_use_counts_once() -> None:
    subset = {"img_count": 20, "image_dir": "sks", "is_reg": False}
    datasets = [{"subsets": [subset]}, {"subsets": [subset, {"img_count": 5, "image_dir": None}]}]
    assert parse_training({"ss_datasets": json.dumps(datasets)}).num_train_images == 25


@pytest.mark.parametrize(
    ("folder", "caption"),
    [("10_sks dog", "sks dog"), ("5_a photo of sks", "a photo of sks"), ("sks", None), ("1_", None)],
)
def test_without_caption_files_the_folder_is_the_caption(folder: str, caption: str | None) -> None:
    dirs = json.dumps({folder: {"n_repeats": 10, "img_count": 4}})
    assert parse_training({"ss_dataset_dirs": dirs}).caption == caption


def test_captions_without_commas_stand_whole() -> None:
    training = parse_training(kohya({"a dog on grass": 1, "a dog at sea": 1}, images=2))
    assert training.captions == ("a dog on grass", "a dog at sea")
    assert parse_training(kohya({"sks": 2, "a dog at sea": 1, "b": 1}, images=2)).captions == ()


def test_other_trainers_metadata_are_read() -> None:
    training = parse_training(
        {
            "software": '{"name": "ai-toolkit"}',
            "training_info": '{"step": 2000, "epoch": 80}',
            "modelspec.trigger_phrase": "sks",
            "modelspec.architecture": "flux-1-dev/lora",
            "modelspec.prediction_type": "epsilon",
            "modelspec.resolution": "1024x768",
            "lora_adapter_metadata": '{"unet.r": 8, "unet.lora_alpha": 4, "unet.target_modules": ["to_q"]}',
        }
    )
    assert (training.trainer, training.steps, training.epochs, training.caption) == (
        "ai-toolkit",
        2000,
        80,
        "sks",
    )
    assert (training.network_dim, training.network_alpha, training.resolution) == (8, 4.0, (1024, 768))
    assert (training.architecture, training.prediction_type) == ("flux-1-dev/lora", "epsilon")


def test_the_training_of_every_lora_of_the_zoo_is_read(zoo_path: Path) -> None:
    training = [parse_training(read_header(p).metadata) for p in zoo_path.glob("checkpoints/*/*.safetensors")]
    training = [t for t in training if t.num_train_images]
    assert training
    assert all(t.steps_per_image and t.resolution == (64, 64) and t.buckets for t in training)


@pytest.mark.parametrize(
    ("metadata", "mirrored"),
    [
        ({"ss_flip_aug": "True"}, True),
        ({"ss_flip_aug": "False"}, False),
        ({"ss_flip_aug": "perhaps"}, None),
        ({}, None),
        ({"ss_datasets": '[{"subsets": [{"flip_aug": false}, {"flip_aug": true}]}]'}, True),
        ({"ss_datasets": '[{"subsets": [{"flip_aug": true, "is_reg": true}, {"flip_aug": false}]}]'}, False),
        ({"ss_datasets": '[{"subsets": [{"flip_aug": [1]}]}]'}, None),
    ],
)
def test_it_is_read_whether_images_were_mirrored(metadata: dict[str, str], mirrored: bool | None) -> None:
    assert parse_training(metadata).mirrored is mirrored


@pytest.mark.parametrize(
    ("name", "text", "mirrored"),
    [
        ("train.sh", "train.py --center_crop --random_flip --seed=3\n", True),
        ("train.sh", "train.py --random_flip \\\n  --steps 400\n", True),
        ("train.sh", "train.py --steps 400 --random_flip", True),
        ("train.sh", "train.py --steps 400", None),
        ("hparams.yml", "random_flip: false", False),
        ("args.json", '{"random_flip": true}', True),
        ("config.yaml", "datasets:\n- flip_x: true", True),
        ("ot_config.json", '{"concepts": [{"image": {"enable_random_flip": true}}]}', True),
    ],
)
def test_it_is_read_from_sidecar_files_whether_images_were_mirrored(
    name: str, text: str, mirrored: bool | None
) -> None:
    assert parse_sidecar_file(name, text).mirrored is mirrored


def test_a_switch_of_a_script_does_not_take_the_next_option_for_its_value() -> None:
    training = parse_sidecar_file("train.sh", "train.py --random_flip --max_train_steps=400 --fp16")
    assert (training.mirrored, training.steps) == (True, 400)


SCRIPT = """export MODEL_NAME="lab/base"
accelerate launch train_dreambooth.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --instance_prompt="a photo of sks dog" --resolution=512 \\
  --train_batch_size 2 --gradient_accumulation_steps=4 --max_train_steps=400 --learning_rate=$RATE
"""
HPARAMS = """instance_prompt: a photo of sks dog
pretrained_model_name_or_path: lab/base
resolution: 512
train_batch_size: 8
max_train_steps: 400
report_to: !!python/tuple [a, b]
"""
TOOLKIT = """config:
  process:
  - trigger_word: a photo of sks dog
    train: {steps: 400, batch_size: 8, lr: 1e-4}
    datasets:
    - folder_path: /home/me/pictures
      resolution: [512]
    model: {name_or_path: lab/base}
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.sh", SCRIPT),
        ("logs/x/hparams.yml", HPARAMS),
        ("config.yaml", TOOLKIT),
        ("args.json", json.dumps({"a": [{"instance_prompt": "a photo of sks dog"}], "resolution": "512",
         "pretrained_model_name_or_path": "lab/base", "max_train_steps": 400, "train_batch_size": 8})),
    ],
)  # fmt: skip
def test_the_training_is_read_from_sidecar_files(name: str, text: str) -> None:
    training = parse_sidecar_file(name, text)
    assert (training.caption, training.base_name) == ("a photo of sks dog", "lab/base")
    assert (training.steps, training.batch_size, training.resolution) == (400, 8, (512, 512))


def test_a_field_that_one_source_lacks_is_taken_from_another() -> None:
    training = Training(caption="a").or_else(Training(caption="b", steps=3, buckets=((1, 1, 1),)))
    assert training == Training(caption="a", steps=3, buckets=((1, 1, 1),))


HOSTILE_METADATA = {
    "nothing": {},
    "broken JSON": {"ss_tag_frequency": "{", "ss_datasets": "[", "ss_bucket_info": '{"buckets"'},
    "lists for objects": {"ss_tag_frequency": "[1]", "ss_dataset_dirs": "[1]", "ss_bucket_info": "[]"},
    "objects for lists": {"ss_datasets": '{"a": 1}', "ss_resolution": "{}"},
    "a hash that is none": {"ss_new_sd_model_hash": "NOFILE", "ss_sd_model_hash": "IsADirectory"},
    "counts that are texts": {"ss_dataset_dirs": '{"a": {"img_count": "4"}}', "ss_steps": "many"},
    "counts that are negative": {"ss_dataset_dirs": '{"a": {"img_count": -4}}', "ss_steps": "-1"},
    "counts that are huge": {"ss_dataset_dirs": '{"a": {"img_count": 1e400}}', "ss_steps": "9" * 30},
    "counts of 5,000 digits": {"ss_dataset_dirs": '{"a": {"img_count": ' + "9" * 5000 + "}}"},
    "counts that are true": {"ss_dataset_dirs": '{"a": {"img_count": true}}', "ss_num_epochs": "True"},
    "numbers that are not finite": {"ss_learning_rate": "nan", "ss_unet_lr": "inf"},
    "tags that are no numbers": {"ss_tag_frequency": '{"a": {"x": "many", "y": null, "z": []}}'},
    "tags that are empty": {"ss_tag_frequency": '{"a": {"": 3, "  ": 3}}'},
    "tags that cannot be printed": {"ss_tag_frequency": '{"a": {"\\u0000\\ud800\\u202e": 3}}'},
    "brackets nested 100,000 deep": {"ss_datasets": "[" * 100_000, "ss_tag_frequency": '{"a":' * 100_000},
    "datasets of nonsense": {"ss_datasets": '[1, null, {"subsets": 3}, {"subsets": [4, {"img_count": []}]}]'},
    "buckets of nonsense": {"ss_bucket_info": '{"buckets": {"0": 3, "1": {"resolution": [0, -1]}}}'},
    "a resolution of three sides": {"ss_resolution": "[1, 2, 3]", "modelspec.resolution": "x"},
    "software that is a text": {"software": "ai-toolkit", "training_info": "7"},
    "a LoraConfig that is a list": {"lora_adapter_metadata": "[]"},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_METADATA)
def test_hostile_metadata_are_read_as_empty(name: str) -> None:
    read: list[Training] = []
    assert cost(lambda: read.append(parse_training(HOSTILE_METADATA[name]))) < 30
    assert read == [Training()]


def test_megabytes_of_tags_are_read_and_bounded() -> None:
    tags = json.dumps({"10_sks": {f"tag {i} " + "x" * 60: 4 for i in range(100_000)}})
    stated = {"ss_tag_frequency": tags, "ss_dataset_dirs": '{"10_sks": {"img_count": 4}}'}
    read: list[Training] = []
    assert cost(lambda: read.append(parse_training(stated))) < 150
    (training,) = read
    assert training.caption is not None
    assert len(training.caption) <= MAX_CAPTION_CHARS


def test_the_json_of_a_training_is_bounded_and_can_be_stored() -> None:
    long = json.dumps({"a": {f"\ud800\n{i}" + "y" * 900: 1 for i in range(60)}})
    buckets = json.dumps({"buckets": {str(i): {"resolution": [i + 1, 7], "count": 9} for i in range(5_000)}})
    training = parse_training(
        dict.fromkeys(("modelspec.title", "ss_network_module", "modelspec.merged_from"), "z" * 99_999)
        | {"ss_tag_frequency": long, "ss_dataset_dirs": '{"a": {"img_count": 60}}', "ss_bucket_info": buckets}
    )
    assert len(training.captions) == 20
    assert len(training.buckets) == 32
    assert 1_000 < len(training.to_json()) < 12_000
    training.to_json().encode("utf-8")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=10)
            | st.sampled_from(
                ["subsets", "img_count", "buckets", "resolution", "count", "image_dir", "10_sks"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)
FIELDS = st.sampled_from(
    ["ss_tag_frequency", "ss_dataset_dirs", "ss_datasets", "ss_bucket_info", "ss_steps", "ss_num_epochs",
     "ss_epoch", "ss_resolution", "ss_num_train_images", "ss_num_batches_per_epoch", "ss_v2", "software",
     "training_info", "lora_adapter_metadata", "ss_reg_dataset_dirs", "ss_network_alpha", "modelspec.title"]
)  # fmt: skip


@settings(max_examples=400)
@given(
    st.dictionaries(FIELDS, JSON.map(json.dumps) | st.text(max_size=30) | st.floats().map(str), max_size=8)
)
def test_no_metadata_raise_and_all_can_be_stored(metadata: dict[str, str]) -> None:
    training = parse_training(metadata)
    training.to_json().encode("utf-8")
    assert all(
        isinstance(getattr(training, f.name), str | int | float | tuple | None) for f in fields(training)
    )
    assert replace(training).or_else(training) == training


@settings(max_examples=300)
@given(st.text(max_size=200) | JSON.map(lambda v: front(json.dumps(v))) | st.text(max_size=100).map(front))
def test_no_card_raises(text: str) -> None:
    parse_card(text)


@settings(max_examples=300)
@given(
    st.sampled_from(["a.json", "b.yml", "train.sh"]),
    st.text(max_size=200)
    | JSON.map(json.dumps)
    | st.lists(
        st.sampled_from(["--a=", "--instance_prompt ", '"', "'", "$", "$A", "A=", "\n", " ", "\\"]),
        max_size=40,
    ).map("".join),
)
def test_no_sidecar_file_raises(name: str, text: str) -> None:
    parse_sidecar_file(name, text)
