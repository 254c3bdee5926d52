"""Requests to hubs: sessions, rate limits, retries, and bodies read up to a limit.

Knows HTTP, but no hub's routes. A request has two separate budgets: a server that limits requests (429, or
503 with Retry-After) may be waited for during a long time, while a transient error (of the server or the
connection) is retried a few times only. Each attempt has a time limit. Times are in seconds.
"""

from __future__ import annotations

import email.utils
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import httpx2
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but not exported for mypy
    parse_ratelimit_headers,
)

from finextract.reasons import ReasonCode
from scanner.errors import Skipped
from scanner.hubs.addresses import AddressRefused, check_peer, guard
from scanner.hubs.deadlines import FILE, PAGE, SMALL, TimeLimit, limit_reads, limited
from scanner.hubs.problems import RateLimited, TransientError, words_of

USER_AGENT = f"finextract-scanner/{version('finextract-scanner')}"
TIMEOUT_S = 15.0  # without a byte
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0  # before a retry, where the server states no time
WAIT_SLICE_S = 0.5  # after which a waiting main thread acts on a signal


class Interrupted(Exception):
    """The request was cancelled by `interrupt_waits`. Nothing is known about what was requested."""


@dataclass(frozen=True, slots=True)
class RateLimitWait:
    """The host that limits requests, and until when. Shown in a status line."""

    host: str
    until: datetime  # UTC
    limit: str  # which of the server's limits, by the server's own name; "" where it states none

    def __str__(self) -> str:
        named = f" ({self.limit})" if self.limit else ""
        return f"{self.host} limits requests{named}: waiting until {self.until.astimezone():%H:%M:%S}"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The two budgets of one request, and the time limit of each attempt at it."""

    rate_limit_wait_s: float = 1800.0  # in all, for as long as the server limits requests
    max_retries: int = 4  # after transient errors; the first attempt is not counted
    time_limit: TimeLimit = SMALL


@dataclass(frozen=True, slots=True)
class Policies:
    """The budgets and time limits of the three sorts of requests to a hub."""

    page: RetryPolicy = RetryPolicy(time_limit=PAGE)  # of a listing
    small: RetryPolicy = RetryPolicy()  # an entry, the start of a file
    file: RetryPolicy = RetryPolicy(max_retries=10, time_limit=FILE)  # each retry resumes a download


POLICIES = Policies()


_limited_until: dict[str, tuple[float, str]] = {}  # host -> (time.monotonic() of the end, name of the limit)
_lock = threading.Lock()
_interrupting = threading.Event()  # set while a block of `interrupt_waits` runs
_interrupters = 0  # such blocks now
_listeners: list[Callable[[RateLimitWait], None]] = []


def new_session(*request_hooks: Callable[[httpx2.Request], object]) -> httpx2.Client:
    """A guarded client that follows redirects; a redirect to another host loses the Authorization header."""
    client = httpx2.Client(
        event_hooks={"request": [guard, *request_hooks], "response": [check_peer]},
        follow_redirects=True,
        timeout=TIMEOUT_S,
        headers={"User-Agent": USER_AGENT},
    )
    return limit_reads(client, partial(pause, 0))


def check_status(response: httpx2.Response) -> None:
    """Raises RateLimited or TransientError for a response that may be retried; accepts every other status.

    A response that states that a limit is used up is remembered: the host gets no request before its reset.
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
        raise TransientError(f"{host} answered {response.status_code} ({words_of(response)})")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None for anything else."""
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
    """Sends a request until it is answered, within both budgets.

    `request` raises RateLimited, TransientError, AddressRefused or httpx2.TransportError for what may be
    retried; the last of them is raised once its budget is spent. A wait that would exceed the budget is not
    begun. Raises Interrupted.
    """
    errors, limits, waited_s = 0, 0, 0.0
    while True:
        pause(0)
        waited_s += _wait_for(host, policy.rate_limit_wait_s - waited_s)
        try:
            with limited(policy.time_limit):
                return request()
        except RateLimited as error:
            wait_s = error.wait_s
            if wait_s is None:
                wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**limits)
            limits += 1
            if waited_s + wait_s > policy.rate_limit_wait_s:
                raise
            _hold(host, wait_s, error.limit)
        except (TransientError, AddressRefused, httpx2.TransportError):  # a wrong redirect may pass, too
            errors += 1
            if errors > policy.max_retries:
                raise
            pause(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (errors - 1)) / 2)


def _hold(host: str, wait_s: float, limit: str) -> None:
    """Keeps requests from a host for that long."""
    with _lock:
        until = time.monotonic() + wait_s
        if until > _limited_until.get(host, (0.0, ""))[0]:
            _limited_until[host] = (until, limit)


def _wait_for(host: str, budget_s: float) -> float:
    """Waits until a host accepts requests again; returns the seconds waited.

    Raises RateLimited where that takes longer than `budget_s`.
    """
    with _lock:
        until, limit = _limited_until.get(host, (0.0, ""))
    wait_s = until - time.monotonic()
    if wait_s <= 0:
        return 0.0
    if wait_s > budget_s:
        raise RateLimited(host, wait_s, limit)
    waiting = RateLimitWait(host, datetime.fromtimestamp(time.time() + wait_s, UTC), limit)
    for listener in list(_listeners):
        listener(waiting)
    pause(wait_s)
    return wait_s


def pause(seconds: float) -> None:
    """Sleeps. Raises Interrupted as soon as `interrupt_waits` is in effect, KeyboardInterrupt within a slice.

    It sleeps in slices, because the main thread acts on a signal that arrives while it begins to wait only
    when that wait ends.
    """
    until = time.monotonic() + seconds
    while not _interrupting.wait(max(0.0, min(WAIT_SLICE_S, until - time.monotonic()))):
        if time.monotonic() >= until:
            return
    raise Interrupted


@contextmanager
def interrupt_waits() -> Iterator[None]:
    """While the block runs, every thread that waits for a host, or is about to request it, is interrupted.

    A request that was already sent ends at its next byte, or after `TIMEOUT_S` without one.
    """
    global _interrupters
    with _lock:
        _interrupters += 1
        _interrupting.set()
    try:
        yield
    finally:
        with _lock:
            _interrupters -= 1
            if not _interrupters:
                _interrupting.clear()


@contextmanager
def on_rate_limit(listener: Callable[[RateLimitWait], None]) -> Iterator[None]:
    """Calls `listener` before every wait for a host's rate limit while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def read_at_most(response: httpx2.Response, limit: int) -> bytes:
    """The first `limit` bytes of a streamed response's body, decompressed; no more is read."""
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) >= limit:
            break
    return bytes(content[:limit])


