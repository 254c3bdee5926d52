"""The real desk in a terminal, killed in the middle of quick decisions: none that it showed is lost."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from filled_store import Crawl

from scanner.records import Decision, ReviewDecision
from scanner.store.store import Store

DECISIONS = 200
WAIT_S = 120.0
CONTROL = re.compile(
    r"\x1b(\[[0-9;?<=>]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[PX^_].*?\x1b\\|.)", re.DOTALL
)
# A row of the table, as it is drawn once its decision is recorded.
SHOWN = re.compile(r"(many/\d+)\s+●\s+gives back\s+[\d.]+\s+[\d.]+\s+\d+\s+✗\s+dismissed")


class Terminal:
    """A program in a terminal of 120 x 40 cells, and everything that it wrote."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.keyboard, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True
        )
        os.close(side)
        self._written = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                if not (some := os.read(self.keyboard, 65_536)):
                    return
            except OSError:  # the program has ended
                return
            self._written += some

    @property
    def text(self) -> str:
        """What was written, without what moves the cursor or colours the text."""
        return CONTROL.sub(" ", self._written.decode(errors="replace"))

    def until(self, words: str) -> None:
        """Waits until the program has written that."""
        ends = time.monotonic() + WAIT_S
        while words not in self.text:
            assert time.monotonic() < ends, self.text[-2000:]
            time.sleep(0.02)

    def kill(self) -> None:
        """Ends the program at once, and waits for what it wrote before."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._reader.join(WAIT_S)
        os.close(self.keyboard)


@pytest.mark.parametrize("after", [10, 50])  # decisions that were shown, before the desk is killed
def test_a_killed_desk_has_recorded_every_decision_that_it_showed(
    crawl: Crawl, tmp_path: Path, after: int
) -> None:
    crawl.many(DECISIONS + 20)
    desk = Terminal(
        [str(Path(sys.executable).parent / "finextract-tui"), "--store", str(crawl.store.root)],
        {
            **os.environ,
            "TERM": "xterm-256color",
            "XDG_CONFIG_HOME": str(tmp_path),
            "FINEXTRACT_REVIEWER": "rosa",
        },
    )
    try:
        desk.until("many/0")
        os.write(desk.keyboard, b"d" * DECISIONS)
        ends = time.monotonic() + WAIT_S
        while len(set(SHOWN.findall(desk.text))) < after:
            assert time.monotonic() < ends, desk.text[-2000:]
            time.sleep(0.05)
    finally:
        desk.kill()
    shown = set(SHOWN.findall(desk.text))
    store = Store(crawl.store.root)
    found = store.query("SELECT repo, decision, reviewer FROM decision_log WHERE starts_with(repo, 'many/')")
    recorded = {row["repo"] for row in found}
    assert len(shown) >= after
    assert shown <= recorded
    assert len(recorded) < DECISIONS, "it was killed in the middle"
    assert {(row["decision"], row["reviewer"]) for row in found} == {(ReviewDecision.DISMISS, "rosa")}
    assert len(store.select(Decision)) == len(found)
