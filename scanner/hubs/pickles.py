"""Pickled checkpoints converted to safetensors, with `--allow-pickle` only.

A pickle can run code when it is opened. Four checks may refuse it: a size limit, the directory of its zip
archive, picklescan in strict mode, and torch's restricted unpickler. The last runs in an isolated process
(scanner.hubs.isolated) with limited memory, time and disk: if all checks failed, code of the pickle would see
no network, no other process, and no file but Python, torch, system libraries and the pickle. Where a machine
cannot isolate a process, no pickle is opened. Only safetensors are kept.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from picklescan.scanner import scan_file_path

from finextract.reasons import ReasonCode
from finextract.weights.formats import classify, read_header
from scanner.errors import Skipped, Unavailable
from scanner.hubs.inspection import check_supported
from scanner.text import printable
from scanner.units import show_size

MAX_PICKLE = 8_000_000_000  # bytes
MAX_MEMBERS = 20_000  # of the archive
SECONDS = 600  # of CPU time; twice that of elapsed time
HEADROOM = 6_000_000_000  # bytes of address space beyond the file: torch's libraries
CHILD = Path(__file__).with_name("isolated.py")  # the script that isolates itself and converts
SAID = 4000  # bytes of its messages that are read


def isolation_error() -> str | None:
    """Why this machine cannot run a process as isolated as a pickle needs; None where it can."""
    with tempfile.TemporaryDirectory() as folder:
        ended = _run([folder], Path(folder), 60)
    return None if ended.isolated else ended.said


def convert(pickled: Path, target: Path, where: str) -> None:
    """Writes the tensors of a pickled checkpoint to `target` as safetensors.

    Raises Skipped where a check refuses it, Unavailable where this machine cannot isolate a process.
    """
    check_archive(pickled, where)
    check_globals(pickled, where)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "converted.safetensors"
        _convert_apart(pickled, made, where)
        os.replace(made, target)


def scannable(pickled: Path, into: Path, name: str, where: str) -> Path:
    """The safetensors converted from a pickled checkpoint, below `into`, of a kind that can be scanned.

    Raises as `convert`, and Skipped for another kind.
    """
    target = into / f"{Path(name).stem}.safetensors"
    into.mkdir(parents=True, exist_ok=True)
    convert(pickled, target, where)
    check_supported(classify(read_header(target)), where)
    return target


def check_archive(pickled: Path, where: str) -> None:
    """The size, and the zip directory: torch writes one pickle and tensors, all of them uncompressed."""
    size = pickled.stat().st_size
    if size > MAX_PICKLE:
        raise Skipped(
            f"{where} is a pickle of {show_size(size)}; at most {show_size(MAX_PICKLE)} are converted.",
            ReasonCode.TOO_LARGE,
        )
    try:
        with zipfile.ZipFile(pickled) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _refused(f"{where} is a pickle outside a torch archive; it was not opened.") from error
    if len(members) > MAX_MEMBERS:
        raise _refused(f"{where} is an archive of {len(members):,} files; at most {MAX_MEMBERS:,} are read.")
    if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members):
        raise _refused(f"{where} is a compressed or encrypted archive, which torch does not write.")
    if sum(m.file_size for m in members) > size:
        raise _refused(f"{where} is an archive that claims to hold more than its own size.")
    names = [m.filename for m in members]
    if len(set(names)) != len(names):
        raise _refused(f"{where} is an archive that holds one name twice.")
    if sum(name.endswith("/data.pkl") or name == "data.pkl" for name in names) != 1:
        raise _refused(f"{where} is not a torch archive: it does not hold exactly one data.pkl.")


def check_globals(pickled: Path, where: str) -> None:
    """Refuses a pickle that would call anything beyond what picklescan knows to be innocuous."""
    try:
        found = scan_file_path(str(pickled), strict=True)
    except Exception as error:  # of a parser that reads untrusted bytes
        raise _refused(f"{where} is a pickle that picklescan cannot read; it was not opened.") from error
    if found.scan_err or found.scanned_files < 1 or not found.globals:  # what is not a pickle has no globals
        raise _refused(f"{where} is a pickle that picklescan cannot read; it was not opened.")
    if found.issues_count or found.suspicious_count or found.infected_files:
        named = sorted(f"{g.module}.{g.name}" for g in found.globals if g.safety.value != "innocuous")
        shown = printable(", ".join(named), 200)
        raise _refused(f"{where} is a pickle that would call {shown}; it was not opened.")


def _refused(message: str) -> Skipped:
    return Skipped(message, ReasonCode.DANGEROUS_PICKLE)


@dataclass(frozen=True, slots=True)
class _Ended:
    code: int | None  # of the process; None where it was killed after too long a time
    said: str  # the end of its messages
    isolated: bool  # before anything of the pickle was read
    ready: bool  # torch was imported


def _convert_apart(pickled: Path, made: Path, where: str) -> None:
    size = pickled.stat().st_size
    os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    (root := made.parent / "root").mkdir(mode=0o700)
    given = [pickled.absolute(), made.absolute(), size, SECONDS, HEADROOM, root.absolute()]
    done = _run([str(value) for value in given], made.parent, 2 * SECONDS)
    if not done.ready:
        raise Unavailable(
            f"{where} is a pickle, and this machine cannot open it in an isolated process: "
            f"{printable(done.said, 200)}. Run `scanner doctor` for what is missing, or ask its author for "
            "safetensors.",
            ReasonCode.NO_ISOLATION,
        )
    if done.code is None:
        raise _refused(f"{where} is a pickle that could not be read in {2 * SECONDS} seconds.")
    if done.code != 0 or not made.stat().st_size:
        shown = printable(done.said, 200)
        raise _refused(f"{where} is a pickle that torch's restricted unpickler refuses: {shown}")


def _run(arguments: list[str], folder: Path, seconds: float) -> _Ended:
    """Runs the isolated process, with all output in files of a limited size, and ends all that it began."""
    environment = {"PATH": os.defpath, "HOME": "/", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile(dir=folder) as told, tempfile.TemporaryFile(dir=folder) as said:
        command = [sys.executable, "-I", str(CHILD), *arguments]
        with subprocess.Popen(
            command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=told, stderr=said,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                code: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        told.seek(0)
        states = told.read(len(b"isolated\nready\n")).split()
        said.seek(max(0, said.seek(0, os.SEEK_END) - SAID))
        last = said.read().decode(errors="replace").strip().splitlines() or ["no reason given"]
    return _Ended(code, last[-1], b"isolated" in states, b"ready" in states)
