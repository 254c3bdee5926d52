"""The small verbs: sql, export, config, doctor and completion, on a real store and a hub on loopback."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import socket
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from commands import scanner
from servers.civitai import Civitai
from servers.hub import Hub

from scanner.cli import cli, main
from scanner.crawl.cluster import connected
from scanner.doctor import Check, State, examine
from scanner.records import Checkpoint, ConfigRow, Reference, Role, Scan, Verdict, now
from scanner.store.exports import EXPORTS
from scanner.store.store import Store

BIN = Path(sys.executable).parent


def scan(checkpoint: str, verdict: Verdict, reason: str = "") -> Scan:
    return Scan(
        scan_id=f"scan-{checkpoint}-{verdict}", checkpoint_id=checkpoint, config_id="config", run_id="run",
        verdict=verdict, reason=reason, stage="match", started_at=now(), finished_at=now(),
        seconds={"sample": 1.5}, versions={"torch": "2"},
    )  # fmt: skip


@pytest.fixture
def filled(store: Store) -> Store:
    """Three scans of two checkpoints: one was scanned twice."""
    store.append([scan("a", Verdict.FAILED, 'a, "quoted"\nreason \x1b[31m')])
    store.append([scan("a", Verdict.FLAGGED)])
    store.append([scan("b", Verdict.SKIPPED, "it's pickled")])
    return store


def run(*words: str, store: Store | None = None) -> Result:
    return CliRunner().invoke(cli, [*words, *(["--store", str(store.root)] if store else [])])


# --- sql


def test_sql_answers_as_a_table_as_csv_and_as_json(filled: Store) -> None:
    query = "SELECT checkpoint_id, verdict, reason, seconds FROM scans ORDER BY 1"
    table = run("sql", query, store=filled)
    assert [line.split()[:2] for line in table.stdout.splitlines()][1:] == [
        ["a", "flagged"],
        ["b", "skipped"],
    ]
    rows = list(csv.DictReader(io.StringIO(run("sql", query, "--format", "csv", store=filled).stdout)))
    assert [row["reason"] for row in rows] == ["", "it's pickled"]
    (first, _) = json.loads(run("sql", query, "--format", "json", store=filled).stdout)
    assert first["seconds"] == {"sample": 1.5}


HOSTILE = "a\x1b[31mred\x07\x9b2J\u202eright\r\nnext line"


@pytest.fixture
def hostile(store: Store) -> Store:
    """A store with control characters in every text that a stranger may have written."""
    at = now()
    store.append([scan("a", Verdict.FAILED, HOSTILE)])
    store.append([
        Checkpoint(
            checkpoint_id="a", source="hf", repo=f"o/{HOSTILE}", revision="", file=HOSTILE, url="",
            sha256=None, size_bytes=1, kind="lora", family="sd1", base=HOSTILE, caption=HOSTILE,
            num_train_images=None, license=None, created_at=None, listed_at=at, raw="{}",
        )
    ])  # fmt: skip
    store.append([Reference("r", HOSTILE, Role.REFERENCE, "/r.png", "r", 1, 1, HOSTILE, (0.5,), at)])
    store.append([ConfigRow("config", "", at)])
    return store


@pytest.mark.parametrize(
    "words",
    [
        ("sql", "SELECT reason FROM all_scans"),
        (
            "sql",
            "SELECT s.reason, repo FROM all_scans s JOIN checkpoints USING (checkpoint_id)",
            "--format",
            "csv",
        ),
        ("sql", "SELECT reason FROM all_scans", "--format", "json"),
        ("sql", "SELECT CAST(reason AS INTEGER) FROM all_scans"),
        ("sql", HOSTILE),
        ("status",),
        ("status", HOSTILE),
        ("corpus", "list"),
        ("corpus", "list", "--json"),
        ("corpus", "add", "name", f"/nowhere/{HOSTILE}"),
        ("crawl", "--source", f"folder:/nowhere/{HOSTILE}"),
        ("--debug", "crawl", "--source", f"folder:/nowhere/{HOSTILE}"),
    ],
)
def test_control_characters_of_untrusted_text_do_not_reach_the_terminal(
    hostile: Store, words: tuple[str, ...], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINEXTRACT_STORE", hostile.uri)
    monkeypatch.setattr(sys, "argv", ["scanner", *words])
    with pytest.raises(SystemExit):
        main()
    printed = capfd.readouterr()
    shown = printed.out + printed.err
    assert "red" in shown, "the text itself is shown"
    assert [c for c in shown if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"] == []


def test_a_line_break_inside_a_value_stays_inside_its_cell_of_csv(hostile: Store) -> None:
    printed = run("sql", "SELECT reason, verdict FROM scans", "--format", "csv", store=hostile).stdout
    (row,) = csv.DictReader(io.StringIO(printed))
    assert row["verdict"] == "failed"
    assert row["reason"].splitlines()[1:] == ["next line"]


def test_a_warning_about_a_file_with_a_hostile_name_is_printed_without_control_characters(
    filled: Store,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import logging, scanner.cli as c, sys; sys.argv[1:] = ['--version']\n"
         "try: c.main()\nfinally: logging.getLogger('scanner.store').warning('the file a\\x1b[31mred')"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == "the file a\N{REPLACEMENT CHARACTER}[31mred\n"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELEC 1", "SELEC"),
        ("SELECT nothing FROM scans", "nothing"),
        ("SELECT 1 FROM nowhere", "nowhere"),
        ("SELECT CAST('a' AS INTEGER)", "'a'"),
        ("", "the query is empty"),
        ("/* only a comment */", "the query is empty"),
        ("SELECT * FROM read_csv('/etc/passwd')", "A query reads the store's own files"),
        ("DROP VIEW scans", "the store is read only"),
    ],
)
def test_a_query_that_cannot_be_run_is_refused_without_a_traceback(
    filled: Store, query: str, said: str
) -> None:
    done = scanner("sql", query, "--store", filled.root)
    assert done.returncode == 2
    assert done.stderr.startswith("scanner: error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# --- export


@pytest.mark.parametrize("form", EXPORTS)
def test_an_export_holds_the_newest_rows_for_its_owner_alone(
    filled: Store, form: str, tmp_path: Path
) -> None:
    for _ in range(2):  # what is there is written anew
        assert run("export", str(tmp_path / "out"), "--format", form, store=filled).exit_code == 0
    if form == "duckdb":
        path = tmp_path / "out/finextract.duckdb"
        with duckdb.connect(str(path), read_only=True) as database:
            found = database.execute("SELECT verdict FROM scans ORDER BY 1").fetchall()
        verdicts = [verdict for (verdict,) in found]
    else:
        path = tmp_path / f"out/scans.{form}"
        if form == "parquet":
            verdicts = sorted(pq.read_table(path)["verdict"].to_pylist())
        elif form == "csv":
            verdicts = sorted(row["verdict"] for row in csv.DictReader(path.open()))
        else:
            verdicts = sorted(json.loads(line)["verdict"] for line in path.read_text().splitlines())
    assert verdicts == ["flagged", "skipped"]
    assert path.stat().st_mode & 0o077 == 0


def test_no_moment_of_an_export_lets_other_users_read_it(store: Store, tmp_path: Path) -> None:
    store.append([scan(f"{n}", Verdict.FAILED, "x" * 200) for n in range(8000)])
    (out := tmp_path / "out").mkdir(mode=0o755)
    readable = set()
    for form in EXPORTS:
        if form != "duckdb":
            (out / f"scans.{form}").write_text("of an earlier export")
            (out / f"scans.{form}").chmod(0o644)
        words = ("export", str(out), "--format", form, "--table", "scans")
        before = os.umask(0o022)
        try:
            running = threading.Thread(target=run, args=words, kwargs={"store": store})
            running.start()
            while running.is_alive():
                for file in out.iterdir():
                    with contextlib.suppress(FileNotFoundError):
                        found = file.stat()
                        if found.st_mode & 0o077 and found.st_size > len("of an earlier export"):
                            readable.add(file.name)
        finally:
            running.join()
            os.umask(before)
    assert readable == set()
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o600}
    assert len(list(out.iterdir())) == len(EXPORTS)


def test_one_table_can_be_exported(filled: Store, tmp_path: Path) -> None:
    run("export", str(tmp_path / "out"), "--table", "scans", store=filled)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["scans.parquet"]


# --- settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scanner.toml in the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FINEXTRACT_STORE")
    return tmp_path / "scanner.toml"


def shown(verb: str) -> dict[str, tuple[object, str]]:
    rows = json.loads(run("config", verb, "--json").stdout)["settings"]
    return {row["option"]: (row["value"], row["from"]) for row in rows}


def test_config_shows_each_value_and_where_it_comes_from(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.write_text('store = "here"\n[crawl]\nsource = "hf"\nsamples-per-image = 7\ncorpus = ["a"]\n')
    found = shown("crawl")
    assert found["--store"] == ("here", "scanner.toml")
    assert found["--samples-per-image"] == (7, "scanner.toml")
    assert found["--corpus"] == (["a"], "scanner.toml")
    assert found["--seed"] == (0, "default")
    assert shown("status")["--store"] == ("here", "scanner.toml")
    monkeypatch.setenv("FINEXTRACT_STORE", "there")
    assert shown("status")["--store"] == ("there", "$FINEXTRACT_STORE")


def test_settings_hold_for_the_verbs_and_the_command_line_before_them(
    settings: Path, tmp_path: Path, filled: Store
) -> None:
    settings.write_text(f'store = "{filled.root}"\n[sql]\nformat = "json"\n')
    assert json.loads(run("sql", "SELECT 1 AS one").stdout) == [{"one": 1}]
    assert run("sql", "SELECT 1 AS one", "--format", "csv").stdout == "one\n1\n"
    other = Store(tmp_path / "other", create=True)
    assert "0 planned" in run("status", store=other).stdout


def test_a_file_named_in_the_environment_is_the_one_that_is_read(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.write_text("nonsense = 1\n")
    (tmp_path / "mine.toml").write_text("[crawl]\nlimit = 3\n")
    monkeypatch.setenv("FINEXTRACT_CONFIG", str(tmp_path / "mine.toml"))
    assert shown("crawl")["--limit"][0] == 3
    monkeypatch.setenv("FINEXTRACT_CONFIG", str(tmp_path / "none.toml"))
    assert "which is not a file" in str(run("status").exception)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[crawl]\nlimmit = 3", "limmit in [crawl] is not a setting. Did you mean limit?"),
        ("[crwl]\nlimit = 3", "[crwl] is not a setting. Did you mean crawl?"),
        ("stroe = 'x'", "stroe is not a setting. Did you mean store?"),
        ("[corpus.add]\nbackgroud = true", "Did you mean background?"),
        ("[crawl", "cannot be read as TOML"),
    ],
)
def test_an_unknown_setting_is_named_with_a_suggestion(settings: Path, text: str, words: str) -> None:
    settings.write_text(text)
    assert words in str(run("status").exception)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('limit = "many"', "limit in [crawl] takes a whole number, not 'many'"),
        ("samples-per-image = 0", "samples-per-image in [crawl] cannot be 0: 0 is not in the range"),
        ("steps = true", "steps in [crawl] takes a whole number, not True"),
        ('corpus = "mine"', "corpus in [crawl] takes a list, not 'mine'"),
        ('cache-size = "5XB"', "cache-size in [crawl] cannot be '5XB': 5XB is not a size"),
        ("base = 5", "base in [crawl] takes text in quotes, not 5"),
        ("allow-pickle = 1", "allow-pickle in [crawl] takes true or false, not 1"),
        ("gpus-per-worker = 1.5", "gpus-per-worker in [crawl] cannot be 1.5: 1.5 is neither a part of a GPU"),
    ],
)
@pytest.mark.parametrize("verb", ["config", "status"])
def test_a_value_that_an_option_does_not_take_is_refused_by_every_verb(
    settings: Path, text: str, words: str, verb: str
) -> None:
    settings.write_text(f"[crawl]\n{text}\n")
    assert f"scanner.toml: {words}" in str(run(verb).exception)


def test_values_of_every_type_of_option_are_accepted(settings: Path) -> None:
    settings.write_text(
        '[crawl]\nalpha = 1\ncache-size = 5000\nmax-download = "2GB"\nsince = 2026-11-01\ncorpus = ["a"]\n'
    )
    assert shown("crawl")["--cache-size"] == (5000, "scanner.toml")


# --- doctor


@pytest.fixture
def hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub and a site that answer."""
    with Hub({}) as hub, Civitai([]) as site:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("CIVITAI_ENDPOINT", site.url)
        yield  # type: ignore[misc]


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """A Ray that the doctor finds running in this process, so that it starts once for all these tests."""
    with connected(None):
        yield


