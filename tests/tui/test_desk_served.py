"""The desk in a browser, on loopback: the address that was printed is the only way in."""

from __future__ import annotations

import builtins
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner
from filled_store import Crawl

from tui.app import main

pytest.importorskip("textual_serve")


@pytest.fixture
def address(filled: Crawl) -> Iterator[str]:
    """The address that a served desk prints."""
    program = "from tui.app import main; main()"
    words = ["--store", filled.store.uri, "--serve", "--port", str(free_port())]
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def status_of(url: str) -> int:
    try:
        return int(urllib.request.urlopen(url).status)
    except urllib.error.HTTPError as error:
        return error.code


async def test_without_the_token_nothing_is_served_and_with_it_the_page_and_the_desk(address: str) -> None:
    found = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/([\w-]{32})/", address)
    assert found is not None, address
    root, token = found.groups()
    wrong = token[::-1]
    for path in ("", "/", "/ws", "/static/js/textual.js", f"/{wrong}/", f"/{token[:-1]}/", f"//{token}/"):
        assert status_of(root + path) == 403, path
    page = urllib.request.urlopen(address)
    assert page.status == 200
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'")
    websocket = re.search(r'ws://[^"]+', page.read().decode())
    assert websocket is not None
    assert websocket[0] == f"ws://{root.removeprefix('http://')}/{token}/ws"
    assert status_of(f"{address}static/js/textual.js") == 200
    async with aiohttp.ClientSession() as session:
        for url in (f"{root}/ws", f"{root}/{wrong}/ws"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(url)
            assert refused.value.status == 403
        async with session.ws_connect(f"{websocket[0]}?width=100&height=30") as desk:
            shown = b""
            while b"ben/strong-shoe" not in shown:
                message = await desk.receive(timeout=60)
                assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), shown
                shown += message.data if isinstance(message.data, bytes) else message.data.encode()


def test_without_the_extra_a_message_says_what_to_install(
    filled: Crawl, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("textual_serve"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    ended = CliRunner().invoke(main, ["--store", filled.store.uri, "--serve"])
    assert ended.exit_code == 2
    assert ended.stderr == (
        "finextract-tui: error: --serve needs the package textual-serve, which is not installed.\n"
        "Install it with pip install 'finextract-scanner[serve]'.\n"
    )


def test_a_port_that_is_taken_is_an_error_of_two_lines(filled: Crawl) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = CliRunner().invoke(main, ["--store", filled.store.uri, "--serve", "--port", port])
    assert ended.exit_code == 2
    assert f"the port {port} of 127.0.0.1 cannot be used" in ended.stderr
    assert "--port" in ended.stderr
