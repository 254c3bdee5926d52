"""What a source of checkpoints promises, and how one is opened by name.

A source lists what is published, tells more about one entry, and fetches it with its base. It is opened from
a spec, a short text ("hf", "folder:PATH"), so that every worker process opens its own. Holds no checkpoint
itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from scanner.errors import ConfigError
from scanner.records import Checkpoint

if TYPE_CHECKING:
    from scanner.hubs.cache import BaseFiles, DownloadCache

KNOWN = "hf (HuggingFace, or the hub that HF_ENDPOINT names), civitai, folder:PATH"
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Query:
    """What to list. A source that cannot narrow by something lists more, never less."""

    limit: int  # listed checkpoints at most
    since: datetime | None = None  # published at that time or later, timezone-aware
    filters: tuple[str, ...] = ()  # the source's own tags; instead of those that find fine-tunes
    base_model: str | None = None  # tuned from this base only, OWNER/NAME
    changed: bool = False  # newest change first, where the source tells its time; `since` goes by it


class Source(Protocol):
    """A place where checkpoints are published. Cheap to open; `inspect` may be called by many threads."""

    name: str  # its spec, as it stands in the rows
    # Stream -> the page that its listing has come to: what lies before it has been given. A listing that was
    # interrupted goes on where `position` was set to an earlier one's.
    position: dict[str, str]

    def list(self, query: Query) -> Iterator[Checkpoint]:
        """The listed checkpoints, each as one record, newest first where the source tells times.

        Asks for listing pages alone: an id may be a placeholder until `inspect`. What an entry itself rules
        out (gated, removed, early access, no weights) has `inspection_status` SKIPPED and its `reason`
        already. Raises SourceError where the source cannot be listed.
        """
        ...

    def coverage(self) -> str:
        """How much of what the source tells of this listing has met, for people; "" for nothing told."""
        ...

    def inspect(self, checkpoint: Checkpoint) -> Checkpoint:
        """The record with its true id, size, kind, family, base, caption, N0 and `inspection_status` READY.

        Reads headers by range and small files, never weights. Raises Skipped for what cannot be scanned,
        Unavailable for what could not be asked this time.
        """
        ...

    def fetch(self, checkpoint: Checkpoint, into: Path, downloads: DownloadCache) -> Path:
        """The weight file or the diffusers folder, with the listed size and SHA256; links go to `into`.

        Raises Skipped where it is larger than `downloads` allows or not what was listed, Unavailable
        otherwise.
        """
        ...

    def fetch_base(self, base: str, downloads: DownloadCache) -> BaseFiles:
        """The base's safetensors, configurations and tokenizer. Downloaded once for all.

        Raises Skipped where there is no such base or it is unusable, Unavailable otherwise.
        """
        ...


def is_repo(text: str | None) -> bool:
    """Whether a text can be the name of a repository on a hub, OWNER/NAME."""
    return text is not None and REPO.fullmatch(text) is not None and ".." not in text and "--" not in text


def local_base(base: str | None) -> str | None:
    """`--base` as a source uses it: a local folder or file becomes an absolute path, OWNER/NAME stays.

    Only a person at the keyboard may name a local path: what a card tells is taken for OWNER/NAME, or not
    at all. Raises ConfigError where it is none of these.
    """
    if base is None:
        return None
    folder = Path(base).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise ConfigError(
                f"--base {base} is no diffusers pipeline folder: it has no model_index.json.\n"
                "Pass a folder that StableDiffusionPipeline.save_pretrained wrote, or OWNER/NAME."
            )
        return str(folder.absolute())
    if folder.suffix == ".safetensors" and folder.is_file():
        return str(folder.absolute())
    if not is_repo(base):
        raise ConfigError(
            f"--base {base} is neither a diffusers folder, nor a .safetensors file, nor OWNER/NAME."
        )
    return base


def open_source(spec: str, base: str | None = None, *, allow_pickle: bool = False) -> Source:
    """The source that `spec` names. `base` is OWNER/NAME on a hub, or a local diffusers folder or file.

    For a hub it is the base of the checkpoints that tell none, for "folder:PATH" the base of all.
    Raises ConfigError for a spec or a base that cannot be used.
    """
    from scanner.hubs.folder import FolderSource
    from scanner.hubs.huggingface.source import HuggingFaceSource

    kind, _, place = spec.partition(":")
    if kind == "hf" and not place:
        return HuggingFaceSource(base=base, allow_pickle=allow_pickle)
    if kind == "civitai" and not place:
        from scanner.hubs.civitai.source import CivitaiSource

        return CivitaiSource(base=base, allow_pickle=allow_pickle)
    if kind == "folder" and place:
        return FolderSource(Path(place), base=base, allow_pickle=allow_pickle)
    raise ConfigError(f"--source {spec} is not known. Known sources: {KNOWN}.")
