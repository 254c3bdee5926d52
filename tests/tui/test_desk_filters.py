"""The filter box and saved filters, by keys pressed on the real app over a real store."""

from __future__ import annotations

import hashlib
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from filled_store import BEGAN, Crawl, Desk, Opener
from textual.widgets import Input

from scanner.records import ReviewDecision, Verdict
from scanner.store.desk_filter import DecisionState, Filter
from tui import saved_filters
from tui.filter_words import FilterError, completion, parse
from tui.widgets.table import Table

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def varied(crawl: Crawl, tmp_path: Path) -> Crawl:
    """Checkpoints that differ in everything that can be filtered by; the flags of two corpora."""
    sdxl = {"kind": "full", "family": "sdxl", "base": "stability/xl", "source": "civitai"}
    with crawl.at_once():
        crawl.flagged("anna/shoe", [0.9, 0.8], 0.004)
        crawl.flagged("ben/boot", [0.8], 0.004, sdxl, finished_at=BEGAN + timedelta(days=5))
        crawl.folder = tmp_path / "monet"
        crawl.folder.mkdir()
        crawl.flagged("cleo/lilies", [0.7], 0.004, margins=[0.2])
        crawl.flagged("dora/hay", [], 0, margins=[0.3])
        crawl.flagged("emil/nothing", [0.3], 0.8)
        crawl.scan("finn/pickled", Verdict.SKIPPED, reason="a pickle")
    return crawl


@pytest.fixture(autouse=True)
def config_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "finextract"


def listed(seen: Desk) -> list[str]:
    """The owners of the listed repos."""
    page = seen.app.screen.page  # type: ignore[attr-defined]
    return [row.repo.partition("/")[0] for row in page.rows]


async def filter_by(seen: Desk, words: str) -> list[str]:
    await seen.press("escape", "slash")
    seen.app.screen.query_one("#filter", Input).value = words  # as if pasted: a key a letter takes long
    await seen.press("enter")
    await seen.settle()
    return listed(seen)


async def test_words_of_the_filter_select_by_every_property(varied: Crawl, desk: Opener) -> None:
    reference = hashlib.sha256((varied.folder / "3-0.png").read_bytes()).hexdigest()
    async with desk(size=(110, 40)) as seen:
        for words, expected in {
            "corpus:monet": ["cleo", "dora"],
            "corpus:MON kind:lora grounds:both": ["cleo"],
            "grounds:trained_on": ["cleo", "dora"],
            "grounds:gives_back": ["cleo", "anna", "ben"],
            "kind:full": ["ben"],
            "base:sdxl": ["ben"],
            "base:stability": ["ben"],
            "source:civitai": ["ben"],
            "kind:full kind:lora": ["cleo", "anna", "ben", "dora"],
            "since:2026-11-26": ["ben"],
            "image:3-0.png": ["cleo"],
            f"image:{reference[:8]}": ["cleo"],
            "image:1-": ["anna"],
            "shoe": ["anna"],
            "SHO ann": ["anna"],
            "shoe corpus:monet": [],
        }.items():
            assert await filter_by(seen, words) == expected, words
        await seen.press("v")  # the filter stays for the next verdict
        assert await filter_by(seen, "corpus:shoes") == ["anna", "ben"]
        assert await filter_by(seen, "kind:lora") == ["cleo", "anna", "dora", "emil", "finn"]


async def test_words_about_decisions_select_by_what_stands(varied: Crawl, desk: Opener) -> None:
    anna, ben = varied.matches["anna/shoe"], varied.scans["ben/boot"].scan_id
    varied.decide(anna[0].match_id, ReviewDecision.CONFIRM, "otto")
    varied.decide(ben, ReviewDecision.DISMISS, "otto")
    async with desk() as seen:
        assert await filter_by(seen, "undecided") == ["cleo", "anna", "dora"]  # one of anna's two is decided
        varied.decide(anna[1].match_id, ReviewDecision.UNSURE, "otto")
        await seen.press("r")
        assert listed(seen) == ["cleo", "dora"]
        assert await filter_by(seen, "decided") == ["anna", "ben"]
        assert await filter_by(seen, "confirmed") == ["anna"]
        assert await filter_by(seen, "dismissed unsure") == ["anna", "ben"]
        assert await filter_by(seen, "noted") == []
        await seen.press("escape", "n")
        await seen.write("ask eve")
        await seen.press("enter")
        assert await filter_by(seen, "noted") == ["cleo"]


