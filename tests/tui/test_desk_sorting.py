"""The order of the list, and the next undecided row, by keys pressed on the real app over a real store."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from filled_store import BEGAN, Crawl, Desk, Opener

from scanner.records import Decision, EventKind, ReviewDecision, Scan, Verdict, new_id, now
from scanner.store.desk_filter import Filter, Sort, View
from scanner.store.desk_index import DeskIndex
from scanner.store.desk_queries import PAGE_SIZE, ListFilter, list_flagged
from tui.widgets.table import Table


@pytest.fixture
def ranked(crawl: Crawl) -> Crawl:
    """Flagged checkpoints that each column puts into another order."""
    with crawl.at_once():
        crawl.flagged("cleo/x", [0.9], 0.03, {"base": "b"}, finished_at=BEGAN + timedelta(days=2))
        crawl.flagged("anna/x", [0.8, 0.7], 0.01, {"base": "c"}, finished_at=BEGAN + timedelta(days=3))
        crawl.flagged("ben/x", [0.7], 0.02, {"base": None}, finished_at=BEGAN + timedelta(days=1))
    crawl.decide(crawl.scans["cleo/x"].scan_id, ReviewDecision.CONFIRM, "otto")
    return crawl


def listed(seen: Desk) -> list[str]:
    page = seen.app.screen.page  # type: ignore[attr-defined]
    return [row.repo.partition("/")[0] for row in page.rows]


def under_cursor(seen: Desk) -> str:
    row = seen.app.screen.row()  # type: ignore[attr-defined]
    return str(row.repo)


async def test_a_key_sorts_by_each_column_in_turn_and_the_heading_says_by_which(
    ranked: Crawl, desk: Opener
) -> None:
    async with desk(size=(110, 40)) as seen:
        for heading, mark, expected in (
            ("by repo, A to Z", "Repo↑", ["anna", "ben", "cleo"]),
            ("by source, A to Z", "Source↑", ["cleo", "anna", "ben"]),  # equal: in the default order
            ("by base, A to Z", "Base↑", ["cleo", "anna", "ben"]),  # one without a base comes last
            ("by grounds, A to Z", "Grounds↑", ["cleo", "anna", "ben"]),
            ("by similarity, highest first", "Similar↓", ["cleo", "anna", "ben"]),
            ("by q value, lowest first", "q value↑", ["anna", "ben", "cleo"]),
            ("by flags, most first", "Flags↓", ["anna", "cleo", "ben"]),
            ("by decision, undecided first", "Decision↑", ["anna", "ben", "cleo"]),
            ("by day of the scan, newest first", "Scanned↓", ["anna", "cleo", "ben"]),
            ("Flagged, strongest evidence first", "Repo ", ["cleo", "anna", "ben"]),
        ):
            await seen.press("s")
            assert heading in seen.flat
            assert mark in seen.part("#checkpoints")
            assert listed(seen) == expected, heading
            assert under_cursor(seen) == f"{expected[0]}/x"
        await seen.press("s", "s", "s", "S")
        assert "by base, Z to A" in seen.flat
        assert "Base↓" in seen.text
        assert listed(seen) == ["anna", "cleo", "ben"]  # one without a base still comes last


async def test_a_click_on_a_heading_sorts_then_reverses_then_returns(ranked: Crawl, desk: Opener) -> None:
    async with desk(size=(110, 40)) as seen:
        table = seen.app.screen.query_one(Table)
        for expected in (["anna", "ben", "cleo"], ["cleo", "ben", "anna"], ["cleo", "anna", "ben"]):
            await seen.pilot.click(table, offset=(2, 0))
            await seen.settle()
            assert listed(seen) == expected


async def test_a_narrow_terminal_has_place_for_the_mark_of_every_column(ranked: Crawl, desk: Opener) -> None:
    async with desk(size=(80, 24)) as seen:
        table = seen.app.screen.query_one(Table)
        for mark in ("Repo↑", "Grounds↑", "Similar↓", "q value↑", "Flags↓", "Decision↑"):
            await seen.press("s")
            assert mark in seen.text
            assert table.virtual_size.width <= table.size.width


def test_the_index_lists_what_the_first_list_shows_and_pages_without_gaps(crawl: Crawl) -> None:
    crawl.many(30)  # all with equal evidence
    crawl.flagged("anna/both", [0.8], 0.01, margins=[0.2])
    index = DeskIndex(crawl.store)
    first = list_flagged(crawl.store)
    assert first is not None
    assert index.page(View(), 0, PAGE_SIZE) == first
    for sort in Sort:
        for reverse in (False, True):
            view = View(ListFilter.ALL, sort=sort, reverse=reverse)
            rows = [row for at in range(0, 31, 7) for row in index.page(view, at, 7).rows]
            assert rows == list(index.page(view, 0, 100).rows), sort
            assert {row.repo for row in rows} == {row.repo for row in first.rows}
            for place, row in enumerate(rows[:-1]):
                found = index.next_undecided(view, row.checkpoint_id)
                assert found is not None
                assert (found.checkpoint_id, found.number) == (rows[place + 1].checkpoint_id, place + 1)
            assert index.next_undecided(view, rows[-1].checkpoint_id) is None


def test_the_index_follows_the_store(crawl: Crawl) -> None:
    index = DeskIndex(crawl.store)
    everything = View(ListFilter.ALL)
    assert index.page(everything, 0, 10).rows == ()
    crawl.list("gus/waiting")
    scan = crawl.flagged("anna/shoe", [0.9], 0.01)
    assert [row.repo for row in index.page(everything, 0, 10).rows] == ["anna/shoe", "gus/waiting"]
    crawl.decide(scan.scan_id, ReviewDecision.DISMISS, "otto")
    assert index.page(everything, 0, 10).rows[0].decision is ReviewDecision.DISMISS
    assert index.next_undecided(everything, None) is None
    assert [r.repo for r in index.page(View(where=Filter(corpus=("shoes",))), 0, 10).rows] == ["anna/shoe"]
    assert index.page(everything, 0, 10).as_of is None


def test_a_large_index_is_not_copied_while_somebody_waits_and_says_how_old_it_is(
    crawl: Crawl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scanner.store.desk_index.QUICK_S", 0)
    monkeypatch.setattr("scanner.store.desk_index.REST", 0)
    index = DeskIndex(crawl.store)
    assert index.page(View(), 0, 10).as_of is None
    scan = crawl.flagged("anna/shoe", [0.9], 0.01)
    page = index.page(View(), 0, 10)
    assert page.rows == ()
    assert page.as_of is not None
    assert index.refresh()
    crawl.decide(scan.scan_id, ReviewDecision.UNSURE, "otto")
    page = index.page(View(), 0, 10)  # decisions are always those of the store
    assert (page.as_of, page.rows[0].decision) == (None, ReviewDecision.UNSURE)


async def test_a_list_that_is_older_than_the_store_says_so_until_it_is_read_again(
    ranked: Crawl, desk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scanner.store.desk_index.QUICK_S", 0)
    monkeypatch.setattr("scanner.store.desk_index.REST", 1000)
    async with desk(size=(110, 40)) as seen:
        await seen.press("s")
        ranked.flagged("dora/x", [0.95], 0.01)
        await seen.press("r")
        assert "as of" in seen.text
        assert "dora/x" not in seen.text
        monkeypatch.setattr("scanner.store.desk_index.REST", 0)
        await seen.press("r")
        await seen.until(lambda: "dora/x" in seen.text)
        assert "as of" not in seen.text


@pytest.fixture
def long(crawl: Crawl) -> Crawl:
    """Seven pages of flagged checkpoints, of which one near the end is not decided, and a skipped one."""
    number = 7 * PAGE_SIZE
    crawl.many(number)
    scans = sorted(crawl.store.select(Scan), key=lambda scan: scan.checkpoint_id)
    later = BEGAN + timedelta(days=1)
    crawl.store.append([
        replace(scan, best_similarity=0.9 - place / 10_000, finished_at=later)
        for place, scan in enumerate(scans)
    ])  # fmt: skip
    open_scan = scans[number - 50]
    events = [
        Decision(new_id(), scan.scan_id, EventKind.DECIDE, ReviewDecision.DISMISS, "", None, "otto", now())
        for scan in scans
        if scan.scan_id != open_scan.scan_id
    ]
    crawl.store.append(events)
    crawl.scan("eve/pickled", Verdict.SKIPPED, reason="a pickle")
    crawl.scans["open"] = open_scan
    return crawl


async def test_a_key_goes_to_the_next_undecided_row_also_beyond_the_loaded_page(
    long: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        table = seen.app.screen.query_one(Table)
        await seen.press("N")
        assert table.current == long.scans["open"].checkpoint_id
        assert table.row_count == PAGE_SIZE
        assert f"{6 * PAGE_SIZE + 1:,} to {7 * PAGE_SIZE:,} of {7 * PAGE_SIZE:,}" in seen.flat
        await seen.press("N")
        assert "This is the only undecided row in this list." in seen.toast
        await seen.press("home")  # of all rows, and not of the loaded ones
        assert table.current != long.scans["open"].checkpoint_id
        assert f"first {PAGE_SIZE} of" in seen.flat
        await seen.press("N", "d")
        assert "Recorded" in seen.toast
        await seen.press("N")
        assert "Nothing is undecided in this list." in seen.toast


async def test_rows_above_a_page_are_loaded_when_the_cursor_leaves_it(long: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        table = seen.app.screen.query_one(Table)
        await seen.press("N")
        table.move_cursor(row=0)
        await seen.settle()
        top = table.current
        await seen.press("up")
        assert table.row_count == 2 * PAGE_SIZE
        assert table.current == top
        await seen.press("up")
        assert table.cursor_row == PAGE_SIZE - 1


async def test_after_the_last_loaded_row_is_decided_the_next_undecided_one_is_looked_up(
    long: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        await seen.press("u")  # decides the first one again
        assert seen.app.screen.query_one(Table).current == long.scans["open"].checkpoint_id


async def test_the_table_holds_no_more_than_a_few_pages(long: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        table = seen.app.screen.query_one(Table)
        for _ in range(6):
            await seen.press("end")
            await seen.settle()
        assert table.row_count == 5 * PAGE_SIZE
        assert f"{2 * PAGE_SIZE + 1:,} to {7 * PAGE_SIZE:,} of" in seen.flat
