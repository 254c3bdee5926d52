"""The pictures of corpora, opened when they are needed.

A picture is read from its copy in the store, so every machine sees the same pixels. Rows that are older than
these copies have the original file instead, which is scaled and encoded as a copy would be.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from scanner.errors import CorpusError
from scanner.hashing import sha256_of
from scanner.images import ImageError, open_image
from scanner.match.copies import COPY_SIDE, MAX_ASPECT, copy_of
from scanner.match.corpus import Corpus
from scanner.store.store import Store


class UnreadablePicture(CorpusError):
    """A picture of a corpus whose copy and original cannot be read."""

    def __init__(self, picture: StoredPicture, message: str) -> None:
        super().__init__(message)
        self.picture = picture


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """The picture of one image of a corpus."""

    reference_id: str  # the SHA256 of the original file
    corpus: str  # its name
    path: str  # of the original file when it was added; it may be on another machine, or gone
    image_sha256: str | None  # names the copy in the store; None in rows from before there were copies
    store: Store = field(repr=False, compare=False)

    def open(self) -> Image.Image:
        """The picture as RGB, at most `COPY_SIDE` pixels on its longer side.

        Raises UnreadablePicture where neither the copy nor the unchanged original can be read, OSError where
        the store does not answer.
        """
        if self.image_sha256 is not None:
            with suppress(FileNotFoundError, ImageError):  # lost or damaged
                return _decoded(self.store.image(self.image_sha256))
        with suppress(OSError, ImageError):
            if sha256_of(Path(self.path)) == self.reference_id:
                return _decoded(copy_of(open_image(Path(self.path), max_aspect=MAX_ASPECT)))
        gone = "the file is not on this machine or has changed"
        if self.image_sha256 is None:
            raise UnreadablePicture(
                self,
                f"the store has no copy of {self.path} (corpus {self.corpus}), and {gone}.\n"
                f"Run `scanner corpus add {self.corpus} DIR` again on the machine that holds it.",
            )
        raise UnreadablePicture(
            self,
            f"the store's copy of {self.path} (corpus {self.corpus}) is lost or damaged, and {gone}.\n"
            f"Put the file back there, or restore {self.image_sha256}.png in the store's images.",
        )


def pictures_of(store: Store, corpora: Sequence[Corpus]) -> list[StoredPicture]:
    """The pictures of corpora, in the order of their embeddings. Reads rows, and opens no picture.

    Raises CorpusError where the store no longer has a reference.
    """
    rows = store.query_arrow(
        "SELECT corpus, reference_id, arg_max(path, added_at) AS path, "
        "arg_max(image_sha256, added_at) AS image_sha256 "  # the newest that is not null
        "FROM all_references WHERE list_contains(?, corpus) GROUP BY corpus, reference_id",
        [[corpus.name for corpus in corpora]],
    )
    columns = (rows[name].to_pylist() for name in ("corpus", "reference_id", "path", "image_sha256"))
    found = {(corpus, i): (path, copy) for corpus, i, path, copy in zip(*columns, strict=True)}
    pictures = []
    for corpus in corpora:
        for reference_id in map(bytes.decode, corpus.reference_ids.tolist()):
            if (corpus.name, reference_id) not in found:
                raise CorpusError(
                    f"the store no longer has all references of the corpus {corpus.name}. "
                    f"Run `scanner corpus add {corpus.name} DIR` again."
                )
            path, copy = found[corpus.name, reference_id]
            pictures.append(StoredPicture(reference_id, corpus.name, path, copy, store))
    return pictures


def _decoded(encoded: bytes) -> Image.Image:
    return open_image(io.BytesIO(encoded), max_pixels=COPY_SIDE**2)