async def test_a_word_that_is_not_known_is_named_and_the_list_stays(varied: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("slash")
        await seen.write("korpus:monet")
        assert "“korpus:” is not known. Did you mean corpus:?" in seen.flat
        await seen.press("enter")
        assert "is not known" in seen.flat
        assert len(listed(seen)) == 4
        await seen.press("escape")
        assert "is not known" not in seen.flat


async def test_the_box_completes_words_and_the_values_that_the_store_has(varied: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("slash")
        await seen.write("cor")
        assert "→ completes: corpus:" in seen.flat
        await seen.press("right")
        assert "corpus: shoes, monet" in seen.flat
        await seen.write("m")
        await seen.press("right", "enter")
        assert seen.app.screen.query_one("#filter", Input).value == "corpus:monet"
        assert listed(seen) == ["cleo", "dora"]


async def test_text_from_hubs_in_the_hint_cannot_reach_the_terminal(crawl: Crawl, desk: Opener) -> None:
    crawl.flagged("anna/shoe", [0.9], 0.004, {"kind": "lora\x1b[31m", "base": "x\x1b]0;t\x07"})
    async with desk() as seen:
        await seen.press("slash")
        await seen.write("kind:")
        assert "\x1b" not in seen.text
        await seen.press("right")
        assert "\x1b" not in seen.app.screen.query_one("#filter", Input).value


def test_words_are_read_as_a_person_writes_them() -> None:
    assert parse('monet base:"my base" UNDECIDED', NOON) == Filter(
        repo=("monet",), base=("my base",), states=(DecisionState.UNDECIDED,)
    )
    assert parse("since:7d", NOON).since == parse("since:2026-11-23", NOON).since
    assert parse("kind:", NOON) == parse("", NOON) == parse('"', NOON) == Filter()
    assert parse("grounds:gives", NOON).grounds == ("gives_back",)
    for wrong in ("since:tomorrow", "since:2026-13-01", "since:9999999d", "grounds:both_of_them", "x:y", ":"):
        with pytest.raises(FilterError):
            parse(wrong, NOON)
    assert completion("a kind:L", lambda name: ["full", "lora"]).values == ("kind:lora", "kind:full")


async def test_a_filter_is_saved_and_chosen_again_in_a_later_run(
    varied: Crawl, desk: Opener, config_folder: Path
) -> None:
    async with desk() as seen:
        await filter_by(seen, "corpus:monet")
        await seen.press("s", "S", "f")  # by repo, Z to A
        await seen.write("Monet")
        await seen.press("enter")
        assert "Saved: Monet" in seen.toast
    file = config_folder / "desk-filters.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in config_folder.iterdir()] == [file.name]
    async with desk() as seen:
        await seen.press("f", "enter")
        assert listed(seen) == ["dora", "cleo"]
        assert "by repo, Z to A · filter “corpus:monet”" in seen.flat
        assert seen.app.screen.focused is seen.app.screen.query_one(Table)
        await seen.press("f", "delete", "escape", "escape")
        assert len(listed(seen)) == 4
    assert saved_filters.load() == []


async def test_a_broken_file_of_saved_filters_is_a_message(
    varied: Crawl, desk: Opener, config_folder: Path
) -> None:
    config_folder.mkdir(parents=True)
    for broken in ("[[filter]\n", 'filter = "x"', '[[filter]]\nname = "a"', "\udcff"):
        content = os.fsencode(broken) if broken == "\udcff" else broken.encode()
        (config_folder / "desk-filters.toml").write_bytes(content)
        async with desk() as seen:
            await seen.press("f")
            assert "desk-filters.toml cannot be read" in seen.toast
            await seen.write("mine")
            await seen.press("enter", "escape", "ctrl+p", "escape", "down")
            assert listed(seen) == ["cleo", "anna", "ben", "dora"]
        assert (config_folder / "desk-filters.toml").read_bytes() == content, "it is not written over"


async def test_a_saved_filter_whose_words_are_not_known_any_more_says_so(varied: Crawl, desk: Opener) -> None:
    saved_filters.save(saved_filters.SavedFilter("old", "colour:red"))
    async with desk() as seen:
        await seen.press("f", "enter")
        assert "old: “colour:” is not known." in seen.toast
        assert len(listed(seen)) == 4


async def test_the_palette_finds_a_key_by_its_sentence_and_a_saved_filter_by_its_name(
    varied: Crawl, desk: Opener
) -> None:
    saved_filters.save(saved_filters.SavedFilter("Lilies of Monet", "corpus:monet"))

    async def command(seen: Desk, name: str) -> None:
        await seen.press("ctrl+p")
        await seen.write(name)
        await seen.until(lambda: seen.app.screen.query("CommandList").first().option_count > 0)  # type: ignore[attr-defined]
        await seen.press("down", "enter")
        await seen.settle()

    async with desk() as seen:
        await command(seen, "reverse the order")
        assert "weakest first" in seen.text
        await command(seen, "saved filter: lilies")
        assert listed(seen) == ["cleo", "dora"]
