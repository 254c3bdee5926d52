"""What a crawl of whatever kind does: from options to a plan, and from a plan to verdicts.

Words go to stderr. Imports Ray and torch only where it scans.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from scanner.config import ScanConfig, default_cache
from scanner.crawl.progress import Budget, Observer
from scanner.errors import ConfigError, SourceError
from scanner.records import Verdict, new_id
from scanner.store.store import Store
from scanner.units import parse_size

if TYPE_CHECKING:
    from scanner.crawl.planning import Plan, Planned
    from scanner.crawl.worker import Task
    from scanner.hubs.base import Query, Source
    from scanner.records import Listing


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `scanner crawl`, as they were given."""

    source: str
    limit: int
    since: str | None
    filters: tuple[str, ...]
    base_model: str | None
    list_only: bool
    dry_run: bool
    store: str
    corpora: tuple[str, ...]
    base: str | None
    max_download: str
    cache_size: str
    samples_per_image: int
    assume_train_images: int
    steps: int
    guidance_scale: float | None
    correction: float | None
    seed: int
    alpha: float
    keep_weights: bool
    allow_pickle: bool
    ray_address: str | None
    workers: int | None
    fail_on_flag: bool
    as_json: bool

    def open_source(self) -> Source:
        """The source. Raises ConfigError for what does not go together, or a cluster that does not answer."""
        from scanner.crawl.pool import check_cluster
        from scanner.hubs.registry import check_query_options, open_source

        asked = open_source(self.source, base=self.base, allow_pickle=self.allow_pickle)
        check_query_options(self.source, since=self.since, filters=self.filters, base_model=self.base_model)
        if self.ray_address is not None and not (self.list_only or self.dry_run):
            check_cluster(self.ray_address)
        return asked

    def task(self, store: Store, source: Source, observer: Observer) -> Task:
        """What every scan has in common. Raises CorpusError without images to look for."""
        from scanner.crawl.worker import Task
        from scanner.hubs.base_models import local_base

        config = ScanConfig(
            guidance_scale=self.guidance_scale,
            correction=self.correction,
            samples_per_image=self.samples_per_image,
            assumed_train_images=self.assume_train_images,
            steps=self.steps,
            seed=self.seed,
            alpha=self.alpha,
        )
        cores = os.cpu_count() or 1
        return Task(
            store=store.uri,
            source=source.name,
            base=local_base(self.base),
            config=with_corpora(store, config, list(self.corpora), observer.message),
            run_id=new_id(),
            cache=str(default_cache()),
            max_download=parse_size(self.max_download),
            cache_bytes=parse_size(self.cache_size),
            keep_weights=self.keep_weights,
            allow_pickle=self.allow_pickle,
            threads=0 if self.ray_address else max(1, cores // (self.workers or cores)),
        )

    def query(self, store: Store, source: Source) -> Query:
        """What to list."""
        from scanner.hubs.base import Query

        return Query(self.limit, since_of(self.since, store, source), self.filters, self.base_model)


def with_corpora(
    store: Store, config: ScanConfig, names: list[str], warn: Callable[[str], None] = lambda _: None
) -> ScanConfig:
    """The configuration with its corpora and the tau that their background gives.

    Raises CorpusError where a named corpus is unknown, or there is no reference or no background.
    """
    from finextract.significance import tau_from_background
    from scanner.match.corpus import load_corpora
    from scanner.match.matching import split, warn_if_small

    corpora = load_corpora(store, names, config.descriptor)
    references, background = split(corpora)
    if warning := warn_if_small(sum(len(c.reference_ids) for c in references), len(background), config.alpha):
        warn(f"warning: {warning}")
    return replace(
        config,
        tau=round(tau_from_background(background, config.tau_quantile), 4),
        corpora={c.name: f"{c.role.value}:{c.digest}" for c in sorted(corpora, key=lambda c: c.name)},
    )


def since_of(text: str | None, store: Store, source: Source) -> datetime | None:
    """--since as a time, UTC. Raises ConfigError for what is no date."""
    from scanner.crawl.planning import last_finished

    if text is None:
        return None
    if text == "last":
        return last_finished(store, source)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--since {text} is no date. Write it as 2026-11-24, or as `last`.") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def list_and_inspect(
    source: Source, store: Store, query: Query, base: str | None, *, write: bool,
    observer: Observer | None = None,
) -> Plan:  # fmt: skip
    """Lists and inspects, and reports each batch and each checkpoint to the observer."""
    from scanner.crawl.planning import make_plan
    from scanner.hubs import http

    observer = observer or Observer()
    observer.message(_begins(source, query))

    def batch_listed(plan: Plan) -> None:
        if plan.resumed is not None and plan.listed == plan.resumed.listed:
            observer.message(_goes_on(plan.resumed))
        observer.listing_progress(plan.listed, plan.inspected)

    with http.on_rate_limit(observer.rate_limited):
        plan = make_plan(
            source, store, query, base_given=base is not None, write=write, report=batch_listed,
            tell=observer.checkpoint_listed,
        )  # fmt: skip
    if coverage := source.coverage():
        observer.message(f"{source.name}: {coverage}")
    return plan


