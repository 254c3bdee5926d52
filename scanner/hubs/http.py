"""How strangers' servers are asked: who may be asked at all, how long to wait, and when to give up.

Knows HTTP; knows no hub's routes and no store. Every request, each redirect included, passes `guard`.
Two budgets are kept apart: a server that says "later" (429, or 503 with Retry-After) may be waited for
patiently, a server or a line that fails is tried a few times only. Times are seconds.
"""

from __future__ import annotations

import email.utils
import ipaddress
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx2
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but not exported for mypy
    parse_ratelimit_headers,
)

from scanner.errors import ConfigError, Skipped

# The hubs and the stores that they are known to send downloads to, with all hosts below them.
PUBLIC_HOSTS = (
    "huggingface.co", "hf.co", "civitai.com", "civitai.red", "r2.cloudflarestorage.com", "backblazeb2.com",
)  # fmt: skip
USER_AGENT = f"finextract-scanner/{version('finextract-scanner')}"
TIMEOUT_S = 15.0  # without a byte
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0  # between tries, where the server names no time


class AddressRefused(Skipped):
    """An address that is not asked: a stranger's redirect, or one without https."""


class RateLimited(httpx2.HTTPError):
    """A server says "later": once more after `wait_s`, or after a growing while where it names no time."""

    def __init__(self, host: str, wait_s: float | None, limit: str) -> None:
        super().__init__(f"{host} limits requests{f' ({limit})' if limit else ''}")
        self.host, self.wait_s, self.limit = host, wait_s, limit


class TransientError(httpx2.HTTPError):
    """A server's own trouble: tried a few times more."""


class Interrupted(Exception):
    """What was asked for is not wanted any more; see `interrupt_waits`. Nothing may be concluded from it."""


@dataclass(frozen=True, slots=True)
class RateLimitWait:
    """Who is limiting, and until when. What a status line shows."""

    host: str
    until: datetime  # UTC
    limit: str  # which of the server's limits, as it names it; "" where it does not

    def __str__(self) -> str:
        named = f" ({self.limit})" if self.limit else ""
        return f"{self.host} limits requests{named}: waiting until {self.until.astimezone():%H:%M:%S}"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The two budgets of one request."""

    throttle_s: float = 1800.0  # waited in all while a server says "later"
    faults: int = 4  # tries after the first that failed


_trusted: set[tuple[str, str, int | None]] = set()  # (scheme, host, port) of endpoints that a person named
_until: dict[str, tuple[float, str]] = {}  # host -> (time.monotonic() until which it wants no request, limit)
_lock = threading.Lock()
_leaving = threading.Event()  # set while `interrupt_waits`
_leavers = 0
_listeners: list[Callable[[RateLimitWait], None]] = []


def trust(endpoint: str) -> str:
    """Admits a hub that a person named, whatever its scheme and address; gives it back without a slash.

    A public hub keeps the rules of all public ones. Raises ConfigError for a text that is no address.
    """
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in ("http", "https"):
        raise ConfigError(f"{endpoint} is no address of a hub. Write it as https://HOST.")
    try:
        check_address(endpoint)
    except AddressRefused:
        _trusted.add((parts.scheme, host, port))
    return endpoint.rstrip("/")


def guard(request: httpx2.Request) -> None:
    """Raises AddressRefused for an address that is not allowed. A request hook: it sees redirects too."""
    check_address(str(request.url))


def check_address(url: str) -> None:
    """Allows https to a known hub or its stores, and the endpoint that a person named.

    Raises AddressRefused for any other address.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").lower()
    if (parts.scheme, host, parts.port) in _trusted:
        return
    if parts.scheme != "https":
        raise AddressRefused(f"an address without https is not asked: {_shown(url)}.")
    if not any(host == known or host.endswith(f".{known}") for known in PUBLIC_HOSTS):
        raise AddressRefused(f"an address on another host is not asked: {_shown(url)}.")


def check_peer(response: httpx2.Response) -> None:
    """Raises AddressRefused where a public name led to a private or link-local address. A response hook.

    Behind a proxy the peer is the proxy, which then has to keep its own house.
    """
    parts = urlsplit(str(response.request.url))
    if (parts.scheme, parts.hostname, parts.port) in _trusted or parts.scheme in getproxies():
        return
    stream = response.extensions.get("network_stream")
    address = stream.get_extra_info("server_addr") if stream is not None else None
    if address and not is_public(str(address[0])):
        raise AddressRefused(
            f"{parts.hostname} leads to the private address {address[0]}, which is not asked."
        )


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet's."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_global
    except ValueError:
        return False


def new_session(*request_hooks: Callable[[httpx2.Request], object]) -> httpx2.Client:
    """A guarded client that follows redirects; on another host they lose the Authorization header."""
    return httpx2.Client(
        event_hooks={"request": [guard, *request_hooks], "response": [check_peer]},
        follow_redirects=True,
        timeout=TIMEOUT_S,
        headers={"User-Agent": USER_AGENT},
    )


