"""HuggingFace as a source: fine-tunes of Stable Diffusion among the models of a hub.

A listed entry is one checkpoint of one repository, pinned to the commit that the listing states. A listing
takes one request per page. An inspection takes one or two range requests, whose response headers also state
the file's size and SHA256, one request more for a pipeline of several files, one for learned embeddings
beside an adapter, and one for README.md where the listing states no caption. HF_ENDPOINT names another hub;
HF_TOKEN is sent for gated repositories.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from finextract.metadata.cards import Card, card_from, parse_card
from finextract.reasons import ReasonCode
from finextract.weights.embedding_keys import embeddings_beside
from scanner.errors import Skipped
from scanner.hashing import identify
from scanner.hubs.base import Query
from scanner.hubs.base_models import is_repo, local_base
from scanner.hubs.cache import DownloadCache, check_room
from scanner.hubs.fields import when
from scanner.hubs.huggingface.client import HubClient
from scanner.hubs.huggingface.downloads import Wanted, download_files, pipeline_files
from scanner.hubs.huggingface.entries import (
    CONCEPT_IMAGES,
    README,
    Remote,
    commit_of,
    make_checkpoints,
    remote_files,
    with_files,
)
from scanner.hubs.inspection import BASE_HINTS, base_hint, refine, refine_unread
from scanner.hubs.layout import (
    SIDECAR_FILES,
    TUNED,
    Layout,
    layouts,
)
from scanner.hubs.pickles import scannable
from scanner.hubs.remote import read_header
from scanner.records import Checkpoint, InspectionStatus

RELATIONS = ("adapter", "finetune")  # of a model to its base, as the hub tags them
BASES = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
)
# Tags of fine-tunes of image models: those that trainers and uploaders set, and the relations to a base that
# the hub adds. Each tuple is one listing; an entry that several listings hold is listed once.
FILTERS = (
    ("lora", "text-to-image"),
    ("lora", "stable-diffusion"),
    ("dreambooth",),
    ("diffusers-training",),
    ("diffusers:StableDiffusionPipeline",),
    *((f"base_model:{relation}:{base}",) for base in BASES for relation in RELATIONS),
)
EXPAND = ("author", "cardData", "config", "createdAt", "disabled", "gated", "lastModified", "library_name",
          "pipeline_tag", "sha", "siblings", "tags")  # fmt: skip
PAGE_SIZE = 200  # entries; with their files a page is a few megabytes
MAX_SMALL_FILE = 1_000_000  # bytes of a configuration file
MAX_README = 100_000  # bytes read of a card
MAX_SIDECAR_FILES = 2  # files read that describe the training


class HuggingFaceSource:
    """The hub that HF_ENDPOINT names, or huggingface.co. `base` is for checkpoints that state none."""

    name = "hf"

    def __init__(
        self, base: str | None = None, endpoint: str | None = None, *, allow_pickle: bool = False
    ) -> None:
        self._default_base, self._allow_pickle = local_base(base), allow_pickle
        self._client = HubClient(endpoint)
        self.position: dict[str, str] = {}  # query -> the page that its listing has reached

    def list(self, query: Query) -> Iterator[Checkpoint]:
        """The checkpoints of fine-tunes, newest repository first. See `Source.list`."""
        return islice(self._list(query), max(query.limit, 0))

    def _list(self, query: Query) -> Iterator[Checkpoint]:
        """Several listings merged by time; an entry that is in more than one comes once."""
        page_size = min(query.limit, PAGE_SIZE)
        order = "lastModified" if query.changed else "createdAt"
        streams = [self._stream(tags, page_size, order) for tags in _tags(query)]
        seen: set[str] = set()
        for entry in heapq.merge(*streams, key=lambda e: when(e.get(order)), reverse=True):
            if query.since is not None and when(entry.get(order)) < query.since:
                return
            repo = str(entry.get("id"))
            if repo not in seen:
                seen.add(repo)
                yield from make_checkpoints(
                    entry, self.name, self._client.endpoint, allow_pickle=self._allow_pickle
                )

    def _stream(self, tags: tuple[str, ...], page_size: int, order: str) -> Iterator[dict[str, Any]]:
        """The entries of one listing in the hub's order, repeated ones included."""
        key = "&".join(tags)
        for address, entries in self._client.listing(tags, EXPAND, page_size, order, self.position.get(key)):
            self.position[key] = address  # everything before this page has been listed
            yield from entries

    def coverage(self) -> str:
        """Always "": a hub states no total. See `Source.coverage`."""
        return ""

    def inspect(self, checkpoint: Checkpoint) -> Checkpoint:
        """Reads the header by range, and a configuration if the card states no base. See `Source.inspect`."""
        if checkpoint.inspection_status is InspectionStatus.SKIPPED:
            raise Skipped(checkpoint.reason, checkpoint.reason_code or ReasonCode.INVALID_ENTRY)
        repo, revision = checkpoint.repo, checkpoint.revision
        entry, layout = self._layout(checkpoint)
        card = self._card(checkpoint, entry)
        if layout.pickled:
            return self._inspect_pickled(checkpoint, entry, card)
        path, listed = layout.denoiser, remote_files(entry)[layout.denoiser]
        read = partial(self._client.read_start, repo, revision, path)
        header, start = read_header(read, f"{repo}/{path}", listed.size)
        known = {path: Remote(header.size_bytes, start.sha256 or listed.sha256)}
        if beside := embeddings_beside(layout.file, remote_files(entry)):
            stated = self._client.read_start(repo, revision, beside, 1)
            known[beside] = Remote(stated.size, stated.sha256)
        entry = with_files(entry, known)
        files = remote_files(entry)
        hashes = [(path, sha256) for path in layout.weights if (sha256 := files[path].sha256)]
        if len(hashes) != len(layout.weights):
            raise _unverifiable(repo, "SHA256")
        checkpoint = replace(
            checkpoint,
            checkpoint_id=identify(hashes),
            sha256=hashes[0][1] if layout.file else None,
            size_bytes=sum(files[path].size or 0 for path in layout.weights),
            raw=json.dumps(entry),
        )
        hint, sidecar_files = self._read_beside(checkpoint, files, card)
        return refine(
            checkpoint,
            header,
            card,
            hint=hint,
            default_base=self._default_base,
            sidecar_files=sidecar_files,
            family_default=True,
        )

    def _card(self, checkpoint: Checkpoint, entry: dict[str, Any]) -> Card:
        """The card as listed; where that states no caption, with the one in the sentences of README.md."""
        card = card_from(entry["cardData"] if isinstance(entry.get("cardData"), dict) else {})
        if card.instance_prompt is not None or README not in remote_files(entry):
            return card
        try:
            start = self._client.read_start(checkpoint.repo, checkpoint.revision, README, MAX_README)
        except Skipped:  # where the hub refuses the weights too, their reason is the one to report
            return card
        return replace(
            card, instance_prompt=parse_card(start.content.decode(errors="replace")).instance_prompt
        )

    def _read_beside(
        self, checkpoint: Checkpoint, files: dict[str, Remote], card: Card
    ) -> tuple[str | None, dict[str, str]]:
        """The base in a configuration file, where the card states none, and the sidecar files by name."""
        repo, revision, hint = checkpoint.repo, checkpoint.revision, None
        for path in BASE_HINTS if not is_repo(card.base_model) else ():
            if path in files:
                hint = hint or base_hint(self._small_json(repo, revision, path))
        paths = [path for path in files if SIDECAR_FILES.fullmatch(path)][:MAX_SIDECAR_FILES]
        return hint, {path: self._small(repo, revision, path).decode(errors="replace") for path in paths}

    def _inspect_pickled(self, checkpoint: Checkpoint, entry: dict[str, Any], card: Card) -> Checkpoint:
        """A pickle's size and SHA256; its content is not read before it is converted."""
        start = self._client.read_start(checkpoint.repo, checkpoint.revision, checkpoint.file, 1)
        if start.sha256 is None or start.size is None:
            raise _unverifiable(checkpoint.repo, "SHA256")
        found = {checkpoint.file: Remote(start.size, start.sha256)}
        checkpoint = replace(
            checkpoint,
            checkpoint_id=start.sha256,
            sha256=start.sha256,
            size_bytes=start.size,
            raw=json.dumps(with_files(entry, found)),
        )
        hint, sidecar_files = self._read_beside(checkpoint, remote_files(entry), card)
        return refine_unread(
            checkpoint, card, hint=hint, default_base=self._default_base, sidecar_files=sidecar_files
        )

    def _layout(self, checkpoint: Checkpoint) -> tuple[dict[str, Any], Layout]:
        """The checkpoint's entry with its files' sizes, and its layout. Raises Skipped without sizes."""
        entry: dict[str, Any] = json.loads(checkpoint.raw)
        found = layouts(remote_files(entry))
        layout = next((f for f in found if f.file == checkpoint.file), found[0])
        if not layout.file and any(remote_files(entry)[path].size is None for path in layout.weights):
            entry = with_files(entry, remote_files(self._client.info(checkpoint.repo, checkpoint.revision)))
            if any(remote_files(entry).get(path, Remote()).size is None for path in layout.weights):
                raise _unverifiable(checkpoint.repo, "size")
        return entry, layout

    def _small(self, repo: str, revision: str, path: str) -> bytes:
        return self._client.read_start(repo, revision, path, MAX_SMALL_FILE).content

    def _small_json(self, repo: str, revision: str, path: str) -> dict[str, Any]:
        try:
            value = json.loads(self._small(repo, revision, path))
        except (ValueError, RecursionError):  # a damaged file counts as an empty one
            return {}
        return value if isinstance(value, dict) else {}

    def fetch(self, checkpoint: Checkpoint, into: Path, downloads: DownloadCache) -> Path:
        """Downloads the weight file, or the pipeline's weights and configurations. See `Source.fetch`."""
        entry, layout = self._layout(checkpoint)
        files = remote_files(entry)
        kept = layout.file.rpartition("/")[2] or "pipeline"
        if layout.pickled:
            wanted = [Wanted(layout.file, kept, files[layout.file])]
            download_files(self._client, checkpoint.repo, checkpoint.revision, wanted, into, downloads)
            return scannable(into / kept, into, kept, f"{checkpoint.repo}/{layout.file}")
        if layout.file:
            wanted = [Wanted(layout.file, kept, files[layout.file])]
            if beside := embeddings_beside(layout.file, files):  # words that were trained with an adapter
                wanted.append(Wanted(beside, beside.rpartition("/")[2], files[beside]))
            if "adapter_config.json" in files:  # PEFT keeps a LoRA's alpha there
                small = self._small_json(checkpoint.repo, checkpoint.revision, "adapter_config.json")
                into.mkdir(parents=True, exist_ok=True)
                (into / "adapter_config.json").write_text(json.dumps(small))
        else:
            wanted = pipeline_files(files, f"{kept}/", TUNED)
        download_files(self._client, checkpoint.repo, checkpoint.revision, wanted, into, downloads)
        return into / kept

    def fetch_train_images(self, repo: str, into: Path, max_bytes: int) -> tuple[Path, ...]:
        """Downloads the training images that a repository publishes as files below `into`.

        Raises Skipped where it publishes none, or more than `max_bytes`, Unavailable where the hub does not
        answer.
        """
        entry = self._client.info(repo, None)
        images = {p: f for p, f in remote_files(entry).items() if CONCEPT_IMAGES.fullmatch(p)}
        revision = commit_of(entry)
        if not images or revision is None:
            raise Skipped(
                f"{repo} publishes no training images: it has no folder concept_images.",
                ReasonCode.INVALID_ENTRY,
            )
        into.mkdir(parents=True, exist_ok=True)
        sizes = {path: remote.size or 0 for path, remote in images.items()}
        check_room(sum(sizes.values()), into, max_bytes, f"{repo}/concept_images")
        fetched = []
        for path, remote in images.items():
            target = into / path.rpartition("/")[2]
            part = target.with_name(target.name + ".part")
            self._client.download(repo, revision, path, part, sizes[path], remote.sha256)
            part.replace(target)
            fetched.append(target)
        return tuple(fetched)


def _unverifiable(repo: str, field: str) -> Skipped:
    return Skipped(
        f"the hub does not state the {field} of the weights of {repo}, so they are not downloaded.",
        ReasonCode.INVALID_ENTRY,
    )


def _tags(query: Query) -> list[tuple[str, ...]]:
    """The tags of each listing that a query needs."""
    listings = [query.filters] if query.filters else list(FILTERS)
    if query.base_model is None:
        return listings
    bases = [f"base_model:{relation}:{query.base_model}" for relation in RELATIONS]
    return [(*query.filters, base) for base in bases]
