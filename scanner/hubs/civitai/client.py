"""The requests to Civitai: a page of the listing, a version, a file or the start of one.

The token is sent with downloads only, in a header, to Civitai's own host: the redirect to a signed address
in an object store loses it. Responses are untrusted: bodies are read up to a limit, a download up to the
listed size, and a response counts as weights only if its status, content type and length are right.

Raises Skipped for what is not offered, Unavailable where the site does not answer, SourceError for a listing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from finextract.reasons import ReasonCode
from scanner.errors import ConfigError, Skipped, SourceError, Unavailable
from scanner.hashing import sha256_of
from scanner.hubs import http
from scanner.hubs.addresses import AddressRefused, trust
from scanner.hubs.cache import check_sha256
from scanner.hubs.problems import (
    Refused,
    TransientError,
    reason_code_of,
    stated_by,
    what_happened,
    what_to_do,
    words_of,
)
from scanner.hubs.remote import Start

DEFAULT_ENDPOINT = "https://civitai.com"
Params = list[tuple[str, str | int | float | bool | None]]  # as the client takes it
TOKENS = ("CIVITAI_TOKEN", "CIVITAI_API_TOKEN")
MAX_JSON_BYTES = 32_000_000  # of one page; a hundred models with all their versions are a few megabytes
VARIABLES = ("CIVITAI_ENDPOINT", TOKENS[0])


class CivitaiClient:
    """Civitai at one endpoint, by default CIVITAI_ENDPOINT or civitai.com. Its session opens when used."""

    def __init__(self, endpoint: str | None = None, policies: http.Policies = http.POLICIES) -> None:
        self._policies = policies
        self.endpoint = trust(endpoint or os.environ.get("CIVITAI_ENDPOINT") or DEFAULT_ENDPOINT)
        self.host = urlsplit(self.endpoint).netloc
        self._limited_host = urlsplit(self.endpoint).hostname or ""  # rate limits are kept by host, not port
        token = _token()
        self._login = {"Authorization": f"Bearer {token}"} if token else {}

    @cached_property
    def _session(self) -> httpx2.Client:
        return http.new_session()

    def page(self, query: Params) -> dict[str, Any]:
        """One page of the models: its `items`, a list, and its `metadata`. Raises SourceError for none."""
        try:
            page = self._json("/api/v1/models", query, holds="items", policy=self._policies.page)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, AddressRefused) as error:
            raise SourceError(
                f"{self.endpoint} could not be listed: {what_happened(error, self.host)}.\n"
                f"{what_to_do(error, *VARIABLES)} Then run the same command again."
            ) from error
        if page is None:
            raise SourceError(f"{self.endpoint} does not answer like Civitai. Check CIVITAI_ENDPOINT.")
        return page

    def version(self, version_id: int, where: str) -> dict[str, Any]:
        """A version's own entry. Raises Skipped where it is no longer published."""
        with self._explained(where):
            version = self._json(f"/api/v1/model-versions/{version_id}")
        if version is None:
            raise Skipped(f"{where} is no longer published on {self.host}.", ReasonCode.REMOVED)
        return version

    def version_of(self, digest: str, where: str) -> dict[str, Any] | None:
        """The version that holds the file with that hash; None where none does.

        `where` names the checkpoint in error messages.
        """
        with self._explained(where):
            return self._json(f"/api/v1/model-versions/by-hash/{digest}")

    def read_start(self, version_id: int, query: Mapping[str, str], size: int, where: str) -> Start:
        """The first `size` bytes of a version's file, or all where it is smaller, by one range request."""

        def read() -> Start:
            with self._weights(version_id, query, {"Range": f"bytes=0-{size - 1}"}, where) as response:
                first, whole = http.content_extent(response)
                if first != 0:
                    raise TransientError(f"{self.host} sent another part of the file")
                start = Start(http.read_at_most(response, size), whole)
            if not start.is_sound(size):
                raise TransientError(f"the response ended after {len(start.content):,} bytes")
            return start

        with self._explained(where):
            return http.with_retries(read, self._limited_host, self._policies.small)

    def download(
        self, version_id: int, query: Mapping[str, str], part: Path, size_bytes: int, sha256: str, where: str
    ) -> None:
        """Completes a partial file of a known size, and checks the SHA256 of all of it.

        A file whose size or SHA256 is not the listed one is removed.
        """

        @contextmanager
        def request(start: int) -> Iterator[httpx2.Response]:
            wanted = {"Range": f"bytes={start}-"} if start else {}
            with self._weights(version_id, query, wanted, where) as response:
                whole = http.content_extent(response)[1]
                if whole not in (None, size_bytes):
                    part.unlink(missing_ok=True)
                    raise Unavailable(
                        f"{where} has {whole:,} bytes, and {size_bytes:,} were listed. It was not "
                        "fetched; the next crawl lists it again.",
                        ReasonCode.CHANGED,
                    )
                yield response

        with self._explained(where):
            http.complete_download(part, size_bytes, where, request, self._limited_host, self._policies.file)
        if (found := sha256_of(part)) != sha256:
            part.unlink()
            check_sha256(found, sha256, where)

    def _json(
        self,
        path: str,
        query: Params | None = None,
        holds: str = "id",
        policy: http.RetryPolicy | None = None,
    ) -> dict[str, Any] | None:
        """A JSON object that has the field `holds`; None for status 404."""

        def read() -> dict[str, Any] | None:
            with self._stream(path, query or [], {}) as response:
                http.check_status(response)
                if response.status_code == 404:
                    return None
                if response.status_code != 200:
                    raise Refused(response.url.host, response.status_code, words_of(response))
                try:
                    value = json.loads(http.read_at_most(response, MAX_JSON_BYTES))
                except (ValueError, RecursionError) as error:  # a page of HTML, or a truncated response
                    raise TransientError(f"{self.host} did not answer with JSON") from error
                if not isinstance(value, dict) or holds not in value:
                    raise TransientError(f"{self.host} does not answer like Civitai")
                return value

        return http.with_retries(read, self._limited_host, policy or self._policies.small)

    @contextmanager
    def _stream(self, path: str, query: Params, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        request = self._session.build_request("GET", self.endpoint + path, params=query, headers=headers)
        response = self._session.send(request, stream=True)
        try:
            yield response
        finally:
            response.close()

    @contextmanager
    def _weights(
        self, version_id: int, query: Mapping[str, str], headers: Mapping[str, str], where: str
    ) -> Iterator[httpx2.Response]:
        """A response that holds weights. Every other response raises its own error."""
        headers = {"Accept-Encoding": "identity", **headers, **self._login}
        with self._stream(f"/api/download/models/{version_id}", list(query.items()), headers) as response:
            http.check_status(response)
            if response.url.origin == httpx2.URL(self.endpoint).origin:
                self._check_offer(response, where)
            elif response.status_code == 416:
                raise Skipped(
                    f"{where} is empty, or has fewer bytes than were listed; it was not fetched.",
                    ReasonCode.DAMAGED,
                )
            elif response.status_code >= 400:  # the signed address has expired: request a new one
                raise TransientError(f"{response.url.host} answered {response.status_code}")
            kind = response.headers.get("Content-Type", "").lower()
            if response.status_code not in (200, 206) or kind.startswith(("text/", "application/json")):
                raise TransientError(f"{response.url.host} sent a web page instead of weights")
            yield response

    def _check_offer(self, response: httpx2.Response, where: str) -> None:
        """Raises the error that Civitai's own response to a download means, if it means one."""
        status = 401 if response.url.path.startswith("/login") else response.status_code
        if status == 401:
            raise Skipped(
                f"{where} cannot be downloaded with this {TOKENS[0]}: its author has disabled downloads, or "
                "the token is not valid any more."
                if self._login
                else f"{where} requires a login to be downloaded, or its downloads are disabled. "
                f"Set {TOKENS[0]} to an API key of your Civitai account.",
                ReasonCode.LOGIN_REQUIRED,
            )
        stated = stated_by(response) if status >= 400 else []
        if status == 403 and stated not in ([], ["Forbidden"]):  # those refuse an IP address, not an entry
            early = "early access" in " ".join(stated).lower()
            raise Skipped(
                f"{where} cannot be downloaded with your account: {self.host} refuses it "
                f"({', '.join(stated)}). See its page for what it asks for.",
                ReasonCode.EARLY_ACCESS if early else ReasonCode.NOT_OFFERED,
            )
        if status == 404:
            raise Unavailable(
                f"{where} was not found on {self.host}. The next crawl tries again.", ReasonCode.NOT_READY
            )
        if status == 410:
            raise Skipped(
                f"{where} was archived by its author, so its files cannot be downloaded.", ReasonCode.REMOVED
            )
        if status >= 400:
            raise Refused(response.url.host, status, ", ".join(stated) or response.reason_phrase)

    @contextmanager
    def _explained(self, where: str) -> Iterator[None]:
        """Turns errors of requests for one entry into Unavailable."""
        try:
            yield
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, AddressRefused) as error:
            raise Unavailable(
                f"{where} could not be fetched from {self.host}: {what_happened(error, self.host)}. "
                f"{what_to_do(error, *VARIABLES)} The next crawl tries again.",
                reason_code_of(error),
            ) from error


def _token() -> str | None:
    """The token in the environment. Raises ConfigError for one that no header can hold."""
    name = next((n for n in TOKENS if os.environ.get(n, "").strip()), None)
    if name is None:
        return None
    token = os.environ[name].strip()
    if not re.fullmatch(r"[!-~]{1,500}", token):
        raise ConfigError(f"{name} holds characters that no API key has. Copy the key again, on one line.")
    return token
