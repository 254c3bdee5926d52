"""The listing of a source in batches: each is inspected by a few threads, and recorded.

The position of the listing is recorded with each batch, so an interrupted listing resumes after the last
recorded one. Knows no Ray and no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from scanner.errors import Skipped, SourceError, StoreError, Unavailable
from scanner.hubs import http
from scanner.hubs.base import Query, Source
from scanner.records import BaseOrigin, Checkpoint, InspectionStatus, Listing, new_id, now
from scanner.store.rows import rows_of
from scanner.store.store import Store
from scanner.store.tables import record

BATCH = 200  # entries that are inspected and recorded together
READ_TOGETHER = 10_000  # recorded rows, when a listing is resumed
INSPECTORS = 8  # threads; each spends nearly all of its time waiting for a hub
RETRIES_S = (
    30.0,
    120.0,
    600.0,
)  # pauses before an interrupted listing is resumed, while it makes no progress
STALE = timedelta(days=1)  # an interrupted listing that is older begins again
Place = tuple[str, str, str]  # repo, revision, file
RECORDED = """
SELECT all_checkpoints.* FROM all_checkpoints SEMI JOIN (
    SELECT hash(repo, revision, file) AS place, max(listed_at) AS listed_at FROM all_checkpoints
    WHERE source = $source AND listed_at >= $since GROUP BY place
) newest ON hash(repo, revision, file) = place AND all_checkpoints.listed_at = newest.listed_at
WHERE source = $source AND all_checkpoints.listed_at >= $since"""


@dataclass(frozen=True, slots=True)
class ListedBatch:
    """Some entries of a source, inspected and recorded."""

    rows: list[Checkpoint]
    listed: int  # entries of the whole listing up to here
    inspected: int  # entries of this batch that were inspected now; the others were known
    complete: bool  # whether this is the last batch
    resumed: Listing | None = None  # the interrupted listing that recorded this batch earlier


def list_batches(
    source: Source, store: Store, query: Query, *, base_given: bool = False, write: bool = True
) -> Iterator[ListedBatch]:
    """Lists, inspects and records up to `query.limit` entries, batch by batch.

    A batch is requested from the source when the one before it has been consumed. `base_given` says that the
    user named a base, with which entries that were skipped before may be scanned. Without `write` nothing is
    recorded, and an interrupted listing is not resumed. Raises SourceError after the batch of what the source
    listed before it broke off, and StoreError.
    """
    listing = _interrupted(store, source, query) if write else None
    seen: set[bytes] = set()  # digests of places: a listing may have a million
    source.position.clear()
    if listing is None:
        listing = _new_listing(source, query)
    else:
        source.position.update(listing.position)
        for rows in _recorded(listing, store, seen):
            yield ListedBatch(rows, listing.listed, 0, False, resumed=listing)
    # Entries that a page repeats are not counted, so more may be requested than the limit.
    entries = iter(source.list(dataclasses.replace(query, limit=query.limit + len(seen))))
    prefix = f"inspect-{new_id()}"
    inspectors = ThreadPoolExecutor(INSPECTORS, thread_name_prefix=prefix)
    listed, complete, broken = listing.listed, False, None
    try:
        while not complete:
            batch, broken = _next_entries(entries, BATCH if listed < query.limit else 0)
            position = dict(source.position)  # all entries before it are in this batch or in earlier ones
            fresh = [c for c in batch if _digest(c) not in seen][: query.limit - listed]
            seen.update(_digest(c) for c in fresh)
            rows, inspected = _inspected(source, store, fresh, base_given, inspectors)
            listed += len(fresh)
            complete = listed >= query.limit or (broken is None and len(batch) < BATCH)
            if broken is not None and not rows and not complete:
                raise broken
            if write:
                listing = dataclasses.replace(
                    listing, updated_at=now(), listed=listed, finished=complete,
                    position={} if complete else position,
                )  # fmt: skip
                store.append(rows)
                store.append([listing])
            yield ListedBatch(rows, listed, inspected, complete)
            if broken is not None and not complete:
                raise broken
    except BaseException:
        with http.interrupt_waits():  # an inspection that waits for a hub ends at once
            inspectors.shutdown(cancel_futures=True)
            _join_started(prefix)
        raise
    inspectors.shutdown()


def list_with_retries(
    source: Source,
    store: Store,
    query: Query,
    *,
    base_given: bool = False,
    pauses_s: Sequence[float] | None = None,
    on_retry: Callable[[SourceError, float], None] = lambda *_: None,
) -> Iterator[ListedBatch]:
    """`list_batches`, resumed after a pause where a source that was listed in part does not answer.

    `pauses_s` are the seconds before each retry in a row that lists nothing more, by default `RETRIES_S`.
    `on_retry` gets the error and the seconds of the pause. Raises SourceError where retries do not help.
    """
    pauses_s = RETRIES_S if pauses_s is None else pauses_s
    tries, listed, complete = 0, 0, False
    while not complete:
        before = listed
        try:
            for batch in list_batches(source, store, query, base_given=base_given):
                listed, complete = batch.listed, batch.complete
                yield batch
        except SourceError as error:
            tries = tries if listed == before else 0
            if not listed or tries >= len(pauses_s):
                raise
            on_retry(error, pauses_s[tries])
            http.pause(pauses_s[tries])
            tries += 1


def _next_entries(entries: Iterator[Checkpoint], count: int) -> tuple[list[Checkpoint], SourceError | None]:
    """Up to `count` entries, and the error that ended them, if one did."""
    batch: list[Checkpoint] = []
    try:
        batch.extend(islice(entries, count))  # keeps what came before an error
    except SourceError as error:
        return batch, error
    return batch, None


def resumption(listing: Listing) -> str:
    """A sentence about an interrupted listing that is resumed."""
    began = listing.started_at.astimezone()
    return f"resuming the listing of {began:%Y-%m-%d %H:%M} after entry {listing.listed:,}"


def last_finished(store: Store, source: Source) -> datetime | None:
    """When the newest finished listing of a source began; None where there is none."""
    rows = store.select(
        Listing, "WHERE source = ? AND finished ORDER BY started_at DESC LIMIT 1", [source.name]
    )
    return rows[0].started_at if rows else None


def _recorded(listing: Listing, store: Store, seen: set[bytes]) -> Iterator[list[Checkpoint]]:
    """The rows that an interrupted listing recorded, in batches; the digests of their places go to `seen`.

    The first batch is empty. A place that was recorded twice has its newest row. The reader may pause for
    hours between two batches, and files of the store may be replaced meanwhile: then the rest is read anew.
    """
    yield []
    while True:
        before = len(seen)
        try:
            since = {"source": listing.source, "since": listing.started_at}
            for table in store.stream(RECORDED, since, rows=READ_TOGETHER):
                rows = [record(Checkpoint, row) for row in rows_of(table)]
                rows = list({_digest(row): row for row in rows if _digest(row) not in seen}.values())
                seen.update(_digest(row) for row in rows)
                yield rows
            return
        except StoreError:
            if len(seen) == before:
                raise


def _new_listing(source: Source, query: Query) -> Listing:
    at = now()
    return Listing(_listing_id(source, query), source.name, at, at, 0, {}, False)


def _interrupted(store: Store, source: Source, query: Query) -> Listing | None:
    rows = store.select(Listing, "WHERE listing_id = ? AND NOT finished", [_listing_id(source, query)])
    return rows[0] if rows and now() - rows[0].updated_at < STALE else None


def _listing_id(source: Source, query: Query) -> str:
    text = json.dumps([source.name, dataclasses.asdict(query)], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _place(checkpoint: Checkpoint) -> Place:
    return checkpoint.repo, checkpoint.revision, checkpoint.file


def _digest(checkpoint: Checkpoint) -> bytes:
    """A place in 16 bytes."""
    return hashlib.blake2b("\n".join(_place(checkpoint)).encode(), digest_size=16).digest()


def _inspected(
    source: Source, store: Store, batch: Sequence[Checkpoint], base_given: bool,
    inspectors: ThreadPoolExecutor,
) -> tuple[list[Checkpoint], int]:  # fmt: skip
    """The inspected rows of a batch, in order, and how many were inspected now.

    An entry whose earlier inspection still holds is not inspected again.
    """
    known = {_place(c): c for c in store.placed(source.name, [_place(c) for c in batch])}
    rows: list[Checkpoint | None] = []
    unknown = []
    for checkpoint in batch:
        before = known.get(_place(checkpoint))
        if checkpoint.inspection_status is not InspectionStatus.UNKNOWN:
            rows.append(checkpoint)
        elif before is not None and _still_holds(before, base_given):
            rows.append(dataclasses.replace(before, listed_at=now()))
        else:
            rows.append(None)
            unknown.append(checkpoint)
    inspected = iter([inspectors.submit(_inspect, source, checkpoint) for checkpoint in unknown])
    return [_result(next(inspected)) if row is None else row for row in rows], len(unknown)


def _result(inspected: Future[Checkpoint]) -> Checkpoint:
    """The result of an inspection, waited for in slices.

    The main thread acts on a signal that arrives while it begins to wait only when that wait ends.
    """
    while not inspected.done():
        wait([inspected], http.WAIT_SLICE_S)
    return inspected.result()


def _join_started(prefix: str) -> None:
    """Joins the threads of a pool that its own shutdown does not know.

    A signal that interrupts `Thread.start` leaves the thread running, and the pool without it.
    """
    for thread in threading.enumerate():
        if thread.name.startswith(prefix):
            with contextlib.suppress(RuntimeError):  # it has not begun; no inspection is left for it
                thread.join()


def _still_holds(checkpoint: Checkpoint, base_given: bool) -> bool:
    """Whether inspecting the same file again would have the same result."""
    uncertain = (None, BaseOrigin.GIVEN, BaseOrigin.FAMILY)
    return checkpoint.inspection_status is InspectionStatus.READY and not (
        base_given and checkpoint.base_origin in uncertain
    )


def _inspect(source: Source, checkpoint: Checkpoint) -> Checkpoint:
    try:
        return source.inspect(checkpoint)
    except (Skipped, Unavailable) as error:
        skipped = isinstance(error, Skipped)
        return dataclasses.replace(
            checkpoint,
            inspection_status=InspectionStatus.SKIPPED if skipped else InspectionStatus.UNAVAILABLE,
            reason=str(error),
            reason_code=error.reason_code,
        )