def content_extent(response: httpx2.Response) -> tuple[int, int | None]:
    """The offset in its file at which a response begins, and the size of the whole file; None if not stated.

    Raises TransientError for a partial response that does not state its offset.
    """
    if response.status_code == 206:
        stated = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)", stated)
        if match is None:
            raise TransientError(f"{response.url.host} does not state which part of the file it sends")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch(r"\d{1,15}", length) else None


def complete_download(
    part: Path,
    size_bytes: int,
    where: str,
    request: Callable[[int], AbstractContextManager[httpx2.Response]],
    host: str,
    policy: RetryPolicy = POLICIES.file,
) -> None:
    """Completes a partial file of a known size, resuming after the bytes that it already holds.

    `request` returns a streamed response that begins at a byte offset, or at the first byte. Raises Skipped,
    and removes the file, before a byte beyond `size_bytes` is written; and whatever `request` raises.
    """
    with part.open("ab") as file:

        def restart() -> None:
            file.seek(0)
            file.truncate()

        def resume() -> None:
            if file.tell() > size_bytes:
                restart()
            if file.tell() == size_bytes:
                return
            with request(file.tell()) as response:
                if content_extent(response)[0] != file.tell():
                    restart()
                for chunk in response.iter_bytes():
                    if file.tell() + len(chunk) > size_bytes:
                        part.unlink(missing_ok=True)
                        raise Skipped(
                            f"{where} is larger than the {size_bytes:,} bytes that were listed.",
                            ReasonCode.INVALID_ENTRY,
                        )
                    file.write(chunk)
            if file.tell() < size_bytes:
                raise httpx2.ReadError(f"it ended after {file.tell():,} of {size_bytes:,} bytes")

        with_retries(resume, host, policy)
