"""Base models on Civitai: a version of a model, which is one file of weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from finextract.reasons import ReasonCode
from scanner.errors import Skipped
from scanner.hubs.base_models import CIVITAI_SCHEME
from scanner.hubs.cache import DownloadCache
from scanner.hubs.civitai.client import CivitaiClient
from scanner.hubs.civitai.entries import MAX_FILES
from scanner.hubs.civitai.files import choose, dicts, download_query, sha256_of_file
from scanner.hubs.inspection import check_base
from scanner.hubs.remote import read_header


class CivitaiBases:
    """The bases of the site that CIVITAI_ENDPOINT names, or of civitai.com."""

    def __init__(self) -> None:
        self._client = CivitaiClient()

    def fetch(self, base: str, downloads: DownloadCache) -> Path:
        """The single weight file of the base civitai:MODEL@VERSION, in the cache.

        Raises Skipped where there is no such base or it cannot be used, Unavailable where the site or the
        disk fails.
        """
        model_id, _, number = base.removeprefix(CIVITAI_SCHEME).partition("@")
        version_id = int(number)
        where = f"{self._client.endpoint}/models/{model_id}?modelVersionId={number}"
        try:
            version = self._client.version(version_id, where)
            file, _, reason = choose(dicts(version.get("files"), MAX_FILES))
            if file is None:
                assert reason is not None, "without a file there is a reason"
                raise Skipped(f"{where}: {reason}", reason.reason_code)
            if (sha256 := sha256_of_file(file)) is None:
                raise Skipped(f"{where}: the site states no SHA256 of it.", ReasonCode.INVALID_ENTRY)
            query = download_query(file)
            read = partial(self._client.read_start, version_id, query, where=where)
            header, _ = read_header(read, where, None)
        except Skipped as error:
            raise Skipped(
                f"its base cannot be downloaded: {error} Pass --base with another copy of it.",
                ReasonCode.BASE_UNAVAILABLE,
            ) from error
        check_base(header, where)
        download = partial(
            self._client.download, version_id, query, size_bytes=header.size_bytes, sha256=sha256, where=where
        )
        return downloads.get(sha256, header.size_bytes, where, download, stays=True)
