"""SHA256 of files, and of the weights that make up a checkpoint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from finextract.regular_files import open_regular

CACHED = re.compile("[0-9a-f]{64}")  # the names of files in the download cache, which verified them


def sha256_of(path: Path) -> str:
    """The SHA256 of a regular file, 64 hex digits, read in pieces. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_id(model: Path) -> str:
    """The id of a model's weights, as `identify` gives it: of one file, or of all safetensors of a folder.

    A file of the download cache has its SHA256 as its name, so it is not read. Raises OSError.
    """
    if model.is_file():
        return identify([("", _known_sha256(model))])
    files = sorted(model.rglob("*.safetensors"))
    return identify((f.relative_to(model).as_posix(), _known_sha256(f)) for f in files) if files else ""


def _known_sha256(file: Path) -> str:
    name = file.resolve().name
    return name if CACHED.fullmatch(name) else sha256_of(file)


def identify(weights: Iterable[tuple[str, str]]) -> str:
    """A checkpoint's id from its weight files' (path, SHA256) pairs.

    One file is named by its SHA256 alone, so the same file on two hubs is one checkpoint; a folder by the
    SHA256 over its sorted pairs.
    """
    pairs = sorted(weights)
    assert pairs, "a checkpoint has at least one weight file"
    if len(pairs) == 1:
        return pairs[0][1].lower()
    return hashlib.sha256("\n".join(f"{path}\t{sha}" for path, sha in pairs).encode()).hexdigest()
