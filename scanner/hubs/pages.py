"""A listing that does not end is noticed: pages that repeat, and pages without entries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from scanner.errors import SourceError

MAX_PLACE_CHARS = 8_000  # servers accept about as much in an address
MAX_EMPTY = 25  # pages without entries in a row; filters of a hub may leave a few empty


class Pages:
    """The pages of one listing so far. Holds 32 bytes for each place and each page."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._places: set[bytes] = set()
        self._contents: set[bytes] = set()
        self._empty = 0  # pages without entries, in a row

    def add_place(self, place: str) -> None:
        """The address or the cursor of the next page.

        Raises SourceError for one that was listed before, or that no request can hold.
        """
        if len(place) > MAX_PLACE_CHARS:
            raise self._endless("names a next page by an address that is too long to be requested")
        if (digest := _digest(place)) in self._places:
            raise self._endless("names a page as the next one that was listed before")
        self._places.add(digest)

    def add_entries(self, ids: Iterable[object]) -> None:
        """The ids of the entries of a page.

        Raises SourceError where an earlier page held exactly these, or too many pages in a row held none.
        """
        stated = sorted({str(id_) for id_ in ids})
        self._empty = 0 if stated else self._empty + 1
        if self._empty >= MAX_EMPTY:
            raise self._endless(f"gives {MAX_EMPTY} pages in a row without entries, each with a next page")
        if stated:
            if (digest := _digest("\n".join(stated))) in self._contents:
                raise self._endless("gives the entries of an earlier page again")
            self._contents.add(digest)

    def _endless(self, what: str) -> SourceError:
        return SourceError(
            f"{self._endpoint} could not be listed to its end: it {what}.\n"
            "Try other values of --since or --filter, or list it again later."
        )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()
