"""The training run as the metadata of a safetensors header describe it. Imports no torch.

The `ss_*` strings of kohya's sd-scripts (train_network.py), the Stability model specification
(`modelspec.*`), diffusers' `lora_adapter_metadata`, ai-toolkit's `training_info`. All of it is
untrusted: no content raises an error, and a value of another type or out of bounds counts as missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from finextract.metadata.untrusted import flag_of, json_of, number_of, object_of, text_of, whole_of

MAX_IMAGES = 1_000_000
MAX_STEPS = 1_000_000_000
MAX_PIXELS = 65_536  # along one side
MAX_BUCKETS = 32
MAX_CAPTIONS = 20
MAX_CAPTION_CHARS = 300  # of each of several
_NOT_IN_JSON = ("caption", "num_train_images")  # they have columns of their own


@dataclass(frozen=True, slots=True)
class Training:
    """A training run as metadata describe it. None, or empty, where they do not state a value."""

    caption: str | None = None  # to sample with
    num_train_images: int | None = None  # N0, without repeats
    base_name: str | None = None  # ss_sd_model_name: a file name, or OWNER/NAME
    base_sha256: str | None = None  # ss_new_sd_model_hash
    base_autov1: str | None = (
        None  # ss_sd_model_hash, 32 bits of a part of the file: too few to find a base by
    )
    trigger: str | None = None  # the stated trigger phrase, else the start of every caption
    alternatives: tuple[str, ...] = ()  # further prompts that the author states; none is sampled with
    exceeds_clip: bool | None = None  # True: the caption is longer than CLIP reads
    captions: tuple[str, ...] = ()  # whole captions of single images, where they can be separated
    images_with_repeats: int | None = None  # images that one epoch shows
    steps: int | None = None  # optimiser steps behind these weights
    epochs: int | None = None
    batch_size: int | None = None  # of one optimiser step, over all devices
    resolution: tuple[int, int] | None = None  # width, height in pixels
    buckets: tuple[tuple[int, int, int], ...] = ()  # width, height, images with repeats; most images first
    learning_rate: float | None = None
    network: str | None = None  # the module that was trained, such as networks.lora
    network_dim: int | None = None  # rank
    network_alpha: float | None = None
    clip_skip: int | None = None
    v2: bool | None = None  # a base of Stable Diffusion 2
    v_parameterization: bool | None = None
    zero_terminal_snr: bool | None = None
    min_snr_gamma: float | None = None
    noise_offset: float | None = None
    prediction_type: str | None = None
    architecture: str | None = None
    title: str | None = None
    merged_from: str | None = None
    trainer: str | None = None
    concepts: tuple[str, ...] = ()  # names of the sets of images that were trained on
    mirrored: bool | None = None  # whether images were mirrored at random

    @property
    def steps_per_image(self) -> float | None:
        """How often the run saw each image: steps x batch size / images. High values suggest overfitting."""
        if self.steps is None or self.num_train_images is None:
            return None
        return round(self.steps * (self.batch_size or 1) / self.num_train_images, 2)

    def or_else(self, other: Training) -> Training:
        """This record, with the fields that only the other one states."""
        missing = [f.name for f in fields(self) if getattr(self, f.name) in (None, ())]
        return replace(self, **{name: getattr(other, name) for name in missing})

    def to_json(self) -> str:
        """All stated fields but the caption and the number of images, as compact JSON.

        At most about 20,000 characters, since every field is bounded.
        """
        stated = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_IN_JSON}
        stated["steps_per_image"] = self.steps_per_image
        stated = {name: value for name, value in stated.items() if value not in (None, ())}
        return json.dumps(stated, ensure_ascii=False, separators=(",", ":"))


def pictures_of_json(text: str) -> Training:
    """What `Training.to_json` states about how pictures were prepared: mirrored, and cut to which buckets."""
    stated = object_of(json_of(text))
    buckets = stated.get("buckets")
    sizes = [tuple(whole_of(x, 1, MAX_STEPS) for x in b) for b in buckets or () if isinstance(b, list)]
    return Training(
        mirrored=flag_of(stated.get("mirrored")),
        buckets=tuple((b[0], b[1], b[2]) for b in sizes if len(b) == 3 and None not in b),  # type: ignore[misc]
    )


def parse_training(metadata: Mapping[str, str]) -> Training:
    """The training run that the metadata of a safetensors header describe; empty where they are missing."""
    get = metadata.get
    subsets, datasets = _subsets(json_of(get("ss_datasets")))
    folders = object_of(get("ss_dataset_dirs"))
    images = _images(folders, subsets)
    tags = _tags(object_of(get("ss_tag_frequency")), folders, subsets, object_of(get("ss_reg_dataset_dirs")))
    names = _names([*folders, get("ss_output_name", ""), get("modelspec.title", "")])
    everywhere, most = _common(tags, images, names)
    trigger = next((t for t in everywhere if _plain(t) in names), everywhere[0] if everywhere else None)
    phrase = text_of(get("modelspec.trigger_phrase"))
    epochs, epoch = whole_of(get("ss_num_epochs"), 1, MAX_STEPS), whole_of(get("ss_epoch"), 1, MAX_STEPS)
    shown = whole_of(get("ss_num_train_images"), 1, MAX_STEPS)
    info = object_of(get("training_info"))
    adapter = object_of(get("lora_adapter_metadata"))
    sha256, autov1 = get("ss_new_sd_model_hash", "").lower(), get("ss_sd_model_hash", "").lower()
    return Training(
        caption=text_of(", ".join(everywhere))
        or text_of(most)
        or phrase
        or _folder_caption(folders, subsets),
        num_train_images=images,
        base_name=text_of(get("ss_sd_model_name")),
        base_sha256=sha256 if re.fullmatch("[0-9a-f]{64}", sha256) else None,
        base_autov1=autov1 if re.fullmatch("[0-9a-f]{8}", autov1) else None,
        trigger=phrase or text_of(trigger),
        captions=_whole_captions(tags, images),
        images_with_repeats=shown,
        steps=_steps(metadata, epochs, epoch) or whole_of(info.get("step"), 1, MAX_STEPS),
        epochs=epoch or epochs or whole_of(info.get("epoch"), 1, MAX_STEPS),
        batch_size=_batch(metadata, shown),
        resolution=resolution_of(get("ss_resolution") or get("modelspec.resolution"))
        or next((r for d in datasets if (r := resolution_of(d.get("resolution")))), None),
        buckets=_buckets([json_of(get("ss_bucket_info")), *(d.get("bucket_info") for d in datasets)]),
        learning_rate=number_of(get("ss_unet_lr"), 0, 1e3) or number_of(get("ss_learning_rate"), 0, 1e3),
        network=text_of(get("ss_network_module"), 200),
        network_dim=whole_of(get("ss_network_dim"), 1, 100_000)
        or whole_of(adapter.get("unet.r", adapter.get("transformer.r")), 1, 100_000),
        network_alpha=number_of(get("ss_network_alpha"), 0, 1e6)
        or number_of(adapter.get("unet.lora_alpha", adapter.get("transformer.lora_alpha")), 0, 1e6),
        clip_skip=whole_of(get("ss_clip_skip"), 0, 100),
        v2=flag_of(get("ss_v2")),
        v_parameterization=flag_of(get("ss_v_parameterization")),
        zero_terminal_snr=flag_of(get("ss_zero_terminal_snr")),
        min_snr_gamma=number_of(get("ss_min_snr_gamma"), 0, 1e6),
        noise_offset=number_of(get("ss_noise_offset"), 0, 1e3),
        prediction_type=text_of(get("modelspec.prediction_type"), 50),
        architecture=text_of(get("ss_base_model_version"), 100)
        or text_of(get("modelspec.architecture"), 100),
        title=text_of(get("modelspec.title") or get("ss_output_name") or get("name"), 200),
        merged_from=text_of(get("modelspec.merged_from"), 300),
        trainer=text_of(object_of(get("software")).get("name"), 200)
        or text_of(get("modelspec.implementation"), 200),
        mirrored=_any(
            [get("ss_flip_aug"), *(s.get("flip_aug") for s in subsets if s.get("is_reg") is not True)]
        ),
    )


def _dicts(value: object) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _subsets(value: object) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All subsets of ss_datasets, and the datasets themselves."""
    datasets = _dicts(value)
    return [s for d in datasets for s in _dicts(d.get("subsets"))], datasets


