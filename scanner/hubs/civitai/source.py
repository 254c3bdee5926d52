"""Civitai as a source: LoRA and trained checkpoints among its models.

A listed entry is one file of one version of a model. Listing costs two requests for every hundred models;
inspecting costs one for the version's own page, one or two range reads, and one for each base that is named
by its hash. CIVITAI_ENDPOINT names another address of the site, CIVITAI_TOKEN opens what asks for a login.
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
from scanner.errors import Skipped, Unavailable
from scanner.hubs.base import Query
from scanner.hubs.base_models import base_of_hash, local_base
from scanner.hubs.cache import DownloadCache
from scanner.hubs.civitai.client import CivitaiClient, Params
from scanner.hubs.civitai.entries import (
    TYPES,
    base_name,
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
from scanner.hubs.pickles import scannable
from scanner.hubs.remote import read_header
from scanner.records import BaseOrigin, Checkpoint, InspectionStatus

PAGE_SIZE = 100  # models; the most that the site gives


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
        self._bases: dict[str, dict[str, Any] | None] = {}  # SHA256 -> its version; each process asks once
        self.position: dict[str, str] = {}  # walk -> the cursor of the page that it has come to
        self.listed = 0  # models that this listing has met
        self.told: int | None = None  # models that the site says there are, where it says so

    def list(self, query: Query) -> Iterator[Checkpoint]:
        """The versions of fine-tunes, the models with the newest ones first. See `Source.list`."""
        return islice(self._list(query), max(query.limit, 0))

    def _list(self, query: Query) -> Iterator[Checkpoint]:
        """Two walks through one listing, half a page apart; what both find comes once.

        A cursor can lose what lies at the end of a page, or repeat it: there, the other walk is in a page's
        middle.
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
        """Page after page by the cursors, against our own address; the site's links are not followed."""
        wanted: Params = [("types", kind) for kind in TYPES]
        wanted += [("checkpointType", "Trained")]  # asked of checkpoints alone: LoRAs are not lost by it
        wanted += [("sort", "Newest"), ("period", "AllTime"), ("nsfw", "true")]
        wanted += [("tag", query.filters[0])] if query.filters else []
        cursor = self.position.get(walk, "")
        met = {cursor}
        while True:
            self.position[walk] = cursor  # all before this page has been taken
            limit = size if cursor else first
            page = self._api.page([*wanted, ("limit", str(limit)), *([("cursor", cursor)] if cursor else [])])
            items = tuple(dicts(page.get("items"), 10 * PAGE_SIZE))
            metadata = page.get("metadata")
            metadata = metadata if isinstance(metadata, dict) else {}
            self.told = as_id(metadata.get("totalItems")) or self.told
            yield items
            following = metadata.get("nextCursor")
            cursor = str(following)
            if following in (None, "") or len(cursor) > 1_000 or cursor in met:
                return
            met.add(cursor)
            if query.since is not None and items and all(_is_before(query, item) for item in items):
                return

    def coverage(self) -> str:
        """The models met, of those told. See `Source.coverage`."""
        return "" if self.told is None else f"{self.listed:,} of {self.told:,} models listed"

    def inspect(self, checkpoint: Checkpoint) -> Checkpoint:
        """Asks for the version's own page, and reads the header by range. See `Source.inspect`."""
        where = f"{checkpoint.repo}/{checkpoint.file}"
        version_id = as_id(checkpoint.revision)
        if version_id is None or not checkpoint.file:
            raise Skipped(checkpoint.reason or f"{checkpoint.repo} has no file that could be scanned.")
        checkpoint = with_detail(checkpoint, self._api.version(version_id, where))
        if checkpoint.inspection_status is InspectionStatus.SKIPPED:
            raise Skipped(checkpoint.reason)
        if checkpoint.sha256 is None:
            raise Unavailable(f"{where} has no SHA256 yet, as its upload is new. The next crawl asks again.")
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
        told_in_header = parse_training(header.metadata if header else {})
        exact, told, evidence = self._exact_base(told_in_header.base_sha256, version, where)
        caption = _caption(told_in_header.caption, version)
        card = Card(instance_prompt=caption, license=checkpoint.license)
        if header is None:
            refined = refine_unread(checkpoint, card, default_base=self._default_base, base=exact)
        else:
            refined = refine(checkpoint, header, card, default_base=self._default_base, base=exact)
        training = {**json.loads(checkpoint.training), **json.loads(refined.training)}
        training |= {"civitai_base": told} if told else {}
        return replace(
            refined,
            num_train_images=refined.num_train_images or checkpoint.num_train_images,
            base_origin=evidence or refined.base_origin,
            training=json.dumps(training),
            public_images=checkpoint.public_images,
            inspection_status=InspectionStatus.READY,
            reason="",
        )

    def _exact_base(
        self, digest: str | None, version: dict[str, Any], where: str
    ) -> tuple[str | None, str, BaseOrigin | None]:
        """The very base that was trained on, its name for people, and what tells it; None for no such."""
        if base_of_hash(digest) is not None:  # inspection knows it without asking
            return None, "", None
        if digest is not None:
            if digest not in self._bases:
                self._bases[digest] = self._api.version_of(digest, where)
            found = self._bases[digest] or {}
            model_id, version_id = as_id(found.get("modelId")), as_id(found.get("id"))
            if model_id and version_id:
                model = found.get("model")
                name = text(model.get("name"), 100) if isinstance(model, dict) else None
                told = " ".join(n for n in (name, text(found.get("name"), 100)) if n)
                return base_name(model_id, version_id), told, BaseOrigin.HASH
        trained_on = trainer_base(version)
        if trained_on is not None:
            return base_name(*trained_on), "", BaseOrigin.CARD
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
    """Whether a query asks for it, as far as is told."""
    if query.since and checkpoint.created_at and checkpoint.created_at < query.since:
        return False
    tags = item.get("tags")
    return not isinstance(tags, list) or {f.lower() for f in query.filters} <= {str(t).lower() for t in tags}


def _is_before(query: Query, item: dict[str, Any]) -> bool:
    """Whether all versions of a model are older than a query asks for. One without a time is not."""
    times = [c.created_at for c in make_checkpoints(item, "", "")]
    return query.since is not None and all(t is not None and t < query.since for t in times)


def _caption(counted: str | None, version: dict[str, Any]) -> str | None:
    """The training caption: as the header counts it, where its author's trigger is in it or none is told.

    The header has what was trained on, but where no tag was in each caption it may miss the trigger; its
    author's words have the trigger, and often what else helps a picture.
    """
    words = trigger(version)
    plain = (counted or "").lower().replace("_", " ")
    if counted and (words is None or any(w in plain for w in words.lower().replace("_", " ").split(", "))):
        return counted
    return words or sample_prompt(version)
