"""The small files beside local weights: model card, configurations, sidecar files. Imports no torch.

Each is untrusted, may be missing, and is read up to a fixed size; nothing here raises.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from finextract.metadata.cards import Card, parse_card
from finextract.metadata.prompts import choose_caption
from finextract.metadata.untrusted import object_of
from finextract.regular_files import open_regular

MAX_SMALL_FILE = 1_000_000  # bytes of a card or a configuration file
SIDECAR_FILES = ("hparams.yml", "args.json", "train.sh", "config.yaml")  # they describe the training run


def read_text(path: Path) -> str:
    """The start of a small text file; empty where the file is missing or cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(MAX_SMALL_FILE).decode("utf-8", errors="replace")
    except OSError:
        return ""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file; empty where there is none that can be read."""
    return object_of(read_text(path))


def read_sidecar_files(folder: Path) -> dict[str, str]:
    """The texts of the sidecar files in a folder, by name; a missing one is empty."""
    return {name: read_text(folder / name) for name in SIDECAR_FILES}


def read_card(folder: Path, file: str) -> Card:
    """The card in README.md, with the trigger words that stand beside the weight file `file`.

    Trigger words are the "activation text" of A1111's NAME.json, or "trainedWords" of NAME.civitai.info,
    which download tools write. `file` is "" for a diffusers folder, which has neither.
    """
    card = parse_card(read_text(folder / "README.md"))
    if not file:
        return card
    beside = (folder / file).with_suffix("")
    words = read_object(beside.with_name(f"{beside.name}.json")).get("activation text")
    listed = read_object(beside.with_name(f"{beside.name}.civitai.info")).get("trainedWords")
    chosen = choose_caption(words)
    if chosen.caption is None and isinstance(listed, list):
        chosen = choose_caption(listed)
    return replace(card, trigger_words=chosen.caption, alternatives=chosen.alternatives)
