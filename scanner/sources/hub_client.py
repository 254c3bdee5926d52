"""The four requests that are made to a HuggingFace Hub, through the huggingface_hub client's own session.

Its session gives the token, the proxies and the waiting on rate limits; the reading is bounded here, because
the hub's answers are strangers' data: a listing page, a small file or a header is read up to a cap, a
download up to the listed size. Each request waits TIMEOUT_S for the network and is tried RETRIES times more.

Raises Skipped for what is gone, private or gated, Unavailable for no answer, SourceError while listing.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but not exported for mypy
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
)

from scanner.errors import Skipped, SourceError, Unavailable
from scanner.fetch import check_sha256, show_size

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 15.0  # without a byte
RETRIES = 3
MAX_JSON_BYTES = 64_000_000  # of one page or one repository's info


class HubClient:
    """A hub at one endpoint: HF_ENDPOINT as it is now, or huggingface.co. Cheap to make; opens nothing."""

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self.host = urlsplit(self.endpoint).netloc
        self._headers = build_hf_headers(
            library_name="finextract-scanner", library_version=version("finextract-scanner")
        )

    def listing(
        self, filters: tuple[str, ...], expand: tuple[str, ...], page_size: int
    ) -> Iterator[dict[str, Any]]:
        """The raw entries of the models with all those tags, newest first, page by page."""
        url: str | None = f"{self.endpoint}/api/models"
        query = {"filter": filters, "expand": expand, "sort": "createdAt", "limit": page_size}
        while url is not None:
            try:
                content, links = self._read(url, MAX_JSON_BYTES, params=query)
                page = json.loads(content)
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RecursionError) as error:
                raise SourceError(
                    f"{self.endpoint} could not be listed: {brief(error)}.\n"
                    "Check the network, or HF_ENDPOINT if it is set, and run the same command again."
                ) from error
            if not isinstance(page, list):
                raise SourceError(
                    f"{self.endpoint} does not answer like a HuggingFace Hub. Check HF_ENDPOINT."
                )
            yield from (entry for entry in page if isinstance(entry, dict))
            url, query = links.get("next", {}).get("url"), {}  # the next address holds the query
            if url is not None and urlsplit(url)[:2] != urlsplit(self.endpoint)[:2]:
                raise SourceError(
                    f"{self.endpoint} sends its listing on to another host, which is not followed."
                )

    def info(self, repo: str, revision: str | None) -> dict[str, Any]:
        """A repository's raw entry at a commit (or the newest), its files with sizes and SHA256."""
        url = f"{self.endpoint}/api/models/{repo}" + (
            f"/revision/{quote(revision, safe='')}" if revision else ""
        )
        with self._explained(repo):
            entry = json.loads(self._read(url, MAX_JSON_BYTES, params={"blobs": "true"})[0])
            if not isinstance(entry, dict):
                raise ValueError("the answer is no repository")
            return entry

    def read_start(self, repo: str, revision: str, path: str, size: int) -> bytes:
        """The first `size` bytes of a file, or all where it is smaller, by one range request."""
        with self._explained(repo):
            url = self._file_url(repo, revision, path)
            return self._read(
                url, size, headers={"Range": f"bytes=0-{size - 1}", "Accept-Encoding": "identity"}
            )[0]

    def download(
        self, repo: str, revision: str, path: str, target: Path, size_bytes: int, sha256: str | None
    ) -> None:
        """Writes a file of a known size, resuming where the connection broke, and checks its SHA256.

        The name `target` appears when its content is right. Stops at the first byte too many.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        digest = hashlib.sha256()
        with self._explained(repo), part.open("wb") as file:

            def go_on() -> None:
                nonlocal digest
                start = file.tell()
                headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
                with self._stream(self._file_url(repo, revision, path), headers, {}) as response:
                    if start and response.status_code != 206:  # the server begins again
                        file.seek(0)
                        file.truncate()
                        digest = hashlib.sha256()
                    for chunk in response.iter_bytes():
                        file.write(chunk)
                        digest.update(chunk)
                        if file.tell() > size_bytes:
                            raise Skipped(
                                f"{path} is larger than the {show_size(size_bytes)} that {repo} lists."
                            )
                if file.tell() < size_bytes:
                    raise httpx2.ReadError(f"{path} ended after {file.tell():,} of {size_bytes:,} bytes")

            _persist(go_on)
        check_sha256(digest.hexdigest(), sha256, f"{repo}/{path}")
        part.replace(target)

    def _file_url(self, repo: str, revision: str, path: str) -> str:
        return f"{self.endpoint}/{repo}/resolve/{quote(revision, safe='')}/{quote(path)}"

    @contextmanager
    def _stream(
        self, url: str, headers: Mapping[str, str], params: Mapping[str, Any]
    ) -> Iterator[httpx2.Response]:
        with http_stream_backoff(
            "GET",
            url,
            params=params or None,
            headers={**self._headers, **headers},
            timeout=TIMEOUT_S,
            max_retries=RETRIES,
            retry_on_exceptions=(),  # what breaks while the body is read is for _persist
        ) as response:
            hf_raise_for_status(response)
            yield response

    def _read(
        self,
        url: str,
        limit: int,
        headers: Mapping[str, str] = {},
        params: Mapping[str, Any] = {},
    ) -> tuple[bytes, dict[str | None, dict[str, str]]]:
        """At most `limit` bytes of an answer, and its Link header."""

        def read() -> tuple[bytes, dict[str | None, dict[str, str]]]:
            content = b""
            with self._stream(url, headers, params) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) >= limit:
                        break
                links: dict[str | None, dict[str, str]] = response.links
            return content[:limit], links

        return _persist(read)

    @contextmanager
    def _explained(self, repo: str) -> Iterator[None]:
        """Turns the client's errors about one repository into ours."""
        try:
            yield
        except GatedRepoError as error:
            raise Skipped(
                f"{repo} is gated: accept its terms at {self.endpoint}/{repo}, then set HF_TOKEN."
            ) from error
        except (
            RepositoryNotFoundError,
            RevisionNotFoundError,
            EntryNotFoundError,
            DisabledRepoError,
        ) as error:
            raise Skipped(f"{repo} is not on {self.host} any more, or is private, or lost a file.") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RecursionError) as error:
            raise Unavailable(
                f"{repo} could not be fetched from {self.host}: {brief(error)}. The next crawl tries again."
            ) from error


def _persist[T](request: Callable[[], T]) -> T:
    """Tries a request again, after 1, 2 and 4 seconds, where the connection broke."""
    for wait_s in (2.0**n for n in range(RETRIES)):
        try:
            return request()
        except httpx2.TransportError:
            time.sleep(wait_s)
    return request()


def brief(error: BaseException) -> str:
    """An error's first line without its control characters, for a message of one line."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return "".join(c for c in line if c.isprintable())[:200].rstrip(". ")
