"""WebDataset shards: tar archives of pictures, read where they lie and never unpacked.

An archive may come from anybody. Its members are read by their offset and size alone: no link is followed,
no name is used as a path, and headers and members have bounded sizes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from finextract.regular_files import open_regular
from scanner.errors import CorpusError
from scanner.match.sources.base import MAX_BYTES, MAX_ENTRY_CHARS, READ, Item, Pictures, place_of, readable

MAX_HEADER_BYTES = 1024**2  # that tarfile reads at once while it looks for members


def shard_pictures(shard: Path) -> Pictures:
    """The pictures of a shard, in its order; other members (captions, metadata) are left out.

    Raises CorpusError for a file that is no tar archive, is damaged or compressed, or has no picture.
    """
    place = place_of(shard)
    try:
        items = tuple(
            Item(f"{place}#{name}", f"{shard.name}#{name}", partial(_read, shard, begin, size))
            for name, begin, size in _members(shard)
        )
    except tarfile.TarError as error:
        raise CorpusError(
            f"{shard} cannot be read as a tar archive: {error}.\n"
            "A compressed or damaged shard is not read: name one that `tar -tf` lists, not compressed."
        ) from error
    except OSError as error:
        raise CorpusError(f"{shard} cannot be read: {error.strerror or error}.") from error
    if not items:
        raise CorpusError(f"{shard} holds no images.")
    return Pictures(str(shard), items, (f"{place}#",))


def _members(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of each member that has the suffix of a picture."""
    with open_regular(shard) as file, tarfile.open(fileobj=_Headers(file), mode="r:") as archive:
        for member in archive:
            if member.isreg() and not member.issparse() and Path(member.name).suffix.lower() in READ:
                yield readable(member.name[:MAX_ENTRY_CHARS]), member.offset_data, member.size
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps each one otherwise


def _read(shard: Path, begin: int, size: int) -> bytes:
    if size > MAX_BYTES:
        raise CorpusError(f"is too large: {size:,} bytes")
    with open_regular(shard) as file:
        file.seek(begin)
        content = file.read(size)
    if len(content) < size:
        raise CorpusError("is cut short: the shard ends before it")
    return content


class _Headers(io.BufferedIOBase):
    """A file of which only small pieces are read at once: a header may state any size."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError("one of its headers is too large")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
