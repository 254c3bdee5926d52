"""What the screens of one run of the desk share."""

from __future__ import annotations

from dataclasses import dataclass

from scanner.store.desk_index import DeskIndex
from scanner.store.store import Store
from tui.review import Review


@dataclass(frozen=True, slots=True)
class Session:
    """The open store, the copy of its list in memory, and the review of one reviewer."""

    store: Store
    index: DeskIndex
    review: Review
    refresh_s: float  # between two checks whether another process has written to the store

    @property
    def read_only(self) -> bool:
        """Whether nobody can decide here."""
        return self.review.read_only
