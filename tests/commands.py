"""The command `scanner` in this process, which has imported what it needs: a new one takes a second for it.

A test of the process itself (its signals, its imports, its exit through a pipe) starts the installed command.
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import pytest

from scanner.cli import main


class Ended(NamedTuple):
    """What a command that has ended printed."""

    returncode: int
    stdout: str
    stderr: str


def scanner(*words: object) -> Ended:
    """Runs the console script with these words."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        patched.setattr(sys, "argv", ["scanner", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert isinstance(ended.value.code, int)
    return Ended(ended.value.code, out.getvalue(), err.getvalue())
