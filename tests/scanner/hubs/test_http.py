"""Which addresses are requested, and how long the client waits and retries: over real sockets."""

from __future__ import annotations

import email.utils
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from scanner.errors import ConfigError
from scanner.hubs import addresses, http
from scanner.hubs.addresses import AddressRefused, check_address, is_public
from scanner.hubs.http import (
    Interrupted,
    RateLimited,
    RetryPolicy,
    TransientError,
    retry_after,
    with_retries,
)

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No endpoint is trusted, no host limits requests, and waits before retries are short."""
    monkeypatch.setattr(addresses, "_trusted", set())
    monkeypatch.setattr(http, "_limited_until", {})
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.01)


Serve = Callable[..., str]


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Serve:
    """Starts a server that gives these answers, one after another, then the last again; its address."""

    def start(*answers: Answer, trusted: bool = True) -> str:
        left = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append((self.path, dict(self.headers)))
                status, headers, body = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        request.addfinalizer(server.server_close)
        request.addfinalizer(server.shutdown)
        url = f"http://127.0.0.1:{server.server_address[1]}"
        return addresses.trust(url) if trusted else url

    seen: list[tuple[str, dict[str, str]]] = []
    start.seen = seen  # type: ignore[attr-defined]
    return start


def get(url: str, headers: dict[str, str] | None = None) -> httpx2.Response:
    with http.new_session() as session:
        response = session.get(url, headers=headers)
        http.check_status(response)
        return response


@pytest.mark.parametrize(
    "url",
    [
        "http://huggingface.co/api/models",
        "ftp://huggingface.co/",
        "https://huggingface.co.evil.example/",
        "https://evilhuggingface.co/",
        "https://huggingface.co@evil.example/",
        "https://127.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://localhost/",
        "http://0x7f000001/",
        "https:///nowhere",
        "file:///etc/passwd",
        "//huggingface.co/",
    ],
)
def test_an_address_outside_the_allow_list_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_address(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/api/models",
        "https://cdn-lfs-us-1.hf.co/repos/a",
        "https://civitai.com/api/v1/models",
        "https://civitai-delivery-worker-prod.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com/model",
    ],
)
def test_the_hubs_and_their_object_stores_are_allowed(url: str) -> None:
    check_address(url)


def test_only_the_named_port_of_a_named_host_is_trusted() -> None:
    addresses.trust("http://127.0.0.1:8001/")
    check_address("http://127.0.0.1:8001/x")
    for url in ("http://127.0.0.1:8002/x", "http://127.0.0.1/x", "http://localhost:8001/x"):
        with pytest.raises(AddressRefused):
            check_address(url)


def test_a_public_hub_that_the_user_named_stays_under_the_rules_for_public_hosts() -> None:
    addresses.trust("https://huggingface.co/")
    check_address("https://huggingface.co/api/models")
    with pytest.raises(AddressRefused, match="without https"):
        check_address("http://huggingface.co/api/models")
    addresses.trust("https://hub.example")
    with pytest.raises(AddressRefused, match="without https"):
        check_address("http://hub.example/api/models")


@pytest.mark.parametrize(
    "text", ["huggingface.co", "", "ftp://host", "https://", "http://[::1", "http://h:x"]
)
def test_a_text_that_is_no_address_cannot_be_trusted(text: str) -> None:
    with pytest.raises(ConfigError, match="https://HOST"):
        addresses.trust(text)


@pytest.mark.parametrize(
    ("address", "public"),
    [("93.184.216.34", True), ("2606:2800:220:1::1", True), ("10.0.0.1", False), ("192.168.1.1", False),
     ("169.254.169.254", False), ("127.0.0.1", False), ("::1", False), ("fe80::1%eth0", False),
     ("fc00::1", False), ("::ffff:10.0.0.1", False), ("0.0.0.0", False), ("nonsense", False)],
)  # fmt: skip
def test_private_and_link_local_addresses_are_not_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_redirect_to_a_host_outside_the_allow_list_is_not_followed(serve: Serve) -> None:
    elsewhere = serve((200, {}, b"secret"), trusted=False)
    hub = serve((302, {"Location": f"{elsewhere}/taken?token=1"}, b""))
    with pytest.raises(AddressRefused) as refused:
        get(f"{hub}/file")
    assert "token" not in str(refused.value)
    assert [path for path, _ in serve.seen] == ["/file"]  # type: ignore[attr-defined]


def test_a_token_is_not_sent_on_to_another_host(serve: Serve) -> None:
    store = serve((200, {}, b"weights"))
    hub = serve((307, {"Location": f"{store}/signed"}, b""))
    assert get(f"{hub}/file", {"Authorization": "Bearer secret"}).content == b"weights"
    (first, second) = (headers for _, headers in serve.seen)  # type: ignore[attr-defined]
    assert first["Authorization"] == "Bearer secret"
    assert "Authorization" not in second
    assert second["User-Agent"].startswith("finextract-scanner/")


def test_every_form_of_retry_after_is_read() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=40)
    assert retry_after({"Retry-After": "7"}) == 7
    assert 30 < (retry_after({"Retry-After": email.utils.format_datetime(soon, usegmt=True)}) or 0) <= 40
    assert retry_after({"Retry-After": email.utils.format_datetime(datetime(2020, 1, 1, tzinfo=UTC))}) == 0
    for nonsense in ("", "soon", "-1", "1e9", "٣"):
        assert retry_after({"Retry-After": nonsense}) is None


@pytest.mark.parametrize(
    "headers",
    [{}, {"Retry-After": "0"}, {"RateLimit": '"api";r=0;t=0', "RateLimit-Policy": '"w";"api";q=5;w=300'}],
)
def test_a_rate_limit_is_waited_for_and_then_the_answer_comes(serve: Serve, headers: dict[str, str]) -> None:
    hub = serve((429, headers, b""), (429, headers, b""), (200, {}, b"at last"))
    waits: list[http.RateLimitWait] = []
    with http.on_rate_limit(waits.append):
        assert with_retries(lambda: get(hub), "127.0.0.1").content == b"at last"
    assert all(w.host == "127.0.0.1" for w in waits)


def test_rate_limits_do_not_use_up_the_retries_for_transient_errors(serve: Serve) -> None:
    later, broken = (429, {"Retry-After": "0"}, b""), (502, {}, b"")
    hub = serve(later, broken, later, later, later, broken, later, (200, {}, b"fine"))
    assert with_retries(lambda: get(hub), "127.0.0.1", RetryPolicy(max_retries=2)).content == b"fine"


def test_a_transient_error_is_retried_a_few_times_only(serve: Serve) -> None:
    hub = serve((500, {}, b""))
    with pytest.raises(TransientError, match="answered 500"):
        with_retries(lambda: get(hub), "127.0.0.1", RetryPolicy(max_retries=3))
    assert len(serve.seen) == 4  # type: ignore[attr-defined]


def test_a_wait_that_is_too_long_is_not_begun(serve: Serve) -> None:
    hub = serve((429, {"Retry-After": "86400"}, b""))
    waits: list[http.RateLimitWait] = []
    with pytest.raises(RateLimited), http.on_rate_limit(waits.append):
        with_retries(lambda: get(hub), "127.0.0.1", RetryPolicy(rate_limit_wait_s=10))
    assert waits == []
    assert len(serve.seen) == 1  # type: ignore[attr-defined]


def test_a_wait_for_a_rate_limit_can_be_interrupted(serve: Serve) -> None:
    url = serve((429, {"Retry-After": "600"}, b""), (200, {}, b"late"))
    ends: list[BaseException] = []

    def ask() -> None:
        try:
            with_retries(lambda: get(url), "127.0.0.1")
        except BaseException as error:
            ends.append(error)

    waiting = threading.Event()
    with http.on_rate_limit(lambda _: waiting.set()):
        thread = threading.Thread(target=ask)
        thread.start()
        waiting.wait()
    with http.interrupt_waits():
        thread.join()
        with pytest.raises(Interrupted), http.interrupt_waits():  # nor is anything begun
            with_retries(lambda: get(url), "127.0.0.1")
    assert [type(error) for error in ends] == [Interrupted]
    http._limited_until.clear()
    assert get(url).content == b"late", "and afterwards all is as before"


def test_a_signal_that_arrives_as_a_wait_begins_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Python acts on up to a third of these signals at the end of the wait only."""
    monkeypatch.setattr(http, "WAIT_SLICE_S", 0.05)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    acted, missed = threading.Event(), list[int]()

    def interrupt(n: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        if not acted.wait(10):
            missed.append(n)
            with http.interrupt_waits():
                acted.wait()

    for n in range(60):
        acted.clear()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(int).result()  # its thread runs
            with pytest.raises((KeyboardInterrupt, Interrupted)):
                _interrupted(lambda n=n: pool.submit(interrupt, n))  # type: ignore[misc]
            acted.set()
        if missed:
            break
    assert missed == []


def _interrupted(begin: Callable[[], object]) -> None:
    begin()
    http.pause(600)


def test_a_limit_that_is_used_up_is_respected_before_the_next_request(serve: Serve) -> None:
    hub = serve((200, {"RateLimit": '"api";r=0;t=600'}, b"the last one"), (200, {}, b"the next"))
    waits: list[http.RateLimitWait] = []

    def begun(wait: http.RateLimitWait) -> None:
        waits.append(wait)
        raise Interrupted

    with http.on_rate_limit(begun):
        with_retries(lambda: get(hub), "127.0.0.1")
        with pytest.raises(Interrupted):
            with_retries(lambda: get(hub), "127.0.0.1")
    assert len(serve.seen) == 1  # type: ignore[attr-defined]
    (wait,) = waits
    assert "127.0.0.1 limits requests (api): waiting until" in str(wait)


def test_a_failed_connection_is_a_transient_error(serve: Serve) -> None:
    addresses.trust("http://127.0.0.1:9")
    with pytest.raises(httpx2.TransportError):
        with_retries(lambda: get("http://127.0.0.1:9"), "127.0.0.1", RetryPolicy(max_retries=1))


@pytest.fixture
def endless(serve: Serve) -> str:
    """A server of a compressed body that grows a thousandfold."""
    import gzip

    return serve((200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(50_000_000))))


def test_a_compressed_bomb_is_read_up_to_the_cap(endless: str) -> None:
    with http.new_session() as session, session.stream("GET", endless) as response:
        assert len(http.read_at_most(response, 1_000_000)) == 1_000_000