def _any(values: list[object]) -> bool | None:
    """Whether one of several flags is set; None where none is stated."""
    stated = [flag for value in values if (flag := flag_of(value)) is not None]
    return any(stated) if stated else None


def _count(value: object) -> int:
    return value if type(value) is int and 0 < value < MAX_IMAGES else 0


def _images(folders: Mapping[str, object], subsets: list[dict[str, Any]]) -> int | None:
    """The training images without repeats. A folder that several datasets use (at several resolutions) counts
    once; regularisation images never do."""
    images = sum(_count(f.get("img_count")) for f in folders.values() if isinstance(f, dict))
    if not images:
        by_folder: dict[str, int] = {}
        for i, subset in enumerate(s for s in subsets if s.get("is_reg") is not True):
            name = subset.get("image_dir")
            name = name if isinstance(name, str) else f"\0{i}"
            by_folder[name] = max(by_folder.get(name, 0), _count(subset.get("img_count")))
        images = sum(by_folder.values())
    return images if 0 < images < MAX_IMAGES else None


def _tags(
    frequency: Mapping[str, object],
    folders: Mapping[str, object],
    subsets: list[dict[str, Any]],
    reg_folders: Mapping[str, object],
) -> list[dict[str, int]]:
    """Piece of caption -> number of images, for each folder of training images."""
    reg = {*reg_folders, *(str(s.get("image_dir")) for s in subsets if s.get("is_reg") is True)}
    reg -= {*folders, *(str(s.get("image_dir")) for s in subsets if s.get("is_reg") is not True)}
    return [
        {tag.strip(): count for tag, count in tags.items() if tag.strip() and type(count) is int}
        for folder, tags in frequency.items()
        if isinstance(tags, dict) and folder not in reg
    ]


