"""Ordinary mistakes at the command line: one clear message and exit code 2, never a traceback.

Exit code 1 would say that something was flagged.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import scanner

from scanner.store.store import Store

BIN = Path(sys.executable).parent
NO_CREDENTIALS = {
    name: value for name, value in os.environ.items() if not name.startswith("AWS_") and name != "HOME"
} | {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "HOME": "/nonexistent"}


def installed(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the installed command, without credentials."""
    return subprocess.run(
        [BIN / "scanner", *words], capture_output=True, text=True,
        env=NO_CREDENTIALS | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [("sql", "SELECT 1"), ("corpus", "add", "mine", "PICTURES"), ("status",), ("export", "OUT")],
    ids=lambda words: words[0],
)
def test_a_bucket_without_credentials_is_one_message(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    given = [str(tmp_path) if word in ("PICTURES", "OUT") else word for word in words]
    done = installed(*given, "--store", "s3://bucket/prefix")
    assert done.returncode == 2
    assert done.stderr.startswith("scanner: error: the store s3://bucket/prefix cannot be opened: Unable to ")
    assert "Check its credentials" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_in_place_of_a_store_is_named_and_nothing_is_said_of_writing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = scanner("status", "--store", str(tmp_path / "file"))
    assert done.returncode == 2
    assert f"the store {tmp_path}/file cannot be opened: Not a directory" in done.stderr


def test_an_export_to_what_is_no_folder_is_one_message(store: Store) -> None:
    for place in ("/etc/passwd", "/proc/none"):
        done = scanner("export", place, "--store", str(store.root))
        assert done.returncode == 2
        assert done.stderr.startswith(f"scanner: error: {place} cannot be made a folder: ")


def test_a_reader_that_stops_early_sees_no_traceback(store: Store) -> None:
    query = f"{BIN}/scanner sql 'SELECT * FROM range(300000)' --format csv --store {store.root} | head -1"
    done = subprocess.run(["bash", "-c", query], capture_output=True, text=True)
    assert done.stdout == "range\n"
    assert "Traceback" not in done.stderr


def test_a_misspelt_verb_is_answered_with_the_nearest(tmp_path: Path) -> None:
    for words, near in ((("statsu",), "status"), (("config", "crwl"), "crawl"), (("corpus", "lits"), "list")):
        done = scanner(*words)
        assert done.returncode == 2
        assert f"Did you mean '{near}'?" in done.stderr


def test_an_unknown_verb_of_config_is_an_error() -> None:
    done = scanner("config", "nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'nope'" in done.stderr


def test_debug_adds_the_traceback_and_keeps_the_exit_code(tmp_path: Path) -> None:
    done = scanner("--debug", "status", "--store", str(tmp_path))
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.rstrip().splitlines()[-2].startswith("scanner: error: there is no store at")


def test_an_error_of_the_program_does_not_exit_with_the_code_of_a_flag(tmp_path: Path) -> None:
    """A damaged installation is an error that no verb expects."""
    (tmp_path / "duckdb.py").write_text("raise RuntimeError('damaged installation')")
    done = installed("status", "--store", str(tmp_path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 4
    assert "Traceback" in done.stderr
    assert "scanner: error of this program: damaged installation." in done.stderr