def check_status(response: httpx2.Response) -> None:
    """Raises RateLimited or TransientError for an answer that asks to be tried again.

    The caller handles every other status.

    An answer that says its limit is used up is remembered: the host is not asked before its time.
    """
    host = response.request.url.host
    info = parse_ratelimit_headers(response.headers)
    if info is not None and info.remaining == 0:
        _hold(host, info.reset_in_seconds + 1.0, info.resource_type)
    if response.status_code == 429 or (response.status_code == 503 and "Retry-After" in response.headers):
        wait_s = retry_after(response.headers)
        if wait_s is None and info is not None and info.remaining == 0:
            wait_s = info.reset_in_seconds + 1.0
        raise RateLimited(host, wait_s, info.resource_type if info is not None else "")
    if response.status_code == 408 or response.status_code >= 500:
        raise TransientError(f"{host} answered {response.status_code} {response.reason_phrase}".rstrip())


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None where it tells neither."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def with_retries[T](request: Callable[[], T], host: str, policy: RetryPolicy = RetryPolicy()) -> T:
    """Makes a request until it is answered, within both budgets.

    `request` raises RateLimited, TransientError, AddressRefused or httpx2.TransportError for what may be
    tried again; the last one is raised where its budget is spent. A wait that the throttle budget cannot
    pay is not begun. Raises Interrupted.
    """
    faults, throttles, waited_s = 0, 0, 0.0
    while True:
        pause(0)
        waited_s += _wait_for(host, policy.throttle_s - waited_s)
        try:
            return request()
        except RateLimited as error:
            wait_s = error.wait_s
            if wait_s is None:
                wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**throttles)
            throttles += 1
            if waited_s + wait_s > policy.throttle_s:
                raise
            _hold(host, wait_s, error.limit)
        except (
            TransientError,
            AddressRefused,
            httpx2.TransportError,
        ):  # a redirect too may be a server's passing trouble
            faults += 1
            if faults > policy.faults:
                raise
            pause(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (faults - 1)) / 2)


def _hold(host: str, wait_s: float, limit: str) -> None:
    with _lock:
        until = time.monotonic() + wait_s
        if until > _until.get(host, (0.0, ""))[0]:
            _until[host] = (until, limit)


def _wait_for(host: str, budget_s: float) -> float:
    """Waits until a host wants requests again; returns the seconds waited."""
    with _lock:
        until, limit = _until.get(host, (0.0, ""))
    wait_s = until - time.monotonic()
    if wait_s <= 0:
        return 0.0
    if wait_s > budget_s:
        raise RateLimited(host, wait_s, limit)
    waiting = RateLimitWait(host, datetime.fromtimestamp(time.time() + wait_s, UTC), limit)
    for tell in list(_listeners):
        tell(waiting)
    pause(wait_s)
    return wait_s


def pause(seconds: float) -> None:
    """Sleeps. Raises Interrupted where the work is interrupt_waits meanwhile."""
    if _leaving.wait(seconds):
        raise Interrupted


@contextmanager
def interrupt_waits() -> Iterator[None]:
    """While the block runs, every thread that waits for a host or would ask one is interrupted instead.

    A request that is under way is not: it ends by itself, within `TIMEOUT_S` where nothing comes.
    """
    global _leavers
    with _lock:
        _leavers += 1
        _leaving.set()
    try:
        yield
    finally:
        with _lock:
            _leavers -= 1
            if not _leavers:
                _leaving.clear()


@contextmanager
def on_rate_limit(tell: Callable[[RateLimitWait], None]) -> Iterator[None]:
    """Tells of every wait for a host's limits while the block runs."""
    _listeners.append(tell)
    try:
        yield
    finally:
        _listeners.remove(tell)


def read_at_most(response: httpx2.Response, limit: int) -> bytes:
    """The first `limit` bytes of a streamed answer's body, decompressed; no more is read."""
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) >= limit:
            break
    return bytes(content[:limit])


def content_extent(response: httpx2.Response) -> tuple[int, int | None]:
    """Where in its file an answer begins, and the size of the whole file; None where that is not told.

    Raises TransientError for a part whose place is not told.
    """
    if response.status_code == 206:
        told = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)", told)
        if match is None:
            raise TransientError(f"{response.url.host} does not tell which part of the file it sends")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch(r"\d{1,15}", length) else None


def complete_download(
    part: Path,
    size_bytes: int,
    where: str,
    ask: Callable[[int], AbstractContextManager[httpx2.Response]],
    host: str,
    policy: RetryPolicy = RetryPolicy(),
) -> None:
    """Completes a partial file of a known size, going on where an earlier attempt or a broken line left it.

    `ask` gives a streamed answer that begins at a byte, or at the first. Raises Skipped, and removes the
    file, before the first byte too many; and whatever `ask` raises.
    """
    with part.open("ab") as file:

        def begin_again() -> None:
            file.seek(0)
            file.truncate()

        def go_on() -> None:
            if file.tell() > size_bytes:
                begin_again()
            if file.tell() == size_bytes:
                return
            with ask(file.tell()) as response:
                if content_extent(response)[0] != file.tell():
                    begin_again()
                for chunk in response.iter_bytes():
                    if file.tell() + len(chunk) > size_bytes:
                        part.unlink(missing_ok=True)
                        raise Skipped(f"{where} is larger than the {size_bytes:,} bytes that were listed.")
                    file.write(chunk)
            if file.tell() < size_bytes:
                raise httpx2.ReadError(f"it ended after {file.tell():,} of {size_bytes:,} bytes")

        with_retries(go_on, host, policy)


def _shown(url: str) -> str:
    """An address without its query, which may hold a signature, on one line."""
    parts = urlsplit(url)
    return "".join(c for c in f"{parts.scheme}://{parts.netloc}{parts.path}" if c.isprintable())[:200]
