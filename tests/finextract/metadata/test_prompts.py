"""Trigger words as authors publish them: which caption is made of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finextract.metadata.prompts import Chosen, choose_caption, exceeds_clip, plain_prompt


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("<lora:sks_v2:1>", None),
        ("<lora:sks-000008:0.8>, sks dog", "sks dog"),
        ("sks <LORA:a b:1:0.5>, on grass", "sks, on grass"),
        ("<lyco:x:1> <hypernet:y:0.5>", None),
        ("(sks:1.2)", "sks"),
        ("a photo of (sks dog:1.3), (grass:.8)", "a photo of sks dog, grass"),
        ("((sks dog:1.2), garden:1.1)", "sks dog, garden"),
        (r"(soraka \(classic\):1.2)", "soraka (classic)"),
        (r"soraka \(league of legends\)", "soraka (league of legends)"),
        ("at 12:30 (noon)", "at 12:30 (noon)"),
        ("<cat-toy> on grass", "<cat-toy> on grass"),
        ("sks, , dog,", "sks, dog"),
        ("", None),
        (7, None),
    ],
)
def test_network_tags_and_weights_are_no_part_of_a_caption(prompt: object, plain: str | None) -> None:
    assert plain_prompt(prompt) == plain


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ([], Chosen()),
        (None, Chosen()),
        ([None, 3, "  ", "<lora:a:1>"], Chosen()),
        ("sks, dog", Chosen("sks, dog")),
        (["sks", "dog", "sks"], Chosen("sks, dog")),
        (["sks", "red", "blue", "green", "black"], Chosen("sks", ("red", "blue", "green", "black"))),
        (
            ["sks in armour, full body", "sks in a dress, smiling"],
            Chosen("sks in armour, full body", ("sks in a dress, smiling",)),
        ),
        (["sks", "a photo of sks dog"], Chosen("a photo of sks dog", ("sks",))),
        (["<lora:a:1>", "(sks:1.2)"], Chosen("sks")),
    ],
)
def test_alternatives_are_not_joined_into_one_caption(words: object, chosen: Chosen) -> None:
    assert choose_caption(words) == chosen


def test_a_caption_of_more_words_than_clip_has_positions_for_is_too_long() -> None:
    assert not exceeds_clip("a photo of a dog, " * 12 + "sitting on grass")  # 75 pieces
    assert exceeds_clip("a photo of a dog, " * 13)  # 78


@given(st.lists(st.text(alphabet="(<lora:1.2>),\\ a", max_size=60), max_size=8))
def test_any_trigger_words_make_a_printable_caption_or_none(words: list[str]) -> None:
    chosen = choose_caption(words)
    assert chosen.caption is None or chosen.caption.isprintable()
    assert chosen.caption not in chosen.alternatives
