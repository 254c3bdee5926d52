"""Trained on, gives back, or both: the grounds of a flag in the list, in an opened checkpoint and outside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from filled_store import VARIANTS, Crawl, Opener, image, png

from finextract.framing import FRAMINGS
from scanner.cli import cli
from scanner.commands.output import verdict_line
from scanner.records import Examination, Ground, Reference, ReviewDecision, Scan, Verdict
from scanner.store.desk_queries import list_flagged, open_checkpoint
from scanner.store.rows import arrow_rows
from scanner.store.store import Store
from tui.content.membership import drawn, framing_in_words, shaded
from tui.widgets.table import Table

BOTH, WEAK, SET = "anna/both", "cleo/weak", "emil/set"


@pytest.fixture
def screened(crawl: Crawl) -> Crawl:
    """Flags on both grounds, on one, and of a corpus as a whole; and two results without a flag."""
    with crawl.at_once():
        crawl.flagged(SET, [], 0, margins=[0.04], of_corpus=0.12)
        crawl.flagged(WEAK, [0.41], 0.6, margins=[0.2, 0.11, 0.02], background_unlike=True)
        crawl.flagged("ben/images", [0.95, 0.8], 0.004, margins=[0.03])
        crawl.flagged(BOTH, [0.9, 0.7, 0.31], 0.004, margins=[0.31, 0.02, 0.22])
        crawl.flagged("dora/sampled", [0.35], 0.8, margins=[0.03])
        left_out = {"standing_references": 7, "compared_references": 3}
        crawl.flagged("gus/screened", [], 0, margins=[0.02], **left_out)
    return crawl


def read(crawl: Crawl, repo: str, **options: Any) -> Any:
    scan = crawl.scans[repo]
    return open_checkpoint(Store(crawl.store.root), scan.checkpoint_id, scan.scan_id, **options)


def lines_of(text: str, *repos: str) -> dict[str, str]:
    """The line of each repo in a list."""
    return {repo: next(line for line in text.splitlines() if repo in line) for repo in repos}


async def test_each_flag_names_its_grounds_and_both_stand_before_images_and_images_before_training(
    screened: Crawl, desk: Opener
) -> None:
    screened.flagged("finn/weaker", [0.45], 0.6, margins=[0.1], membership_q=0.04)
    async with desk(size=(80, 24)) as seen:
        assert [line.split()[:5] for line in seen.part_lines("#checkpoints")[1:6]] == [
            [BOTH, "◆●", "both", "0.900", "0.0040"],
            ["ben/images", "●", "gives", "back", "0.950"],
            [WEAK, "◆", "trained", "on", "0.410"],
            [SET, "◆", "trained", "on", "–"],
            ["finn/weaker", "◆", "trained", "on", "0.450"],
        ]
        assert "flagged: trained on and gives back" in seen.part("#detail")


async def test_the_list_says_how_a_checkpoint_was_looked_at_in_which_nothing_was_found(
    screened: Crawl, desk: Opener
) -> None:
    screened.scan("hal/unscreened", Verdict.NOTHING_FOUND, examined=Examination.SAMPLED)
    screened.scan("ida/old", Verdict.NOTHING_FOUND, best_similarity=0.3)
    async with desk(size=(80, 24)) as seen:
        await seen.press("v", "v")
        for repo, label in (
            ("dora/sampled", "screened and sampled"),
            ("gus/screened", "screened; not sampled"),
            ("hal/unscreened", "sampled; not screened"),
            ("ida/old", "nearest 0.300"),
        ):
            assert label in lines_of(seen.text, repo)[repo], repo


async def test_the_help_says_what_the_grounds_mean(screened: Crawl, desk: Opener) -> None:
    async with desk(size=(120, 160)) as seen:
        await seen.press("question_mark")
        assert "A claim about training: by the models' losses" in seen.flat
        assert "A claim about what anybody can generate now" in seen.flat
        assert "The losses were examined, and no image was generated" in seen.flat


async def test_rows_of_a_store_from_before_the_screen_are_flags_by_matches(
    crawl: Crawl, desk: Opener
) -> None:
    scan = crawl.flagged("ben/old", [0.9, 0.3], 0.004)
    names = list(Scan.__dataclass_fields__)
    rows = arrow_rows([replace(scan, finished_at=scan.finished_at.replace(year=2027))])
    for name in names[names.index("grounds") :]:
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, pa.nulls(1, rows.schema.field(name).type))
    crawl.store.append_arrow("scans", rows)
    async with desk(size=(80, 24)) as seen:
        assert "gives back" in lines_of(seen.text, "ben/old")["ben/old"]
        await seen.press("enter")
        assert "ben/old ▲ flagged: gives back · 0 of 1 flag decided" in seen.flat
        assert "Looked at" not in seen.part("#facts")


async def test_a_reference_that_comes_back_and_was_trained_on_is_one_row_with_both_evidences(
    screened: Crawl, desk: Opener
) -> None:
    async with desk(size=(80, 70)) as seen:
        await seen.press("enter")
        assert "flagged: trained on and gives back · 0 of 3 flags decided" in seen.flat
        rows = [line.split()[:3] for line in seen.part_lines("#rows")[1:6]]
        assert rows == [
            ["◆●", "both", "0.900"],
            ["●", "gives", "back"],
            ["◆", "trained", "on"],
            ["–", "0.310", "no"],
            [],
        ]
        shown = seen.part("#evidence")
        assert shown.index(
            "Gives back flagged Its similarity and its q value are both what a flag needs."
        ) < shown.index("Trained on flagged")
        await seen.press("down")  # its membership is no flag, and is told all the same
        assert (
            "Trained on no flag A flag needs the q value that is named below, and a log-ratio"
            in seen.part("#evidence")
        )


async def test_a_membership_is_told_in_words_with_its_null_drawn_and_without_a_candidate(
    screened: Crawl, desk: Opener
) -> None:
    async with desk(size=(80, 80)) as seen:
        await seen.press("enter", "down", "down")
        assert "No generated image matches this reference: this is about training." in seen.part("#candidate")
        assert seen.colours("#reference")
        await seen.press("i")
        shown = seen.part("#evidence")
        for words in (
            "Margin 0.220",
            "its own mirrored and moved versions",
            "log-ratio 0.320, theirs 0.100",
            "• one of its own versions (a digit: so many)",
            "▓▓█▓▓▒░·",
            "denser: where in the picture the fine-tuning helped most",
            "p value 0.0004",
            "at most 1 in 2,500 pictures",
            "Corrected for examining 24 references and their corpora",
            "Expected to be false: at most 1 in 167 of this scan's memberships with this q value or less.",
            "11 tried",
            "a centred crop with 90 % of the side",
            "Log-ratio 0.300",
            "whole picture: higher than 99 of 99 background pictures; the highest of them has 0.117",
        ):
            assert words in shown, words


async def test_a_checkpoint_that_was_not_sampled_says_that_no_image_was_generated(
    screened: Crawl, desk: Opener
) -> None:
    async with desk(size=(80, 100)) as seen:
        await seen.press("v", "v", "down", "enter")
        assert "gus/screened ○ nothing found: screened; not sampled" in seen.flat
        assert "No image was generated: this is about training." in seen.part("#candidate")
        await seen.press("i")
        assert "Screen 24 of 24 references, 412 evaluations and 388 of the base" in seen.part("#facts")
        assert "Left out 7 references stood out" in seen.part("#facts")
        assert "allowed for comparing 3 of them." in seen.part("#facts")
        assert "Samples none" in seen.part("#facts")


async def test_a_corpus_as_a_whole_does_not_say_which_picture_was_trained_on(
    screened: Crawl, desk: Opener
) -> None:
    async with desk(size=(80, 60)) as seen:
        await seen.press("down", "down", "down", "enter")
        shown = seen.part("#evidence")
        assert "Pictures of this corpus were trained on. This does not say which." in shown
        assert "Margin 0.120 The fine-tuning helped this much more on 24 pictures of the corpus" in shown
        assert "95 % interval: 0.070 to 0.170" in shown
        assert "This is about the corpus as a whole" in seen.part("#reference")
        assert seen.part_lines("#rows")[1].split()[:3] == ["◆", "trained", "on"]


async def test_a_background_of_another_kind_is_told_with_what_to_do(screened: Crawl, desk: Opener) -> None:
    async with desk(size=(80, 90)) as seen:
        await seen.press("down", "down", "enter")
        facts = seen.part("#facts")
        assert facts.startswith(
            "Reference 2-0.png, of shoes Background is of another kind than the references"
        )
        assert "scanner corpus add NAME DIR --background" in facts
        assert "--unseen" in facts


async def test_the_copy_in_the_store_is_shown_where_the_file_of_a_reference_is_gone(
    screened: Crawl, desk: Opener
) -> None:
    repo, (first, *_) = BOTH, screened.memberships[BOTH]
    (reference,) = screened.store.select(Reference, "WHERE reference_id = ?", [first.reference_id])
    Path(reference.path).unlink()
    async with desk() as seen:
        await seen.press("enter")
        assert "The reference image is no longer in its place." in seen.part("#reference")
    copy = screened.store.put_image(png(image(3)))
    screened.store.append(
        [replace(reference, image_sha256=copy, added_at=reference.added_at.replace(year=2027))]
    )
    async with desk() as seen:
        await seen.press("enter", "b")
        assert seen.colours("#reference")
        assert read(screened, repo).rows[0].reference.image_sha256 == copy


async def test_a_membership_is_decided_noted_and_withdrawn_as_a_match_is(
    screened: Crawl, desk: Opener
) -> None:
    match = screened.matches[BOTH][0]
    membership = screened.memberships[BOTH][2]
    async with desk() as seen:
        await seen.press("enter", "b", "c", "down", "d")
        assert seen.toast == "Recorded: ✗ dismissed, membership 3 of 4, 4-2.png. z withdraws it."
        assert "2 of 3 flags decided" in seen.text
        await seen.press("escape")
        assert "2 of 3 decided" in lines_of(seen.text, BOTH)[BOTH]
        await seen.press("enter", "down", "down", "n")
        await seen.write("a stock picture")
        await seen.press("enter", "z", "z")
        assert "1 of 3 flags decided" in seen.text
        assert seen.app.screen.query_one(Table).current == membership.membership_id
    assert screened.log(match.match_id) == [("decide", "confirm", "vera")]  # on both claims at once
    assert screened.log(membership.membership_id) == [
        ("decide", "dismiss", "vera"),
        ("note", "a stock picture", "vera"),
        ("withdraw", "a stock picture of vera", "vera"),
        ("withdraw", "dismiss of vera", "vera"),
    ]
    assert read(screened, BOTH).decided == 1


async def test_a_whole_list_of_evidence_is_paged_and_counted(screened: Crawl) -> None:
    opened = read(screened, BOTH, limit=3)
    assert (len(opened.rows), opened.total, opened.flagged) == (3, 4, 3)
    page = list_flagged(screened.store)
    assert page is not None
    (row, *_) = page.rows
    assert (row.repo, row.flags, row.grounds) == (BOTH, 3, (Ground.TRAINED_ON, Ground.GIVES_BACK))


def sql(store: Store, query: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(cli, ["sql", query, "--store", store.uri, "--format", "json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_an_exported_decision_names_its_grounds_and_its_evidence(screened: Crawl) -> None:
    both, back, _ = screened.matches[BOTH]
    trained = screened.memberships[BOTH][2]
    whole = screened.memberships[SET][-1]
    for subject in (
        both.match_id,
        back.match_id,
        trained.membership_id,
        whole.membership_id,
        screened.scans[WEAK].scan_id,
    ):
        screened.decide(subject, ReviewDecision.CONFIRM, "anna")
    for view in ("decision_log", "standing_decisions"):
        rows = sql(screened.store, f"SELECT * FROM {view}")
        assert [(row["subject"], row["repo"], row["grounds"]) for row in rows] == [
            ("match", BOTH, "trained_on+gives_back"),
            ("match", BOTH, "gives_back"),
            ("membership", BOTH, "trained_on"),
            ("membership", SET, "trained_on"),
            ("checkpoint", WEAK, "trained_on"),
        ]
        first, second, third, fourth, fifth = rows
        assert (first["similarity"], first["q_value"], first["membership_q"]) == (0.9, 0.004, 0.004)
        assert first["margin"] == pytest.approx(0.31)
        assert (second["similarity"], second["membership_q"]) == (0.7, 0.7)
        assert (third["similarity"], third["q_value"], third["membership_q"]) == (None, None, 0.006)
        assert third["reference_path"].endswith("-2.png")
        assert (fourth["reference_id"], fourth["reference_path"]) == ("", None)
        assert fifth["reference_id"] is None


def test_the_status_names_grounds_and_how_a_checkpoint_was_looked_at(screened: Crawl) -> None:
    words = ["status", "--store", screened.store.uri]
    shown = CliRunner().invoke(cli, words).stdout
    lines = lines_of(shown, BOTH, WEAK, SET, "gus/screened")
    assert [" ".join(line.split()) for line in lines.values()] == [
        f"{BOTH} FLAGGED 0.90 0.004 trained on and gives back",
        f"{WEAK} FLAGGED 0.41 0.004 trained on",
        f"{SET} FLAGGED 0.004 trained on",
        "gus/screened nothing found 0.700 screened; not sampled",
    ]
    rows = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)["checkpoints"]
    assert [(row["repo"], row["grounds"], row["examined"]) for row in rows] == [
        (BOTH, ["trained_on", "gives_back"], "screened_and_sampled"),
        ("ben/images", ["gives_back"], "screened_and_sampled"),
        (WEAK, ["trained_on"], "screened_and_sampled"),
        (SET, ["trained_on"], "screened"),
        ("dora/sampled", [], "screened_and_sampled"),
        ("gus/screened", [], "screened"),
    ]


def test_a_verdict_on_one_line_keeps_the_two_claims_apart() -> None:
    both = verdict_line("a/b", "flagged", 0.94, 0.004, "", grounds=list(Ground), membership_q=0.00001)
    assert both == "flagged       a/b  trained on and gives back  training q <0.001  best 0.94, q 0.004"
    nothing = verdict_line("a/b", "nothing_found", None, None, "", examined="screened")
    assert nothing == "nothing found a/b  screened; not sampled"


def test_every_framing_of_the_method_has_words() -> None:
    assert all(framing_in_words(name) != name for name in (*FRAMINGS, "512x768"))
    assert framing_in_words("512x768") == "a centred part of 768 x 512 pixels, a size of the trainer's own"


def test_a_heat_map_is_densest_where_the_log_ratio_is_highest_and_empty_where_nothing_helped() -> None:
    assert shaded((0.5, 0.1, 0.3, 0.1)) == ["█░"]
    assert shaded((-0.1, -0.2, 0.0, -0.3)) == ["··"]
    assert shaded((0.4, 0.0, 0.0, 0.0) * 2 + (0.2, 0.2, -1, 0.0) * 2) == ["█···", "▒▒··"]


def test_the_null_is_drawn_on_one_axis_with_the_picture() -> None:
    axis, mark, ends = drawn(0.3, (0.1, 0.1, 0.2, 0.15), 21)
    assert axis == "2────•────•──────────"
    assert mark == "       this picture ▲"
    assert ends == "0.100           0.300"
    axis, mark, _ = drawn(0.05, VARIANTS, 30)
    assert mark == "▲ this picture"
    assert axis[0] == "─"
    assert drawn(0.1, (0.1, 0.1), 20)[0].count("2") == 1
