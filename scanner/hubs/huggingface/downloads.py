"""Files of one repository on a hub, downloaded below a folder: weights through the cache, others whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

from finextract.reasons import ReasonCode
from scanner.errors import Skipped
from scanner.hubs.cache import DownloadCache, check_room
from scanner.hubs.huggingface.client import HubClient
from scanner.hubs.huggingface.entries import Remote
from scanner.hubs.layout import pipeline_configs, pipeline_weights


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to download."""

    path: str  # in the repository
    kept: str  # below the target folder
    remote: Remote


def pipeline_files(files: dict[str, Remote], prefix: str, components: tuple[str, ...]) -> list[Wanted]:
    """The configurations of a pipeline and the weights of those components, kept below `prefix`."""
    paths = {**{p: p for p in pipeline_configs(files)}, **pipeline_weights(files, components)}
    return [Wanted(path, prefix + kept, files[path]) for path, kept in paths.items()]


def download_files(
    client: HubClient,
    repo: str,
    revision: str,
    wanted: Iterable[Wanted],
    into: Path,
    downloads: DownloadCache,
    *,
    stays: bool = False,
) -> None:
    """Downloads each file below `into`: weights as links into the cache, which holds them; small files whole.

    Raises Skipped where the hub states no sizes or they exceed `downloads.max_bytes`, Unavailable where the
    hub or the disk fails.
    """
    wanted = list(wanted)
    if any(w.remote.size is None for w in wanted):
        raise Skipped(
            f"the hub does not state the size of every file of {repo}, so they are not downloaded.",
            ReasonCode.INVALID_ENTRY,
        )
    downloads.cache.mkdir(parents=True, exist_ok=True)
    check_room(sum(w.remote.size or 0 for w in wanted), downloads.cache, downloads.max_bytes, repo, 0)
    for w in wanted:
        target, size, sha256 = into / w.kept, w.remote.size or 0, w.remote.sha256
        target.parent.mkdir(parents=True, exist_ok=True)
        if sha256 is None:
            if stays and target.is_file() and target.stat().st_size == size:
                continue  # of the very commit that the folder is named after
            part = target.with_name(target.name + ".part")
            part.unlink(missing_ok=True)
            client.download(repo, revision, w.path, part, size, None)
            part.replace(target)
            continue
        fetch = partial(client.download, repo, revision, w.path, size_bytes=size, sha256=sha256)
        file = downloads.get(sha256, size, f"{repo}/{w.path}", fetch, stays=stays)
        _link(target, file.absolute())


def _link(target: Path, file: Path) -> None:
    """Makes `target` a link to a file. It is never missing for a moment: other workers may be loading it."""
    if target.is_symlink() and target.readlink() == file:
        return
    new = target.with_name(f"{target.name}.{uuid4().hex}")
    new.symlink_to(file)
    new.replace(target)
