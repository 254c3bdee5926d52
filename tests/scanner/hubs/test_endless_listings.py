"""Listings that do not end, and next pages that are none: each ends with a message, on both hubs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from servers.civitai import Civitai, SiteHandler, model
from servers.hub import Handler, Hub

from scanner.errors import SourceError
from scanner.hubs.base import Query, Source
from scanner.hubs.civitai.source import CivitaiSource
from scanner.hubs.huggingface.source import HuggingFaceSource
from scanner.records import Checkpoint

MOST = 300  # pages; a listing that takes as many has not noticed anything
TAGS = ("lora",)  # one listing of HuggingFace
Page = Callable[[int], tuple[list[dict[str, Any]], str]]  # number of the page -> entries, next page


def one(number: int) -> list[dict[str, Any]]:
    return [{"id": f"o/{number:04}", "sha": "0" * 40, "createdAt": "2026-01-01T00:00:00Z", "siblings": []}]


def listed(source: Source) -> tuple[int, str]:
    """How many entries came, and the message that ended them."""
    entries: list[Checkpoint] = []
    with pytest.raises(SourceError) as ended:
        entries.extend(source.list(Query(1_000_000, filters=TAGS)))
    return len(entries), str(ended.value)


def of_huggingface(page: Page) -> tuple[int, str]:
    class Endless(Handler):
        def models(self) -> None:
            number = len(self.hub.requests)
            entries, following = page(number)
            link = {"Link": following.replace("HUB", f"{self.hub.url}/api/models")}
            self.send_json(entries, headers=link if number < MOST else {})

    with Hub({}, handler=Endless) as hub:
        result = listed(HuggingFaceSource(endpoint=hub.url))
        assert len(hub.requests) < MOST
        return result


def of_civitai(items: Callable[[int], list[dict[str, Any]]], cursor: Callable[[int], str]) -> tuple[int, str]:
    class Endless(SiteHandler):
        def models(self) -> None:
            number = len(self.site.requests)
            more = {"nextCursor": cursor(number)} if number < MOST else {}
            self.send_json(json.loads(json.dumps({"items": items(number), "metadata": more}, default=str)))

    with Civitai([], handler=Endless) as site:
        result = listed(CivitaiSource(endpoint=site.url))
        assert len(site.requests) < MOST
        return result


@pytest.mark.parametrize(
    ("page", "count", "words"),
    [
        (
            lambda n: (one(n), '<HUB?cursor=same>; rel="next"'),
            2,
            "names a page as the next one that was listed",
        ),
        (
            lambda n: (one(n), f'<HUB?cursor={n % 3}>; rel="next"'),
            3,
            "names a page as the next one that was listed",
        ),
        (lambda n: ([], f'<HUB?cursor={n}>; rel="next"'), 0, "gives 25 pages in a row without entries"),
        (
            lambda n: (one(0), f'<HUB?cursor={n}>; rel="next"'),
            1,
            "gives the entries of an earlier page again",
        ),
    ],
    ids=["the same page", "three pages", "empty pages", "the same entries"],
)
def test_a_listing_of_huggingface_without_end_is_left_with_a_message(
    page: Page, count: int, words: str
) -> None:
    came, message = of_huggingface(page)
    assert came >= count
    assert f"could not be listed to its end: it {words}" in message
    assert message.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    "link",
    [
        '<http://[::1>; rel="next"',
        '<http://127.0.0.1:port/>; rel="next"',
        '<http://\x7f/>; rel="next"',
        '<http://127.0.0.1:99999999/>; rel="next"',
        '<https://elsewhere.invalid/api/models?cursor=1>; rel="next"',
        '<file:///etc/passwd>; rel="next"',
    ],
)
def test_a_next_page_that_cannot_be_requested_is_a_message_and_what_came_before_is_listed(link: str) -> None:
    came, message = of_huggingface(lambda n: (one(n), link))
    assert came == 1
    assert "could not be listed: " in message
    assert "no address" in message or "on another host, which is not followed" in message
    assert message.replace("\n", "").isprintable()


def test_a_next_page_with_an_endless_address_is_not_requested() -> None:
    came, message = of_huggingface(lambda n: (one(n), f'<HUB?cursor={"x" * 9_000}>; rel="next"'))
    assert (came, "too long to be requested" in message) == (1, True)
    came, message = of_civitai(lambda n: [model(n, f"thing {n}", tags=TAGS)], lambda n: "x" * 9_000)
    assert (came, "too long to be requested" in message) == (2, True), "one of each walk"


def test_a_next_page_may_be_stated_relative_to_its_own_page() -> None:
    came, _ = of_huggingface(lambda n: (one(n), f'</api/models?cursor={min(n, 5)}>; rel="next"'))
    assert came == 6, "until the sixth page names itself"


@pytest.mark.parametrize("link", ["", ";;;", "<>", "rel=next", '<x>; rel="next"=1'])
def test_a_link_header_without_a_next_page_ends_the_listing(link: str) -> None:
    class Last(Handler):
        def models(self) -> None:
            self.send_json(one(1), headers={"Link": link})

    with Hub({}, handler=Last) as hub:
        assert len(list(HuggingFaceSource(endpoint=hub.url).list(Query(9, filters=TAGS)))) == 1


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (
            lambda n: [model(n, f"thing {n}", tags=TAGS)],
            "names a page as the next one that was listed before",
        ),
        (lambda n: [], "gives 25 pages in a row without entries"),
        (lambda n: [model(1, "thing", tags=TAGS)], "gives the entries of an earlier page again"),
    ],
    ids=["the same cursor", "empty pages", "the same entries"],
)
def test_a_listing_of_civitai_without_end_is_left_with_a_message(
    items: Callable[[int], list[dict[str, Any]]], words: str
) -> None:
    same = "before" in words
    came, message = of_civitai(items, lambda n: "again" if same else f"cursor-{n}")
    assert came >= len(items(1))
    assert f"could not be listed to its end: it {words}" in message
