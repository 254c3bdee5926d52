"""Pictures at the addresses of a list: a real server on loopback and the real client."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers.pictures import Answer, PictureServer

from scanner.errors import EntryError, Skipped, Unavailable
from scanner.hubs import pictures
from scanner.hubs.deadlines import TimeLimit
from scanner.hubs.http import Interrupted, RetryPolicy
from scanner.hubs.pictures import PictureDownloads

QUICK = RetryPolicy(rate_limit_wait_s=0.0, max_retries=1, time_limit=TimeLimit(deadline_s=5.0))


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with PictureServer() as running:
        yield running


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, and nothing remembered of a host for the tests that follow."""
    monkeypatch.setattr("scanner.hubs.http.FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("scanner.hubs.http._limited_until", {})


def test_a_picture_is_downloaded_whole(server: PictureServer) -> None:
    server.answers["/a.png"] = Answer(b"picture")
    server.answers["/moved"] = Answer(status=302, headers={"Location": "/a.png"})
    with PictureDownloads(allow_private=True) as download:
        assert download(f"{server.url}/a.png") == b"picture"
        assert download(f"{server.url}/moved") == b"picture"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "pictures.example"])
def test_an_address_of_a_private_network_is_never_requested(
    server: PictureServer, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    known = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, *a, **k: known("127.0.0.1" if name == host else name, *a, **k)
    )
    server.answers["/a.png"] = Answer(b"picture")
    with PictureDownloads(policy=QUICK) as download, pytest.raises(Skipped, match=r"private network"):
        download(f"http://{host}:{server.server_port}/a.png")
    assert not server.asked


@pytest.mark.parametrize(
    "address", ["http://[::1]:80/", "http://[::ffff:10.0.0.1]/", "http://169.254.169.254/x"]
)
def test_no_way_of_writing_a_private_address_passes(address: str) -> None:
    with PictureDownloads(policy=QUICK) as download, pytest.raises(Skipped, match="private network"):
        download(address)


def test_a_redirect_to_a_private_address_is_refused_before_it_is_requested(
    server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "is_public", lambda address: address == "127.0.0.1")
    inside = f"http://127.0.0.2:{server.server_port}/secret"
    server.answers["/a.png"] = Answer(status=302, headers={"Location": inside})
    with PictureDownloads(policy=QUICK) as download, pytest.raises(Skipped, match=r"127\.0\.0\.2"):
        download(f"{server.url}/a.png")
    assert server.asked == {"/a.png": 1}


def test_a_redirect_to_a_file_is_refused(server: PictureServer) -> None:
    server.answers["/a.png"] = Answer(status=302, headers={"Location": "file:///etc/passwd"})
    with PictureDownloads(allow_private=True, policy=QUICK) as download, pytest.raises(EntryError):
        download(f"{server.url}/a.png")


@pytest.mark.parametrize("claimed", [None, 10**12])
def test_a_picture_that_is_too_large_is_not_downloaded(server: PictureServer, claimed: int | None) -> None:
    server.answers["/a.png"] = Answer(bytes(2_000), claimed=claimed)
    with (
        PictureDownloads(allow_private=True, max_bytes=1_000, policy=QUICK) as download,
        pytest.raises(Skipped, match="more than 1,000 bytes"),
    ):
        download(f"{server.url}/a.png")
    assert server.asked["/a.png"] == 1


def test_what_is_gone_is_asked_for_once_and_what_fails_again(server: PictureServer) -> None:
    server.answers["/broken.png"] = Answer(b"oops", 500)
    with PictureDownloads(allow_private=True, policy=QUICK) as download:
        with pytest.raises(Skipped, match="answered 404"):
            download(f"{server.url}/gone.png")
        with pytest.raises(Unavailable, match="answered 500"):
            download(f"{server.url}/broken.png")
    assert server.asked == {"/gone.png": 1, "/broken.png": 2}


def test_a_download_that_breaks_off_is_no_picture(server: PictureServer) -> None:
    server.answers["/a.png"] = Answer(b"half", claimed=100)
    with (
        PictureDownloads(allow_private=True, policy=QUICK) as download,
        pytest.raises(Unavailable, match="broke off"),
    ):
        download(f"{server.url}/a.png")


@pytest.mark.parametrize("url", ["http://", "http://[", "https://exa mple/", "http://a:99999/x"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with PictureDownloads(policy=QUICK) as download, pytest.raises(EntryError, match="was not downloaded"):
        download(url)


def test_closing_ends_downloads_that_wait_for_a_host(server: PictureServer) -> None:
    server.answers["/a.png"] = Answer(b"", 429, {"Retry-After": "100"})
    with ThreadPoolExecutor(1) as threads:
        with PictureDownloads(allow_private=True) as download:
            running = threads.submit(download, f"{server.url}/a.png")
            while not server.asked:
                time.sleep(0.01)
        began = time.monotonic()
        with pytest.raises(Interrupted):
            running.result()
        assert time.monotonic() - began < 5
