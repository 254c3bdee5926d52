"""What a crawl has to do: list, inspect what is new, record, and subtract what is finished.

Knows no Ray and no torch. Listing goes in batches: each is inspected by a few threads, recorded, and then the
place that the listing has come to; a listing that was interrupted goes on from the last recorded batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import NamedTuple

from scanner.errors import Skipped, SourceError, Unavailable
from scanner.hubs import http
from scanner.hubs.base import Query, Source
from scanner.records import BaseOrigin, Checkpoint, InspectionStatus, Listing, now
from scanner.store.store import Store

BATCH = 200  # entries, a part of the store
INSPECTORS = 8  # threads; each waits for a hub nearly all of its time
Place = tuple[str, str, str]  # repo, revision, file
RETRIES_S = (30.0, 120.0, 600.0)  # before a source that broke off is listed on, while nothing more comes
STALE = timedelta(days=1)  # an interrupted listing older than that begins again


class Planned(NamedTuple):
    """What a plan knows of a checkpoint: there may be a million. The store has the rest."""

    checkpoint_id: str
    base: str | None
    inspection_status: InspectionStatus


@dataclass
class Plan:
    """What one crawl listed, and what of it is left to do. It may still be growing."""

    listed: int = 0  # entries
    inspected: int = 0  # of them, those that were asked about now; the others were known
    planned: dict[str, Planned] = field(default_factory=dict)  # by id, in listing order
    finished: set[str] = field(default_factory=set)  # ids that need no scan,
    ruled_out: set[str] = field(default_factory=set)  # nor these, where inspection still says so
    quarantined: set[str] = field(default_factory=set)  # ids that may have killed workers: they come last
    resumed: Listing | None = None  # the interrupted listing that this one went on with
    complete: bool = False  # nothing more will be listed
    cut_short: SourceError | None = None  # why the source could not be listed to its end

    @property
    def todo(self) -> list[Planned]:
        """The checkpoints that still need a verdict; those that share a base come together."""
        return sorted(filter(self.is_todo, self.planned.values()), key=lambda p: p.base or "")

    def is_todo(self, planned: Planned) -> bool:
        """Whether it needs a verdict. What is ruled out no more does: a gate was opened, a token given."""
        if planned.checkpoint_id in self.finished:
            return False
        return (
            planned.inspection_status is InspectionStatus.READY or planned.checkpoint_id not in self.ruled_out
        )

    def add(self, checkpoint: Checkpoint) -> Planned | None:
        """Takes a checkpoint in; None where it is there."""
        if checkpoint.checkpoint_id in self.planned:
            return None
        base = sys.intern(checkpoint.base) if checkpoint.base else None
        planned = Planned(checkpoint.checkpoint_id, base, checkpoint.inspection_status)
        self.planned[checkpoint.checkpoint_id] = planned
        return planned


def grow(
    plan: Plan,
    source: Source,
    store: Store,
    query: Query,
    *,
    base_given: bool = False,
    write: bool = True,
    tell: Callable[[Checkpoint], None] = lambda _: None,
) -> Iterator[list[Planned]]:
    """Lists, inspects and records up to `query.limit` entries, batch by batch; gives what of each is to do.

    Nothing is asked before the next batch is asked for. `base_given` says that the person named a base, which
    may make more of what is known. Without `write` nothing is recorded, and an interrupted listing is left
    alone. `tell` is told of every checkpoint once. Raises SourceError, StoreError.
    """

    def taken_in(rows: Iterable[Checkpoint]) -> list[Planned]:
        todo = []
        for row in rows:
            if (planned := plan.add(row)) is not None:
                tell(row)
                if plan.is_todo(planned):
                    todo.append(planned)
        return todo

    listing = _interrupted(store, source, query) if write else None
    seen: set[Place] = set()
    source.position.clear()
    if listing is None:  # or one that stood still for too long
        listing, plan.listed = _new_listing(source, query), 0
    else:
        source.position.update(listing.position)
        plan.resumed, plan.listed = listing, listing.listed
        yield taken_in(_recorded(listing, store, seen))
    # What a page repeats is not counted, so more may be asked for than is wanted.
    entries = source.list(dataclasses.replace(query, limit=query.limit + len(seen)))
    inspectors = ThreadPoolExecutor(INSPECTORS, thread_name_prefix="inspect")
    try:
        while not plan.complete:
            batch = list(islice(entries, BATCH)) if plan.listed < query.limit else []
            position = dict(source.position)  # all before it is in this batch or in earlier ones
            fresh = [c for c in batch if _place(c) not in seen][: query.limit - plan.listed]
            seen.update(_place(c) for c in fresh)
            rows = list(_looked_at(source, store, fresh, base_given, inspectors, plan))
            todo = taken_in(rows)
            plan.listed += len(fresh)
            plan.complete = len(batch) < BATCH or plan.listed >= query.limit
            if write:
                listing = dataclasses.replace(
                    listing, updated_at=now(), listed=plan.listed, finished=plan.complete,
                    position={} if plan.complete else position,
                )  # fmt: skip
                store.append(rows)
                store.append([listing])
            yield todo
    except BaseException:
        with http.interrupt_waits():  # nobody waits for an inspection
            inspectors.shutdown(cancel_futures=True)
        raise
    inspectors.shutdown()


def keep_growing(
    plan: Plan,
    source: Source,
    store: Store,
    query: Query,
    *,
    base_given: bool = False,
    retries: Callable[[SourceError, float], None] = lambda *_: None,
) -> Iterator[list[Planned]]:
    """`grow`, which goes on after a while where a source that was listed in part breaks off.

    `retries` is told why, and after how many seconds. Raises SourceError where that does not help.
    """
    tries = 0
    while not plan.complete:
        listed = plan.listed
        try:
            yield from grow(plan, source, store, query, base_given=base_given)
        except SourceError as error:
            tries = tries if plan.listed == listed else 0
            if not plan.listed or tries == len(RETRIES_S):
                raise
            retries(error, RETRIES_S[tries])
            http.pause(RETRIES_S[tries])
            tries += 1


def make_plan(
    source: Source,
    store: Store,
    query: Query,
    *,
    config_id: str | None = None,
    base_given: bool = False,
    write: bool = True,
    report: Callable[[Plan], None] = lambda _: None,
    tell: Callable[[Checkpoint], None] = lambda _: None,
) -> Plan:
    """The whole plan, when all is listed; see `grow`. `report` is told of every batch. Raises SourceError."""
    plan = begin_plan(store, config_id) if config_id else Plan()
    for _ in grow(plan, source, store, query, base_given=base_given, write=write, tell=tell):
        report(plan)
    return plan


def begin_plan(store: Store, config_id: str) -> Plan:
    """A plan that nothing was listed for yet, with what needs no scan."""
    return Plan(
        finished=store.finished(config_id),
        ruled_out=store.ruled_out(config_id),
        quarantined=store.quarantined(config_id),
    )


def plan_of_store(source: str, store: Store, config_id: str) -> Plan:
    """Everything of a source that the store knows, less what is finished: nothing is listed or asked.

    In the order of a compacted table, so the rows of what is claimed together lie together.
    """
    rows = store.query_arrow(
        "SELECT checkpoint_id, any_value(base) AS base, any_value(inspection_status) AS inspection_status "
        "FROM checkpoints WHERE source = ? AND inspection_status <> 'unknown' "
        "GROUP BY checkpoint_id ORDER BY checkpoint_id",
        [source],
    )
    plan = begin_plan(store, config_id)
    plan.listed, plan.complete = rows.num_rows, True
    for batch in rows.to_batches():
        for id_, base, inspection_status in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            plan.planned[id_] = Planned(
                id_, sys.intern(base) if base else None, InspectionStatus(inspection_status)
            )
    return plan


def _recorded(listing: Listing, store: Store, seen: set[Place]) -> list[Checkpoint]:
    """What an interrupted listing recorded; all of its places are then `seen`."""
    since = [listing.source, listing.started_at]
    for row in store.query(
        "SELECT repo, revision, file FROM all_checkpoints WHERE source = ? AND listed_at >= ?", since
    ):
        seen.add((row["repo"], row["revision"], row["file"]))
    return store.select(Checkpoint, "WHERE source = ? AND listed_at >= ?", since)


def last_finished(store: Store, source: Source) -> datetime | None:
    """When the newest finished listing of a source began; None where there is none."""
    rows = store.select(
        Listing, "WHERE source = ? AND finished ORDER BY started_at DESC LIMIT 1", [source.name]
    )
    return rows[0].started_at if rows else None


def _new_listing(source: Source, query: Query) -> Listing:
    at = now()
    return Listing(_listing_id(source, query), source.name, at, at, 0, {}, False)


def _interrupted(store: Store, source: Source, query: Query) -> Listing | None:
    rows = store.select(Listing, "WHERE listing_id = ? AND NOT finished", [_listing_id(source, query)])
    return rows[0] if rows and now() - rows[0].updated_at < STALE else None


def _listing_id(source: Source, query: Query) -> str:
    told = json.dumps([source.name, dataclasses.asdict(query)], default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _place(checkpoint: Checkpoint) -> Place:
    return checkpoint.repo, checkpoint.revision, checkpoint.file


def _looked_at(
    source: Source, store: Store, batch: Sequence[Checkpoint], base_given: bool,
    inspectors: ThreadPoolExecutor, plan: Plan,
) -> Iterator[Checkpoint]:  # fmt: skip
    """A batch with what is known of each, in order. What the store knows is not asked again."""
    known = {_place(c): c for c in store.placed(source.name, [_place(c) for c in batch])}
    outcomes: list[Checkpoint | None] = []
    asked = []
    for checkpoint in batch:
        before = known.get(_place(checkpoint))
        if checkpoint.inspection_status is not InspectionStatus.UNKNOWN:
            outcomes.append(checkpoint)
        elif before is not None and _still_true(before, base_given):
            outcomes.append(dataclasses.replace(before, listed_at=now()))
        else:
            outcomes.append(None)
            asked.append(checkpoint)
    plan.inspected += len(asked)
    answers = inspectors.map(lambda checkpoint: _inspect(source, checkpoint), asked)
    for outcome in outcomes:
        yield next(answers) if outcome is None else outcome


def _still_true(checkpoint: Checkpoint, base_given: bool) -> bool:
    """Whether an earlier inspection of the same file would end the same now."""
    unsure = (None, BaseOrigin.GIVEN, BaseOrigin.FAMILY)
    return checkpoint.inspection_status is InspectionStatus.READY and not (
        base_given and checkpoint.base_origin in unsure
    )


def _inspect(source: Source, checkpoint: Checkpoint) -> Checkpoint:
    try:
        return source.inspect(checkpoint)
    except Skipped as error:
        return dataclasses.replace(checkpoint, inspection_status=InspectionStatus.SKIPPED, reason=str(error))
    except Unavailable as error:
        return dataclasses.replace(
            checkpoint, inspection_status=InspectionStatus.UNAVAILABLE, reason=str(error)
        )
