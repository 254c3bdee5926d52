"""The copy of a picture that the store keeps, so that a worker on another machine can read it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from scanner.store.store import Store

MAX_ASPECT = 20  # long side over short side: a descriptor scales the short side up
COPY_SIDE = 1024  # pixels of a copy on its longer side, at most
LOSSLESS_PIXELS = 65_536  # of a copy that is kept without loss; a larger one would take 1.5 MB


def copy_of(picture: Image.Image) -> bytes:
    """An RGB picture as the store keeps it: at most `COPY_SIDE` pixels on its longer side, encoded.

    A small picture is a PNG, a larger one WebP of quality 90. Metadata of the original file are not kept.
    """
    scale = COPY_SIDE / max(picture.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    else:
        picture = picture.copy()
    picture.info.clear()
    stream = io.BytesIO()
    if picture.width * picture.height <= LOSSLESS_PIXELS:
        picture.save(stream, "PNG")
    else:
        picture.save(stream, "WEBP", quality=90, method=2)  # slower methods make it no smaller
    return stream.getvalue()


def put_copies(store: Store, pictures: Sequence[Image.Image]) -> list[str]:
    """Keeps a copy of each picture; returns their SHA256s. Takes longer than embedding without threads."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda picture: store.put_image(copy_of(picture)), pictures))
