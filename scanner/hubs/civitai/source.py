"""Civitai as a source: LoRA and trained checkpoints among its models.

A listed entry is one file of one version of a model. A listing takes two requests for every hundred models;
an inspection takes one request for the version's own entry, one or two range requests, and one for each base
that is stated by its hash. CIVITAI_ENDPOINT names another address of the site; CIVITAI_TOKEN is sent with
downloads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from finextract.metadata.cards import Card, parse_training
from finextract.reasons import ReasonCode
from scanner.errors import Skipped, Unavailable
from scanner.hubs.base import Query
from scanner.hubs.base_models import base_of_hash, local_base
from scanner.hubs.cache import DownloadCache
from scanner.hubs.civitai.client import CivitaiClient, Params
from scanner.hubs.civitai.entries import (
    TYPES,
    base_id,
    make_checkpoints,
    sample_prompt,
    trainer_base,
    trigger,
    with_detail,
)
from scanner.hubs.civitai.files import (
    as_id,
    dicts,
    download_query,
    is_pickle,
    text,
)
from scanner.hubs.inspection import refine, refine_unread
from scanner.hubs.pages import Pages
from scanner.hubs.pickles import scannable
from scanner.hubs.remote import read_header
from scanner.records import BaseOrigin, Checkpoint, InspectionStatus

PAGE_SIZE = 100  # models; the site's maximum


class CivitaiSource:
    """The site that CIVITAI_ENDPOINT names, or civitai.com.

    `base` is the base of the checkpoints that state none.
    """

    name = "civitai"

    def __init__(
        self, base: str | None = None, endpoint: str | None = None, *, allow_pickle: bool = False
    ) -> None:
        self._default_base, self._allow_pickle = local_base(base), allow_pickle
        self._api = CivitaiClient(endpoint)
        self._bases: dict[
            str, dict[str, Any] | None
        ] = {}  # SHA256 -> its version; requested once per process
        self.position: dict[str, str] = {}  # walk -> the cursor of the page that it has reached
        self.listed = 0  # models in this listing so far
        self.total_items: int | None = None  # models in all, where the site states it

    def list(self, query: Query) -> Iterator[Checkpoint]:
        """The versions of fine-tunes, the models with the newest ones first. See `Source.list`."""
        return islice(self._list(query), max(query.limit, 0))

    def _list(self, query: Query) -> Iterator[Checkpoint]:
        """Two walks through one listing, half a page apart; an entry that both find comes once.

        The site's cursors can omit or repeat entries at the end of a page. The end of a page of one walk is
        in the middle of a page of the other.
        """
        size = min(query.limit, PAGE_SIZE)
        walks = [self._walk("pages", query, size, size), self._walk("between", query, (size + 1) // 2, size)]
        models: set[str] = set()
        versions: set[str] = set()
        while walks:
            for walk in tuple(walks):
                page = next(walk, None)
                if page is None:
                    walks.remove(walk)
                for item in page or ():
                    models.add(str(as_id(item.get("id")) or item.get("name")))
                    self.listed = len(models)
                    for checkpoint in make_checkpoints(
                        item, self.name, self._api.endpoint, allow_pickle=self._allow_pickle
                    ):
                        key = checkpoint.revision or checkpoint.repo
                        if key not in versions:
                            versions.add(key)
                            if _is_wanted(checkpoint, item, query):
                                yield checkpoint

    def _walk(self, walk: str, query: Query, first: int, size: int) -> Iterator[Sequence[dict[str, Any]]]:
        """Page after page by cursor, requested from our own endpoint; the site's links are not followed."""
        wanted: Params = [("types", kind) for kind in TYPES]
        wanted += [("checkpointType", "Trained")]  # applies to checkpoints only: LoRAs are still listed
        wanted += [("sort", "Newest"), ("period", "AllTime"), ("nsfw", "true")]
        wanted += [("tag", query.filters[0])] if query.filters else []
        cursor = self.position.get(walk, "")
        pages = Pages(self._api.endpoint)
        while True:
            pages.add_place(cursor)
            self.position[walk] = cursor  # everything before this page has been listed
            limit = size if cursor else first
            page = self._api.page([*wanted, ("limit", str(limit)), *([("cursor", cursor)] if cursor else [])])
            items = tuple(dicts(page.get("items"), 10 * PAGE_SIZE))
            metadata = page.get("metadata")
            metadata = metadata if isinstance(metadata, dict) else {}
            self.total_items = as_id(metadata.get("totalItems")) or self.total_items
            pages.add_entries(item.get("id") or item for item in items)
            yield items
            following = metadata.get("nextCursor")
            cursor = str(following)
            if following in (None, ""):
                return
            if query.since is not None and items and all(_is_before(query, item) for item in items):
                return

    def coverage(self) -> str:
        """The models listed, of the total that the site states. See `Source.coverage`."""
        return "" if self.total_items is None else f"{self.listed:,} of {self.total_items:,} models listed"

    def inspect(self, checkpoint: Checkpoint) -> Checkpoint:
        """Requests the version's own entry, and reads the header by range. See `Source.inspect`."""
        where = f"{checkpoint.repo}/{checkpoint.file}"
        version_id = as_id(checkpoint.revision)
        if version_id is None or not checkpoint.file:
            raise Skipped(
                checkpoint.reason or f"{checkpoint.repo} has no file that could be scanned.",
                checkpoint.reason_code or ReasonCode.NO_WEIGHTS,
            )
        checkpoint = with_detail(checkpoint, self._api.version(version_id, where))
        if checkpoint.inspection_status is InspectionStatus.SKIPPED:
            raise Skipped(checkpoint.reason, checkpoint.reason_code or ReasonCode.INVALID_ENTRY)
        if checkpoint.sha256 is None:
            raise Unavailable(
                f"{where} has no SHA256 yet, because its upload is new. The next crawl tries again.",
                ReasonCode.NOT_READY,
            )
        raw = json.loads(checkpoint.raw)
        version = raw["version"]
        query = download_query(raw["files"][0])

        read = partial(self._api.read_start, version_id, query, where=where)  # the site rounds listed sizes
        header = None
        if is_pickle(raw["files"][0]):
            checkpoint = replace(checkpoint, size_bytes=read(1).size or checkpoint.size_bytes)
        else:
            header, _ = read_header(read, where, None)
            checkpoint = replace(checkpoint, size_bytes=header.size_bytes)
        metadata_training = parse_training(header.metadata if header else {})
        exact, base_name, origin = self._exact_base(metadata_training.base_sha256, version, where)
        caption, alternatives = _caption(metadata_training.caption, version)
        card = Card(instance_prompt=caption, license=checkpoint.license, alternatives=alternatives)
        if header is None:
            refined = refine_unread(checkpoint, card, default_base=self._default_base, base=exact)
        else:
            refined = refine(checkpoint, header, card, default_base=self._default_base, base=exact)
        training = {**json.loads(checkpoint.training), **json.loads(refined.training)}
        training |= {"civitai_base": base_name} if base_name else {}
        return replace(
            refined,
            num_train_images=refined.num_train_images or checkpoint.num_train_images,
            base_origin=origin or refined.base_origin,
            training=json.dumps(training),
            public_images=checkpoint.public_images,
            inspection_status=InspectionStatus.READY,
            reason="",
            reason_code=None,
        )

    def _exact_base(
        self, digest: str | None, version: dict[str, Any], where: str
    ) -> tuple[str | None, str, BaseOrigin | None]:
        """The exact base of the training, its name for people, and what states it; None where unknown."""
        if base_of_hash(digest) is not None:  # `refine` finds it without a request
            return None, "", None
        if digest is not None:
            if digest not in self._bases:
                self._bases[digest] = self._api.version_of(digest, where)
            found = self._bases[digest] or {}
            model_id, version_id = as_id(found.get("modelId")), as_id(found.get("id"))
            if model_id and version_id:
                model = found.get("model")
                name = text(model.get("name"), 100) if isinstance(model, dict) else None
                shown = " ".join(n for n in (name, text(found.get("name"), 100)) if n)
                return base_id(model_id, version_id), shown, BaseOrigin.HASH
        trained_on = trainer_base(version)
        if trained_on is not None:
            return base_id(*trained_on), "", BaseOrigin.CARD
        return None, "", None

    def fetch(self, checkpoint: Checkpoint, into: Path, downloads: DownloadCache) -> Path:
        """The weight file, as a link into the cache. See `Source.fetch`."""
        where, size, sha256 = f"{checkpoint.repo}/{checkpoint.file}", checkpoint.size_bytes, checkpoint.sha256
        assert sha256 is not None, "only an inspected checkpoint is fetched"
        listed = json.loads(checkpoint.raw)["files"][0]
        query = download_query(listed)
        target = into / checkpoint.file

        def complete(part: Path) -> None:
            self._api.download(int(checkpoint.revision), query, part, size, sha256, where)

        into.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(downloads.get(sha256, size, where, complete).absolute())
        return scannable(target, into, target.name, where) if is_pickle(listed) else target


