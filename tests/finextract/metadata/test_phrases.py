"""What a caption may be, from names, tags, cards and common words: plain, short and few, whatever goes in."""

import shutil
from pathlib import Path

import pytest

from finextract.metadata.phrases import (
    MAX_OWN,
    MAX_PHRASE_CHARS,
    MAX_PHRASE_WORDS,
    captions_of,
    local_subjects,
    own_subjects,
)
from finextract.metadata.vocabulary import STUFF, SUBJECTS

ZOO = Path(__file__).resolve().parents[2] / "zoo"


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("mira/cats-dreambooth", "cat"),
        ("MonetStyle_v2-sdxl-lora", "monet style"),
        ("sd15_butterflies_fp16_rank64", "butterfly"),
        ("my-sks-dog-000010", "sks dog"),
        ("houses-512px-3000steps", "house"),
    ],
)
def test_a_name_gives_its_words_without_those_about_the_file(name: str, subject: str) -> None:
    assert own_subjects([name])[0] == subject


def test_a_name_of_several_words_gives_its_common_subjects_too() -> None:
    assert own_subjects(["sks-dog-on-the-beach"]) == ("sks dog beach", "dog", "beach")


def test_a_card_gives_its_title_its_sample_prompts_and_what_it_quotes() -> None:
    card = """---
license: mit
widget:
- text: a photo of zwx toy
---
# Robots of my desk
Use `sks robot`, and see [here](https://example.com). Run it with "python train.py --x".
```python
pipe("code is no caption")
```
"""
    found = own_subjects(["user/v1-lora"], ["text-to-image", "animals", "license:mit"], card)
    assert found == ("a photo of zwx toy", "toy", "Robots of my desk", "robot", "sks robot", "animal")


def test_what_says_nothing_gives_nothing() -> None:
    assert own_subjects(["owner/sdxl-lora-v2", "pytorch_lora_weights"], ["lora", "base_model:x"], "") == ()


def test_hostile_texts_give_few_short_phrases_on_one_line() -> None:
    names = [
        "\x1b[31mcat\n\u202edog\x00" + "A" * 100_000,
        "x" * 10**6,
        *(f"name{i}zz yy{i}zz" for i in range(999)),
    ]
    card = (
        "# "
        + "`a" * 50_000
        + "\n"
        + "".join(f'"phrase {chr(97 + i % 26)} {"b" * (i % 90)}"\n' for i in range(5000))
    )
    found = own_subjects(names, ["\ud800 tag", *("t" * i for i in range(500))], card)
    assert 0 < len(found) <= MAX_OWN
    assert all(len(p) <= MAX_PHRASE_CHARS and len(p.split()) <= MAX_PHRASE_WORDS for p in found)
    assert all(p.isprintable() and p == p.strip() and p for p in found)


def test_a_local_checkpoint_gives_what_its_folder_and_file_are_called(tmp_path: Path) -> None:
    folder = tmp_path / "stamps-lora"
    folder.mkdir()
    shutil.copy(ZOO / "checkpoints/trees-lora/trees-lora.safetensors", folder / "old_trees_v3.safetensors")
    assert local_subjects(folder) == ("stamps", "old trees", "tree")
    assert local_subjects(folder / "old_trees_v3.safetensors") == ("old trees", "tree")


def test_the_common_subjects_are_two_hundred_each_with_its_article() -> None:
    assert len(SUBJECTS) == len(set(SUBJECTS)) == 200
    assert set(SUBJECTS) >= STUFF
    assert captions_of("insect") == ("insect", "a picture of an insect", "a photo of an insect")
    assert captions_of("fruit")[1] == "a picture of fruit"
    assert captions_of("sks dog")[2] == "a photo of sks dog", "an author's own words stay as they are"
