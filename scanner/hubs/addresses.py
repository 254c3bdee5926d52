"""Which addresses may be requested: an allow-list, and addresses made safe to show.

Hubs redirect, and their metadata hold untrusted addresses. Every request, each redirect included,
passes `guard` before it is sent, and `check_peer` once its connection is open.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx2

from finextract.reasons import ReasonCode
from scanner.errors import ConfigError, Unavailable
from scanner.text import printable

# The hubs and the object stores that they are known to redirect downloads to, each with its subdomains.
PUBLIC_HOSTS = (
    "huggingface.co", "hf.co", "civitai.com", "civitai.red", "r2.cloudflarestorage.com", "backblazeb2.com",
)  # fmt: skip
MAX_SHOWN_CHARS = 200

_trusted: set[tuple[str, str, int | None]] = set()  # (scheme, host, port) of endpoints that a user named


class AddressRefused(Unavailable):
    """An address outside the allow-list: a redirect to another host, or one without https.

    It says nothing about an entry: a captive portal redirects every request, and a hub may move its files to
    a new host.
    """

    def __init__(self, message: str, reason_code: ReasonCode = ReasonCode.HUB_UNREACHABLE) -> None:
        super().__init__(message, reason_code)


def trust(endpoint: str) -> str:
    """Allows a hub that the user named, whatever its scheme and address; returns it without a final slash.

    A public hub remains under the rules for public hosts. Raises ConfigError where the text is not an
    address.
    """
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in ("http", "https"):
        raise ConfigError(f"{endpoint} is not an address of a hub. Write it as https://HOST.")
    try:
        check_address(endpoint)
    except AddressRefused:
        _trusted.add((parts.scheme, host, port))
    return endpoint.rstrip("/")


def guard(request: httpx2.Request) -> None:
    """Raises AddressRefused for an address that is not allowed. A request hook: it sees redirects too."""
    check_address(str(request.url))


def check_address(url: str) -> None:
    """Allows https to a known hub or its object stores, and any endpoint that the user named.

    Raises AddressRefused for any other address.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").lower()
    if (parts.scheme, host, parts.port) in _trusted:
        return
    if parts.scheme != "https":
        raise AddressRefused(f"an address without https is not requested: {redacted(url)}")
    if not any(host == known or host.endswith(f".{known}") for known in PUBLIC_HOSTS):
        raise AddressRefused(f"an address on another host is not requested: {redacted(url)}")


def check_peer(response: httpx2.Response) -> None:
    """Raises AddressRefused where a public name resolved to a private or link-local address. A response hook.

    With a proxy the peer is the proxy itself, which then has to keep requests out of its own network.
    """
    parts = urlsplit(str(response.request.url))
    if (parts.scheme, parts.hostname, parts.port) in _trusted or parts.scheme in getproxies():
        return
    stream = response.extensions.get("network_stream")
    address = stream.get_extra_info("server_addr") if stream is not None else None
    if address and not is_public(str(address[0])):
        raise AddressRefused(
            f"{parts.hostname} resolves to the private address {address[0]}, which is not requested"
        )


def is_public(address: str) -> bool:
    """Whether an IP address is a public one."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_global
    except ValueError:
        return False


def redacted(url: str) -> str:
    """An address on one line, without its query, which may hold a signature."""
    parts = urlsplit(url)
    return printable(f"{parts.scheme}://{parts.netloc}{parts.path}", MAX_SHOWN_CHARS)
