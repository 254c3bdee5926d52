"""The overview, the pictures and the log: reached by keys from everywhere, right, and right when empty."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from filled_store import BEGAN, Crawl, Opener

from finextract.reasons import ReasonCode
from scanner.records import Reference, ReviewDecision, Verdict
from scanner.store.desk_index import DeskIndex
from scanner.store.log_queries import log_events
from scanner.store.overview_queries import overview
from scanner.store.store import Store
from tui.content.overview import duration
from tui.screens.checkpoint import CheckpointScreen
from tui.screens.checkpoint_list import ListScreen
from tui.screens.log import LogScreen
from tui.screens.overview import OverviewScreen
from tui.screens.pictures import PictureScreen, PicturesScreen
from tui.widgets.table import Table

HOSTILE = "evil/[bold red]x[/]\x1b[31m\u202egnp"


@pytest.fixture
def varied(crawl: Crawl) -> Crawl:
    """Verdicts of two days, two sources and two families, with reasons and times."""
    later = {"started_at": BEGAN + timedelta(days=2), "finished_at": BEGAN + timedelta(days=2, seconds=9)}
    with crawl.at_once():
        crawl.flagged("anna/both", [0.9, 0.7], 0.004, margins=[0.31, 0.02], seconds={"sample": 7200.0})
        crawl.flagged("ben/one", [0.8], 0.004, {"source": "civitai", "family": "sdxl"}, **later)
        for name in ("x", "y"):
            crawl.scan(f"{name}/pickle", Verdict.SKIPPED, reason="no", reason_code=ReasonCode.PICKLE)
        crawl.scan("z/away", Verdict.FAILED, reason="no", reason_code=ReasonCode.HUB_UNREACHABLE, **later)
        crawl.list("gus/waiting")
    return crawl


def test_every_checkpoint_is_counted_once_by_source_and_by_family_and_every_scanned_one_by_day(
    varied: Crawl,
) -> None:
    # A scan under another configuration that found nothing does not stand beside the flagged one.
    varied.store.append(
        [_other_scan(varied, "anna/both", config_id="another", verdict=Verdict.NOTHING_FOUND)]
    )
    index = DeskIndex(Store(varied.store.root))
    found = overview(index)
    index.refresh()
    assert overview(index) == found, "the copy in memory is counted as the store is"
    assert found.total.total == 6
    assert {tally.name: tally.counts for tally in found.sources} == {
        "hf": {Verdict.FLAGGED: 1, Verdict.SKIPPED: 2, Verdict.FAILED: 1, None: 1},
        "civitai": {Verdict.FLAGGED: 1},
    }
    assert [tally.name for tally in found.families] == ["sd1", "sdxl"]
    assert sum(tally.total for tally in found.families) == 6
    assert [(tally.name, tally.total) for tally in found.days] == [("2026-11-25", 2), ("2026-11-23", 3)]
    assert [(r.verdict, r.reason_code, r.count) for r in found.reasons] == [
        (Verdict.SKIPPED, ReasonCode.PICKLE, 2),
        (Verdict.FAILED, ReasonCode.HUB_UNREACHABLE, 1),
    ]
    assert (found.seconds, found.attempts) == ({"sample": 14400.0}, 6)  # every attempt took its time


def _other_scan(crawl: Crawl, repo: str, **changes: object) -> object:
    from dataclasses import replace

    return replace(crawl.scans[repo], scan_id=f"other {repo}", **changes)  # type: ignore[arg-type]


def test_every_reason_code_has_a_remedy_of_one_line() -> None:
    for code in ReasonCode:
        assert 0 < len(code.remedy) < 80, code


def test_a_duration_has_the_unit_that_suits_it() -> None:
    assert [duration(s) for s in (4, 90, 5400, 7_200_000)] == ["4 s", "1.5 min", "1.5 h", "2,000.0 h"]


async def test_the_overview_draws_verdicts_reasons_with_remedies_and_hours(
    varied: Crawl, desk: Opener
) -> None:
    async with desk(size=(120, 40)) as seen:
        await seen.press("2")
        assert isinstance(seen.app.screen, OverviewScreen)
        assert "6 checkpoints · 2 flagged · 2 skipped · 1 failed" in seen.flat
        assert seen.part("#days").startswith("▲ – ! 2026-11-25 1 0 1 ██")
        assert "hf 1 2 1 1" in seen.part("#sources")
        assert "sdxl 1 0 0 0" in seen.part("#families")
        assert "2 ████████ – stored as a pickle: ask the author for whole safetensors" in seen.part("#why")
        assert "! the hub did not answer: check the network" in seen.part("#why")
        assert "sample 2.0 h 100 %" in seen.part("#hours")
        varied.scan("late/skip", Verdict.SKIPPED, reason="no", reason_code=ReasonCode.GATED)
        await seen.press("r")
        assert "7 checkpoints" in seen.text
        assert "accept the terms on the hub" in seen.part("#why")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_every_screen_of_an_empty_store_says_that_nothing_is_there_yet(
    crawl: Crawl, desk: Opener, size: tuple[int, int]
) -> None:
    async with desk(size=size) as seen:
        await seen.press("2")
        assert "0 checkpoints" in seen.text
        assert "Nothing yet: no checkpoint has been listed." in seen.flat
        await seen.press("3", "enter", "down")
        assert "None of your pictures was found in a checkpoint so far." in seen.text
        await seen.press("4", "enter", "v", "r")
        assert "Nobody has decided, written or withdrawn anything yet." in seen.text
        assert seen.app.is_running


async def test_the_digits_lead_from_every_screen_to_every_other_and_escape_to_the_list(
    varied: Crawl, desk: Opener
) -> None:
    screens = {"2": OverviewScreen, "3": PicturesScreen, "4": LogScreen, "1": ListScreen}
    async with desk() as seen:
        for first in screens:
            for second, screen in screens.items():
                await seen.press(first, second)
                assert isinstance(seen.app.screen, screen)
                assert len(seen.app.screen_stack) == (1 if second == "1" else 2)
        await seen.press("enter", "4", "escape")
        assert isinstance(seen.app.screen, ListScreen)


async def test_a_picture_leads_to_the_checkpoints_that_have_it_and_to_the_row_about_it(
    varied: Crawl, desk: Opener
) -> None:
    # The weaker picture of the first checkpoint is in a second one too, so it comes first.
    first, second = varied.matches["anna/both"], varied.matches["ben/one"]
    shared = varied.store.select(Reference, "WHERE reference_id = ?", [first[1].reference_id])
    again = [varied_match(second[0], first[1].reference_id)]
    varied.store.append(again)
    async with desk() as seen:
        await seen.press("3")
        rows = [line.split() for line in seen.part_lines("#table")[1:4]]
        assert rows[0] == [Path(shared[0].path).name, "shoes", "2", "0", "0.750", "0/2"]
        assert rows[1] == ["1-0.png", "shoes", "1", "1", "0.900", "0/1"]
        await seen.press("enter")
        assert isinstance(seen.app.screen, PictureScreen)
        assert "found in 2 checkpoints" in seen.text
        assert "ben/one ● gives back 0.750" in seen.flat
        await seen.press("down", "enter")
        assert isinstance(seen.app.screen, CheckpointScreen)
        assert "anna/both" in seen.text
        assert seen.app.screen.query_one(Table).current == first[1].match_id
        await seen.press("d", "escape")
        assert "anna/both ● gives back 0.700 0.0050 ✗ dismissed" in seen.flat
        await seen.press("escape")
        assert "2 0 0.750 1/2" in seen.flat


def varied_match(match: object, reference_id: str) -> object:
    from dataclasses import replace

    changed = {"match_id": "shared-match", "reference_id": reference_id, "similarity": 0.75}
    return replace(match, **changed)  # type: ignore[type-var]


async def test_the_picture_under_the_cursor_stands_beside_the_list_and_is_blurred_until_asked(
    varied: Crawl, desk: Opener
) -> None:
    async with desk(size=(120, 30)) as seen:
        await seen.press("3")
        blurred = seen.colours("#preview")
        assert blurred
        await seen.press("b")
        shown = seen.colours("#preview")
        assert shown != blurred
        await seen.press("down")
        assert seen.colours("#preview") != shown
        await seen.press("escape", "3")
        assert "blurred: b shows" in seen.text
        assert seen.colours("#preview") == blurred


async def test_a_picture_that_is_only_trained_on_opens_at_its_membership(crawl: Crawl, desk: Opener) -> None:
    crawl.flagged("ida/learned", [0.41], 0.6, margins=[0.2])  # with a match that is no flag
    async with desk() as seen:
        await seen.press("3", "enter")
        assert "ida/learned ◆ trained on" in seen.flat
        await seen.press("enter")
        assert seen.app.screen.query_one(Table).current == crawl.memberships["ida/learned"][0].membership_id


async def test_the_log_lists_all_that_was_said_newest_first_and_of_one_reviewer(
    varied: Crawl, desk: Opener
) -> None:
    match = varied.matches["anna/both"][0].match_id
    varied.decide(match, ReviewDecision.UNSURE, "otto", ahead=-timedelta(hours=1))
    async with desk(size=(120, 30)) as seen:
        await seen.press("enter", "d", "n")
        await seen.write("=cmd()")
        await seen.press("enter", "z", "4")
        events = [line.split()[2:5] for line in seen.part_lines("#table")[1:5]]
        assert [words[0] for words in events] == ["vera", "vera", "vera", "otto"]
        assert [words[1] for words in events] == ["withdrew", "note", "✗", "?"]
        assert "1-0.png" in seen.text
        assert "withdrew note “=cmd()” of vera by vera" in seen.part("#detail")
        await seen.press("v")
        assert "Log: 1 event of otto" in seen.text
        await seen.press("enter")
        assert isinstance(seen.app.screen, CheckpointScreen)
        assert seen.app.screen.query_one(Table).current == match
        await seen.press("escape", "v")
        assert "Log: 3 events of vera" in seen.text
        await seen.press("v")
        assert "Log: 4 events of all reviewers" in seen.text
    index = DeskIndex(Store(varied.store.root))
    from_store = log_events(index, 10)
    index.refresh()
    assert log_events(index, 10) == from_store
    assert {event.repo for event in from_store} == {"anna/both"}


async def test_the_log_is_exported_as_json_lines_for_its_owner_alone(
    varied: Crawl, desk: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    varied.decide(varied.matches["anna/both"][0].match_id, ReviewDecision.UNSURE, "=HYPERLINK(1)\x1b")
    async with desk(size=(120, 30)) as seen:
        await seen.press("4", "x", "x")
        files = sorted((tmp_path / "here").iterdir())
        assert len(files) == 2  # the second export is another file
        assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
        (row,) = map(json.loads, files[0].read_text().splitlines())
        assert (row["decision"], row["reviewer"]) == ("unsure", "=HYPERLINK(1)\x1b")
        assert row["repo"] == "anna/both"
        assert str(files[1]) in seen.toast.replace("\n", "")
        assert "\x1b" not in seen.text


async def test_untrusted_names_are_shown_literally_on_every_screen(crawl: Crawl, desk: Opener) -> None:
    crawl.flagged(HOSTILE, [0.9], 0.01, {"family": HOSTILE, "source": HOSTILE})
    crawl.decide(crawl.matches[HOSTILE][0].match_id, ReviewDecision.UNSURE, HOSTILE)
    async with desk(size=(160, 40)) as seen:
        for keys in (["2"], ["3"], ["3", "enter"], ["4"]):
            await seen.press(*keys)
            assert not {"\x1b", "\u202e"} & set(seen.text)
            assert seen.app.is_running
        assert "evil/[bold red]x[/]" in seen.text
