"""Reference corpora: images that somebody owns, or background images; read safely, embedded and stored.

Adding a folder is idempotent and incremental: an image is identified by its file's SHA256, and an image that
is stored under the same descriptor is not embedded again. Image files are untrusted: `scanner.images` opens
common formats only, and refuses decompression bombs.

N = references, D = embedding size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from scanner.config import ScanConfig, default_cache
from scanner.errors import CorpusError
from scanner.hashing import sha256_of
from scanner.images import SUFFIXES, ImageError, open_image
from scanner.match import mapped
from scanner.records import Reference, Role, now
from scanner.store.store import Store

MAX_ASPECT = 20  # long side over short side: a descriptor scales the short side up
BATCH_IMAGES = 16  # embedded together
BATCH_PIXELS = 40_000_000  # in memory together
PART_ROWS = 256  # references written together


class ImageEmbedder(Protocol):
    """Embeds images; `scanner.crawl.worker.SscdEmbedder` is one."""

    descriptor: str  # names the model and its preprocessing

    def embed(self, images: list[Image.Image]) -> npt.NDArray[np.float32]:
        """L2-normalised descriptors of RGB images, float32 [N, D]."""
        ...


@dataclass(slots=True)
class Added:
    """The result of adding a folder, as numbers of image files."""

    found: int = 0  # files with the suffix of an image
    added: int = 0  # embedded and stored
    unchanged: int = 0  # already stored under the same descriptor
    repeated: int = 0  # copies of another file in the folder
    unusable: dict[Path, str] = field(default_factory=dict)  # unusable images -> the reason
    removed: int = 0  # stored earlier and no longer in the folder; they are kept


@dataclass(frozen=True, slots=True)
class Corpus:
    """A named set of references, ready to be searched."""

    name: str
    role: Role
    reference_ids: npt.NDArray[np.bytes_]  # [N], sorted
    embeddings: npt.NDArray[np.float32]  # [N, D], L2-normalised; may be a mapped file
    digest: str  # of the reference ids; part of the configuration's id


def image_files(folder: Path) -> list[Path]:
    """Every file below `folder` with the suffix of an image, sorted. Raises CorpusError for none."""
    if not folder.is_dir():
        raise CorpusError(f"{folder} is not a folder. Pass the folder that holds the images.")
    found = [
        Path(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
    ]
    if not found:
        raise CorpusError(f"{folder} holds no images ({', '.join(sorted(s[1:] for s in SUFFIXES))}).")
    return sorted(found)


def add(
    store: Store, name: str, folder: Path, embedder: ImageEmbedder, role: Role = Role.REFERENCE
) -> Iterator[Added]:
    """Embeds and stores the images of a folder that are not stored yet.

    Yields its progress after every batch, and the result at the end. Raises CorpusError where the folder
    holds no usable image, or the corpus has another role.
    """
    paths = image_files(folder)
    known = _known(store, name, role, embedder.descriptor)
    progress, seen = Added(found=len(paths)), set[str]()
    rows: list[Reference] = []
    for batch in _batches(_fresh(paths, known, seen, progress)):
        embeddings = embedder.embed([image for _, _, image in batch])
        for (path, sha256, image), embedding in zip(batch, embeddings, strict=True):
            rows.append(
                Reference(
                    reference_id=sha256,
                    corpus=name,
                    role=role,
                    path=str(path.absolute()),
                    sha256=sha256,
                    width=image.width,
                    height=image.height,
                    descriptor=embedder.descriptor,
                    embedding=tuple(float(x) for x in embedding),
                    added_at=now(),
                )
            )
        if len(rows) >= PART_ROWS:
            store.append(rows)
            rows = []
        progress.added += len(batch)
        yield progress
    store.append(rows)
    progress.removed = len(known - seen)
    if not progress.added and not progress.unchanged:
        path, reason = next(iter(progress.unusable.items()))
        raise CorpusError(f"{folder} holds no usable image: {path.name} {reason}.")
    yield progress


def _known(store: Store, name: str, role: Role, descriptor: str) -> set[str]:
    rows = store.query('SELECT reference_id, role, descriptor FROM "references" WHERE corpus = ?', [name])
    for other in {row["role"] for row in rows} - {role}:
        raise CorpusError(
            f"{name} is already a {other} corpus, and cannot also be a {role} corpus. Choose another name."
        )
    return {row["reference_id"] for row in rows if row["descriptor"] == descriptor}


def _fresh(
    paths: Sequence[Path], known: set[str], seen: set[str], progress: Added
) -> Iterator[tuple[Path, str, Image.Image]]:
    """The images that have to be embedded; the others are counted in `progress`."""
    for path in paths:
        try:
            if not path.is_file():
                raise CorpusError("is not a regular file")
            sha256 = sha256_of(path)
            if sha256 in seen:
                progress.repeated += 1
                continue
            seen.add(sha256)
            if sha256 in known:
                progress.unchanged += 1
                continue
            yield path, sha256, open_image(path, max_aspect=MAX_ASPECT)
        except OSError as error:
            progress.unusable[path] = f"cannot be read: {error.strerror}"
        except (CorpusError, ImageError) as error:
            progress.unusable[path] = str(error)


def _batches(
    images: Iterable[tuple[Path, str, Image.Image]],
) -> Iterator[list[tuple[Path, str, Image.Image]]]:
    batch: list[tuple[Path, str, Image.Image]] = []
    pixels = 0
    for item in images:
        batch.append(item)
        pixels += item[2].width * item[2].height
        if len(batch) == BATCH_IMAGES or pixels >= BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def summaries(store: Store) -> list[dict[str, object]]:
    """One row per corpus: name, role, images, descriptors, and when the newest image was added."""
    return store.query(
        "SELECT corpus AS name, role, count(DISTINCT reference_id) AS images, "
        "list(DISTINCT descriptor ORDER BY descriptor) AS descriptors, max(added_at) AS added_at "
        'FROM "references" GROUP BY corpus, role ORDER BY corpus'
    )


def load_corpora(
    store: Store, names: Iterable[str] | None, descriptor: str, *, cache: Path | None = None
) -> list[Corpus]:
    """The named corpora, or all, with their embeddings under one descriptor.

    The embeddings are files of `cache` (by default that of this machine), which all processes share. Raises
    CorpusError for an unknown name, or a corpus that was never embedded with that descriptor.
    """
    known = [str(row["name"]) for row in summaries(store)]
    wanted = list(dict.fromkeys(names)) if names else known
    for name in wanted:
        if name not in known:
            existing = f"Existing corpora: {', '.join(known)}." if known else "The store has no corpus yet."
            raise CorpusError(
                f"there is no corpus {name}. {existing} Make one with `scanner corpus add NAME DIR`."
            )
    return [_load(store, name, descriptor, cache or default_cache()) for name in wanted]


def corpora_of(store: Store, config: ScanConfig, cache: Path) -> list[Corpus]:
    """The corpora that a configuration states. Asks the store only for what `cache` does not hold yet.

    Raises CorpusError where a corpus has other references by now than the configuration states.
    """
    corpora = []
    for name, stated in config.corpora.items():
        role, _, digest = stated.rpartition(":")
        if (found := mapped.find(cache, digest, config.descriptor)) is not None and role:
            corpora.append(Corpus(name, Role(role), found.ids, found.embeddings, digest))
            continue
        (corpus,) = load_corpora(store, [name], config.descriptor, cache=cache)
        if corpus.digest != digest:
            raise CorpusError(f"the corpus {name} was changed after the crawl began. Run the crawl again.")
        corpora.append(corpus)
    return corpora


def _load(store: Store, name: str, descriptor: str, cache: Path) -> Corpus:
    of = "WHERE corpus = ? AND descriptor = ?"
    table = store.query_arrow(
        f'SELECT reference_id, role FROM "references" {of} ORDER BY reference_id', [name, descriptor]
    )
    if not table.num_rows:
        raise CorpusError(
            f"the corpus {name} was embedded with another descriptor than {descriptor}. "
            f"Run `scanner corpus add {name} DIR` again."
        )
    ids = table["reference_id"].to_pylist()
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    found = mapped.find(cache, digest, descriptor)
    if found is None:
        rows = store.stream(
            f"SELECT reference_id, embedding, added_at FROM all_references {of}", [name, descriptor]
        )
        encoded = np.array([i.encode() for i in ids])
        found = mapped.build(cache, digest, descriptor, encoded, rows)
    return Corpus(name, Role(table["role"][0].as_py()), found.ids, found.embeddings, digest)
