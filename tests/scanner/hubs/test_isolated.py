"""What code of a pickle could do if every check before it failed: real pickles try it in the real process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import safe_open

from scanner.errors import Unavailable
from scanner.hubs import pickles
from scanner.hubs.pickles import convert, isolation_error

pytestmark = pytest.mark.skipif(
    isolation_error() is not None, reason="no process can be isolated on this machine"
)

# Runs inside the process that converts, with its rights; each attempt ends in an error or reports "done".
ATTEMPTS = """
import ctypes, json, os, signal, socket, subprocess, sys, threading, torch
report = {}
libc = ctypes.CDLL(None, use_errno=True)

def attempt(function):
    try:
        report[function.__name__] = "done " + repr(function())
    except BaseException as error:
        report[function.__name__] = type(error).__name__

def called(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

def connected(family, address):
    with socket.socket(family) as made:
        made.connect(address)

@attempt
def reads_a_token(): return open(given["home"] + "/.cache/huggingface/token").read()
@attempt
def lists_the_home_folder(): return os.listdir(given["home"])
@attempt
def reads_passwd(): return open("/etc/passwd").read()
@attempt
def reads_the_environment_of_its_caller(): return open("/proc/%d/environ" % given["caller"]).read()
@attempt
def opens_its_folder_from_outside(): return os.open("/proc/self/root" + given["home"], os.O_RDONLY)
@attempt
def writes_to_the_home_folder(): open(given["home"] + "/.bashrc", "a").write("evil")
@attempt
def changes_the_mode_of_the_home_folder(): os.chmod(given["home"], 0o777)
@attempt
def writes_beside_its_pickle(): open(given["home"] + "/downloads/more", "w").write("evil")
@attempt
def writes_over_its_pickle(): open(given["pickle"], "r+").write("evil")
@attempt
def writes_into_python(): open(os.path.dirname(os.__file__) + "/sitecustomize.py", "w").write("evil")
@attempt
def truncates_python(): os.truncate(os.__file__, 0)
@attempt
def fills_the_memory_with_files(): open("/scratch/big", "wb").write(bytes(2_000_000))
@attempt
def reaches_a_unix_socket(): connected(socket.AF_UNIX, given["socket"])
@attempt
def reaches_an_abstract_unix_socket(): connected(socket.AF_UNIX, "\\0" + given["abstract"])
@attempt
def reaches_the_network(): connected(socket.AF_INET, ("127.0.0.1", given["port"]))
@attempt
def leaves_a_daemon_by_fork():
    if os.fork() == 0:
        os.setsid()
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", given["mark"]])
@attempt
def leaves_a_daemon_by_clone3(): return called(libc.syscall(435, bytes(88), 88))
@attempt
def starts_a_program(): return subprocess.check_output(["/bin/sh", "-c", "id"])
@attempt
def becomes_a_program(): os.execv("/bin/true", ["true"])
@attempt
def signals_its_caller(): os.kill(given["caller"], signal.SIGTERM)
@attempt
def outlives_its_caller(): return called(libc.prctl(1, 0, 0, 0, 0))
@attempt
def gets_other_rights(): os.unshare(os.CLONE_NEWUSER)
@attempt
def mounts(): return called(libc.mount(b"tmpfs", b"/scratch", b"tmpfs", 0, None))
@attempt
def reads_the_keys_of_the_user(): return called(libc.syscall(250, 0, -3, 0))
@attempt
def floods_its_messages():
    for _ in range(100):
        os.write(2, bytes(1_000_000))
@attempt
def uses_a_thread():
    thread = threading.Thread(target=lambda: report.update(thread="ran"))
    thread.start()
    thread.join()

answer = {"report": torch.frombuffer(bytearray(json.dumps(report).encode()), dtype=torch.uint8)}
"""
# Of the home folder there are the empty folders on the way to the pickle.
ALLOWED = {"lists_the_home_folder": "done ['downloads']", "uses_a_thread": "done None", "thread": "ran"}


class Evaluated:
    """Pickles as code, which runs when it is opened; its variable `answer` is the object."""

    def __init__(self, code: str, **given: Any) -> None:
        prepared = f"given = {given!r}\n{code}"
        self._expression = f"(lambda names: (exec({prepared!r}, names), names['answer'])[1])({{}})"

    def __reduce__(self) -> Any:
        return eval, (self._expression,)


@pytest.fixture
def unchecked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checks before the process pass everything, and torch's unpickler calls everything."""
    opened = pickles.CHILD.read_text()
    assert "weights_only=True" in opened
    script = tmp_path / "isolated.py"
    script.write_text(opened.replace("weights_only=True", "weights_only=False"))
    monkeypatch.setattr(pickles, "CHILD", script)
    monkeypatch.setattr(pickles, "check_globals", lambda *_: None)
    return script


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Servers that the pickle tries to reach: a UNIX socket, an abstract one and one on loopback."""
    abstract, path = f"finextract-{tmp_path.name}-{os.getpid()}", str(tmp_path / "agent.sock")
    with (
        socket.socket(socket.AF_UNIX) as one,
        socket.socket(socket.AF_UNIX) as other,
        socket.create_server(("127.0.0.1", 0)) as third,
    ):
        one.bind(path)
        other.bind(f"\0{abstract}")
        one.listen()
        other.listen()
        yield {"socket": path, "abstract": abstract, "port": third.getsockname()[1]}


def with_mark(mark: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


def test_code_of_a_pickle_reads_no_token_writes_nothing_reaches_no_socket_and_leaves_no_process(
    tmp_path: Path, unchecked: Path, listening: dict[str, Any]
) -> None:
    home = tmp_path / "home"
    (token := home / ".cache/huggingface/token").parent.mkdir(parents=True)
    token.write_text("secret")
    (home / "downloads").mkdir()
    pickled, made = home / "downloads/evil.ckpt", home / "downloads/made.safetensors"
    given = {"home": str(home), "pickle": str(pickled), "caller": os.getpid(), "mark": str(tmp_path / "mark")}
    torch.save({"state_dict": Evaluated(ATTEMPTS, **given, **listening)}, pickled)
    content, mode = pickled.read_bytes(), home.stat().st_mode
    convert(pickled, made, "o/evil")
    with safe_open(made, "pt") as file:
        report = json.loads(bytes(file.get_tensor("report").tolist()))
    assert {name: said for name, said in report.items() if said.startswith(("done", "ran"))} == ALLOWED
    assert len(report) == ATTEMPTS.count("@attempt") + 1
    assert (pickled.read_bytes(), home.stat().st_mode) == (content, mode)
    assert sorted(p.name for p in home.rglob("*")) == [
        ".cache", "downloads", "evil.ckpt", "huggingface", "made.safetensors", "token",
    ]  # fmt: skip
    assert with_mark(given["mark"]) == []


def test_a_pickle_that_never_ends_is_ended_with_its_caller(tmp_path: Path, unchecked: Path) -> None:
    pickled = tmp_path / "endless.ckpt"
    code = "import time, signal\nsignal.alarm(0)\nopen(1, 'w').write('waiting')\ntime.sleep(600)\nanswer = {}"
    torch.save({"state_dict": Evaluated(code)}, pickled)
    program = (
        "import sys\nfrom pathlib import Path\nfrom scanner.hubs import pickles\n"
        "pickles.CHILD, pickles.check_globals = Path(sys.argv[1]), lambda *_: None\n"
        "pickles.convert(Path(sys.argv[2]), Path(sys.argv[3]), 'o/endless')"
    )
    command = [sys.executable, "-c", program, str(unchecked), str(pickled), str(tmp_path / "made")]
    with subprocess.Popen(command) as caller:
        while len(with_mark(str(pickled))) < 3:  # the caller, the process that waits, and the isolated one
            assert caller.poll() is None
            time.sleep(0.05)
        isolated = [p for p in with_mark(str(pickled)) if p.pid != caller.pid]
        caller.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(isolated, timeout=300)
    assert alive == []


def test_a_machine_that_cannot_isolate_opens_no_pickle(
    tmp_path: Path, unchecked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container without user namespaces: what the script prints before it fails decides."""
    mark = tmp_path / "was-opened"
    torch.save({"state_dict": Evaluated(f"open({str(mark)!r}, 'w')\nanswer = {{}}")}, tmp_path / "a.ckpt")
    unchecked.write_text(unchecked.read_text().replace("os.CLONE_NEWUSER", "1"))  # no such namespace
    assert isolation_error() == "OSError: [Errno 22] Invalid argument"
    with pytest.raises(Unavailable, match=r"cannot open it in an isolated process: .*Invalid argument"):
        convert(tmp_path / "a.ckpt", tmp_path / "made.safetensors", "o/a")
    assert not mark.exists()
