"""How long one attempt at a request may take: a deadline for all of it, or a least rate for a file.

The time-outs of an HTTP client hold for a single read, which a server that sends one byte after another never
exceeds. Here each read from a connection, of headers as of bodies, is checked against the limit of the
attempt that it belongs to. Times are in seconds.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpcore2
import httpx2


class TooSlow(httpx2.ReadTimeout):
    """A response did not end before its deadline, or came in below the least rate."""


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """The limit of one attempt, from its first byte sent to its last byte received."""

    deadline_s: float | None = None  # for the whole response
    least_rate: float = 0.0  # bytes per second, as the mean of every `window_s`
    window_s: float = 60.0


SMALL = TimeLimit(deadline_s=60.0)  # an entry, a header, a configuration
PAGE = TimeLimit(deadline_s=180.0)  # a page of a listing, a few megabytes
FILE = TimeLimit(least_rate=20_000.0)  # weights, of any size


class _Attempt:
    """The bytes that one attempt has received, and since when."""

    def __init__(self, limit: TimeLimit) -> None:
        self._limit = limit
        self._began = self._window_began = time.monotonic()
        self._in_window = 0  # bytes

    def timeout(self, timeout: float | None) -> float | None:
        """The time-out of the next read. Raises TooSlow where no time is left."""
        if self._limit.deadline_s is None:
            return timeout
        left = self._began + self._limit.deadline_s - time.monotonic()
        if left <= 0:
            raise TooSlow(f"the response was not complete after {self._limit.deadline_s:g} s")
        return left if timeout is None else min(left, timeout)

    def receive(self, count: int) -> None:
        """Counts received bytes. Raises TooSlow where a window ends with fewer than the least rate allows."""
        self._in_window += count
        passed = time.monotonic() - self._window_began
        if self._limit.least_rate and passed >= self._limit.window_s:
            if self._in_window < self._limit.least_rate * passed:
                raise TooSlow(f"only {self._in_window:,} bytes came in {passed:.3g} s")
            self._window_began, self._in_window = time.monotonic(), 0


_attempt: ContextVar[_Attempt | None] = ContextVar("attempt", default=None)


@contextmanager
def limited(limit: TimeLimit) -> Iterator[None]:
    """One attempt: what this thread reads from a connection inside the block counts towards `limit`."""
    token = _attempt.set(_Attempt(limit))
    try:
        yield
    finally:
        _attempt.reset(token)


def limit_reads(
    client: httpx2.Client,
    before_read: Callable[[], object],
    on_connect: Callable[[str, str], object] | None = None,
) -> httpx2.Client:
    """Makes the connections of a client, through a proxy or not, respect `limited`; returns the client.

    `before_read` is called before each read, and may raise. So may `on_connect`, which gets the host and the
    address of each connection that goes through no proxy, before anything is sent. httpx2 has no public
    setting for what it reads with (httpcore2 has: `network_backend`), so two private attributes are used;
    tests/scanner/hubs/test_slow_servers.py fails where they change.
    """
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx2.HTTPTransport):
            direct = on_connect if transport is client._transport else None
            backend = transport._pool._network_backend
            transport._pool._network_backend = _Backend(backend, before_read, direct)
    return client


class _Backend(httpcore2.NetworkBackend):
    """Opens connections whose reads are checked."""

    def __init__(
        self, backend: httpcore2.NetworkBackend, before_read: Callable[[], object],
        on_connect: Callable[[str, str], object] | None,
    ) -> None:  # fmt: skip
        self._backend, self._before_read, self._on_connect = backend, before_read, on_connect

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:  # fmt: skip
        stream = self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        if self._on_connect is not None:
            try:
                self._on_connect(host, str(stream.get_extra_info("server_addr")[0]))
            except BaseException:
                stream.close()
                raise
        return _Stream(stream, self._before_read)

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _Stream(httpcore2.NetworkStream):
    """A connection whose reads are checked."""

    def __init__(self, stream: httpcore2.NetworkStream, before_read: Callable[[], object]) -> None:
        self._stream, self._before_read = stream, before_read

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._before_read()
        attempt = _attempt.get()
        if attempt is None:
            return self._stream.read(max_bytes, timeout)
        try:
            content = self._stream.read(max_bytes, attempt.timeout(timeout))
        except httpcore2.ReadTimeout:
            attempt.timeout(timeout)  # raises TooSlow where it was the deadline that ended the read
            raise
        attempt.receive(len(content))
        return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _Stream(stream, self._before_read)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
