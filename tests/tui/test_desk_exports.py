"""What reviewers recorded at the desk comes out of the store whole, by `scanner export` and `scanner sql`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner
from filled_store import Crawl, Opener

from scanner.cli import cli
from scanner.records import ReviewDecision, Verdict
from scanner.store.exports import EXPORTS
from scanner.store.store import Store

BEN = "ben/strong-shoe"


def sql(store: Store, query: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(cli, ["sql", query, "--store", store.uri, "--format", "json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)  # type: ignore[no-any-return]


async def review(filled: Crawl, desk: Opener) -> None:
    """Anna dismissed the first match; vera confirms it; the second gets a note alone; the third is undone."""
    filled.decide(filled.matches[BEN][0].match_id, ReviewDecision.DISMISS, "anna")
    async with desk() as seen:
        await seen.press("enter", "b", "c", "n")
        await seen.write("ask eve")
        await seen.press("enter", "down", "u", "z")


async def test_the_decision_log_names_reviewer_repo_file_and_reference_of_every_event(
    filled: Crawl, desk: Opener
) -> None:
    await review(filled, desk)
    log = sql(filled.store, "SELECT * FROM decision_log")
    assert [(row["reviewer"], row["event"], row["decision"], row["note"], row["stands"]) for row in log] == [
        ("anna", "decide", "dismiss", "", False),
        ("vera", "decide", "confirm", "", True),
        ("vera", "note", None, "ask eve", True),
        ("vera", "decide", "unsure", "", False),
        ("vera", "withdraw", None, "", False),
    ]
    (first, *_), matches = log, filled.matches[BEN]
    assert first["subject"] == "match"
    assert (first["repo"], first["file"]) == (BEN, "pytorch_lora_weights.safetensors")
    assert first["revision"] == "4f1c9a2e" * 5
    assert first["reference_path"] == str(filled.folder / "2-0.png")
    assert [row["reference_id"] for row in log] == [matches[n].reference_id for n in (0, 0, 1, 2, 2)]


async def test_what_stands_has_a_view_of_its_own_with_one_row_for_each_subject(
    filled: Crawl, desk: Opener
) -> None:
    await review(filled, desk)
    filled.decide(filled.scans["cleo/other-shoe"].scan_id, ReviewDecision.UNSURE, "anna")
    standing = sql(filled.store, "SELECT * FROM standing_decisions")
    shown = [
        (row["subject"], row["repo"], row["decision"], row["decided_by"], row["note"], row["noted_by"])
        for row in standing
    ]
    assert shown == [
        ("match", BEN, "confirm", "vera", "", None),
        ("match", BEN, None, None, "ask eve", "vera"),
        ("checkpoint", "cleo/other-shoe", "unsure", "anna", "", None),
    ]


@pytest.mark.parametrize("form", EXPORTS)
async def test_an_export_holds_what_every_reviewer_said(
    filled: Crawl, desk: Opener, form: str, tmp_path: Path
) -> None:
    await review(filled, desk)
    done = CliRunner().invoke(
        cli, ["export", str(tmp_path / "out"), "--format", form, "--store", filled.store.uri]
    )
    assert done.exit_code == 0, done.output
    path = tmp_path / "out" / ("finextract.duckdb" if form == "duckdb" else f"decision_log.{form}")
    if form == "csv":
        found = [(row["reviewer"], row["event"], row["repo"]) for row in csv.DictReader(path.open())]
    else:
        with duckdb.connect(str(path) if form == "duckdb" else ":memory:") as database:
            table = "decision_log" if form == "duckdb" else f"'{path}'"
            query = f"SELECT reviewer, event, repo FROM {table} ORDER BY decided_at"
            found = database.execute(query).fetchall()
    events = [
        ("anna", "decide"),
        ("vera", "decide"),
        ("vera", "note"),
        ("vera", "decide"),
        ("vera", "withdraw"),
    ]
    assert found == [(reviewer, event, BEN) for reviewer, event in events]


async def test_an_event_keeps_its_repo_when_its_checkpoint_is_scanned_again(crawl: Crawl) -> None:
    scan = crawl.flagged("anna/shoe", [0.9], 0.01)
    crawl.decide(scan.scan_id, ReviewDecision.CONFIRM, "anna")
    crawl.decide("gone", ReviewDecision.UNSURE, "anna")
    crawl.scan("anna/shoe", Verdict.NOTHING_FOUND, scan_id="later")
    about = [
        (row["repo"], row["verdict"], row["subject"])
        for row in sql(crawl.store, "SELECT * FROM decision_log")
    ]
    assert about == [("anna/shoe", "flagged", "checkpoint"), (None, None, None)]
