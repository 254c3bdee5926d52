"""Pictures at addresses that a person's list names, downloaded into memory.

A list may come from anybody, so its addresses may lead anywhere: https and http to public addresses are
requested, and others are refused, redirects included, before anything is sent to them.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

import httpx2

from finextract.reasons import ReasonCode
from scanner.errors import Skipped, Unavailable
from scanner.hubs.addresses import is_public
from scanner.hubs.deadlines import TimeLimit, limit_reads, limited
from scanner.hubs.http import (
    TIMEOUT_S,
    USER_AGENT,
    Interrupted,
    RetryPolicy,
    check_status,
    interrupt_waits,
    pause,
    read_at_most,
    with_retries,
)
from scanner.hubs.problems import RateLimited, TransientError, reason_code_of, what_happened, words_of
from scanner.text import printable

MAX_BYTES = 64 * 1024**2  # of a picture
MAX_REDIRECTS = 5
POLICY = RetryPolicy(rate_limit_wait_s=120.0, max_retries=2, time_limit=TimeLimit(deadline_s=120.0))
ALLOW = "--allow-private-addresses"
_REFUSED = ReasonCode.HUB_UNREACHABLE


class PictureDownloads:
    """Downloads pictures; a context manager. May be called from several threads.

    `allow_private` permits loopback, private and other addresses that are not public. With a proxy, the proxy
    has to keep names that resolve to private addresses out of its own network.
    """

    def __init__(
        self, *, allow_private: bool = False, max_bytes: int = MAX_BYTES, policy: RetryPolicy = POLICY
    ) -> None:  # fmt: skip
        self._allow_private, self._max_bytes, self._policy = allow_private, max_bytes, policy
        client = httpx2.Client(
            event_hooks={"request": [self._check_address]},
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            timeout=TIMEOUT_S,
            headers={"User-Agent": USER_AGENT, "Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity"},
        )
        check: Callable[[str, str], object] | None = None if allow_private else _check_peer
        self._client = limit_reads(client, partial(pause, 0), check)
        self._running = 0  # calls
        self._changed = threading.Condition()

    def __enter__(self) -> PictureDownloads:
        return self

    def __exit__(self, *_: object) -> None:
        """Interrupts the calls that still run, in whatever thread: they raise Interrupted."""
        with interrupt_waits(), self._changed:
            self._changed.wait_for(lambda: not self._running, timeout=TIMEOUT_S)
        self._client.close()

    def __call__(self, url: str) -> bytes:
        """The content at an address. Raises Skipped or Unavailable, whose message follows the address."""
        with self._changed:
            self._running += 1
        try:
            return self._downloaded(url)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _downloaded(self, url: str) -> bytes:
        host = "its host"
        try:
            host = httpx2.URL(url).host or host
            return with_retries(lambda: self._attempt(url), host, self._policy)
        except (Skipped, Interrupted):
            raise
        except RateLimited as error:
            raise Unavailable(f"was not downloaded: {error}", ReasonCode.RATE_LIMITED) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError) as error:
            words = f"was not downloaded: {what_happened(error, printable(host, 100))}"
            raise Unavailable(words, reason_code_of(error)) from error

    def _attempt(self, url: str) -> bytes:
        with limited(self._policy.time_limit), self._client.stream("GET", url) as response:
            check_status(response)
            if response.status_code != 200:
                raise (
                    TransientError(f"{response.url.host} answered {response.status_code}")
                    if (response.status_code < 400)
                    else Skipped(
                        f"was not downloaded: {response.url.host} answered {response.status_code} "
                        f"({words_of(response)})",
                        _REFUSED,
                    )
                )
            stated = response.headers.get("Content-Length", "")
            too_large = stated.isdigit() and int(stated[:15]) > self._max_bytes
            content = b"" if too_large else read_at_most(response, self._max_bytes + 1)
            if too_large or len(content) > self._max_bytes:
                raise Skipped(
                    f"was not downloaded: it has more than {self._max_bytes:,} bytes", ReasonCode.TOO_LARGE
                )
            return content

    def _check_address(self, request: httpx2.Request) -> None:
        """Raises Skipped for another scheme, and for a host that is a private address. Sees redirects too."""
        parts = urlsplit(str(request.url))
        if parts.scheme not in ("http", "https"):
            raise Skipped(f"was not downloaded: it leads to {printable(parts.scheme, 20)}://", _REFUSED)
        host = (parts.hostname or "").rstrip(".").lower()
        if not self._allow_private:
            if host == "localhost" or host.endswith(".localhost"):
                raise _private(host, "127.0.0.1")
            if _is_address(host):
                _check_peer(host, host)


def _check_peer(host: str, address: str) -> None:
    """Raises Skipped for an address that is not public."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    if not is_public(str(mapped or found)):
        raise _private(host, str(mapped or found))


def _private(host: str, address: str) -> Skipped:
    where = address if host == address else f"{printable(host, 100)}, which is {address}"
    return Skipped(
        f"was not downloaded: it leads to {where}, an address of a private network ({ALLOW} permits it)",
        _REFUSED,
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
