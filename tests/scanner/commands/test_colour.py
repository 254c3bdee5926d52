"""Colours on a terminal, and none in a pipe, with NO_COLOR, or instead of a word."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import scanner
from filled_store import Crawl

from scanner.records import Verdict
from scanner.store.store import Store

SCANNER = Path(sys.executable).parent / "scanner"
CODE = re.compile(r"\x1b\[[0-9;]*m")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*3[0-8]")
SHOWN = (("status",), ("status", "-q"), ("show", "anna/style"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    (folder / "mine").mkdir()
    crawl = Crawl(Store(folder / "store", create=True), folder / "mine")
    crawl.flagged("anna/style", (0.81, 0.4), 0.004)
    crawl.scan("kim/failed", Verdict.FAILED, reason="the hub did not answer")
    return folder / "store"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.parametrize("words", SHOWN)
def test_a_pipe_gets_no_codes_and_a_forced_one_the_same_words_in_colour(
    root: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = scanner(*words, "--store", root).stdout
    assert "\x1b" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = scanner(*words, "--store", root).stdout
    assert COLOUR.search(coloured)
    assert CODE.sub("", coloured) == plain, "nothing is told by colour alone"
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOUR.search(scanner(*words, "--store", root).stdout)


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_colours_unless_they_are_unwanted(root: Path, no_color: str) -> None:
    reader, writer = pty.openpty()
    done = subprocess.run(
        [SCANNER, "status", "--store", root], stdout=writer, stderr=subprocess.PIPE, check=False,
        env={**os.environ, "NO_COLOR": no_color, "COLUMNS": "120"},
    )  # fmt: skip
    os.close(writer)
    seen = os.read(reader, 65536).decode()
    os.close(reader)
    assert done.returncode == 0
    assert "1 flagged" in CODE.sub("", seen)
    assert "FLAGGED" in seen
    assert bool(COLOUR.search(seen)) == (not no_color)


@pytest.mark.parametrize("words", [("status",), ("config", "--json")])
def test_output_whose_reader_has_gone_does_not_exit_with_the_code_of_a_flag(
    root: Path, words: tuple[str, ...]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "FINEXTRACT_STORE": str(root)}
    done = subprocess.run([SCANNER, *words], stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
