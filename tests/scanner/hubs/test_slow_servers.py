"""A server that sends one byte after another: no single read times out, and no request waits for its end."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from servers.civitai import Civitai, TroubledSite, TroubledStore, lora_bytes, model
from servers.hub import Handler, Hub
from servers.misbehaviour import DRIPS, Misbehaving, Script

from scanner.errors import SourceError, Unavailable
from scanner.hubs import addresses, http
from scanner.hubs.civitai.client import CivitaiClient
from scanner.hubs.deadlines import TimeLimit
from scanner.hubs.http import Policies, RetryPolicy
from scanner.hubs.huggingface.client import HubClient

WEIGHTS = "pytorch_lora_weights.safetensors"
# As the defaults, with seconds that a test can wait.
SMALL = RetryPolicy(max_retries=1, time_limit=TimeLimit(deadline_s=0.3))
FILE = RetryPolicy(max_retries=1, time_limit=TimeLimit(least_rate=20_000, window_s=0.2))
MET = Counter[str]()  # faults that the server of a test has begun
POLICIES = Policies(page=SMALL, small=SMALL, file=FILE)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.hubs.http.FIRST_WAIT_S", 0.01)


def hub(folder: Path, faults: list[str | None], part: str = "", content: bytes = b"") -> Hub:
    folder.mkdir()
    (folder / "README.md").write_text("---\ntags: [lora, text-to-image]\n---\n" + "words " * 500)
    (folder / WEIGHTS).write_bytes(content or lora_bytes(1))
    MET.clear()
    plan: dict[str, Any] = {"plan": Script(faults, part), "met": MET}
    return Hub({"o/a": folder}, handler=type("Dripping", (Misbehaving, Handler), plan))


@pytest.mark.parametrize("drip", DRIPS)
def test_a_listing_page_of_huggingface_that_drips_ends_at_its_deadline(tmp_path: Path, drip: str) -> None:
    with hub(tmp_path / "a", [drip] * 9, "/api/models") as running:
        client = HubClient(running.url, POLICIES)
        with pytest.raises(SourceError, match=r"sends too slowly: .* not complete after 0\.3 s"):
            list(client.listing(("lora",), ("siblings", "cardData"), 10, "createdAt"))
        assert len(running.requests) == (2 if drip == "drip-body" else 0), "tried as often as the policy says"


@pytest.mark.parametrize("drip", DRIPS)
def test_a_header_of_a_file_that_drips_ends_at_its_deadline(tmp_path: Path, drip: str) -> None:
    with hub(tmp_path / "a", [drip] * 9, "/resolve/") as running:
        client, sha = HubClient(running.url, POLICIES), running.repositories["o/a"].sha
        with pytest.raises(Unavailable, match=r"o/a could not be fetched .*sends too slowly.* faster"):
            client.read_start("o/a", sha, "README.md", 10_000)


@pytest.mark.parametrize("drip", DRIPS)
def test_a_page_and_an_entry_of_civitai_that_drip_end_at_their_deadline(drip: str) -> None:
    handler = type("Dripping", (TroubledSite,), {"plan": Script([drip] * 9)})
    with Civitai([model(1, "cat")], handler=handler) as site:
        client = CivitaiClient(site.url, POLICIES)
        with pytest.raises(SourceError, match="sends too slowly"):
            client.page([("limit", 9)])
        with pytest.raises(Unavailable, match="sends too slowly"):
            client.version(10, "maker/cat")


def test_a_response_through_a_proxy_that_drips_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = type("Dripping", (TroubledSite,), {"plan": Script(["drip-headers"] * 9)})
    with Civitai([], handler=handler) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(SourceError, match="sends too slowly"):
            CivitaiClient("http://hub.example", POLICIES).page([])
        assert proxy.requests[0][2].startswith("http://hub.example/api/v1/models")


def test_an_interrupted_crawl_does_not_wait_for_a_response_that_drips(tmp_path: Path) -> None:
    ended: list[BaseException] = []
    with hub(tmp_path / "a", ["drip-headers"], "/resolve/") as running:
        client, sha = HubClient(running.url), running.repositories["o/a"].sha  # its deadline is a minute

        def request() -> None:
            try:
                client.read_start("o/a", sha, WEIGHTS, 10)
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=request)
        thread.start()
        while not MET["drip-headers"]:
            thread.join(0.01)
        with http.interrupt_waits():
            thread.join()
    assert [type(error) for error in ended] == [http.Interrupted]


def test_a_file_below_the_least_rate_is_requested_again_from_where_it_stopped(tmp_path: Path) -> None:
    content = bytes(range(256)) * 2_000
    digest = hashlib.sha256(content).hexdigest()
    with hub(tmp_path / "a", ["drip-body"], "/cdn/", content) as running:
        client, sha = HubClient(running.url, POLICIES), running.repositories["o/a"].sha
        client.download("o/a", sha, WEIGHTS, tmp_path / "part", len(content), digest)
        ranges = [r for _, path, r in running.requests if "/cdn/" in path]
    assert (tmp_path / "part").read_bytes() == content
    assert ranges[0] is None
    assert int(str(ranges[1]).removeprefix("bytes=").rstrip("-")) >= len(content) // 2, "half of it came"


def test_the_part_of_a_file_that_came_is_kept_when_the_server_stays_slow(tmp_path: Path) -> None:
    content = bytes(range(256)) * 2_000
    store = type("Dripping", (TroubledStore,), {"plan": Script(["drip-body"] * 9)})
    with Civitai([model(1, "cat", content)], store_handler=store) as site:
        addresses.trust(site.store_url)
        client, part = CivitaiClient(site.url, POLICIES), tmp_path / "part"
        with pytest.raises(Unavailable, match=r"maker/cat could not be fetched .*only \d+ bytes came in"):
            client.download(10, {}, part, len(content), hashlib.sha256(content).hexdigest(), "maker/cat")
    assert len(content) // 2 < part.stat().st_size < len(content)
    assert content.startswith(part.read_bytes())


def test_a_fast_download_that_takes_longer_than_a_window_is_not_ended(tmp_path: Path) -> None:
    content = bytes(range(256)) * 2_000
    with hub(tmp_path / "a", ["slow"] * 9, "/cdn/", content) as running:
        client, sha = HubClient(running.url, POLICIES), running.repositories["o/a"].sha
        client.download("o/a", sha, WEIGHTS, tmp_path / "part", len(content), None)
        assert [r for _, path, r in running.requests if "/cdn/" in path] == [None]


def test_an_error_without_end_is_read_up_to_a_limit(tmp_path: Path) -> None:
    class Endless(Handler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", str(1 << 40))
            self.end_headers()
            for _ in range(1_000):
                self.wfile.write(b"no " * 1_000)

    with hub(tmp_path / "a", []) as running, Hub({}, handler=Endless) as endless:
        client, sha = HubClient(endless.url, POLICIES), running.repositories["o/a"].sha
        with pytest.raises(Unavailable, match=r"answered 403 \(Forbidden\)"):
            client.read_start("o/a", sha, WEIGHTS, 10)
