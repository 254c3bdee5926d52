"""Adding pictures to a corpus: read safely, embedded once, and stored with a copy.

Adding is idempotent and incremental: an image is identified by its content's SHA256, and an image that is
stored under the same descriptor is not embedded again. What an address holds is not downloaded again where
the corpus has a picture from there. Rows are written every `PART_ROWS` pictures or `PART_S` seconds, so a
process that is killed loses no more work than that.

Image files are untrusted: `scanner.images` opens common formats only, and refuses decompression bombs.

N = images, D = embedding size.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from scanner.errors import CorpusError, EntryError
from scanner.hashing import sha256_of
from scanner.images import ImageError, is_animated, open_image
from scanner.match.copies import MAX_ASPECT, put_copies
from scanner.match.sources.base import Item, Pictures
from scanner.match.sources.folders import folder_pictures
from scanner.records import Reference, Role, now
from scanner.store.store import Store

BATCH_IMAGES = 16  # embedded together
BATCH_PIXELS = 40_000_000  # in memory together
PART_ROWS = 256  # references written together
PART_S = 20.0  # after which fewer are written
DOWNLOADS = 8  # at once


class ImageEmbedder(Protocol):
    """Embeds images; `scanner.crawl.worker.SscdEmbedder` is one."""

    descriptor: str  # names the model and its preprocessing

    def embed(self, images: list[Image.Image]) -> npt.NDArray[np.float32]:
        """L2-normalised descriptors of RGB images, float32 [N, D]."""
        ...


@dataclass(slots=True)
class Added:
    """The result of adding pictures, as numbers of them."""

    found: int = 0  # that the sources name
    added: int = 0  # embedded and stored
    unchanged: int = 0  # already stored under the same descriptor; some may have got their copy only now
    repeated: int = 0  # copies of another one among the sources
    animated: int = 0  # of the added ones: their first frame was taken
    unusable: list[tuple[str, str]] = field(default_factory=list)  # label and reason of unusable ones
    not_downloaded: int = 0  # of the unusable ones: adding again tries again
    removed: int = 0  # stored earlier from the same folder or shard, and no longer there; they are kept

    @property
    def done(self) -> int:
        """How many of those found have been dealt with."""
        return self.added + self.unchanged + self.repeated + len(self.unusable)


class _Known(NamedTuple):
    """What a corpus holds under a descriptor."""

    copied: dict[str, bool]  # id -> whether the store has a copy of the picture
    places: dict[str, str]  # where a picture came from -> its id


class _Opened(NamedTuple):
    place: str
    sha256: str
    image: Image.Image


def add(
    store: Store,
    name: str,
    pictures: Pictures | Path,
    embedder: ImageEmbedder,
    role: Role = Role.REFERENCE,
    *,
    again: bool = False,
) -> Iterator[Added]:
    """Embeds and stores the pictures that are not stored yet, each with a copy. A path is that of a folder.

    An image that was stored before there were copies gets a new row with one, and is not embedded again.
    With `again`, addresses are downloaded although the corpus has a picture from there. Yields its progress
    after every batch, and the result at the end. Raises CorpusError where no picture is usable, or the corpus
    has another role.
    """
    if isinstance(pictures, Path):
        pictures = folder_pictures(pictures)
    known = _known(store, name, role, embedder.descriptor)
    progress, seen = Added(found=len(pictures.items)), set[str]()
    wanted = _wanted(pictures.items, {} if again else known.places, seen, progress)
    rows: list[Reference] = []
    written_at = time.monotonic()
    try:
        for batch in _batches(_fresh(_downloaded(wanted), known, seen, progress)):
            rows += _embedded(store, name, role, embedder, batch, known, progress)
            if len(rows) >= PART_ROWS or time.monotonic() - written_at >= PART_S:
                store.append(rows)
                rows, written_at = [], time.monotonic()
            yield progress
    finally:
        store.append(rows)
    progress.removed = sum(
        sha256 not in seen for place, sha256 in known.places.items() if place.startswith(pictures.scopes)
    )
    if not progress.added and not progress.unchanged:
        label, reason = progress.unusable[0]
        raise CorpusError(f"{pictures.named} holds no usable image: {label} {reason}.")
    yield progress


def _embedded(
    store: Store, name: str, role: Role, embedder: ImageEmbedder, batch: Sequence[_Opened], known: _Known,
    progress: Added,
) -> list[Reference]:  # fmt: skip
    """The rows of a batch; an embedding that is stored is not computed again."""
    ids = [opened.sha256 for opened in batch if opened.sha256 in known.copied]
    stored = _stored_embeddings(store, name, embedder.descriptor, ids)
    new = [opened for opened in batch if opened.sha256 not in stored]
    found = embedder.embed([opened.image for opened in new]) if new else ()
    embeddings = stored | {opened.sha256: e.tolist() for opened, e in zip(new, found, strict=True)}
    copies = put_copies(store, [opened.image for opened in batch])
    progress.added += len(new)
    progress.unchanged += len(stored)
    return [
        Reference(
            reference_id=opened.sha256,
            corpus=name,
            role=role,
            path=opened.place,
            sha256=opened.sha256,
            width=opened.image.width,
            height=opened.image.height,
            descriptor=embedder.descriptor,
            embedding=tuple(embeddings[opened.sha256]),
            added_at=now(),
            image_sha256=copy,
        )
        for opened, copy in zip(batch, copies, strict=True)
    ]


def _known(store: Store, name: str, role: Role, descriptor: str) -> _Known:
    """What the corpus holds under that descriptor. Raises CorpusError where it has another role."""
    rows = store.query(
        'SELECT reference_id, role, descriptor, path, image_sha256 FROM "references" WHERE corpus = ?', [name]
    )
    for other in {row["role"] for row in rows} - {role}:
        raise CorpusError(
            f"the corpus {name} has the role {other}, and cannot also have the role {role}. "
            "Choose another name."
        )
    rows = [row for row in rows if row["descriptor"] == descriptor]
    return _Known(
        {row["reference_id"]: row["image_sha256"] is not None for row in rows},
        {row["path"]: row["reference_id"] for row in rows if row["image_sha256"] is not None},
    )


def _stored_embeddings(
    store: Store, name: str, descriptor: str, ids: Sequence[str]
) -> dict[str, list[float]]:  # fmt: skip
    """The embedding of each id, [D]."""
    if not ids:
        return {}
    rows = store.query(
        'SELECT reference_id, embedding FROM "references" '
        "WHERE corpus = ? AND descriptor = ? AND list_contains(?, reference_id)",
        [name, descriptor, list(ids)],
    )
    return {row["reference_id"]: row["embedding"] for row in rows}


def _wanted(
    items: Iterable[Item], places: dict[str, str], seen: set[str], progress: Added
) -> Iterator[Item]:  # fmt: skip
    """The items that have to be read: all but those to download whose picture the corpus has."""
    asked = set[str]()
    for item in items:
        if not item.is_remote:
            yield item
        elif item.place in asked:
            progress.repeated += 1
        elif (sha256 := places.get(item.place)) is not None:
            progress.unchanged += 1
            seen.add(sha256)
        else:
            yield item
        if item.is_remote:
            asked.add(item.place)


def _downloaded(items: Iterable[Item]) -> Iterator[tuple[Item, Future[bytes] | None]]:
    """The items in their order; `DOWNLOADS` of those to download are read ahead, by threads."""
    ahead: deque[tuple[Item, Future[bytes] | None]] = deque()
    threads = ThreadPoolExecutor(DOWNLOADS)
    try:
        for item in items:
            remote = item.is_remote and not isinstance(item.content, Path)
            ahead.append((item, threads.submit(item.content) if remote else None))  # type: ignore[arg-type]
            if ahead[0][1] is None or len(ahead) > DOWNLOADS:
                yield ahead.popleft()
        yield from ahead
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _fresh(
    items: Iterable[tuple[Item, Future[bytes] | None]], known: _Known, seen: set[str], progress: Added
) -> Iterator[_Opened]:
    """The images that have to be embedded or copied; the others are counted in `progress`."""
    for item, download in items:
        try:
            sha256, file = _content(item, download)
            if sha256 in seen:
                progress.repeated += 1
                continue
            seen.add(sha256)
            if known.copied.get(sha256):  # stored, with a copy
                progress.unchanged += 1
                continue
            image = open_image(file, max_aspect=MAX_ASPECT)
            progress.animated += is_animated(file)
            yield _Opened(item.place, sha256, image)
        except OSError as error:
            progress.unusable.append((item.label, f"cannot be read: {error.strerror or error}"))
        except EntryError as error:
            progress.unusable.append((item.label, str(error)))
            progress.not_downloaded += 1
        except (CorpusError, ImageError) as error:
            progress.unusable.append((item.label, str(error)))


def _content(item: Item, download: Future[bytes] | None) -> tuple[str, Path | BinaryIO]:
    """The SHA256 of a picture's content, and what it is opened from.

    Raises OSError, CorpusError, EntryError.
    """
    if isinstance(item.content, Path):
        if not item.content.is_file():
            raise CorpusError("does not exist" if not item.content.exists() else "is not a regular file")
        if not item.content.stat().st_size:
            raise CorpusError("is empty")
        return sha256_of(item.content), item.content
    content = item.content() if download is None else download.result()
    if not content:
        raise CorpusError("is empty")
    return hashlib.sha256(content).hexdigest(), io.BytesIO(content)


def _batches(images: Iterable[_Opened]) -> Iterator[list[_Opened]]:
    batch: list[_Opened] = []
    pixels = 0
    for opened in images:
        batch.append(opened)
        pixels += opened.image.width * opened.image.height
        if len(batch) == BATCH_IMAGES or pixels >= BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch
