"""`scanner decide`: the decisions of the review desk, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from commands import scanner
from filled_store import Crawl

from scanner.cli import cli
from scanner.records import Decision, ReviewDecision, Verdict
from scanner.store.store import Store

ANNA, BEN = "anna/style", "ben/hats"


@pytest.fixture
def crawl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crawl:
    monkeypatch.setenv("FINEXTRACT_REVIEWER", "vera")
    (tmp_path / "mine").mkdir()
    made = Crawl(Store(tmp_path / "store", create=True), tmp_path / "mine")
    with made.at_once():
        made.flagged(ANNA, (0.81, 0.4), 0.004, margins=(0.3, 0.2))
        made.flagged(BEN, (0.7,), 0.01)
        made.scan("kim/plain", Verdict.NOTHING_FOUND)
        made.scan("lee/pickled", Verdict.SKIPPED, reason="it is pickled")
        made.list("new/one")
    return made


def decide(*words: str, text: str = "") -> Result:
    return CliRunner().invoke(cli, ["decide", *words], input=text)


def refused(*words: str, text: str = "") -> str:
    done = decide(*words, text=text)
    assert done.exception is not None
    return str(done.exception)


def events(crawl: Crawl) -> list[Decision]:
    return Store(crawl.store.root).select(Decision)


def test_a_checkpoint_is_decided_as_a_whole_by_its_repository(crawl: Crawl) -> None:
    done = decide(ANNA, "confirm", "--note", "sent to the lawyer")
    assert done.exit_code == 0
    assert done.stdout == ""
    assert done.stderr == "Recorded: anna/style as a whole is confirmed, with a note.\n"
    assert crawl.log(crawl.scans[ANNA].scan_id) == [
        ("decide", "confirm", "vera"),
        ("note", "sent to the lawyer", "vera"),
    ]


def test_a_match_is_decided_by_the_beginning_of_its_id_and_a_scan_is_named_by_its_own(crawl: Crawl) -> None:
    _, second = crawl.matches[ANNA]
    assert decide(second.match_id, BEN, "dismiss").exit_code == 0
    assert crawl.decision(second.match_id) == crawl.decision(crawl.scans[BEN].scan_id) == "dismiss"
    scan_id = crawl.scans["kim/plain"].scan_id
    assert decide(scan_id[:12], "--note", "plain").exit_code == 0
    assert crawl.log(scan_id) == [("note", "plain", "vera")]


def test_a_membership_that_is_shown_with_a_match_is_decided_together_with_it(crawl: Crawl) -> None:
    """As at the desk: one row, and one decision."""
    with_match, alone = crawl.memberships[ANNA]
    assert decide(with_match.membership_id, alone.membership_id, "unsure").exit_code == 0
    assert crawl.log(with_match.membership_id) == []
    assert crawl.decision(crawl.matches[ANNA][0].match_id) == "unsure"
    assert crawl.decision(alone.membership_id) == "unsure"


def test_a_note_alone_leaves_the_decision_and_an_empty_one_is_removed(crawl: Crawl) -> None:
    decide(BEN, "dismiss")
    decide(BEN, "--note", "a hat is a hat")
    done = decide(BEN, "--note", "", "--json")
    (event,) = json.loads(done.stdout)
    assert (event["event"], event["note"]) == ("note", "")
    assert (event["standing_decision"], event["standing_note"]) == ("dismiss", "")


def test_a_decision_is_withdrawn_of_whichever_reviewer_and_the_earlier_one_stands(crawl: Crawl) -> None:
    scan_id = crawl.scans[BEN].scan_id
    decide(BEN, "confirm")
    crawl.decide(scan_id, ReviewDecision.DISMISS, "rosa")
    done = decide(BEN, "--withdraw", "--reviewer", "otto")
    assert done.stderr == "Recorded: ben/hats as a whole is confirmed again.\n"
    assert crawl.log(scan_id)[-1] == ("withdraw", "dismiss of rosa", "otto")
    decide(BEN, "--withdraw")
    assert "is not decided, so there is nothing to withdraw" in refused(BEN, "--withdraw")


def test_json_lines_are_recorded_in_one_append_and_printed_as_events(crawl: Crawl) -> None:
    first, second = crawl.matches[ANNA]
    lines = [
        {"subject": first.match_id, "decision": "confirm", "note": "the same shoe"},
        {"subject": second.match_id, "decision": "dismiss", "note": None},
        {"subject": "kim/plain", "note": "looked at twice"},
    ]
    commits = len(crawl.store.tables["decisions"].names())
    done = decide("--from", "-", "--json", text="\n\n".join(map(json.dumps, lines)))
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert [(row["subject"], row["event"], row["decision"]) for row in printed] == [
        ("match", "decide", "confirm"),
        ("match", "note", None),
        ("match", "decide", "dismiss"),
        ("checkpoint", "note", None),
    ]
    assert {row["decision_id"] for row in printed} == {event.decision_id for event in events(crawl)}
    logged = {row["decision_id"]: row for row in crawl.store.query("SELECT * FROM decision_log")}
    for row in printed:
        shared = logged[row["decision_id"]].keys() & row.keys() - {"decided_at"}
        assert {name: row[name] for name in shared} == {
            name: logged[row["decision_id"]][name] for name in shared
        }
    assert len(crawl.store.tables["decisions"].names()) == commits + 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"subject": "nobody/x", "decision": "confirm"}', "the store knows no checkpoint or match nobody/x"),
        ('{"subject": "ben/hats", "decision": "maybe"}', "maybe is no decision"),
        ('{"subject": "ben/hats", "decison": "confirm"}', "decison is no key"),
        ('{"subject": "ben/hats", "note": 3}', "note takes a text"),
        ('{"subject": "ben/hats"}', "nothing is to be recorded"),
        ('{"subject": "ben/hats", "decision": "confirm", "withdraw": true}', "exclude each other"),
        ('{"decision": "confirm"}', "no subject is named"),
        ("[1]", "not a JSON object"),
        ("{", "not JSON"),
        ('{"subject": "anna/style", "decision": "dismiss"}', "name the same subject"),
        ('{"subject": "kim/plain", "decision": "confirm"}', "nothing was found in kim/plain"),
        ('{"subject": "lee/pickled", "decision": "confirm"}', "lee/pickled has no scan result"),
        ('{"subject": "new/one", "note": "later"}', "new/one has no scan result"),
    ],
)
def test_one_line_that_cannot_be_recorded_keeps_all_from_the_log(crawl: Crawl, line: str, why: str) -> None:
    good = json.dumps({"subject": ANNA, "decision": "confirm"})
    told = refused("--from", "-", text=f"{good}\n{line}\n")
    assert why in told
    assert "line 2: " in told
    assert events(crawl) == []


def test_what_a_command_line_leaves_open_is_refused_with_exit_code_2(crawl: Crawl) -> None:
    assert "nothing is to be recorded" in refused(ANNA)
    assert "confirn is no decision. Did you mean confirm?" in refused(ANNA, "confirn")
    assert "no subject is named" in refused("confirm")
    assert "exclude each other" in refused(ANNA, "confirm", "--withdraw")
    assert "Name none beside it" in refused(ANNA, "confirm", "--from", "-")
    ended = scanner("decide", "nobody/x", "confirm", "--store", crawl.store.root)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert events(crawl) == []


def test_thousands_are_decided_at_once(store: Store, tmp_path: Path) -> None:
    number = 3000
    crawl = Crawl(store, tmp_path)
    crawl.many(number)
    lines = "\n".join(json.dumps({"subject": f"many/{n}", "decision": "dismiss"}) for n in range(number))
    done = decide("--from", "-", text=lines)
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[-1] == "... 3,000 events about 3,000 subjects in all."
    assert len(events(crawl)) == number
