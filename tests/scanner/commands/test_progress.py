"""Progress on stderr: a line with a bar on a terminal only; messages everywhere."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from scanner.commands.progress import ProgressLine, Terminal
from scanner.crawl.progress import Progress
from scanner.records import Checkpoint, Verdict, now

SCANNER = Path(sys.executable).parent / "scanner"


def checkpoint(repo: str) -> Checkpoint:
    return Checkpoint(
        checkpoint_id=repo, source="stub", repo=repo, revision="", file="", url="", sha256=None, size_bytes=1,
        kind="lora", family="sd1", base="b", caption="", num_train_images=None, license=None, created_at=None,
        listed_at=now(), raw="{}",
    )  # fmt: skip


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, markup=False, highlight=False)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_a_line_with_the_progress_and_what_is_running() -> None:
    console = terminal()
    with Terminal(console) as shown:
        shown.tick(Progress(total=4, done=1, running=[(checkpoint("o/one"), "sample", 34.0)]))
        shown.message("a message [with brackets]")
    assert "scanning" in written(console)
    assert "1/4; running: o/one (sample 34 s)" in written(console)
    assert "a message [with brackets]" in written(console)


def test_without_a_terminal_no_line_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(Console(stderr=True, force_terminal=False)) as line:
        line.update("embedding", 1, 2, "1/2")
        line.message("done")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "done\n")


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    console = terminal()
    with Terminal(console) as shown:
        shown.tick(Progress(total=1, running=[(checkpoint("o/\x1b[31mred"), "load", 1.0)]))
    assert "\x1b[31m" not in written(console)


def test_the_status_has_the_counts_and_the_retries() -> None:
    progress = Progress(total=9, done=3, listing=True, listed=1200, retried=2, elsewhere=1, starting=2)
    progress.verdicts[Verdict.NOTHING_FOUND] = 3
    status = Terminal(terminal()).status(progress)
    for part in ("3/9+", "1,200 listed so far", "3 nothing found", "2 retried", "1 held by another crawl",
                 "2 workers starting"):  # fmt: skip
        assert part in status


@pytest.mark.parametrize("no_color", ["", "1"])
def test_adding_a_corpus_draws_on_the_terminal_of_stderr_and_honours_no_color(
    zoo_path: Path, tmp_path: Path, no_color: str
) -> None:
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": no_color, "COLUMNS": "100"}
    images = zoo_path / "images/subjects/fruit"
    done = subprocess.Popen(
        [SCANNER, "corpus", "add", "fruit", images, "--store", tmp_path / "store"],
        stdout=subprocess.PIPE, stderr=writer, env=environment,
    )  # fmt: skip
    os.close(writer)
    seen = b""
    while True:
        try:
            more = os.read(reader, 65536)
        except OSError:  # the other end of a terminal is closed
            break
        if not more:
            break
        seen += more
    assert done.stdout is not None
    assert done.stdout.read() == b"", "stdout is data"
    assert done.wait() == 0
    shown = seen.decode()
    count = len(list(images.iterdir()))
    assert "embedding" in shown
    assert f"{count}/{count}" in shown
    assert f"fruit: {count} added" in shown
    colours = [f"\x1b[{code}m" for code in (31, 32, 33, 34, 35, 36)] + ["\x1b[38;5;"]
    assert any(colour in shown for colour in colours) == (not no_color)
