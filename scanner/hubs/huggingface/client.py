"""The four requests to a HuggingFace Hub, through the session of the huggingface_hub client.

That session is a guarded one of `scanner.hubs.http`; huggingface_hub adds the token and interprets statuses.
Responses are untrusted, so this module limits what is read: a listing page, a small file or a header up to a
fixed size, a download up to the listed size.

Raises Skipped for what is removed, private or gated, Unavailable where the hub does not answer, SourceError
for a listing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpx2
from huggingface_hub import get_session, set_client_factory
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but not exported for mypy
    build_hf_headers,
    hf_raise_for_status,
)

from finextract.reasons import ReasonCode
from scanner.errors import Skipped, SourceError, Unavailable
from scanner.hashing import sha256_of
from scanner.hubs import http
from scanner.hubs.addresses import AddressRefused, trust
from scanner.hubs.cache import check_sha256
from scanner.hubs.pages import Pages
from scanner.hubs.problems import (
    Refused,
    TransientError,
    reason_code_of,
    what_happened,
    what_to_do,
    words_of,
)
from scanner.hubs.remote import Start
from scanner.text import printable

DEFAULT_ENDPOINT = "https://huggingface.co"
VARIABLES = ("HF_ENDPOINT", "HF_TOKEN")
MAX_JSON_BYTES = 64_000_000  # of one page or one repository's info

GONE = (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError, DisabledRepoError)

set_client_factory(http.new_session)


class HubClient:
    """A hub at one endpoint, by default HF_ENDPOINT or huggingface.co. Cheap to make; opens no connection."""

    def __init__(self, endpoint: str | None = None, policies: http.Policies = http.POLICIES) -> None:
        self._policies = policies
        self.endpoint = trust(endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT)
        self.host = urlsplit(self.endpoint).netloc
        self._limited_host = urlsplit(self.endpoint).hostname or ""  # rate limits are kept by host, not port
        self._headers = build_hf_headers(
            library_name="finextract-scanner", library_version=version("finextract-scanner")
        )

    def listing(
        self, filters: tuple[str, ...], expand: tuple[str, ...], page_size: int, order: str,
        start: str | None = None,
    ) -> Iterator[tuple[str, list[dict[str, Any]]]]:  # fmt: skip
        """The models with all those tags, newest first by `order`: each page's address and its raw entries.

        `start` is the address of the page to begin at, as an earlier listing yielded it.
        """
        query = {"filter": filters, "expand": expand, "sort": order, "limit": page_size}
        url: str | None = str(httpx2.URL(f"{self.endpoint}/api/models", params=query))
        if start is not None and urlsplit(start)[:2] == urlsplit(self.endpoint)[:2]:
            url = start
        pages = Pages(self.endpoint)
        while url is not None:
            pages.add_place(url)
            try:
                page, links = self._read_json(url, list, self._policies.page)
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, AddressRefused) as error:
                raise self._not_listed(
                    what_happened(error, self.host), what_to_do(error, *VARIABLES)
                ) from error
            entries = [entry for entry in page if isinstance(entry, dict)]
            pages.add_entries(entry.get("id") or entry for entry in entries)
            yield url, entries
            stated = links.get("next", {}).get("url")  # includes the query
            url = None if stated is None else self._next_page(url, stated)

    def _next_page(self, page: str, stated: str) -> str:
        """The address of the page after `page`, as its Link header states it. Raises SourceError."""
        try:
            address = str(httpx2.URL(urljoin(page, stated)))
        except (ValueError, httpx2.InvalidURL) as error:
            shown = printable(stated, 100)
            raise self._not_listed(
                f"its Link header names a next page that is no address ({shown})"
            ) from error
        if urlsplit(address)[:2] != urlsplit(self.endpoint)[:2]:
            raise self._not_listed("it continues its listing on another host, which is not followed")
        return address

    def _not_listed(self, why: str, remedy: str = "") -> SourceError:
        remedy = remedy or what_to_do(ValueError(), *VARIABLES)
        return SourceError(
            f"{self.endpoint} could not be listed: {why}.\n{remedy} Then run the same command again."
        )

    def info(self, repo: str, revision: str | None) -> dict[str, Any]:
        """A repository's raw entry at a commit (or the newest), its files with sizes and SHA256."""
        url = f"{self.endpoint}/api/models/{repo}" + (
            f"/revision/{quote(revision, safe='')}" if revision else ""
        )
        with self._explained(repo):
            entry: dict[str, Any] = self._read_json(f"{url}?blobs=true", dict, self._policies.small)[0]
            return entry

    def read_start(self, repo: str, revision: str, path: str, size: int) -> Start:
        """The first `size` bytes of a file, or all where it is smaller, by one range request."""
        url = self._file_url(repo, revision, path)
        headers = {"Range": f"bytes=0-{size - 1}", "Accept-Encoding": "identity"}

        def read() -> Start:
            with self._stream(url, headers) as response:
                kind = response.headers.get("Content-Type", "").lower()
                if kind.startswith("text/html") or (
                    kind.startswith("application/json") and not path.endswith(".json")
                ):
                    raise TransientError(f"{self.host} sent a web page instead of {path}")
                received = [*(r.headers for r in response.history), response.headers]
                linked = next((h for h in received if "X-Linked-Etag" in h), response.headers)
                sha256 = linked.get("X-Linked-Etag", "").strip('"')
                length = linked.get("X-Linked-Size", "")
                start = Start(
                    http.read_at_most(response, size),
                    int(length) if re.fullmatch(r"\d{1,15}", length) else http.content_extent(response)[1],
                    sha256 if re.fullmatch("[0-9a-f]{64}", sha256) else None,
                )
            if not start.is_sound(size):
                raise TransientError(f"{self.host} sent {path} incomplete or with another SHA256")
            return start

        with self._explained(repo):
            return http.with_retries(read, self._limited_host, self._policies.small)

    def download(
        self, repo: str, revision: str, path: str, part: Path, size_bytes: int, sha256: str | None
    ) -> None:
        """Completes a partial file of a known size, and checks the SHA256 of all of it.

        A file whose SHA256 is not the listed one is removed.
        """

        def request(start: int) -> AbstractContextManager[httpx2.Response]:
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
            return self._stream(self._file_url(repo, revision, path), headers)

        with self._explained(repo):
            http.complete_download(
                part, size_bytes, f"{repo}/{path}", request, self._limited_host, self._policies.file
            )
        if sha256 is not None and (found := sha256_of(part)) != sha256:
            part.unlink()
            check_sha256(found, sha256, f"{repo}/{path}")

    def _file_url(self, repo: str, revision: str, path: str) -> str:
        return f"{self.endpoint}/{repo}/resolve/{quote(revision, safe='')}/{quote(path)}"

    @contextmanager
    def _stream(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        with get_session().stream("GET", url, headers={**self._headers, **headers}) as response:
            http.check_status(response)
            if response.status_code >= 400:
                _raise_for(response)
            yield response

    def _read_json(
        self, url: str, kind: type, policy: http.RetryPolicy
    ) -> tuple[Any, dict[str | None, dict[str, str]]]:
        """A JSON response of that type, and its Link header. Any other response is a transient error."""

        def read() -> tuple[Any, dict[str | None, dict[str, str]]]:
            with self._stream(url, {}) as response:
                content, links = http.read_at_most(response, MAX_JSON_BYTES), response.links
            try:
                value = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise TransientError(f"{self.host} does not answer like a HuggingFace Hub") from error
            if not isinstance(value, kind):
                raise TransientError(f"{self.host} does not answer like a HuggingFace Hub")
            return value, links

        return http.with_retries(read, self._limited_host, policy)

    @contextmanager
    def _explained(self, repo: str) -> Iterator[None]:
        """Turns errors of requests for one repository into Skipped and Unavailable."""
        try:
            yield
        except GatedRepoError as error:
            raise Skipped(
                f"{repo} is gated: accept its terms at {self.endpoint}/{repo}, then set HF_TOKEN.",
                ReasonCode.GATED,
            ) from error
        except GONE as error:
            raise Skipped(
                f"{repo} was removed from {self.host}, or is private, or no longer holds a listed file "
                f"({words_of(error.response)}). If it is private, set HF_TOKEN to a token that may read it.",
                ReasonCode.REMOVED,
            ) from error
        except (
            httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RecursionError, AddressRefused
        ) as error:  # fmt: skip
            raise Unavailable(
                f"{repo} could not be fetched from {self.host}: {what_happened(error, self.host)}. "
                f"{what_to_do(error, *VARIABLES)} The next crawl tries again.",
                reason_code_of(error),
            ) from error


def _raise_for(response: httpx2.Response) -> None:
    """Raises what huggingface_hub makes of an error status, or Refused where it makes nothing of it.

    It gets the headers and a short body: it would read one of any length.
    """
    headers = {k: v for k, v in response.headers.items() if k.lower().startswith("x-error-")}
    words, status = words_of(response), response.status_code
    short = httpx2.Response(status, headers=headers, json={"error": words}, request=response.request)
    try:
        hf_raise_for_status(short)
    except (GatedRepoError, *GONE):
        raise
    except HfHubHTTPError as error:
        raise Refused(response.url.host, status, words) from error
