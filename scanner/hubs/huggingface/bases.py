"""Base models on a HuggingFace hub: each pinned to a commit and downloaded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finextract.errors import CheckpointError
from finextract.pipeline_folder import read_config, why_unsupported_folder
from finextract.reasons import ReasonCode
from finextract.support import family_of_pipeline
from scanner.errors import Skipped
from scanner.hubs.cache import DownloadCache, locked
from scanner.hubs.huggingface.client import HubClient
from scanner.hubs.huggingface.downloads import download_files, pipeline_files
from scanner.hubs.huggingface.entries import commit_of, remote_files
from scanner.hubs.layout import COMPONENTS, pipeline_weights


class HuggingFaceBases:
    """The bases of a hub; the entry of each is requested once."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._client = HubClient(endpoint)
        self._entries: dict[str, dict[str, Any]] = {}  # OWNER/NAME -> the hub's entry

    def fetch(self, base: str, downloads: DownloadCache, components: tuple[str, ...] = COMPONENTS) -> Path:
        """The diffusers folder of the base OWNER/NAME: a copy in the cache, of one commit.

        Of other components than `components` it has the small files alone.
        Raises Skipped where there is no such base or it cannot be used, Unavailable where the hub or the
        disk fails.
        """
        if base not in self._entries:
            try:
                self._entries[base] = self._client.info(base, None)
            except Skipped as error:
                raise Skipped(
                    f"its base cannot be downloaded: {error} Pass --base with another copy of it.",
                    ReasonCode.BASE_UNAVAILABLE,
                ) from error
        entry = self._entries[base]
        files = remote_files(entry)
        if "model_index.json" not in files or not pipeline_weights(files):
            raise Skipped(
                f"its base {base} is not a diffusers pipeline with safetensors. "
                "Pass --base with one that is.",
                ReasonCode.BASE_UNAVAILABLE,
            )
        revision = commit_of(entry)
        if revision is None:
            raise Skipped(
                f"the hub states no valid commit of its base {base}. Pass --base with another copy of it.",
                ReasonCode.BASE_UNAVAILABLE,
            )
        name = revision if components == COMPONENTS else f"{revision}.parts"
        folder = downloads.cache / "bases" / base.replace("/", "--") / name
        folder.mkdir(parents=True, exist_ok=True)
        wanted = pipeline_files(files, "", components)
        with locked(folder / ".lock"):
            small = [w for w in wanted if not w.path.endswith(".safetensors")]
            download_files(self._client, base, revision, small, folder, downloads, stays=True)
            _check_configs(folder, base)
            download_files(self._client, base, revision, wanted, folder, downloads, stays=True)
        return folder


def _check_configs(folder: Path, base: str) -> None:
    """Raises Skipped where the configuration files of a base refuse it, before its weights are downloaded.

    A folder that misses one of them, or is of no known family, is left to the loader, which names what is
    wrong.
    """
    try:
        known = family_of_pipeline(read_config(folder, "model_index.json")) != "unknown"
        why = why_unsupported_folder(folder) if known else None
    except CheckpointError:
        return
    if why is not None:
        raise Skipped(f"its base {base} cannot be used: {why}", why.reason_code)
