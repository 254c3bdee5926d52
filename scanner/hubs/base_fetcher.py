"""Base models as local files, wherever their checkpoints come from. One object in each process.

A base is named by an absolute path, by OWNER/NAME on a HuggingFace hub, or by a scheme of its own, such as
"civitai:MODEL@VERSION".
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from finextract.errors import CheckpointError
from finextract.reasons import ReasonCode
from finextract.single_files import single_file
from finextract.weights.formats import read_header
from scanner.errors import Skipped
from scanner.hubs.base_models import CIVITAI_SCHEME, is_repo, local_base
from scanner.hubs.cache import DownloadCache
from scanner.hubs.inspection import check_base

if TYPE_CHECKING:
    from scanner.hubs.civitai.bases import CivitaiBases
    from scanner.hubs.huggingface.bases import HuggingFaceBases

_LOG = logging.getLogger("scanner.hubs")  # into the log of the scan


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """A base model, as `finextract.models.loading.load_base` takes it."""

    model: Path  # a diffusers folder, or a single file
    parts: Path | None = None  # a pipeline folder with what the single file lacks, where it lacks anything


class BaseFetcher:
    """Fetches bases, with one client for each hub and the entries of the bases that were fetched before.

    `default_base` is the user's --base. A base that is a single file takes what it lacks (VAE, text encoders,
    T5's tokenizer) from `default_base` where that is a pipeline, or from the published pipeline it fits.
    `hub_endpoint` is the HuggingFace hub's address; by default HF_ENDPOINT, or huggingface.co.
    """

    def __init__(self, default_base: str | None = None, hub_endpoint: str | None = None) -> None:
        self._default_base, self._hub_endpoint = local_base(default_base), hub_endpoint

    @cached_property
    def _huggingface(self) -> HuggingFaceBases:
        from scanner.hubs.huggingface.bases import HuggingFaceBases

        return HuggingFaceBases(self._hub_endpoint)

    @cached_property
    def _civitai(self) -> CivitaiBases:
        from scanner.hubs.civitai.bases import CivitaiBases

        return CivitaiBases()

    def fetch(self, base: str, downloads: DownloadCache) -> BaseFiles:
        """The base's safetensors, and what else it needs, each downloaded once for all scans.

        Raises Skipped where there is no such base or it cannot be used, Unavailable where a hub or the disk
        fails.
        """
        path = Path(base)
        if path.is_absolute() and path.is_file():
            try:
                check_base(read_header(path), base)
            except CheckpointError as error:
                raise Skipped(f"its base cannot be read: {error}", ReasonCode.BASE_UNAVAILABLE) from error
            return BaseFiles(path, self._parts(path, base, downloads))
        if path.is_absolute():
            return BaseFiles(path)
        if base.startswith(CIVITAI_SCHEME):
            weights = self._civitai.fetch(base, downloads)
            return BaseFiles(weights, self._parts(weights, base, downloads))
        return BaseFiles(self._huggingface.fetch(base, downloads))

    def _parts(self, file: Path, base: str, downloads: DownloadCache) -> Path | None:
        """The folder with what a single file lacks; None where it lacks nothing."""
        found = single_file(read_header(file))
        if found.published and not found.wanted:
            return None
        given = self._default_base
        if given is not None and Path(given).is_dir():
            return Path(given)
        pipeline = given if is_repo(given) and given is not None else found.pipeline
        _LOG.info("base %s lacks %s: taken from %s", base, ", ".join(found.wanted), pipeline)
        return self._huggingface.fetch(pipeline, downloads, found.wanted)


def what_it_lacks(base: str | None) -> str | None:
    """A sentence that says what a --base of one file takes from which pipeline of the hub; None for nothing.

    Also None for a file that cannot be read: fetching it raises the reason.
    """
    file = Path(base) if base else None
    if file is None or not file.is_file():
        return None
    try:
        header = read_header(file)
        check_base(header, file.name)
    except (CheckpointError, Skipped):
        return None
    found = single_file(header)
    if found.published and not found.wanted:
        return None
    return (
        f"The base {file.name} lacks {', '.join(found.wanted)}: taken from {found.pipeline}, "
        "downloaded once by each node."
    )