def examined(store: Store, ray_address: str | None = None) -> dict[str, Check]:
    return {check.name: check for check in examine(str(store.root), ray_address)}


def test_the_doctor_finds_nothing_wrong_where_all_is_there(
    own_ray: None, hubs: None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("CIVITAI_TOKEN", "civ_secret")
    done = CliRunner().invoke(cli, ["doctor", "--store", str(store.root)], standalone_mode=False)
    assert done.return_value == 0, done.output
    assert "secret" not in done.output
    found = {name: check.state for name, check in examined(store).items()}
    assert all(state is not State.BAD for state in found.values())
    assert found["HF_TOKEN"] is found["CIVITAI_TOKEN"] is found["SSCD"] is State.GOOD


def test_the_doctor_names_what_is_wrong_and_how_to_fix_it(
    own_ray: None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    found = examined(store, f"127.0.0.1:{port}")
    for name in ("HuggingFace", "Civitai", "Ray"):
        assert found[name].state is State.BAD
        assert found[name].remedy
    assert found["HF_TOKEN"].state is State.POOR
    done = CliRunner().invoke(cli, ["doctor", "--store", str(store.root)], standalone_mode=False)
    assert done.return_value == 2


def test_an_address_that_is_not_a_hub_is_recognised(
    own_ray: None, hubs: None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVITAI_ENDPOINT", os.environ["HF_ENDPOINT"])  # answers, but not as Civitai does
    found = examined(store)
    assert found["HuggingFace"].state is State.GOOD
    assert found["Civitai"].state is State.BAD


# --- completion


def test_the_completion_script_completes_verbs_and_options(tmp_path: Path) -> None:
    script = run("completion", "bash").stdout
    assert "_SCANNER_COMPLETE=bash_complete" in script
    environment = os.environ | {
        "_SCANNER_COMPLETE": "bash_complete", "COMP_WORDS": "scanner crawl --sour", "COMP_CWORD": "2",
    }  # fmt: skip
    done = subprocess.run([BIN / "scanner"], env=environment, capture_output=True, text=True, check=False)
    assert "--source" in done.stdout


def test_a_long_value_is_printed_whole(filled: Store) -> None:
    printed = run("sql", "SELECT repeat('x', 5000) AS long", store=filled)
    assert printed.exit_code == 0
    assert printed.stdout.count("x") == 5000


def test_a_row_that_is_wider_than_the_terminal_is_printed_with_one_field_a_line(filled: Store) -> None:
    done = run("sql", "SELECT * FROM scans ORDER BY checkpoint_id, verdict LIMIT 2", store=filled)
    lines = done.stdout.splitlines()
    assert lines[0] == "row 1"
    assert any(line.split() == ["checkpoint_id", "a"] for line in lines)
    assert any(line.split() == ["verdict", "flagged"] for line in lines)
    narrow = run("sql", "SELECT checkpoint_id, verdict FROM scans ORDER BY ALL", store=filled).stdout
    assert narrow.splitlines()[0].split() == ["checkpoint_id", "verdict"]


def test_a_query_without_rows_or_with_equal_names_has_a_csv_header(filled: Store) -> None:
    assert (
        run("sql", "SELECT verdict FROM scans LIMIT 0", "--format", "csv", store=filled).stdout == "verdict\n"
    )
    assert run("sql", "SELECT 1 AS a, 2 AS a", "--format", "csv", store=filled).stdout == "a,a_2\n1,2\n"
