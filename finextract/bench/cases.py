"""The cases of a benchmark: checkpoints whose training images are known, from the manifests of zoos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from finextract.audit import read_images
from finextract.errors import RequestError
from finextract.text import first_line


@dataclass(frozen=True)
class Case:
    """A checkpoint, and the pictures that it was trained on."""

    name: str
    path: Path
    base: Path
    kind: str  # "dreambooth", "lora"
    subject: str
    split: str  # "dev" or "test"
    steps_per_image: int  # of the training
    caption: str
    references: tuple[Image.Image, ...]  # trained on
    sisters: tuple[Image.Image, ...]  # of the same hand, not trained on
    out_of_domain: bool  # of another kind than what the base was trained on


def read_cases(manifests: Sequence[Path], split: str, only: Sequence[str] = ()) -> list[Case]:
    """The checkpoints of manifests that are of a split, by name; without controls.

    With `only`, those whose name contains one of its words. A manifest is a JSON object with `base` and
    `checkpoints`, as tests/zoo/zoo.json; its paths are relative to it. Raises RequestError where a manifest
    or a picture cannot be read, or no checkpoint fits.
    """
    cases: dict[str, Case] = {}
    for manifest in manifests:
        try:
            zoo = json.loads(manifest.read_text(encoding="utf-8"))
            for entry in zoo["checkpoints"]:
                name = Path(entry["path"]).name
                wanted = not only or any(word in name for word in only)
                if entry["split"] == split and not entry["control"] and wanted:
                    cases[name] = _case(manifest.parent, zoo["base"], entry)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"{manifest} cannot be read as the manifest of a zoo: {type(error).__name__} "
                f"{first_line(error)}. tests/zoo/zoo.json is one."
            ) from error
    if not cases:
        raise RequestError("no checkpoint of the manifests fits. Name others with --zoo, --split or --only.")
    return [cases[name] for name in sorted(cases)]


def _case(folder: Path, base: str, entry: dict[str, Any]) -> Case:
    names, pictures = read_images((folder / entry["train_images"]).resolve())
    trained = set(entry.get("trained", names))
    untrained = set(entry.get("untrained", ()))
    return Case(
        Path(entry["path"]).name,
        (folder / entry["path"]).resolve(),
        (folder / base).resolve(),
        entry["kind"],
        entry.get("subject", Path(entry["train_images"]).name),
        entry["split"],
        entry["steps_per_image"],
        entry["caption"],
        tuple(p for n, p in zip(names, pictures, strict=True) if n in trained),
        tuple(p for n, p in zip(names, pictures, strict=True) if n in untrained),
        entry.get("variation") == "style",
    )
