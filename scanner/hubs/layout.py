"""Which files of a repository are a checkpoint. Works on file names alone; opens no file.

A checkpoint is a diffusers pipeline folder, or one weight file at the top, or a lone denoiser, which is one
file or a folder of shards. Names are untrusted: one that would lead outside its repository is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeGuard

from finextract.reasons import Reason, ReasonCode
from finextract.weights.files import NOT_WEIGHTS, component_files, shards_of, why_no_shard
from finextract.weights.formats import PICKLE_SUFFIXES
from scanner.hubs.fields import visible

DENOISERS = ("unet", "transformer")
TUNED = (*DENOISERS, "text_encoder", "text_encoder_2", "text_encoder_3")  # what fine-tuning changes
COMPONENTS = (*TUNED, "vae")
_CONFIG = re.compile(
    r"model_index\.json|"
    r"(?:unet|transformer|text_encoder(?:_[23])?|vae)/(?:config\.json|\w+\.safetensors\.index(?:\.\w+)?\.json)|"
    r"scheduler/\w+\.json|"
    r"tokenizer(?:_[23])?/(?:\w+\.json|merges\.txt|spiece\.model)"
)
# They describe the training run.
SIDECAR_FILES = re.compile(r"(?:[\w.-]+/){0,4}(?:hparams\.yml|args\.json|train\.sh)|config\.yaml")
MAX_NAME_BYTES = 200  # of a file or a folder in UTF-8; file systems take 255
INTERMEDIATE = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True, slots=True)
class Layout:
    """One checkpoint of a repository."""

    file: str  # the single weight file, or "" for a pipeline folder, or that of a denoiser in shards
    weights: dict[str, str]  # weight files that a scan needs: path in the repository -> path as it is kept
    pickled: bool = False  # `file` is a pickle
    reason: Reason | None = None  # why it cannot be scanned, whatever it holds

    @property
    def denoiser(self) -> str:
        """The weight file whose header shows kind and family."""
        return self.file or next(p for p in self.weights if p.startswith(DENOISERS))


def is_safe(path: object) -> TypeGuard[str]:
    """Whether a file name stays inside its repository and can be written on any file system."""
    return isinstance(path, str) and why_unsafe(path) is None


def why_unsafe(path: str) -> str | None:
    """What is wrong with a file name, for people; None for one that is safe."""
    parts = PurePosixPath(path).parts
    if not path.isprintable():
        return "holds characters that cannot be printed"
    if "\\" in path or ":" in path:
        return "holds a backslash or a colon"
    if len(path) > 500 or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        return f"is longer than {MAX_NAME_BYTES} bytes"
    if not path or "/".join(parts) != path or any(part in ("/", "..", "~") for part in parts):
        return "does not stay inside its folder"
    return None


def named_unusably(paths: Iterable[object]) -> list[str]:
    """The weight files among `paths` that are ignored because of their names, sorted."""
    texts = sorted(p for p in paths if isinstance(p, str) and not is_safe(p))
    return [p for p in texts if is_weight_file(p.rpartition("/")[2])]


def is_weight_file(name: str) -> bool:
    """Whether a name without its folder is that of safetensors or a pickle, and not of a trainer's state."""
    suffix = PurePosixPath(name).suffix.lower()
    return (suffix == ".safetensors" or suffix in PICKLE_SUFFIXES) and not NOT_WEIGHTS.fullmatch(name)


def unusable(path: str) -> Layout:
    """A weight file that is not opened because of its name, with the reason and a name that can be shown."""
    sentence = (
        f"the file {visible(path)} was not opened, because its name {why_unsafe(path)}. "
        "Rename it, or ask its author to."
    )
    return Layout(visible(path), {}, reason=Reason(ReasonCode.INVALID_ENTRY, sentence))


def layouts(paths: Iterable[str]) -> list[Layout]:
    """The checkpoints of a repository: a pipeline, the files at its top, a lone denoiser, or a pickle.

    Shards at the top are one checkpoint together, which is refused.
    """
    paths = sorted(p for p in paths if is_safe(p))
    if "model_index.json" in paths and (pipeline := pipeline_weights(paths)):
        return [Layout("", pipeline)]
    top = [p for p in paths if "/" not in p and not NOT_WEIGHTS.fullmatch(p)]
    tensors = [p for p in top if p.endswith(".safetensors")]
    if tensors:
        first = {stem: p for p in reversed(tensors) if (stem := shards_of(p))}
        shards = [Layout(p, {}, reason=why_no_shard(p)) for p in sorted(first.values())]
        return [*(Layout(p, {p: p}) for p in tensors if not shards_of(p)), *shards]
    for component in DENOISERS:
        files = list(component_files(paths, component))
        if len(files) == 1:
            return [Layout(files[0], {files[0]: files[0]})]
        if files:
            return [Layout("", pipeline_weights(paths))]
    inside = [p for p in paths if p.startswith(COMPONENTS) and p.count("/") == 1]
    pickles = [p for p in (*top, *inside) if PurePosixPath(p).suffix.lower() in PICKLE_SUFFIXES]
    return [Layout(pickles[0], {}, pickled=True)] if pickles else []


def pipeline_weights(paths: Iterable[str], components: tuple[str, ...] = TUNED) -> dict[str, str]:
    """The safetensors of a pipeline's components: path in the repository -> path as it is kept.

    A variant's mark (".fp16") is kept for shards alone. Empty where the denoiser has none.
    """
    paths = list(paths)
    if not any(component_files(paths, c) for c in DENOISERS):
        return {}
    return {path: kept for c in components for path, kept in component_files(paths, c).items()}


def pipeline_configs(paths: Iterable[str]) -> list[str]:
    """The small files that a pipeline folder needs beside its weights."""
    return sorted(p for p in paths if _CONFIG.fullmatch(p))
