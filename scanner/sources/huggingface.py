"""HuggingFace as a source: fine-tunes of Stable Diffusion among the models of a hub.

A listed entry is one checkpoint of one repository, pinned to the commit that the listing names. Listing costs
one request a page and one a repository with safetensors, whose answer tells each file's size and SHA256;
inspecting costs one or two range reads. HF_ENDPOINT names another hub, HF_TOKEN opens gated ones.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finextract.cards import card_from
from finextract.errors import CheckpointError
from finextract.formats import MAX_HEADER_BYTES, Header, parse_header
from scanner.errors import Skipped, Unavailable
from scanner.fetch import check_room, locked
from scanner.inspection import base_hint, refine
from scanner.records import Checkpoint
from scanner.sources.base import is_repo, local_base
from scanner.sources.entries import Remote, commit_of, make_checkpoints, remote_files, when
from scanner.sources.hub_client import HubClient
from scanner.sources.layout import (
    COMPONENTS,
    TUNED,
    Layout,
    layouts,
    pipeline_configs,
    pipeline_weights,
)

# Tags that find fine-tunes of image models, as the trainers and people's own uploads set them. An entry that
# several find is listed once.
FILTERS = (
    ("lora", "text-to-image"),
    ("lora", "stable-diffusion"),
    ("dreambooth",),
    ("diffusers-training",),
    ("diffusers:StableDiffusionPipeline",),
)
EXPAND = ("author", "cardData", "config", "createdAt", "gated", "lastModified", "library_name",
          "pipeline_tag", "sha", "siblings", "tags")  # fmt: skip
PAGE_SIZE = 200  # entries; with their files a page is a few megabytes
FIRST_READ = 100_001  # bytes; nearly every header is shorter
MAX_SMALL_FILE = 1_000_000  # bytes of a configuration file


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A file to download."""

    path: str  # in the repository
    kept: str  # below the target folder
    remote: Remote


