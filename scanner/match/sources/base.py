"""One picture to read, and where it comes from. Knows no format of files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit, urlunsplit

from scanner.errors import CorpusError
from scanner.images import SUFFIXES

MAX_BYTES = 256 * 1024**2  # of a picture that is read into memory
READ = SUFFIXES | {".jpe", ".jfif", ".apng"}  # other names of formats that are read
OTHERS = frozenset({
    ".ai", ".arw", ".avif", ".cr2", ".cr3", ".dng", ".eps", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".orf",
    ".psb", ".psd", ".raw", ".rw2", ".svg", ".svgz", ".tga", ".xcf",
})  # fmt: skip  # files that hold pictures, and are not read
MAX_ENTRY_CHARS = 8_192  # of a path or an address
Download = Callable[[str], bytes]  # the content at an address; raises EntryError
# Parts of a query that permit a request for a while, and do not say what is requested.
_PERMITS = re.compile(
    r"(x-amz-.*|x-goog-.*|sig|signature|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid|"
    r"token|access_token|auth|hdnts)=.*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Item:
    """One picture that a source names; it may not exist or be no picture."""

    place: str  # identifies it: a path, an address, or FILE#MEMBER; the column `path` of its row
    label: str  # a short name for messages
    content: Path | Callable[[], bytes]  # the file, or what reads it; raises OSError, CorpusError, EntryError
    is_remote: bool = False  # reading it is a download


@dataclass(frozen=True, slots=True)
class Pictures:
    """What the sources of a corpus name, in order."""

    named: str  # the source, or the sources, for messages
    items: tuple[Item, ...]
    scopes: tuple[str, ...] = ()  # places that begin so belong to a source that was listed whole
    not_read: tuple[str, ...] = ()  # files that hold pictures in a format that is not read
    problems: tuple[tuple[str, str], ...] = ()  # what could not be listed, and why

    def __add__(self, other: Pictures) -> Pictures:
        return Pictures(
            f"{self.named}, {other.named}",
            self.items + other.items,
            self.scopes + other.scopes,
            self.not_read + other.not_read,
            self.problems + other.problems,
        )


def place_of(path: Path) -> str:
    """An absolute path as text; bytes of a name that are no UTF-8 are written as \\xNN."""
    return readable(str(path.absolute()))


def readable(text: str) -> str:
    """Text that can be stored: bytes of a name that are no UTF-8 are written as \\xNN."""
    return os.fsencode(text).decode("utf-8", "backslashreplace") if not text.isascii() else text


def item_of(entry: str, folder: Path, download: Download | None, label: str = "") -> Item:
    """The picture that an entry of a list names: a path, relative to the list's folder, or an address."""
    entry = entry.strip()
    label = readable(label or entry)
    if not entry:
        return Item(label, label, partial(_fail, "names no path and no address"))
    if len(entry) > MAX_ENTRY_CHARS:
        return Item(label[:100], label[:100], partial(_fail, "is too long for a path or an address"))
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", entry)
    if scheme is None:
        return Item(place_of(folder / entry), label, folder / entry)
    kind = scheme[1].lower()
    if kind == "file":
        path = Path(unquote(urlsplit(entry).path))
        return Item(place_of(path), label, path)
    place = address_of(entry)
    if kind not in ("http", "https"):
        return Item(place, place, partial(_fail, "is an address of another kind than http and https"))
    if download is None:
        return Item(place, place, partial(_fail, "is an address, and nothing is downloaded here"))
    return Item(place, place, partial(download, entry), is_remote=True)


def address_of(url: str) -> str:
    """An address as it is stored and shown: without a password, a signature that expires, or a fragment."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return readable(url)
    query = "&".join(part for part in parts.query.split("&") if not _PERMITS.fullmatch(part))
    return readable(urlunsplit((parts.scheme.lower(), host, parts.path, query, "")))


def _fail(reason: str) -> NoReturn:
    raise CorpusError(reason)
