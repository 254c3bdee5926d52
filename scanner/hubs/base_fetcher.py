"""Base models as local files, wherever their checkpoints come from. One object in each process.

A base is named by an absolute path, by OWNER/NAME on a HuggingFace hub, or by a scheme of its own, such as
"civitai:MODEL@VERSION".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from finextract.errors import CheckpointError
from finextract.reasons import ReasonCode
from finextract.weights.formats import classify, read_header
from scanner.errors import Skipped
from scanner.hubs.base_models import CIVITAI_SCHEME, FAMILY_PIPELINES, local_base
from scanner.hubs.cache import DownloadCache
from scanner.hubs.inspection import check_base

if TYPE_CHECKING:
    from scanner.hubs.civitai.bases import CivitaiBases
    from scanner.hubs.huggingface.bases import HuggingFaceBases


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """A base model: a diffusers folder, and for a base that is one file, the file that goes over it."""

    folder: Path
    weights: Path | None = None  # UNet and text encoder in the original key names; the folder has the rest


class BaseFetcher:
    """Fetches bases, with one client for each hub and the entries of the bases that were fetched before.

    `default_base` is the user's --base. A base on Civitai is a single file of weights, and takes what it does
    not hold (VAE, tokenizer, scheduler) from `default_base`, or from the first pipeline of its family.
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
        """The base's safetensors, configurations and tokenizer, each downloaded once for all scans.

        Raises Skipped where there is no such base or it cannot be used, Unavailable where a hub or the disk
        fails.
        """
        path = Path(base)
        if path.is_absolute() and path.is_file():
            try:
                check_base(read_header(path), base)
            except CheckpointError as error:
                raise Skipped(f"its base cannot be read: {error}", ReasonCode.BASE_UNAVAILABLE) from error
            return BaseFiles(self._huggingface.fetch(_pipeline_of(path), downloads), path)
        if path.is_absolute():
            return BaseFiles(path)
        if base.startswith(CIVITAI_SCHEME):
            weights = self._civitai.fetch(base, downloads)
            rest = self._default_base or _pipeline_of(weights)
            return BaseFiles(self.fetch(rest, downloads).folder, weights)
        return BaseFiles(self._huggingface.fetch(base, downloads))


def _pipeline_of(weights: Path) -> str:
    """The pipeline that supplies what a base of one file lacks, by the family of the file."""
    return FAMILY_PIPELINES[classify(read_header(weights)).family]
