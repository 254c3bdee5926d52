"""What an author tells about a checkpoint: the model card and the training metadata. Imports no torch.

Both come from strangers: anything may be missing, of another type, or nonsense, and none of it raises.
Card: the YAML front matter of README.md, as the diffusers training scripts write it. Training metadata:
the `ss_*` strings that kohya's sd-scripts put into a safetensors header (train_network.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

MAX_CARD_CHARS = 1_000_000
MAX_CAPTION_CHARS = 1_000


@dataclass(frozen=True, slots=True)
class Card:
    """The fields of a model card that a scan can use."""

    base_model: str | None = None  # OWNER/NAME, or a path on the author's machine
    instance_prompt: str | None = None  # the training caption
    license: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Training:
    """What kohya's metadata tells of a training run."""

    caption: str | None = None
    num_train_images: int | None = None  # N0, without repeats
    base_name: str | None = None  # ss_sd_model_name: a file name, or OWNER/NAME
    base_sha256: str | None = None  # ss_new_sd_model_hash


def parse_card(text: str) -> Card:
    """The card in a README's text; an empty card where there is none that can be read."""
    match = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", text[:MAX_CARD_CHARS], re.DOTALL)
    if match is None:
        return Card()
    try:
        data = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return Card()
    return card_from(data if isinstance(data, dict) else {})


def card_from(data: Mapping[str, Any]) -> Card:
    """The card in a hub's `cardData`, or in parsed front matter."""
    tags = data.get("tags")
    return Card(
        base_model=_text(data.get("base_model")),
        instance_prompt=_text(data.get("instance_prompt")),
        license=_text(data.get("license")),
        tags=tuple(t for t in tags if isinstance(t, str)) if isinstance(tags, list) else (),
    )


def _text(value: object) -> str | None:
    if isinstance(value, list) and value:  # base_model may be a list
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        return None
    return "".join(c for c in value.strip() if c.isprintable())[:MAX_CAPTION_CHARS] or None


def parse_training(metadata: Mapping[str, str]) -> Training:
    """What the `ss_*` metadata of a safetensors header tell; empty where they are missing."""
    tags = _json_object(metadata.get("ss_tag_frequency"))
    folders = _json_object(metadata.get("ss_dataset_dirs"))
    counts = [c for folder in folders.values() if (c := _count(folder)) is not None]
    images = sum(counts) or None
    sha256 = metadata.get("ss_new_sd_model_hash", "").lower()
    return Training(
        caption=_caption(tags, images) or _text(metadata.get("modelspec.trigger_phrase")),
        num_train_images=images,
        base_name=_text(metadata.get("ss_sd_model_name")),
        base_sha256=sha256 if re.fullmatch("[0-9a-f]{64}", sha256) else None,
    )


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _count(folder: object) -> int | None:
    count = folder.get("img_count") if isinstance(folder, dict) else None
    return count if isinstance(count, int) and 0 < count < 1_000_000 else None


def _caption(tags: dict[str, Any], images: int | None) -> str | None:
    """The tags that stand in every caption, in their order: the trigger and the class.

    sd-scripts counts each comma-separated piece of a caption once an image (platform facts 3.2), so a piece
    whose count is the number of images is in every caption. Where none is, the most frequent one.
    """
    pieces: dict[str, int] = {}
    for folder in tags.values():
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            if isinstance(count, int):
                pieces[tag.strip()] = pieces.get(tag.strip(), 0) + count
    pieces.pop("", None)
    if not pieces:
        return None
    most = max(pieces.values())
    everywhere = [tag for tag, count in pieces.items() if images is not None and count >= images]
    return _text(", ".join(everywhere)) or _text(next(t for t, c in pieces.items() if c == most))
