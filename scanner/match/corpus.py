"""Reference corpora: images that somebody owns, or background images; read safely, embedded and stored.

Adding a folder is idempotent and incremental: an image is identified by its file's SHA256, and an image that
is stored under the same descriptor is not embedded again. Image files are untrusted: `scanner.images` opens
common formats only, and refuses decompression bombs. The store keeps a copy of each picture, so that a worker
on another machine can read it (`scanner.match.pictures`).

N = references, D = embedding size.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
COPY_SIDE = 1024  # pixels of a copy on its longer side, at most
LOSSLESS_PIXELS = 65_536  # of a copy that is kept without loss; a larger one would take 1.5 MB


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
    unchanged: int = 0  # already stored under the same descriptor; some may have got their copy only now
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
    """Embeds and stores the images of a folder that are not stored yet, each with a copy of its picture.

    An image that was stored before there were copies gets a new row with one, and is not embedded again.
    Yields its progress after every batch, and the result at the end. Raises CorpusError where the folder
    holds no usable image, or the corpus has another role.
    """
    paths = image_files(folder)
    known = _known(store, name, role, embedder.descriptor)
    progress, seen = Added(found=len(paths)), set[str]()
    rows: list[Reference] = []
    for batch in _batches(_fresh(paths, known, seen, progress)):
        stored = _stored_embeddings(store, name, embedder.descriptor, [s for _, s, _ in batch if s in known])
        new = [(sha256, image) for _, sha256, image in batch if sha256 not in stored]
        found = embedder.embed([image for _, image in new]) if new else ()
        embeddings = stored | {sha256: e.tolist() for (sha256, _), e in zip(new, found, strict=True)}
        copies = _put_copies(store, [image for _, _, image in batch])
        for (path, sha256, image), copy in zip(batch, copies, strict=True):
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
                    embedding=tuple(embeddings[sha256]),
                    added_at=now(),
                    image_sha256=copy,
                )
            )
        if len(rows) >= PART_ROWS:
            store.append(rows)
            rows = []
        progress.added += len(new)
        progress.unchanged += len(stored)
        yield progress
    store.append(rows)
    progress.removed = len(known.keys() - seen)
    if not progress.added and not progress.unchanged:
        path, reason = next(iter(progress.unusable.items()))
        raise CorpusError(f"{folder} holds no usable image: {path.name} {reason}.")
    yield progress


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


def _put_copies(store: Store, pictures: Sequence[Image.Image]) -> list[str]:
    """Keeps a copy of each picture; returns their SHA256s. Takes longer than embedding without threads."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda picture: store.put_image(copy_of(picture)), pictures))


def _known(store: Store, name: str, role: Role, descriptor: str) -> dict[str, bool]:
    """The ids of the corpus under that descriptor, and whether the store has a copy of the picture."""
    rows = store.query(
        'SELECT reference_id, role, descriptor, image_sha256 FROM "references" WHERE corpus = ?', [name]
    )
    for other in {row["role"] for row in rows} - {role}:
        raise CorpusError(
            f"the corpus {name} has the role {other}, and cannot also have the role {role}. "
            "Choose another name."
        )
    return {
        row["reference_id"]: row["image_sha256"] is not None
        for row in rows
        if row["descriptor"] == descriptor
    }


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


def _fresh(
    paths: Sequence[Path], known: Mapping[str, bool], seen: set[str], progress: Added
) -> Iterator[tuple[Path, str, Image.Image]]:
    """The images that have to be embedded or copied; the others are counted in `progress`."""
    for path in paths:
        try:
            if not path.is_file():
                raise CorpusError("is not a regular file")
            sha256 = sha256_of(path)
            if sha256 in seen:
                progress.repeated += 1
                continue
            seen.add(sha256)
            if known.get(sha256):  # stored, with a copy
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


def on_both_sides(store: Store, name: str) -> dict[str, int]:
    """The other corpora that hold images of this one, where one of the two is of references and the other
    is a part of the null: name -> number of such images."""
    rows = store.query(
        "SELECT other.corpus AS name, count(DISTINCT reference_id) AS images "
        'FROM "references" AS mine JOIN "references" AS other USING (reference_id) '
        "WHERE mine.corpus = ? AND (mine.role = 'reference') != (other.role = 'reference') "
        "GROUP BY other.corpus ORDER BY other.corpus",
        [name],
    )
    return {row["name"]: row["images"] for row in rows}


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
