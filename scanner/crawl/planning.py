"""What a crawl has to do: the checkpoints that were listed, less those that have a verdict.

A plan grows while its source is listed; `Plan.grow` alone changes it, and every other part of a crawl reads
it. Knows no Ray and no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from scanner.crawl.listing import ListedBatch
from scanner.errors import SourceError
from scanner.records import Checkpoint, InspectionStatus, Listing
from scanner.store.store import Store

# The view `checkpoints` has one row of weights that two sources have: here each source's own row counts.
OF_SOURCE = """
WITH placed AS (
    SELECT checkpoint_id, base, family, inspection_status, listed_at FROM all_checkpoints WHERE source = ?
    QUALIFY row_number() OVER (PARTITION BY repo, revision, file ORDER BY listed_at DESC) = 1
)
SELECT checkpoint_id, base, family, inspection_status FROM placed WHERE inspection_status <> 'unknown'
QUALIFY row_number() OVER (PARTITION BY checkpoint_id ORDER BY listed_at DESC) = 1 ORDER BY checkpoint_id"""


class Planned(NamedTuple):
    """What a plan keeps of a checkpoint, because a plan may hold a million. The store has the rest."""

    checkpoint_id: str
    base: str | None
    inspection_status: InspectionStatus
    family: str = "unknown"

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Planned:
        """The part of a checkpoint's row that a plan keeps."""
        return cls(
            checkpoint.checkpoint_id, _shared(checkpoint.base), checkpoint.inspection_status,
            sys.intern(checkpoint.family),
        )  # fmt: skip


class Plan:
    """The checkpoints of one crawl, in listing order, and which of them still need a verdict.

    `grow` may run in another thread than its readers.
    """

    def __init__(
        self,
        batches: Iterable[ListedBatch] = (),
        *,
        planned: Iterable[Planned] = (),
        finished: Collection[str] = frozenset(),
        ruled_out: Collection[str] = frozenset(),
        quarantined: Collection[str] = frozenset(),
    ) -> None:
        """`batches` are what `grow` reads; `planned` is listed already.

        `finished` are ids that need no scan, `ruled_out` those that need none as long as inspection skips
        them, and `quarantined` those that may have killed their workers in an earlier crawl.
        """
        self._batches = batches
        self._planned = {p.checkpoint_id: p for p in planned}
        self._finished, self._ruled_out, self._quarantined = finished, ruled_out, quarantined
        self._listed, self._inspected = len(self._planned), 0
        self._complete = bool(self._planned)
        self._resumed: Listing | None = None
        self._cut_short: SourceError | None = None

    @classmethod
    def begin(cls, store: Store, config_id: str, batches: Iterable[ListedBatch]) -> Plan:
        """A plan without checkpoints, which knows what is finished under a configuration."""
        return cls(
            batches,
            finished=store.finished(config_id),
            ruled_out=store.ruled_out(config_id),
            quarantined=store.quarantined(config_id),
        )

    @classmethod
    def of_store(cls, source: str, store: Store, config_id: str) -> Plan:
        """Every inspected checkpoint of a source that the store holds; nothing is listed.

        Those are included whose weights another source has as well. The order is that of a compacted table,
        so rows that are claimed together are stored together.
        """
        rows = store.query_arrow(OF_SOURCE, [source])
        plan = cls.begin(store, config_id, ())
        for batch in rows.to_batches():
            columns = (column.to_pylist() for column in batch.columns)
            for id_, base, family, status in zip(*columns, strict=True):
                plan._planned[id_] = Planned(id_, _shared(base), InspectionStatus(status), sys.intern(family))
        plan._listed, plan._complete = rows.num_rows, True
        return plan

    @property
    def listed(self) -> int:
        """Entries of the source that were listed."""
        return self._listed

    @property
    def inspected(self) -> int:
        """Listed entries that were inspected now; the others were known from earlier crawls."""
        return self._inspected

    @property
    def resumed(self) -> Listing | None:
        """The interrupted listing that was resumed, if one was."""
        return self._resumed

    @property
    def complete(self) -> bool:
        """Whether the listing came to its end."""
        return self._complete

    @property
    def cut_short(self) -> SourceError | None:
        """Why the source could not be listed to its end, if it could not."""
        return self._cut_short

    def __len__(self) -> int:
        return len(self._planned)

    def __iter__(self) -> Iterator[Planned]:
        """The planned checkpoints in listing order."""
        return iter(self._planned.values())

    def __getitem__(self, checkpoint_id: str) -> Planned:
        return self._planned[checkpoint_id]

    @property
    def todo(self) -> list[Planned]:
        """The checkpoints that still need a verdict; those that share a base come together."""
        return sorted(filter(self.is_todo, list(self)), key=lambda p: p.base or "")

    def is_todo(self, planned: Planned) -> bool:
        """Whether a checkpoint needs a verdict.

        A checkpoint that inspection once skipped and now does not (a gate was opened, a token was given)
        needs one.
        """
        if planned.checkpoint_id in self._finished:
            return False
        is_ready = planned.inspection_status is InspectionStatus.READY
        return is_ready or planned.checkpoint_id not in self._ruled_out

    def is_quarantined(self, planned: Planned) -> bool:
        """Whether a checkpoint may have killed its workers in an earlier crawl."""
        return planned.checkpoint_id in self._quarantined

    def grow(self, on_checkpoint: Callable[[Checkpoint], None] = lambda _: None) -> Iterator[list[Planned]]:
        """Takes in one listed batch after another; yields the checkpoints of each that need a verdict.

        A batch is asked for when the one before it has been consumed. `on_checkpoint` gets the row of each
        new checkpoint. Raises SourceError where the source cannot be listed to its end, and StoreError.
        """
        try:
            for batch in self._batches:
                added = [row for row in batch.rows if self._add(row)]
                self._listed, self._complete = batch.listed, batch.complete
                self._inspected += batch.inspected
                self._resumed = self._resumed or batch.resumed
                for row in added:
                    on_checkpoint(row)
                yield [p for p in (self._planned[row.checkpoint_id] for row in added) if self.is_todo(p)]
        except SourceError as error:
            self._cut_short = error
            raise

    def _add(self, checkpoint: Checkpoint) -> bool:
        """Adds a checkpoint; False where the plan holds it already."""
        if checkpoint.checkpoint_id in self._planned:
            return False
        self._planned[checkpoint.checkpoint_id] = Planned.of(checkpoint)
        return True


def _shared(base: str | None) -> str | None:
    """One string object for all checkpoints of a base."""
    return sys.intern(base) if base else None
