"""The protocol of a source of checkpoints, and the query that its listing takes.

A source lists what is published, inspects one entry, and fetches its weights. `scanner.hubs.registry` opens a
source by its spec, a short text ("hf", "folder:PATH"), so that every worker process opens its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from scanner.hubs.cache import MAX_DOWNLOAD, DownloadCache
from scanner.records import Checkpoint


@dataclass(frozen=True, slots=True)
class Query:
    """What to list. A source that cannot narrow its listing by a field lists more, never less."""

    limit: int  # listed checkpoints at most
    since: datetime | None = None  # published at that time or later, timezone-aware
    filters: tuple[str, ...] = ()  # the source's own tags; instead of those that find fine-tunes
    base_model: str | None = None  # tuned from this base only, OWNER/NAME
    max_bytes: int = MAX_DOWNLOAD  # a larger local checkpoint is listed, and not read for its SHA256
    changed: bool = False  # newest change first, where the source reports change times; `since` goes by them


class Source(Protocol):
    """A place where checkpoints are published. Cheap to open; `inspect` may be called by many threads."""

    name: str  # its spec, as it is stored in the rows
    # Stream -> the page that the listing of that stream has reached; everything before that page has been
    # listed. An interrupted listing is resumed by setting `position` to the one that was stored.
    position: dict[str, str]

    def list(self, query: Query) -> Iterator[Checkpoint]:
        """The listed checkpoints, each as one record, newest first where the source reports times.

        Requests listing pages only: an id may be a placeholder until `inspect`. An entry that its listing
        already rules out (gated, removed, early access, no weights) has `inspection_status` SKIPPED, its
        `reason` and its `reason_code`. Raises SourceError where the source cannot be listed.
        """
        ...

    def coverage(self) -> str:
        """The share of the source's stated total that was listed, as text; "" where unknown."""
        ...

    def inspect(self, checkpoint: Checkpoint) -> Checkpoint:
        """The record with its true id, size, kind, family, base, caption, N0 and `inspection_status` READY.

        Reads headers by range requests and small files, never weights. Raises Skipped for what cannot be
        scanned, Unavailable where the source did not answer this time.
        """
        ...

    def fetch(self, checkpoint: Checkpoint, into: Path, downloads: DownloadCache) -> Path:
        """The weight file or the diffusers folder, with the listed size and SHA256; links go to `into`.

        Raises Skipped where it is larger than `downloads` allows or differs from its listing, Unavailable
        where it could not be fetched this time.
        """
        ...
