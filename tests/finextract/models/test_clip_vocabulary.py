"""CLIP's tokenizer as the program makes it, compared with OpenCLIP's own and with one of published files."""

from __future__ import annotations

import json
import random
import unicodedata
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from finextract.models.clip_vocabulary import clip_tokenizer, clip_vocabulary
from finextract.single_files import PUBLISHED, published_config

CONFIG = published_config("sd1", "tokenizer/tokenizer_config.json")
WORDS = [
    "a photo of sks dog", "masterpiece, best quality, 1girl", "an artist's brush, won't you've", "they'll",
    "A CAPITAL LETTER", "naïve café, jalapeño", "Straße und Ärger", "Картина маслом", "水墨画 富士山", "그림",
    "🎨🖼️ painting", "(detailed:1.3), [blurry], {x}", "<lora:name:1>", "1234567890 3.14159 24-bit",
    "tab\tand\nline  breaks", "http://example.org/a?b=c", "under_score kebab-case", "x", "a  b", "...???",
    "(((", "ohwx zwx",
]  # fmt: skip


@cache
def open_clip_tokenizer() -> Any:
    """OpenCLIP's tokenizer, without the import of its models, which takes seconds."""
    (place,) = find_spec("open_clip").submodule_search_locations  # type: ignore[union-attr, misc]
    spec = spec_from_file_location("open_clip_tokenizer", Path(place) / "tokenizer.py")
    module = module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module.SimpleTokenizer(clean="whitespace")


def generated() -> list[str]:
    """Strings of letters, signs and known words in random order."""
    chance, (vocabulary, _) = random.Random(0), clip_vocabulary()
    words = [w.removesuffix("</w>") for w in list(vocabulary)[512:49_000:7] if w.isascii()]
    signs = "abcdefghijklmnopqrstuvwxyz0123456789 '-,.;:()!?/éßñäж水🎨"
    return [
        "".join(chance.choice(signs) for _ in range(60)) + " " + " ".join(chance.sample(words, 8))
        for _ in range(100)
    ]


def test_its_tokens_are_those_of_openclips_own_tokenizer() -> None:
    """Of texts that OpenCLIP's cleaning (ligatures, HTML) leaves as they are."""
    ours, theirs = clip_tokenizer(CONFIG), open_clip_tokenizer()
    for text in (*WORDS, *generated()):
        expected = theirs.encode(" ".join(unicodedata.normalize("NFC", text).split()).lower())
        assert ours(text, add_special_tokens=False).input_ids == expected, text


def test_it_has_the_vocabulary_and_the_marks_of_the_published_tokenizers() -> None:
    vocabulary, merges = clip_vocabulary()
    assert (len(vocabulary), len(merges)) == (49_408, 48_894)
    assert [vocabulary[w] for w in ("!", "!</w>", "cat</w>", "photo</w>")] == [0, 256, 2368, 1125]
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (49_406, 49_407)


@pytest.mark.parametrize("config", [CONFIG, published_config("sdxl", "tokenizer_2/tokenizer_config.json")])
def test_it_is_the_tokenizer_that_files_of_the_same_content_give(config: Any, tmp_path: Path) -> None:
    vocabulary, merges = clip_vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in merges)]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = clip_tokenizer(config), CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    texts = [*WORDS, "", "word " * 100]
    assert ours(texts, **options).input_ids == theirs(texts, **options).input_ids
    assert ours.model_max_length == theirs.model_max_length == 77


def test_every_published_clip_tokenizer_pads_with_the_end_mark_or_with_the_first_token() -> None:
    """As OpenAI's encoders were trained, and as OpenCLIP's were."""
    pads = {}
    for file in PUBLISHED.glob("*/tokenizer*/tokenizer_config.json"):
        config = json.loads(file.read_text())
        if config["tokenizer_class"] == "CLIPTokenizer":
            pads[f"{file.parts[-3]}/{file.parts[-2]}"] = config["pad_token"]
    first = {name for name, pad in pads.items() if pad == "!"}
    assert first == {
        "sd2/tokenizer", "sd2-v/tokenizer", "sdxl/tokenizer_2", "sd3-medium/tokenizer_2",
        "sd35-medium/tokenizer_2", "sd35-large/tokenizer_2",
    }  # fmt: skip
    assert {pad for name, pad in pads.items() if name not in first} == {"<|endoftext|>"}
