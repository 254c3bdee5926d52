"""Why a request failed, as it is recorded: what the hub or the network said, and what a person can do.

The real clients send real requests to servers on loopback, each of which fails in its own way.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from servers.hub import Server

from finextract.reasons import ReasonCode
from scanner.errors import EntryError, Skipped, SourceError, Unavailable
from scanner.hubs import addresses
from scanner.hubs.civitai.client import CivitaiClient
from scanner.hubs.http import Policies, RetryPolicy
from scanner.hubs.huggingface.client import HubClient

ONCE = RetryPolicy(rate_limit_wait_s=0.05, max_retries=0)
POLICIES = Policies(ONCE, ONCE, ONCE)
SHA = "0" * 40
# What a library says to its programmer.
TECHNICAL = re.compile(
    r"Errno|None\b|Traceback|httpx|Client error|Client Error|developer\.mozilla|\[SSL|_ssl|Request ID"
)


class Answering(BaseHTTPRequestHandler):
    """Gives one answer, as bytes on the wire, to every request."""

    answer: bytes

    def handle(self) -> None:
        self.rfile.readline()
        if self.answer == b"RESET":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        host, port = self.server.server_address[:2]
        self.wfile.write(self.answer.replace(b"HOST", f"{host}:{port}".encode()))


def answer(status: str, body: bytes | str = b"", *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else body.encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


def said(**value: object) -> tuple[str, str]:
    return json.dumps(value), "Content-Type: application/json"


@pytest.fixture
def server() -> Iterator[Callable[[bytes], str]]:
    started: list[Server] = []

    def start(content: bytes) -> str:
        server = Server(("127.0.0.1", 0), type("Bound", (Answering,), {"answer": content}))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


PORTAL = "<html><head><title>Sign in &amp; surf</title></head></html>"
REFUSED = [
    (answer("403 Forbidden"), "127.0.0.1 answered 403 (Forbidden). Open its page in a browser"),
    (answer("403 Forbidden", PORTAL), "127.0.0.1 answered 403 (Sign in & surf). Open its page"),
    (answer("401 Unauthorized", *said(error="Invalid credentials in Authorization header"),
            "X-Error-Message: Invalid credentials in Authorization header"),
     "answered 401 (Invalid credentials in Authorization header). Set TOKEN to a valid token, or unset it."),
    (answer("418 I'm a teapot", *said(error=["short", {"message": "and stout"}])),
     "127.0.0.1 answered 418 (short, and stout). Check the network, or ENDPOINT if it is set."),
    (answer("400 Bad Request", *said(message="x\n\x1b[31m" * 99)), "answered 400 (x [31m"),
    (answer("500 Internal Server Error", *said(error="out of order")),
     "127.0.0.1 answered 500 (out of order). Check the network, or ENDPOINT if it is set."),
    (answer("503 Service Unavailable"), "127.0.0.1 answered 503 (Service Unavailable). Check"),
    (answer("599 "), "127.0.0.1 answered 599 (without a reason). Check"),
    (answer("429 Too Many Requests", b"", "Retry-After: 900"),
     "127.0.0.1 limits requests. Wait, set TOKEN if it is not set, or use fewer --workers."),
    (answer("302 Found", b"", "Location: http://portal.example/?secret=1"),
     "an address without https is not requested: http://portal.example/. Check the network, or ENDPOINT if "
     "it is set: some networks redirect every request until one has signed in."),
    (answer("302 Found", b"", "Location: http://HOST/again"), "127.0.0.1 redirects again and again. Check"),
    (b"", "the connection to 127.0.0.1 broke off (Server disconnected without sending a response). Check"),
    (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "the connection to 127.0.0.1 broke off (illegal status line"),
    (answer("200 OK", b"not gzip", "Content-Encoding: gzip"),
     "127.0.0.1 sent a response that cannot be decompressed. Check"),
    (answer("200 OK", b"short").replace(b": 5", b": 5000"),
     "the connection to 127.0.0.1 broke off (after 5 of 5000 bytes). Check"),
    (b"RESET", "the connection to 127.0.0.1 broke off (Connection reset by peer). Check"),
]  # fmt: skip
HUBS = {
    "hf": (
        lambda url: HubClient(url, POLICIES).info("o/a", SHA),
        "HF",
        lambda url: list(HubClient(url, POLICIES).listing(("lora",), ("siblings",), 9, "createdAt")),
    ),
    "civitai": (
        lambda url: CivitaiClient(url, POLICIES).version(1, "o/a"),
        "CIVITAI",
        lambda url: CivitaiClient(url, POLICIES).page([]),
    ),
}


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.hubs.http._limited_until", {})
    monkeypatch.setattr(addresses, "_trusted", set())


@pytest.mark.parametrize("hub", HUBS)
@pytest.mark.parametrize(("content", "words"), REFUSED, ids=[words[:40] for _, words in REFUSED])
def test_an_entry_s_reason_says_what_the_hub_said_and_what_can_be_done(
    server: Callable[[bytes], str], hub: str, content: bytes, words: str
) -> None:
    url = server(content)
    request, prefix, _ = HUBS[hub]
    with pytest.raises(Unavailable) as failed:
        request(url)
    reason = str(failed.value)
    words = words.replace("TOKEN", f"{prefix}_TOKEN").replace("ENDPOINT", f"{prefix}_ENDPOINT")
    assert reason.startswith(f"o/a could not be fetched from {url.removeprefix('http://')}: ")
    assert words in reason
    assert reason.endswith(". The next crawl tries again.")
    check(reason)


def check(reason: str) -> None:
    assert not TECHNICAL.search(reason), reason
    assert reason.replace("\n", "").isprintable()
    assert len(reason) < 700
    assert ".. " not in reason


@pytest.mark.parametrize("hub", HUBS)
@pytest.mark.parametrize(("content", "words"), REFUSED, ids=[words[:40] for _, words in REFUSED])
def test_a_listing_s_error_says_the_same(
    server: Callable[[bytes], str], hub: str, content: bytes, words: str
) -> None:
    url, prefix = server(content), HUBS[hub][1]
    words = words.replace("TOKEN", f"{prefix}_TOKEN").replace("ENDPOINT", f"{prefix}_ENDPOINT")
    with pytest.raises(SourceError) as failed:
        HUBS[hub][2](url)
    message = str(failed.value)
    assert message.startswith(f"{url} could not be listed: ")
    assert words in message.replace(".\n", ". ")
    assert message.endswith(" Then run the same command again.")
    check(message)


def connection(kind: str) -> str:
    if kind == "a port that nobody listens on":
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{unused.getsockname()[1]}"
    return "http://no-such-host.invalid"


@pytest.mark.parametrize("hub", HUBS)
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("a port that nobody listens on", "no connection to 127.0.0.1 could be made (Connection refused)"),
        ("a name", "the name no-such-host.invalid could not be resolved"),
    ],
)
def test_a_connection_that_cannot_be_made_names_its_host_and_its_cause(
    hub: str, kind: str, words: str
) -> None:
    request, prefix, _ = HUBS[hub]
    with pytest.raises(Unavailable) as failed:
        request(connection(kind))
    assert f"{words}. Check the network, or {prefix}_ENDPOINT if it is set. The next" in str(failed.value)
    assert failed.value.reason_code is ReasonCode.HUB_UNREACHABLE
    check(str(failed.value))


@pytest.mark.parametrize("hub", HUBS)
def test_a_hub_without_a_secure_connection_is_named(server: Callable[[bytes], str], hub: str) -> None:
    request = HUBS[hub][0]
    with pytest.raises(Unavailable, match=r"no secure connection to 127\.0\.0\.1 could be made") as failed:
        request(server(answer("200 OK")).replace("http:", "https:"))
    check(str(failed.value))


@pytest.mark.parametrize(
    ("path", "words", "code"),
    [
        ("/dev/full", "(No space left on device). Make room on the disk of the cache.", ReasonCode.NO_SPACE),
        ("folder", "(Is a directory). Check the folder of the cache.", ReasonCode.UNREADABLE),
    ],
)
def test_a_file_that_cannot_be_written_is_not_called_a_fault_of_the_hub(
    server: Callable[[bytes], str], tmp_path: Path, path: str, words: str, code: ReasonCode
) -> None:
    (tmp_path / "folder").mkdir()
    url = server(answer("200 OK", b"x" * 100_000))
    with pytest.raises(Unavailable) as failed:
        HubClient(url, POLICIES).download("o/a", SHA, "a.safetensors", tmp_path / path, 100_000, None)
    assert f"a file could not be written on this machine {words}" in str(failed.value)
    assert failed.value.reason_code is code
    check(str(failed.value))


@pytest.mark.parametrize(
    ("content", "words", "code"),
    [
        (answer("404 Not Found", *said(error="Repository not found"), "X-Error-Code: RepoNotFound"),
         "or no longer holds a listed file (Repository not found). If it is private, set HF_TOKEN to a token",
         ReasonCode.REMOVED),
        (answer("404 Not Found", b"", "X-Error-Code: EntryNotFound"), "a listed file (Not Found)",
         ReasonCode.REMOVED),
        (answer("403 Forbidden", b"", "X-Error-Message: Access to this resource is disabled."),
         "(Access to this resource is disabled). If", ReasonCode.REMOVED),
        (answer("403 Forbidden", *said(error="restricted"), "X-Error-Code: GatedRepo"),
         "o/a is gated: accept its terms at http", ReasonCode.GATED),
    ],
)  # fmt: skip
def test_what_huggingface_withholds_is_skipped_with_its_own_words(
    server: Callable[[bytes], str], content: bytes, words: str, code: ReasonCode
) -> None:
    with pytest.raises(Skipped) as failed:
        HubClient(server(content), POLICIES).info("o/a", SHA)
    assert words in str(failed.value)
    assert failed.value.reason_code is code
    check(str(failed.value))


@pytest.mark.parametrize(
    ("content", "words", "error"),
    [
        (answer("403 Forbidden", *said(error="Not for you", message="ask the author")),
         "refuses it (Not for you, ask the author). See its page for what it asks for.", Skipped),
        (answer("403 Forbidden", *said(error="Early Access", deadline="2027-01-02T00:00:00Z")),
         "refuses it (Early Access, until 2027-01-02). See", Skipped),
        (answer("403 Forbidden"), "answered 403 (Forbidden). Open its page in a browser", Unavailable),
        (answer("410 Gone"), "was archived by its author", Skipped),
        (answer("451 Unavailable For Legal Reasons", PORTAL), "answered 451 (Sign in & surf)", Unavailable),
    ],
)  # fmt: skip
def test_what_civitai_says_of_a_download_is_its_reason(
    server: Callable[[bytes], str], content: bytes, words: str, error: type[EntryError]
) -> None:
    with pytest.raises(error) as failed:
        CivitaiClient(server(content), POLICIES).read_start(1, {}, 9, "o/a")
    assert words in str(failed.value)
    check(str(failed.value))