def _is_wanted(checkpoint: Checkpoint, item: dict[str, Any], query: Query) -> bool:
    """Whether a query includes a checkpoint, as far as its entry states it."""
    if query.since and checkpoint.created_at and checkpoint.created_at < query.since:
        return False
    tags = item.get("tags")
    return not isinstance(tags, list) or {f.lower() for f in query.filters} <= {str(t).lower() for t in tags}


def _is_before(query: Query, item: dict[str, Any]) -> bool:
    """Whether all versions of a model are older than `query.since`. One without a time is not."""
    times = [c.created_at for c in make_checkpoints(item, "", "")]
    return query.since is not None and all(t is not None and t < query.since for t in times)


def _caption(counted: str | None, version: dict[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """The training caption, and the author's other prompts.

    The caption is the header's tags, if they include the author's trigger words or there are none.

    The header counts the tags of the training captions, but may lack the trigger where no tag was in every
    caption; the author's trigger words include it, and often other words that improve a picture.
    """
    words = trigger(version)
    plain = (counted or "").lower().replace("_", " ")
    stated = [w for prompt in (words.caption, *words.alternatives) if prompt for w in prompt.split(", ")]
    if counted and (not stated or any(w.lower().replace("_", " ") in plain for w in stated)):
        return counted, words.alternatives
    return words.caption or sample_prompt(version), words.alternatives
