"""The list of checkpoints, by keys pressed on the real app over a real store."""

import threading
from dataclasses import replace

from filled_store import Crawl, Opener

from finextract.reasons import ReasonCode
from scanner.records import Verdict
from scanner.store.desk_filter import View
from scanner.store.desk_index import DeskIndex
from scanner.store.desk_queries import PAGE_SIZE, ListFilter, list_flagged
from scanner.store.queries import VerdictCounts, count_verdicts, reason_label
from scanner.store.store import Store
from tui.screens.checkpoint_list import ListScreen
from tui.screens.overview import OverviewScreen
from tui.widgets.table import Table


def order(text: str, *names: str) -> bool:
    places = [text.index(name) for name in names]
    return places == sorted(places)


async def test_flagged_checkpoints_are_listed_with_the_strongest_evidence_first(
    filled: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        # q 0.004 twice, ordered by similarity; then q 0.031
        assert order(seen.text, "ben/strong-shoe", "cleo/other-shoe", "anna/weak-shoe")
        assert "dora/control" not in seen.text
        assert "0.943" in seen.text
        assert "0.0040" in seen.text
        assert "undecided" in seen.text


def test_a_flag_whose_checkpoint_was_replaced_does_not_shorten_the_list(crawl: Crawl) -> None:
    crawl.many(5)
    crawl.store.append([replace(crawl.scans["many/0"], scan_id="gone", checkpoint_id="gone", q_value=0.001)])
    assert list_flagged(crawl.store, limit=3) is None
    shown = DeskIndex(crawl.store).page(View(), 0, 3)
    assert (len(shown.rows), shown.total) == (3, 5)
    assert count_verdicts(crawl.store).flagged == 5


async def test_the_sum_of_verdicts_adds_up(filled: Crawl, desk: Opener) -> None:
    async with desk(size=(80, 24)) as seen:
        assert "8 planned = 3 flagged + 1 nothing found + 1 skipped + 1 failed + 2 to do" in seen.flat


async def test_a_key_lists_other_verdicts_with_their_reasons(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("v")
        assert order(
            seen.text, "ben/strong-shoe", "dora/control", "eve/pickled", "finn/timeout", "gus/waiting"
        )
        await seen.press("v")
        assert "dora/control" in seen.text
        assert "eve/pickled" not in seen.text
        await seen.press("v")
        assert "weights.ckpt is a pickle; only safetensors are opened" in seen.flat
        await seen.press("V", "V", "V")
        assert "Flagged, strongest evidence first" in seen.text


async def test_skipped_checkpoints_are_grouped_by_reason_code_the_largest_group_first(
    crawl: Crawl, desk: Opener
) -> None:
    crawl.scan("a/gated", Verdict.SKIPPED, reason="its licence", reason_code=ReasonCode.GATED)
    for name in ("y/pickle", "z/pickle"):
        crawl.scan(name, Verdict.SKIPPED, reason="a pickle", reason_code=ReasonCode.PICKLE)
    crawl.scan("b/old", Verdict.SKIPPED, reason="before there were codes")
    crawl.scan("c/timeout", Verdict.FAILED, reason="no answer", reason_code=ReasonCode.HUB_UNREACHABLE)
    async with desk() as seen:
        assert not seen.app.screen.query_one("#reasons").display
        await seen.press("v", "v", "v")
        labels = [
            f"{number} {reason_label(code)}"
            for number, code in ((2, ReasonCode.PICKLE), (1, ReasonCode.GATED), (1, None))
        ]
        assert seen.part("#reasons") == " · ".join(labels)
        assert order(seen.part("#checkpoints"), "y/pickle", "z/pickle", "a/gated", "b/old")
        await seen.press("slash", "z")
        await seen.until(lambda: seen.part("#reasons") == labels[0].replace("2", "1"))
        await seen.press("escape", "v")
        assert seen.part("#reasons") == f"1 {reason_label(ReasonCode.HUB_UNREACHABLE)}"


async def test_nothing_found_is_never_called_clean(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("v", "v")
        assert "dora/control" in seen.text
        assert "does not prove that nothing is there" in seen.flat
        await seen.press("enter")
        assert "nothing found" in seen.text
        assert "clean" not in seen.text


async def test_the_filter_lists_only_repos_that_contain_what_was_typed(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("slash", "S", "T", "R")
        await seen.until(lambda: "anna/weak-shoe" not in seen.text)
        assert "ben/strong-shoe" in seen.text
        await seen.press("escape")
        await seen.until(lambda: "anna/weak-shoe" in seen.text)


async def test_letters_typed_into_the_filter_record_no_decision(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("slash", "c", "d", "u", "z")
        assert filled.store.query("SELECT count(*) AS n FROM decisions") == [{"n": 0}]


async def test_an_empty_store_says_what_to_do_next(crawl: Crawl, desk: Opener) -> None:
    async with desk(size=(80, 24)) as seen:
        assert "0 planned" in seen.text
        assert "scanner corpus add NAME DIR" in seen.text
        assert "scanner crawl --source hf" in seen.text
        await seen.press("enter", "b", "c", "z", "n")  # and no key falls over


async def test_a_store_without_flags_states_that_this_proves_nothing(crawl: Crawl, desk: Opener) -> None:
    crawl.flagged("dora/control", [0.3], 0.9)
    async with desk() as seen:
        assert "This does not prove that no checkpoint was trained on one." in seen.flat


async def test_results_of_a_running_crawl_appear_and_the_cursor_stays_on_its_checkpoint(
    filled: Crawl, desk: Opener
) -> None:
    async with desk(refresh_s=0.1) as seen:
        await seen.press("down")
        assert seen.app.screen.query_one(Table).current == filled.scans["cleo/other-shoe"].checkpoint_id

        def write() -> None:
            for number in range(5):
                filled.flagged(f"new/strongest-{number}", [0.99], 0.001)

        crawling = threading.Thread(target=write)
        crawling.start()
        # The list is read before the sum, so the sum may be newer for a moment.
        await seen.until(lambda: "13 planned = 8 flagged" in seen.flat and "new/strongest-4" in seen.text)
        assert order(seen.text, "new/strongest-4", "ben/strong-shoe")
        assert seen.app.screen.query_one(Table).current == filled.scans["cleo/other-shoe"].checkpoint_id


async def test_the_store_is_not_queried_while_nothing_is_written(
    filled: Crawl, desk: Opener, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    queried, looked = [], []
    monkeypatch.setattr(
        "tui.screens.checkpoint_list.list_flagged",
        lambda *args: queried.append(args) or list_flagged(*args),
    )
    stamp = Store.stamp
    monkeypatch.setattr(Store, "stamp", lambda store: looked.append(store) or stamp(store))
    async with desk(refresh_s=0.05) as seen:
        await seen.until(lambda: len(looked) > 5)
        assert len(queried) == 1


async def test_the_list_is_paged_and_grows_when_its_end_is_reached(crawl: Crawl, desk: Opener) -> None:
    crawl.many(PAGE_SIZE + 50)
    async with desk() as seen:
        assert seen.app.screen.query_one(Table).row_count == PAGE_SIZE
        assert f"first {PAGE_SIZE} of {PAGE_SIZE + 50}" in seen.text
        await seen.press("end")
        await seen.settle()
        assert seen.app.screen.query_one(Table).row_count == PAGE_SIZE + 50


def test_a_flag_under_one_configuration_is_not_hidden_by_another(crawl: Crawl) -> None:
    flagged = crawl.flagged("anna/shoe", [0.9], 0.01)
    crawl.scan("anna/shoe", Verdict.NOTHING_FOUND, config_id="another", scan_id="later")
    index = DeskIndex(crawl.store)
    for verdict in (ListFilter.ALL, ListFilter.FLAGGED):
        seen = index.page(View(verdict), 0, 10)
        assert [(row.repo, row.scan_id) for row in seen.rows] == [("anna/shoe", flagged.scan_id)]
    assert index.page(View(ListFilter.NOTHING_FOUND), 0, 10).rows == ()
    assert count_verdicts(crawl.store) == VerdictCounts(
        planned=1, flagged=1, nothing_found=0, skipped=0, failed=0
    )


async def test_a_wide_terminal_shows_source_and_base_and_a_narrow_one_fits(
    filled: Crawl, desk: Opener
) -> None:
    async with desk(size=(110, 40)) as seen:
        assert "demo/tiny-dif" in seen.text
        assert "Source" in seen.text
    async with desk(size=(80, 24)) as seen:
        table = seen.app.screen.query_one(Table)
        assert table.virtual_size.width <= table.size.width
        assert "q Quit" in seen.text


async def test_a_store_that_cannot_be_read_is_reported_and_the_desk_stays_open(
    filled: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        filled.store.root.rename(filled.store.root.with_name("elsewhere"))
        await seen.press("r")
        assert "The store cannot be read" in seen.text
        filled.store.root.with_name("elsewhere").rename(filled.store.root)
        await seen.press("r")
        assert "8 planned" in seen.text


async def test_a_look_at_the_store_by_the_clock_never_takes_the_place_of_what_a_key_asked_for(
    filled: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        listing = seen.app.screen
        assert isinstance(listing, ListScreen)
        listing.action_shift_filter(1)
        listing.load_if_changed()  # before the list has begun to be read
        await seen.settle()
        assert "gus/waiting" in seen.flat
        before = listing.row()
        assert before is not None
        listing.action_next_undecided()
        listing.load_if_changed()
        await seen.settle()
        assert (row := listing.row()) is not None
        assert row.undecided
        assert row.checkpoint_id != before.checkpoint_id
        await seen.press("2")
        overview = seen.app.screen
        assert isinstance(overview, OverviewScreen)
        filled.flagged("ida/new-shoe", [0.9], 0.01)
        overview.action_reload()
        overview.load_if_changed()
        await seen.settle()
        assert "9 checkpoints" in seen.flat
