"""Why a request failed, in words for people: what the hub or the network said, and what can be done about it.

The messages of HTTP clients and of the operating system ("[Errno 111] Connection refused", "403 Forbidden:
None") name neither the host nor a remedy. Nothing here raises.
"""

from __future__ import annotations

import contextlib
import errno
import html
import json
import re
import socket
import ssl

import httpx2

from finextract.reasons import ReasonCode
from scanner.hubs.addresses import AddressRefused
from scanner.hubs.deadlines import TooSlow
from scanner.text import first_line, printable

MAX_ERROR_BYTES = 10_000  # of the body of an error response
MAX_WORDS_CHARS = 200


class RateLimited(httpx2.HTTPError):
    """A server limits requests: to be retried after `wait_s`, or with a growing wait where that is None."""

    def __init__(self, host: str, wait_s: float | None, limit: str) -> None:
        super().__init__(f"{host} limits requests{f' ({limit})' if limit else ''}")
        self.host, self.wait_s, self.limit = host, wait_s, limit


class TransientError(httpx2.HTTPError):
    """A server failed in a way that may pass: retried a few times."""


class Refused(httpx2.HTTPError):
    """A server answered with a status that a retry does not change, such as 403."""

    def __init__(self, host: str, status: int, words: str) -> None:
        super().__init__(f"{host} answered {status} ({words})")
        self.status = status


def words_of(response: httpx2.Response) -> str:
    """What an error response says about its reason; the name of its status where it says nothing.

    Reads a JSON object's `error` and `message`, an object store's XML, the title of a web page, or the
    header X-Error-Message, up to `MAX_ERROR_BYTES`.
    """
    return ", ".join(stated_by(response)) or response.reason_phrase or "without a reason"


def stated_by(response: httpx2.Response) -> list[str]:
    """The texts with which an error response explains itself, each on one line."""
    content = bytearray()
    try:
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) >= MAX_ERROR_BYTES:
                break
    except (httpx2.HTTPError, httpx2.StreamError):
        pass  # what came before it broke off is read
    stated = _stated(bytes(content[:MAX_ERROR_BYTES]).decode(errors="replace"))
    stated = [response.headers.get("X-Error-Message"), *stated]
    lines = [
        printable(" ".join(s.split()), MAX_WORDS_CHARS).rstrip(". ") for s in stated if isinstance(s, str)
    ]
    return list(dict.fromkeys(line for line in lines if line))[:3]


def _stated(body: str) -> list[object]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        found = re.search(r"<title[^>]*>([^<]*)</title>|<Message>([^<]*)</Message>", body, re.IGNORECASE)
        return [html.unescape(found[1] or found[2] or "")] if found else []
    if not isinstance(value, dict):
        return []
    error = value.get("error")
    errors = error if isinstance(error, list) else [error]
    inner = [e.get("message") or e.get("name") if isinstance(e, dict) else e for e in errors[:3]]
    until = value.get("deadline")  # of early access on Civitai
    until = f"until {until[:10]}" if isinstance(until, str) and re.match(r"\d{4}-\d\d-\d\d", until) else None
    return [*inner, value.get("message"), until]


def what_happened(error: BaseException, host: str) -> str:
    """A failed request in one clause, without a full stop. `host` is the hub that was requested."""
    if isinstance(error, httpx2.RequestError):
        with contextlib.suppress(RuntimeError):  # an error that belongs to no request
            host = error.request.url.host or host
    if isinstance(error, TooSlow):
        return f"{host} sends too slowly: {first_line(error)}"
    if isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return f"{host} did not accept a connection in time"
    if isinstance(error, httpx2.TimeoutException):
        return f"{host} stopped answering"
    if isinstance(error, httpx2.ConnectError):
        return _connection(error, host)
    if isinstance(error, httpx2.ProxyError):
        return f"the proxy did not forward the request to {host} ({_detail(error)})"
    if isinstance(error, httpx2.TransportError):
        return f"the connection to {host} broke off ({_detail(error)})"
    if isinstance(error, httpx2.TooManyRedirects):
        return f"{host} redirects again and again"
    if isinstance(error, httpx2.DecodingError):
        return f"{host} sent a response that cannot be decompressed"
    if isinstance(error, OSError) and not isinstance(error, httpx2.HTTPError):
        return f"a file could not be written on this machine ({first_line(error)})"
    if isinstance(error, httpx2.InvalidURL | ValueError | RecursionError):
        return f"{host} sent a response that cannot be read ({first_line(error)})"
    return first_line(error, 2 * MAX_WORDS_CHARS)


def _connection(error: httpx2.ConnectError, host: str) -> str:
    """Why no connection was made, from the error below it."""
    cause = _system_error(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate of {host} was not accepted ({printable(cause.verify_message, 100)})"
    if isinstance(cause, ssl.SSLError):
        return f"no secure connection to {host} could be made ({_detail(error)})"
    if isinstance(cause, socket.gaierror):
        return f"the name {host} could not be resolved"
    return f"no connection to {host} could be made ({_detail(error)})"


def _detail(error: BaseException) -> str:
    """What broke a connection, without the numbers and the sources of the libraries below."""
    cause = _system_error(error)
    if isinstance(cause, ssl.SSLError):
        return printable((cause.reason or "TLS").replace("_", " ").lower(), 100)
    if cause is not None:
        return first_line(cause)
    incomplete = re.search(r"received (\d+) bytes, expected (\d+)", str(error))
    return f"after {incomplete[1]} of {incomplete[2]} bytes" if incomplete else first_line(error)


def _system_error(error: BaseException) -> OSError | None:
    """The error of the operating system or of TLS below an error of the client."""
    cause = error.__cause__ or error.__context__
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    return cause if isinstance(cause, OSError) else None


def what_to_do(error: BaseException, endpoint_variable: str, token_variable: str) -> str:
    """What a person can do about a failed request, as a sentence."""
    if isinstance(error, RateLimited):
        return f"Wait, set {token_variable} if it is not set, or use fewer --workers."
    if isinstance(error, AddressRefused):
        return (
            f"Check the network, or {endpoint_variable} if it is set: some networks redirect every request "
            "until one has signed in."
        )
    if isinstance(error, Refused) and error.status == 401:
        return f"Set {token_variable} to a valid token, or unset it."
    if isinstance(error, Refused) and error.status == 403:
        return (
            f"Open its page in a browser: it may ask for a login (then set {token_variable}), or refuse this "
            "network."
        )
    if isinstance(error, TooSlow):
        return "Try again when the network or the hub is faster."
    if isinstance(error, OSError) and not isinstance(error, httpx2.HTTPError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return "Make room on the disk of the cache." if full else "Check the folder of the cache."
    return f"Check the network, or {endpoint_variable} if it is set."


def reason_code_of(error: BaseException) -> ReasonCode:
    """The reason code of a request that failed for good, or of a file that could not be written."""
    if isinstance(error, RateLimited):
        return ReasonCode.RATE_LIMITED
    if isinstance(error, Refused) and error.status == 401:
        return ReasonCode.LOGIN_REQUIRED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ReasonCode.NO_SPACE
    if isinstance(error, OSError) and not isinstance(error, httpx2.HTTPError):
        return ReasonCode.UNREADABLE
    return ReasonCode.HUB_UNREACHABLE