class HuggingFace:
    """The hub that HF_ENDPOINT names, or huggingface.co. `base` is that of the checkpoints that tell none."""

    name = "hf"

    def __init__(self, base: str | None = None, endpoint: str | None = None) -> None:
        self._default_base = local_base(base)
        self._hub = HubClient(endpoint)
        self._bases: dict[str, dict[str, Any]] = {}  # entries of bases; each process asks once

    def list(self, limit: int) -> Iterator[Checkpoint]:
        """The first `limit` checkpoints, newest repository first. See `Source.list`."""
        return islice(self._list(max(limit, 0)), max(limit, 0))

    def _list(self, limit: int) -> Iterator[Checkpoint]:
        page_size = min(limit, PAGE_SIZE)
        streams = [self._hub.listing(filters, EXPAND, page_size) for filters in FILTERS]
        seen: set[str] = set()
        for entry in heapq.merge(*streams, key=lambda e: when(e.get("createdAt")), reverse=True):
            repo = str(entry.get("id"))
            if repo not in seen:
                seen.add(repo)
                yield from make_checkpoints(self._with_sizes(entry), self.name, self._hub.endpoint)

    def _with_sizes(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The entry with its files' sizes and hashes, where there are weights to identify."""
        repo = entry.get("id")
        if not is_repo(repo) or not any(not layout.pickled for layout in layouts(remote_files(entry))):
            return entry
        try:
            return entry | self._hub.info(str(repo), commit_of(entry)) | {"id": repo}
        except (Skipped, Unavailable):  # inspect asks again, and tells
            return entry

    def inspect(self, checkpoint: Checkpoint) -> Checkpoint:
        """Reads the header by range, a configuration where the card tells no base. See `Source.inspect`."""
        repo, revision = checkpoint.repo, checkpoint.revision
        entry, layout = self._layout(checkpoint)
        files = remote_files(entry)
        header = self._header(repo, revision, layout.denoiser, files[layout.denoiser])
        card = card_from(entry["cardData"] if isinstance(entry.get("cardData"), dict) else {})
        hint = None
        for path in ("adapter_config.json", "unet/config.json") if not is_repo(card.base_model) else ():
            if path in files:
                hint = hint or base_hint(self._small_json(repo, revision, path))
        return refine(checkpoint, header, card, hint=hint, default_base=self._default_base)

    def _layout(self, checkpoint: Checkpoint) -> tuple[dict[str, Any], Layout]:
        """The checkpoint's entry with its files' sizes, and its place there. Raises Skipped for none."""
        entry: dict[str, Any] = json.loads(checkpoint.raw)
        if not is_repo(checkpoint.repo) or not checkpoint.revision:
            raise Skipped(f"{checkpoint.repo} has no name or no commit that could be fetched from a hub.")
        found = layouts(remote_files(entry))
        if not found:
            raise Skipped(f"{checkpoint.repo} holds no weights: no safetensors, and no pickle either.")
        layout = next((f for f in found if f.file == checkpoint.file), found[0])
        if layout.pickled:
            raise Skipped(
                f"{checkpoint.repo} holds its weights as a pickle ({layout.file}), which can run code when "
                "it is opened; it was not opened. Ask its author for safetensors."
            )
        if any(remote_files(entry)[path].size is None for path in layout.weights):
            entry |= self._hub.info(checkpoint.repo, checkpoint.revision)
            if any(remote_files(entry).get(path, Remote()).size is None for path in layout.weights):
                raise Skipped(
                    f"{checkpoint.repo} does not tell the sizes of its files, so they are not fetched."
                )
        return entry, layout

    def _header(self, repo: str, revision: str, path: str, remote: Remote) -> Header:
        where = f"{repo}/{path}"
        try:
            first = min(FIRST_READ, remote.size or 0)
            start = self._hub.read_start(repo, revision, path, first) if first else b""
            length = 8 + int.from_bytes(start[:8], "little")
            if len(start) >= 8 and len(start) < length <= MAX_HEADER_BYTES + 8:
                start = self._hub.read_start(repo, revision, path, length)
            header = parse_header(start, where)
        except CheckpointError as error:
            raise Skipped(str(error)) from error
        if header.size_bytes != remote.size:
            raise Skipped(
                f"{where} is damaged: its header tells {header.size_bytes:,} bytes, the hub lists "
                f"{remote.size:,}. Ask its author to upload it again."
            )
        return header

    def _small_json(self, repo: str, revision: str, path: str) -> dict[str, Any]:
        try:
            value = json.loads(self._hub.read_start(repo, revision, path, MAX_SMALL_FILE))
        except (ValueError, RecursionError):  # a stranger's broken file tells nothing
            return {}
        return value if isinstance(value, dict) else {}

    def fetch(self, checkpoint: Checkpoint, into: Path, max_bytes: int) -> Path:
        """Downloads the weight file, or the pipeline's weights and configurations. See `Source.fetch`."""
        entry, layout = self._layout(checkpoint)
        files = remote_files(entry)
        kept = layout.file.rpartition("/")[2] or "pipeline"
        if layout.file:
            wanted = [_Wanted(layout.file, kept, files[layout.file])]
            small = files.get("adapter_config.json", Remote())  # PEFT keeps a LoRA's alpha there
            if 0 < (small.size or 0) <= MAX_SMALL_FILE:
                wanted.append(_Wanted("adapter_config.json", "adapter_config.json", small))
        else:
            wanted = _pipeline(files, f"{kept}/", TUNED)
        self._download(checkpoint.repo, checkpoint.revision, wanted, into, max_bytes)
        return into / kept

    def fetch_base(self, base: str, cache: Path, max_bytes: int) -> Path:
        """The base's folder, or its pinned copy in the cache. See `Source.fetch_base`."""
        if base.startswith("/"):
            return Path(base)
        if base not in self._bases:
            try:
                self._bases[base] = self._hub.info(base, None)
            except Skipped as error:
                raise Skipped(
                    f"its base cannot be had: {error} Pass --base with another copy of it."
                ) from error
        entry = self._bases[base]
        files = remote_files(entry)
        wanted = _pipeline(files, "", COMPONENTS)
        if "model_index.json" not in files or not pipeline_weights(files):
            raise Skipped(
                f"its base {base} is no diffusers pipeline with safetensors. Pass --base with one that is."
            )
        revision = commit_of(entry)
        if revision is None:
            raise Skipped(
                f"its base {base} has no commit that could be fetched. Pass --base with another copy."
            )
        folder = cache / "bases" / base.replace("/", "--") / revision
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{revision}.lock")):
            if not folder.is_dir():
                part = folder.with_name(f".{revision}.part")
                part.mkdir(exist_ok=True)  # what a killed process left is checked and kept
                self._download(base, revision, wanted, part, max_bytes)
                part.replace(folder)
        return folder

    def _download(
        self, repo: str, revision: str, wanted: Iterable[_Wanted], into: Path, max_bytes: int
    ) -> None:
        wanted = list(wanted)
        if any(w.remote.size is None for w in wanted):
            raise Skipped(f"{repo} does not tell the sizes of its files, so they are not fetched.")
        into.mkdir(parents=True, exist_ok=True)
        check_room(sum(w.remote.size or 0 for w in wanted), into, max_bytes, repo)
        for w in wanted:
            if not w.remote.is_at(into / w.kept):
                self._hub.download(repo, revision, w.path, into / w.kept, w.remote.size or 0, w.remote.sha256)


def _pipeline(files: dict[str, Remote], prefix: str, components: tuple[str, ...]) -> list[_Wanted]:
    paths = {**{p: p for p in pipeline_configs(files)}, **pipeline_weights(files, components)}
    return [_Wanted(path, prefix + kept, files[path]) for path, kept in paths.items()]
