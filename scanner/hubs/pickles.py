"""Pickled checkpoints converted to safetensors, with `--allow-pickle` only.

A pickle can run code when it is opened. Four checks may refuse it: a size limit, the directory of its zip
archive, picklescan in strict mode, and torch's restricted unpickler in a process of its own without network
and secrets, and with limited memory, time and disk. Only safetensors are kept. This module itself does not
import torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
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
# Runs in the child. All limits are set before torch is imported; no module of this project is imported.
_CHILD = """
import os, resource, sys
source, target, size, seconds, headroom = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds),
                     (resource.RLIMIT_FSIZE, size + 10_000_000), (resource.RLIMIT_AS, 3 * size + headroom)):
    resource.setrlimit(limit, (value, value))
print("isolated", flush=True)
import torch
from safetensors.torch import save_file
loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
for _ in range(3):
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
loaded = loaded if isinstance(loaded, dict) else {}
found = {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
if not found:
    sys.exit("it holds no tensors by name")
save_file({k: v.detach().clone().contiguous() for k, v in found.items()}, target, {"format": "pt"})
"""


def can_isolate() -> bool:
    """Whether this machine can run a process without network."""
    child = "import os; os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)"
    return (
        subprocess.run([sys.executable, "-I", "-c", child], capture_output=True, check=False).returncode == 0
    )


def convert(pickled: Path, target: Path, where: str) -> None:
    """Writes the tensors of a pickled checkpoint to `target` as safetensors.

    Raises Skipped where a check refuses it, Unavailable where this machine cannot run a process without
    network.
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


def _convert_apart(pickled: Path, made: Path, where: str) -> None:
    size = pickled.stat().st_size
    command = [sys.executable, "-I", "-c", _CHILD, str(pickled.absolute()), str(made.absolute()),
               str(size), str(SECONDS), str(HEADROOM)]  # fmt: skip
    environment = {"PATH": os.defpath, "HOME": str(made.parent), "TMPDIR": str(made.parent),
                    "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    try:
        done = subprocess.run(
            command, env=environment, cwd=made.parent, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=2 * SECONDS, check=False, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise _refused(f"{where} is a pickle that could not be read in {2 * SECONDS} seconds.") from error
    if b"isolated" not in done.stdout:
        raise Unavailable(
            f"{where} is a pickle, and this machine cannot open it in a process without network "
            "(user namespaces are disabled). Scan it on one that can, or ask its author for safetensors.",
            ReasonCode.NO_ISOLATION,
        )
    if done.returncode != 0 or not made.is_file():
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        shown = printable(last, 200)
        raise _refused(f"{where} is a pickle that torch's restricted unpickler refuses: {shown}")
