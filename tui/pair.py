"""The candidate and the reference of a row of evidence, loaded from the store. Knows no Textual."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from scanner.store.desk_queries import EvidenceRow
from scanner.store.store import Store
from tui.images import NoImage, load

NOT_GENERATED = "No image was generated: this is about training."
NOT_ALIKE = "No generated image matches this reference: this is about training."
NO_CANDIDATE = "No candidate: this is about training."
WHOLE_CORPUS = "This is about the corpus as a whole, and not about one picture of it."


class Pair(NamedTuple):
    """The two images of a row, or why they cannot be shown."""

    candidate: Image.Image | NoImage
    reference: Image.Image | NoImage


def load_pair(store: Store, row: EvidenceRow, *, sampled: bool) -> Pair:
    """Returns the images of a row; `sampled` is whether the scan generated any image."""
    candidate: Image.Image | NoImage
    if row.match is not None:
        sha256 = row.candidate.image_sha256 if row.candidate else None
        candidate = load(partial(store.image, sha256) if sha256 else None, "candidate image")
    elif not sampled:
        candidate = NoImage(NOT_GENERATED)
    else:
        candidate = NoImage(NOT_ALIKE if row.reference_id else NO_CANDIDATE)
    if not row.reference_id:
        return Pair(candidate, NoImage(WHOLE_CORPUS))
    path, copy = (row.reference.path, row.reference.image_sha256) if row.reference else (None, None)
    return Pair(candidate, load_reference(store, path, copy))


def load_reference(store: Store, path: str | None, image_sha256: str | None) -> Image.Image | NoImage:
    """Returns the image of a reference: its file, or else its copy in the store."""
    reference = load(Path(path) if path else None, "reference image")
    if isinstance(reference, NoImage) and image_sha256:
        copy = load(partial(store.image, image_sha256), "reference image")
        return reference if isinstance(copy, NoImage) else copy
    return reference
