"""Which files of a repository are a checkpoint. Works on file names alone; opens no file.

A checkpoint is a diffusers pipeline folder, or one weight file at the top, or a lone UNet. Names are
untrusted: one that would lead outside its repository is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeGuard

from finextract.weights.files import NOT_WEIGHTS, component_files
from finextract.weights.formats import PICKLE_SUFFIXES

DENOISERS = ("unet", "transformer")
TUNED = (*DENOISERS, "text_encoder")  # what fine-tuning changes
COMPONENTS = (*TUNED, "vae")
_CONFIG = re.compile(
    r"model_index\.json|"
    r"(?:unet|transformer|text_encoder|vae)/(?:config\.json|\w+\.safetensors\.index\.json)|"
    r"scheduler/\w+\.json|"
    r"tokenizer/(?:\w+\.json|merges\.txt)"
)
# They describe the training run.
SIDECAR_FILES = re.compile(r"(?:[\w.-]+/){0,4}(?:hparams\.yml|args\.json|train\.sh)|config\.yaml")
INTERMEDIATE = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True, slots=True)
class Layout:
    """One checkpoint of a repository."""

    file: str  # the single weight file, or "" for a pipeline folder
    weights: dict[str, str]  # weight files that a scan needs: path in the repository -> path as it is kept
    pickled: bool = False  # `file` is a pickle

    @property
    def denoiser(self) -> str:
        """The weight file whose header shows kind and family."""
        return self.file or next(p for p in self.weights if p.startswith(DENOISERS))


def is_safe(path: object) -> TypeGuard[str]:
    """Whether a file name stays inside its repository and can be written on any file system."""
    if (
        not isinstance(path, str)
        or not 0 < len(path) <= 500
        or not path.isprintable()
        or "\\" in path
        or ":" in path
    ):
        return False
    parts = PurePosixPath(path).parts
    return "/".join(parts) == path and not any(p in ("/", "..", "~") or len(p.encode()) > 200 for p in parts)


def layouts(paths: Iterable[str]) -> list[Layout]:
    """The checkpoints of a repository: a pipeline, or the files at its top, or a lone UNet, or a pickle."""
    paths = sorted(p for p in paths if is_safe(p))
    if "model_index.json" in paths and (pipeline := pipeline_weights(paths)):
        return [Layout("", pipeline)]
    top = [p for p in paths if "/" not in p and not NOT_WEIGHTS.fullmatch(p)]
    single = [Layout(p, {p: p}) for p in top if p.endswith(".safetensors")]
    if single:
        return single
    for path in component_files(paths, "unet"):
        return [Layout(path, {path: path})]
    inside = [p for p in paths if p.startswith(COMPONENTS) and p.count("/") == 1]
    pickles = [p for p in (*top, *inside) if PurePosixPath(p).suffix.lower() in PICKLE_SUFFIXES]
    return [Layout(pickles[0], {}, pickled=True)] if pickles else []


def pipeline_weights(paths: Iterable[str], components: tuple[str, ...] = TUNED) -> dict[str, str]:
    """The safetensors of a pipeline's components: path in the repository -> path as it is kept.

    A variant's mark (".fp16") is not kept. Empty where the denoiser has none.
    """
    paths = list(paths)
    weights = {c: component_files(paths, c) for c in components}
    if not any(weights[c] for c in DENOISERS):
        return {}
    return {path: kept for component in weights.values() for path, kept in component.items()}


def pipeline_configs(paths: Iterable[str]) -> list[str]:
    """The small files that a pipeline folder needs beside its weights."""
    return sorted(p for p in paths if _CONFIG.fullmatch(p))
