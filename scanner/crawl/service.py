"""The public API of the service: what `scanner crawl` does, without a terminal and without exit codes.

    from scanner.crawl.service import CrawlOptions, crawl

    result = crawl(CrawlOptions(source="folder:models", store="store", base="OWNER/NAME"))
    print(result.counts)

Events go to an `Observer`. Ray and torch are imported when workers start, and not before.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from scanner.config import ScanConfig, default_cache
from scanner.crawl.progress import Budget, Observer, Run
from scanner.crawl.summary import ListingResult, ListingSummary
from scanner.errors import ConfigError, SourceError
from scanner.records import Checkpoint, Verdict, new_id
from scanner.store.patience import CRAWL_S, Patience
from scanner.store.queries import VerdictCounts, count_verdicts
from scanner.store.store import Store

if TYPE_CHECKING:
    from scanner.crawl.delivery import Notify
    from scanner.crawl.listing import ListedBatch
    from scanner.crawl.planning import Plan
    from scanner.crawl.worker import Task
    from scanner.hubs.base import Query, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class CrawlOptions:
    """What a crawl lists, and how it scans. The defaults are those of `scanner crawl`."""

    source: str  # "hf", "civitai", or "folder:PATH"
    store: str  # a folder, or an address such as "s3://BUCKET/PREFIX"
    limit: int = 100  # entries to list, at most
    since: datetime | str | None = None  # published then or later; "last": since the last finished listing
    changed: bool = False  # `since` is compared with the time of the last change, where the source has it
    filters: tuple[str, ...] = ()  # tags of the source, instead of those that find fine-tuned checkpoints
    base_model: str | None = None  # only checkpoints that were tuned from this base, OWNER/NAME
    corpora: tuple[str, ...] = ()  # corpora to compare with; empty for all of the store
    base: str | None = None  # base of checkpoints that state none: OWNER/NAME, a folder, or a file
    config: ScanConfig = field(default_factory=ScanConfig)  # its tau and corpora come from the store
    max_download: int = 10_000_000_000  # bytes of a checkpoint; a larger one is skipped
    cache_bytes: int = 50_000_000_000  # of all downloads that are kept
    keep_weights: bool = False  # keep a downloaded checkpoint after its scan
    caption_model: str | None = None  # the folder of a CLIP model that helps to recover captions
    allow_pickle: bool = False  # convert pickled checkpoints that pass every check, and scan them
    ray_address: str | None = None  # of a running cluster; None to start Ray on this machine
    workers: int | None = None  # scans at once; None for as many as there is room for
    gpus_per_worker: float | None = None  # a part of one, or several; 0 for CPU cores; None by their memory
    listing_pauses_s: tuple[float, ...] | None = None  # before a broken listing is resumed; None: the usual
    notify: Notify | None = None  # whom to tell of new flags


@dataclass(frozen=True, slots=True)
class CrawlResult:
    """What a crawl came to."""

    config_id: str
    listed: int  # entries of the source
    checkpoint_ids: tuple[str, ...]  # the checkpoints among them, in listing order
    verdicts: dict[Verdict, int]  # that this crawl recorded, or found recorded by another crawl
    counts: VerdictCounts  # of the listed checkpoints, under the configuration of this crawl
    total: VerdictCounts  # of all checkpoints of the store, under all configurations
    cut_short: SourceError | None  # why the source could not be listed to its end, if it could not


def crawl(
    options: CrawlOptions, observer: Observer | None = None, *, worker_class: type | None = None
) -> CrawlResult:
    """Lists a source, and scans its checkpoints that have no verdict yet while the listing goes on.

    An interrupted crawl is resumed by another call with the same options. Raises ConfigError for options
    that cannot be used, CorpusError without images to compare with, SourceError where nothing could be
    listed, StoreError, and NoWorkers where no worker starts. `worker_class` replaces the class of the
    workers, for tests.
    """
    from scanner.crawl.planning import Plan

    observer = observer or Observer()
    source = open_source(options)
    _check_cluster(options)
    store = open_store(options, observer)
    query = _query(options, store, source)
    task = _task(options, store, source, observer)
    store.append([task.config.row()])  # the newest row is that of the configuration that was used last

    plan = Plan.begin(store, task.config.config_id, _batches(options, source, store, query, observer))
    observer.message(f"listing {source.name} (at most {query.limit} entries) ...")
    result = _scan(options, store, task, plan, observer, None, worker_class, source)
    if plan.cut_short is not None and not plan.listed:
        raise plan.cut_short
    return result


def scan_recorded(
    options: CrawlOptions, observer: Observer | None = None, *, budget: Budget | None = None,
    worker_class: type | None = None,
) -> CrawlResult:  # fmt: skip
    """Scans the checkpoints of a source that the store holds and that have no verdict; lists nothing.

    Begins no scan when the budget is spent. Raises what `crawl` raises.
    """
    from scanner.crawl.planning import Plan

    observer = observer or Observer()
    source = open_source(options)
    _check_cluster(options)
    store = open_store(options, observer)
    task = _task(options, store, source, observer)
    store.append([task.config.row()])
    plan = Plan.of_store(source.name, store, task.config.config_id)
    return _scan(options, store, task, plan, observer, budget, worker_class)


def list_and_inspect(
    options: CrawlOptions, observer: Observer | None = None, *, dry_run: bool = False
) -> ListingResult:
    """Lists and inspects; downloads no weights and scans nothing.

    The observer gets each checkpoint. A dry run writes nothing, and needs no store; it does not wait for a
    source that breaks off. Raises ConfigError, SourceError where nothing could be listed, and StoreError.
    """
    from scanner.crawl.listing import list_batches, resumption
    from scanner.crawl.planning import Plan
    from scanner.hubs import http

    observer, summary = observer or Observer(), ListingSummary(options.max_download)
    source = open_source(options)
    with _store_of(options, dry_run) as store:
        query = _query(options, store, source)
        _tell_what_it_lacks(options, observer)
        observer.message(f"listing {source.name} (at most {query.limit} entries) ...")
        plan = Plan(
            list_batches(source, store, query, base_given=options.base is not None, write=False)
            if dry_run
            else _batches(options, source, store, query, observer)
        )

        def on_checkpoint(row: Checkpoint) -> None:
            summary.add(row)
            observer.checkpoint_listed(row)

        with http.on_rate_limit(observer.rate_limited):
            resumed = False
            try:
                for _ in plan.grow(on_checkpoint):
                    if plan.resumed is not None and not resumed:
                        resumed = True
                        observer.message(resumption(plan.resumed))
                    observer.listing_progress(plan.listed, plan.inspected)
            except SourceError:  # `plan.cut_short` has it
                if not plan.listed:
                    raise
    if coverage := source.coverage():
        observer.message(f"{source.name}: {coverage}")
    return summary.result(plan.listed, plan.inspected, plan.cut_short)


def _batches(
    options: CrawlOptions, source: Source, store: Store, query: Query, observer: Observer
) -> Iterator[ListedBatch]:
    """The batches of a listing, which is resumed where it breaks off; the observer is told of each pause."""
    from scanner.crawl.listing import list_with_retries

    def on_retry(error: SourceError, pause_s: float) -> None:
        observer.message(f"{error}\nThe listing is resumed in {pause_s:.0f} s.")

    return list_with_retries(
        source,
        store,
        query,
        base_given=options.base is not None,
        pauses_s=options.listing_pauses_s,
        on_retry=on_retry,
    )


def open_source(options: CrawlOptions) -> Source:
    """The source of a crawl. Raises ConfigError for options that do not apply to it."""
    from scanner.hubs.registry import check_query_options, open_source

    check_query_options(
        options.source, since=options.since, filters=options.filters, base_model=options.base_model
    )
    return open_source(options.source, base=options.base, allow_pickle=options.allow_pickle)


def open_store(options: CrawlOptions, observer: Observer) -> Store:
    """The store of a crawl; while it does not answer, each operation is repeated for some minutes.

    Raises StoreError.
    """
    return Store(options.store, patience=Patience(CRAWL_S, observer.message))


def effective_config(options: CrawlOptions, store: Store, observer: Observer | None = None) -> ScanConfig:
    """The configuration of a crawl with the corpora of the store, and the tau that their background gives.

    Raises CorpusError where a corpus is unknown, there is no reference, or the budget of the screen is too
    small, and RequestError for a folder that is no caption model.
    """
    from finextract.caption_model import caption_model_id
    from scanner.match.matching import with_corpora

    warn, config = (observer or Observer()).message, options.config
    if options.caption_model is not None:
        config = replace(config, caption_model=caption_model_id(Path(options.caption_model)))
    return with_corpora(store, config, list(options.corpora), warn)


def _scan(
    options: CrawlOptions, store: Store, task: Task, plan: Plan, observer: Observer, budget: Budget | None,
    worker_class: type | None, source: Source | None = None,
) -> CrawlResult:  # fmt: skip
    """Scans a plan; `source` is the one that is listed meanwhile."""
    from scanner.crawl import engine
    from scanner.crawl.listing import resumption
    from scanner.crawl.notifying import notifying
    from scanner.crawl.worker import Scanner
    from scanner.hubs import http

    config, reported = task.config, set[str]()

    def report_once(text: str) -> None:
        if text not in reported:
            reported.add(text)
            observer.message(text)

    def on_listed() -> None:
        if plan.resumed is not None:
            report_once(resumption(plan.resumed))
        cut_short = plan.cut_short is not None and plan.listed > 0
        if cut_short:
            report_once(f"The listing ends here: {plan.cut_short}\nWhat was listed is scanned.")
        if plan.complete or cut_short:
            if source is not None and (coverage := source.coverage()):
                report_once(f"{source.name}: {coverage}")
            todo = len(plan.todo)
            report_once(
                f"{plan.listed} entries, {len(plan)} checkpoints, {len(plan) - todo} finished before, "
                f"{todo} to do. {config.what_flags}"
            )

    observer.begun(Run(task.run_id, config.config_id, task.source, task.store))
    try:
        with (
            http.on_rate_limit(observer.rate_limited),
            notifying(options.notify, store, task.run_id, observer) as observers,
        ):
            verdicts = engine.crawl(
                task, plan, store, observer=observers, on_listed=on_listed, budget=budget,
                address=options.ray_address, workers=options.workers,
                gpus_per_worker=options.gpus_per_worker, worker_class=worker_class or Scanner,
            )  # fmt: skip
    except KeyboardInterrupt:
        ids = tuple(planned.checkpoint_id for planned in list(plan))
        observer.interrupted(count_verdicts(store, config.config_id, among=ids))
        raise
    ids = tuple(planned.checkpoint_id for planned in plan)
    return CrawlResult(
        config_id=config.config_id,
        listed=plan.listed,
        checkpoint_ids=ids,
        verdicts=dict(verdicts),
        counts=count_verdicts(store, config.config_id, among=ids),
        total=count_verdicts(store),
        cut_short=plan.cut_short,
    )


def _task(options: CrawlOptions, store: Store, source: Source, observer: Observer) -> Task:
    from scanner.crawl.cluster import is_cluster
    from scanner.crawl.worker import Task
    from scanner.hubs.base_models import local_base

    _tell_what_it_lacks(options, observer)
    cores = os.cpu_count() or 1
    return Task(
        store=store.uri,
        source=source.name,
        base=local_base(options.base),
        config=effective_config(options, store, observer),
        run_id=new_id(),
        cache=None if is_cluster(options.ray_address) else str(default_cache().absolute()),
        max_download=options.max_download,
        cache_bytes=options.cache_bytes,
        keep_weights=options.keep_weights,
        allow_pickle=options.allow_pickle,
        caption_model=options.caption_model,
        threads=0 if options.ray_address or not options.workers else max(1, cores // options.workers),
    )


def _tell_what_it_lacks(options: CrawlOptions, observer: Observer) -> None:
    from scanner.hubs.base_fetcher import what_it_lacks

    if (sentence := what_it_lacks(options.base)) is not None:
        observer.message(sentence)


def _query(options: CrawlOptions, store: Store, source: Source) -> Query:
    from scanner.hubs.base import Query

    since = _since(options.since, store, source)
    return Query(
        options.limit, since, options.filters, options.base_model, options.max_download, options.changed
    )


def _since(since: datetime | str | None, store: Store, source: Source) -> datetime | None:
    """`since` as a time, UTC. Raises ConfigError for a text that is not a date."""
    from scanner.crawl.listing import last_finished

    if since == "last":
        return last_finished(store, source)
    if isinstance(since, str):
        try:
            since = datetime.fromisoformat(since)
        except ValueError:
            raise ConfigError(f"--since {since} is not a date. Write it as 2026-11-24, or `last`.") from None
    return since if since is None or since.tzinfo else since.replace(tzinfo=UTC)


@contextlib.contextmanager
def _store_of(options: CrawlOptions, dry_run: bool) -> Iterator[Store]:
    """The store of a listing. A dry run does not create it: it gets a temporary one that is empty."""
    with contextlib.ExitStack() as temporary:
        uri = options.store
        if dry_run and "://" not in uri and not Path(uri).is_dir():
            uri = temporary.enter_context(tempfile.TemporaryDirectory())
        yield Store(uri, create=True)


def _check_cluster(options: CrawlOptions) -> None:
    from scanner.crawl.cluster import check_cluster

    if options.ray_address is not None:
        check_cluster(options.ray_address)
