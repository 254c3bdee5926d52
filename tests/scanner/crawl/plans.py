"""Plans for tests: of a source that is listed to its end, and of rows that are listed already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import batched

from scanner.crawl.listing import ListedBatch, list_batches
from scanner.crawl.planning import Plan, Planned
from scanner.hubs.base import Query, Source
from scanner.records import Checkpoint
from scanner.store.store import Store


def listed_plan(
    source: Source,
    store: Store,
    query: Query,
    *,
    config_id: str | None = None,
    base_given: bool = False,
    report: Callable[[Plan], None] = lambda _: None,
    on_checkpoint: Callable[[Checkpoint], None] = lambda _: None,
) -> Plan:
    """The plan of a source; `report` is called after each batch."""
    batches = list_batches(source, store, query, base_given=base_given)
    plan = Plan.begin(store, config_id, batches) if config_id else Plan(batches)
    for _ in plan.grow(on_checkpoint):
        report(plan)
    return plan


def whole_plan(store: Store, config_id: str, rows: Iterable[Checkpoint]) -> Plan:
    """The plan of rows that are listed already."""
    return Plan(
        planned=map(Planned.of, rows), finished=store.finished(config_id),
        ruled_out=store.ruled_out(config_id), quarantined=store.quarantined(config_id),
    )  # fmt: skip


def batches_of(
    rows: list[Checkpoint], size: int, before: Callable[[], None] = lambda: None
) -> Iterator[ListedBatch]:
    """A listing of rows; `before` is called before each batch."""
    listed = 0
    for batch in batched(rows, size):
        before()
        listed += len(batch)
        yield ListedBatch(list(batch), listed, len(batch), listed == len(rows))