def list_and_scan(
    source: Source, store: Store, query: Query, task: Task, options: Options, observer: Observer
) -> tuple[Plan, Counter[Verdict]]:
    """Scans while it lists; returns the plan, which says where the listing was cut short."""
    from scanner.crawl.planning import begin_plan, keep_growing

    def retries(error: SourceError, pause_s: float) -> None:
        observer.message(f"{error}\nThe listing goes on in {pause_s:.0f} s.")

    plan = begin_plan(store, task.config.config_id)
    growth = keep_growing(plan, source, store, query, base_given=options.base is not None, retries=retries)
    observer.message(_begins(source, query))
    return plan, scan(store, task, plan, options, observer=observer, growth=growth, source=source)


def scan(
    store: Store, task: Task, plan: Plan, options: Options, budget: Budget | None = None, *,
    observer: Observer | None = None, growth: Iterable[list[Planned]] = (), source: Source | None = None,
) -> Counter[Verdict]:  # fmt: skip
    """Scans what a plan has left to do, and what it grows by; returns the verdicts of this run."""
    from scanner.crawl.engine import crawl
    from scanner.hubs import http

    observer = observer or Observer()
    config, said = task.config, set[str]()

    def say_once(text: str) -> None:
        if text not in said:
            said.add(text)
            observer.message(text)

    def listed(plan: Plan) -> None:
        if plan.resumed is not None:
            say_once(_goes_on(plan.resumed))
        if plan.cut_short is not None and plan.listed:
            say_once(f"The listing ends here: {plan.cut_short}\nWhat was listed is scanned.")
        if plan.complete or (plan.cut_short is not None and plan.listed):
            if source is not None and (coverage := source.coverage()):
                say_once(f"{source.name}: {coverage}")
            todo = len(plan.todo)
            say_once(
                f"{plan.listed} entries, {len(plan.planned)} checkpoints, "
                f"{len(plan.planned) - todo} finished before, {todo} to do; "
                f"a flag needs similarity >= {config.tau:.2f} and q <= {config.alpha:g}"
            )

    with http.on_rate_limit(observer.rate_limited):
        return crawl(
            task, plan, store, growth=growth, address=options.ray_address, workers=options.workers,
            budget=budget, listed=listed, report=observer.outcome, tick=observer.tick,
        )  # fmt: skip


def _begins(source: Source, query: Query) -> str:
    return f"listing {source.name} (at most {query.limit} entries) ..."


def _goes_on(listing: Listing) -> str:
    began = listing.started_at.astimezone()
    return f"going on with the listing of {began:%Y-%m-%d %H:%M}, from entry {listing.listed:,}"
