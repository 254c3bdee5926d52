"""The process that converts a pickle: a script that isolates itself, then imports torch and opens the pickle.

Its namespaces hold no network, no other process and no file but those that it needs: Python, torch and system
libraries, read-only, and the pickle; it can write the one file that it makes, and 1 MB of temporary files in
memory. It has no capability, and a seccomp filter refuses new processes, programs and sockets. It ends with
the process that started it. Linux on x86-64 and arm64. Imports the standard library alone before it is
isolated, and no module of this project. See unshare(2), pivot_root(2), seccomp(2).

    python -I isolated.py SOURCE TARGET SIZE SECONDS HEADROOM FOLDER        # or, to try the isolation: FOLDER

Prints "isolated" and "ready" (torch is imported) to stdout. Its exit code is not 0 where something failed.
"""

import ctypes
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/proc/cpuinfo", "/sys/devices/system/cpu", "/dev/null",
    "/dev/urandom",
)  # fmt: skip
_SCRATCH = "/scratch"  # in memory
_PACKAGES = ("torch", "numpy")
_BIND, _RECURSIVE, _PRIVATE, _DETACH = 0x1000, 0x4000, 0x40000, 2  # of mount(2) and umount2(2)
_MOUNT_SETATTR, _AT_RECURSIVE, _READ_ONLY, _NO_SUID = 442, 0x8000, 1, 2  # mount_setattr(2)
_PARENT_DEATH_SIGNAL, _SECCOMP, _NO_NEW_PRIVILEGES = 1, 22, 38  # of prctl(2)
# System calls that are refused: the architecture in seccomp, the number of clone, and the other numbers.
_THREAD = 0x10000  # CLONE_THREAD: a thread is allowed, a process is not
_CLONE3 = 435
_NEW = (425, 434, 438, 452)  # on both: io_uring_setup, pidfd_open, pidfd_getfd, fchmodat2
_REFUSED = {
    # fork, vfork, execve, execveat; socket, socketpair; ptrace, process_vm_readv, process_vm_writev; mount,
    # umount2, unshare, setns; add_key, request_key, keyctl; bpf, perf_event_open, userfaultfd; memfd_create,
    # prctl. There is neither fork nor vfork on arm64.
    "x86_64": (0xC000003E, 56, (57, 58, 59, 322, 41, 53, 101, 310, 311, 165, 166, 272, 308, 248, 249, 250,
                                321, 298, 323, 319, 157)),
    "aarch64": (0xC00000B7, 220, (221, 281, 198, 199, 117, 270, 271, 40, 39, 97, 268, 217, 218, 219, 280,
                                  241, 282, 279, 167)),
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Isolates the process, and converts where there is something to convert."""
    folder = arguments[-1]
    if len(arguments) == 1:
        return _apart([], "", folder, lambda: None)
    source, target = arguments[:2]
    size, seconds, headroom = map(int, arguments[2:5])
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, size + 10_000_000),
        (resource.RLIMIT_AS, 3 * size + headroom),
    ):
        resource.setrlimit(limit, (value, value))
    signal.alarm(2 * seconds + 60)  # if its parent does not end it
    return _apart([*_python(), source], target, folder, lambda: _convert(source, target))


def _python() -> list[str]:
    """The folders of Python, torch and what torch imports."""
    found = [find_spec(name) for name in _PACKAGES]
    packages = [os.path.dirname(os.path.dirname(spec.origin)) for spec in found if spec and spec.origin]
    return [sys.prefix, sys.base_prefix, *packages]


def _convert(source: str, target: str) -> None:
    import torch

    print("ready", flush=True)
    loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    for _ in range(3):
        if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
            loaded = loaded["state_dict"]
    loaded = loaded if isinstance(loaded, dict) else {}
    found = {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    if not found:
        sys.exit("it holds no tensors by name")
    _write(found, target)


def _write(tensors: dict[str, Any], target: str) -> None:
    """Writes tensors as safetensors into an existing file, one after the other: no other file can be made."""
    import torch

    names = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
        torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
        torch.bool: "BOOL",
    }  # fmt: skip
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in names:
            sys.exit(f"it holds values of the type {tensor.dtype}, which are not converted")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "r+b") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)


def _apart(readable: list[str], writable: str, folder: str, work: Callable[[], None]) -> int:
    """Calls `work` in an isolated process of its own; returns its exit code."""
    user, group = os.geteuid(), os.getegid()
    os.unshare(
        os.CLONE_NEWUSER
        | os.CLONE_NEWNS
        | os.CLONE_NEWPID
        | os.CLONE_NEWNET
        | os.CLONE_NEWIPC
        | os.CLONE_NEWUTS
    )
    for name, mapped in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(mapped)
    _new_root([*_SYSTEM, *readable], writable, folder)
    _prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    lives, held = os.pipe()  # held open by this process alone
    child = os.fork()  # process 1 of the new process namespace: its end is the end of all others there
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(held)
    _prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if select.select([lives], [], [], 0)[0]:
        return 1  # its parent had ended before the line above
    os.close(lives)
    _check(_LIBC.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)))
    _prctl(_NO_NEW_PRIVILEGES, 1)
    _refuse_system_calls()
    print("isolated", flush=True)
    work()
    return 0


def _new_root(readable: list[str], writable: str, folder: str) -> None:
    """Makes a file system of the given paths alone the root: all read-only, but for one file."""
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", folder, "tmpfs", 0)
    os.mkdir(folder + _SCRATCH)
    shown: list[str] = []
    for path in sorted({os.path.abspath(path) for path in readable if os.path.exists(path)}):
        if not any(path.startswith(f"{above}/") for above in shown):
            _place(path, folder)
            _mount(path, folder + path, None, _BIND | _RECURSIVE)
            shown.append(path)
    if writable:
        _place(writable, folder)
    attributes = struct.pack("QQQQ", _READ_ONLY | _NO_SUID, 0, 0, 0)
    _check(_LIBC.syscall(_MOUNT_SETATTR, -100, folder.encode(), _AT_RECURSIVE, attributes, len(attributes)))
    _mount("tmpfs", folder + _SCRATCH, "tmpfs", 0, b"size=1m")  # torch makes a file there when it is imported
    os.environ["TMPDIR"] = _SCRATCH
    if writable:
        _mount(writable, folder + writable, None, _BIND)
    os.chdir(folder)
    pivot_root = {"x86_64": 155, "aarch64": 41}[platform.machine()]
    _check(_LIBC.syscall(pivot_root, b".", b"."))
    _check(_LIBC.umount2(b".", _DETACH))
    os.chdir("/")


def _place(path: str, root: str) -> None:
    """Makes an empty folder or file to mount a path on."""
    if os.path.isdir(path):
        os.makedirs(root + path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with open(root + path, "w"):
            pass


def _refuse_system_calls() -> None:
    """Installs a seccomp filter: a program of the classic BPF, run before each system call."""
    architecture, clone, refused = _REFUSED[platform.machine()]
    load, equal, at_least, has_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, no_permission, not_known = 0x7FFF0000, 0x80000000, 0x50000 | 1, 0x50000 | 38
    numbers = [*refused, *_NEW]
    program = [
        (load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill),
        (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (give, 0, 0, kill),
        (equal, 0, 1, _CLONE3), (give, 0, 0, not_known),  # libc then calls clone
        (equal, 0, 3, clone), (load, 0, 0, 16), (has_bit, 1, 0, _THREAD), (give, 0, 0, no_permission),
        (load, 0, 0, 0),
    ]  # fmt: skip
    for number in numbers:
        program += [(equal, 0, 1, number), (give, 0, 0, no_permission)]
    program.append((give, 0, 0, allow))
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    held = ctypes.create_string_buffer(code)
    _prctl(_SECCOMP, 2, struct.pack("HxxxxxxQ", len(program), ctypes.addressof(held)))


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: bytes | None = None
) -> None:
    named = [None if text is None else text.encode() for text in (source, target, kind)]
    _check(_LIBC.mount(*named, ctypes.c_ulong(flags), options), target)


def _prctl(*arguments: int | bytes) -> None:
    _check(_LIBC.prctl(*arguments, *(0,) * (5 - len(arguments))))


def _check(result: int, what: str = "") -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
