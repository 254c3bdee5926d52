"""The counts of a listing without scans: what can be scanned, what it would download, and why not the rest.

Takes one checkpoint at a time, and keeps counts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from finextract.reasons import ReasonCode
from scanner.errors import SourceError
from scanner.records import Checkpoint, InspectionStatus
from scanner.store.queries import ReasonCount


@dataclass(frozen=True, slots=True)
class ListingResult:
    """The counts of a listing."""

    listed: int  # entries of the source
    inspected: int  # of them, those that were inspected now; the others were known
    ready: int  # checkpoints that can be scanned, the too large ones included
    too_large: int  # of them, those that are larger than `max_download`
    skipped: int
    unavailable: int
    download_bytes: int  # of the weights that would be downloaded, without the bases
    bases: int  # different bases that these checkpoints need
    reasons: tuple[ReasonCount, ...]  # why checkpoints were skipped or unavailable, the most frequent first
    cut_short: SourceError | None = None  # why the source could not be listed to its end, if it could not

    @property
    def checkpoints(self) -> int:
        """All checkpoints that were listed."""
        return self.ready + self.skipped + self.unavailable


class ListingSummary:
    """Counts checkpoints as they are listed."""

    def __init__(self, max_download: int) -> None:
        self._max_download = max_download  # bytes
        self._counts: Counter[InspectionStatus] = Counter()
        self._too_large = self._download_bytes = 0
        self._bases: set[str | None] = set()
        self._reasons: Counter[tuple[InspectionStatus, ReasonCode | None]] = Counter()
        self._examples: dict[tuple[InspectionStatus, ReasonCode | None], Checkpoint] = {}

    def add(self, checkpoint: Checkpoint) -> None:
        """Counts a checkpoint."""
        status = checkpoint.inspection_status
        self._counts[status] += 1
        if status is not InspectionStatus.READY:
            self._reasons[status, checkpoint.reason_code] += 1
            self._examples.setdefault((status, checkpoint.reason_code), checkpoint)
        elif checkpoint.size_bytes > self._max_download:
            self._too_large += 1
        else:
            self._download_bytes += checkpoint.size_bytes
            self._bases.add(checkpoint.base)

    def result(self, listed: int, inspected: int, cut_short: SourceError | None = None) -> ListingResult:
        """The counts of everything that was added."""
        return ListingResult(
            listed=listed,
            inspected=inspected,
            ready=self._counts[InspectionStatus.READY],
            too_large=self._too_large,
            skipped=self._counts[InspectionStatus.SKIPPED],
            unavailable=self._counts[InspectionStatus.UNAVAILABLE],
            download_bytes=self._download_bytes,
            bases=len(self._bases),
            reasons=tuple(
                ReasonCount(key[0].value, key[1], count, self._examples[key].repo, self._examples[key].reason)
                for key, count in self._reasons.most_common()
            ),
            cut_short=cut_short,
        )