def _plain(name: str) -> str:
    return re.sub(r"[ _-]+", "_", name[:MAX_CAPTION_CHARS].strip().lower())


def _names(names: list[str]) -> set[str]:
    """Names of folders and outputs, without the number of repeats: authors name them after the trigger."""
    return {_plain(re.sub(r"^\d{1,6}_", "", name[:MAX_CAPTION_CHARS])) for name in names} - {""}


def _common(tags: list[dict[str, int]], images: int | None, names: set[str]) -> tuple[list[str], str | None]:
    """The pieces that stand in every caption, in their order (the trigger and the class), and the most
    frequent piece.

    sd-scripts counts each comma-separated piece of a caption once an image, so a piece
    whose count is the number of images is in every caption. A piece that the run is named after need only be
    in half of them.
    """
    pieces: dict[str, int] = {}
    for folder in tags:
        for tag, count in folder.items():
            pieces[tag] = pieces.get(tag, 0) + count
    if not pieces:
        return [], None
    everywhere = [
        tag
        for tag, count in pieces.items()
        if images is not None and (count >= images or (2 * count >= images and _plain(tag) in names))
    ]
    return everywhere, max(pieces, key=lambda tag: pieces[tag])


def _whole_captions(tags: list[dict[str, int]], images: int | None) -> tuple[str, ...]:
    """Captions without commas stand whole in ss_tag_frequency: as many pieces as images, each once."""
    pieces = [tag for folder in tags for tag, count in folder.items() if count == 1]
    if images is None or len(pieces) != images or any(len(folder) > images for folder in tags):
        return ()
    captions = (text_of(piece, MAX_CAPTION_CHARS) for piece in pieces[:MAX_CAPTIONS])
    return tuple(c for c in captions if c)


def _folder_caption(folders: Mapping[str, object], subsets: list[dict[str, Any]]) -> str | None:
    """The caption in a folder's name, REPEATS_CAPTION ("10_sks dog"), or a subset's class tokens: what images
    without caption files are trained with."""
    for subset in subsets:
        if subset.get("is_reg") is not True and (tokens := text_of(subset.get("class_tokens"))):
            return tokens
    for name in folders:
        if match := re.fullmatch(r"\d{1,6}_(.{1,4000})", name):
            return text_of(match[1])
    return None


def _steps(metadata: Mapping[str, str], epochs: int | None, epoch: int | None) -> int | None:
    """Steps at the time when the weights were saved: as stated, or the planned steps' share of the epochs."""
    steps = whole_of(metadata.get("ss_steps"), 1, MAX_STEPS)
    planned = whole_of(metadata.get("ss_max_train_steps"), 1, MAX_STEPS)
    if steps is None and planned is not None and epochs and epoch and epoch < epochs:
        return max(1, planned * epoch // epochs)
    return steps or planned


def _batch(metadata: Mapping[str, str], shown: int | None) -> int | None:
    total = whole_of(metadata.get("ss_total_batch_size"), 1, MAX_IMAGES)
    device = whole_of(metadata.get("ss_batch_size_per_device"), 1, MAX_IMAGES)
    per_epoch = whole_of(metadata.get("ss_num_batches_per_epoch"), 1, MAX_STEPS)
    accumulated = whole_of(metadata.get("ss_gradient_accumulation_steps"), 1, 100_000) or 1
    if total is not None or device is not None:
        return total or (device or 1) * accumulated
    return max(1, round(shown / per_epoch)) * accumulated if shown and per_epoch else None


def resolution_of(value: object) -> tuple[int, int] | None:
    """[w, h], "(w, h)", "w,h", "wxh", or one number for a square."""
    if isinstance(value, str):
        value = re.findall(r"\d{1,9}", value[:40])
    sides = value if isinstance(value, list) else [value]
    stated = [whole_of(side, 1, MAX_PIXELS) for side in sides[:3]]
    if len(stated) not in (1, 2) or stated[0] is None or stated[-1] is None:
        return None
    return stated[0], stated[-1]


def _buckets(values: list[object]) -> tuple[tuple[int, int, int], ...]:
    """Bucket resolutions with their images, most images first."""
    counts: dict[tuple[int, int], int] = {}
    for value in values:
        buckets = value.get("buckets") if isinstance(value, dict) else None
        for bucket in buckets.values() if isinstance(buckets, dict) else ():
            size = resolution_of(bucket.get("resolution")) if isinstance(bucket, dict) else None
            count = whole_of(bucket.get("count"), 1, MAX_STEPS) if size else None
            if size and count:
                counts[size] = min(counts.get(size, 0) + count, MAX_STEPS)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple((*size, count) for size, count in ordered[:MAX_BUCKETS])
