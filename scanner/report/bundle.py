"""A report as one archive for a takedown or a court: page, data, pictures, hashes and a signature.

report.html      the page            report.json   its data
pictures/        every picture that the page may show, as the store holds it, named by its SHA256
SHA256SUMS       the hashes of all files above, as `sha256sum --check` reads them
SHA256SUMS.sig   with a key: an SSH signature of SHA256SUMS (ssh-keygen -Y, PROTOCOL.sshsig of OpenSSH)
READ-ME.txt      what this is and how to check it
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scanner.errors import ConfigError
from scanner.report.contents import as_json, contents_of
from scanner.report.page import rendered
from scanner.report.writing import replacing
from scanner.store.report_queries import Target
from scanner.store.store import Store
from scanner.text import first_line, printable

NAMESPACE = "finextract-scanner"  # what the signature is for, in the words of ssh-keygen
MARK = "READ-ME.txt"  # the first file of every bundle; an archive without it is not replaced
SIGN_S = 300.0  # that a person may take to type a passphrase, or to touch a hardware key
READ_ME = """\
This archive says what was found in published image models. It was written by {program}
at {written_at}.

report.html   Open it in a browser. Its pictures are blurred until you click on them. It fetches nothing.
report.json   The same data for programs.
pictures/     The pictures as they were stored. They may show people.
SHA256SUMS    The SHA256 of every file. To check that none was changed: sha256sum --check SHA256SUMS
{signed}
"""
SIGNED = """\
SHA256SUMS.sig  A signature of SHA256SUMS with the key
    {key}
To check it, write one line "WHO KEY" into the file signers, with the key as its owner published it. Then run:
    ssh-keygen -Y verify -f signers -I WHO -n {namespace} -s SHA256SUMS.sig < SHA256SUMS"""
NOT_SIGNED = "There is no signature: the hashes show that the files fit each other, not who wrote them."


def write_bundle(store: Store, targets: Sequence[Target], out: Path, key: Path | None = None) -> int:
    """Writes the archive about one or more targets, readable by its owner alone; returns its pictures.

    `key` is a private SSH key, or the public one of a key in an agent. An existing bundle of that name is
    replaced. Raises ConfigError where another file has that name, or nothing can be signed or written.
    """
    refuse_other(out)
    contents = [contents_of(store, target) for target in targets]
    page, data = rendered(store, contents)
    files = {"report.html": page.encode(), "report.json": as_json(data).encode()}
    pictures = dict(_pictures(store, contents))
    files |= pictures
    signed = NOT_SIGNED
    if key is not None:
        signed = SIGNED.format(key=_public(key), namespace=NAMESPACE)
    read_me = READ_ME.format(program=data["program"], written_at=data["written_at"], signed=signed)
    files = {MARK: read_me.encode(), **files}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    files["SHA256SUMS"] = sums.encode()
    if key is not None:
        files["SHA256SUMS.sig"] = _signature(files["SHA256SUMS"], key)
    _write(out, files)
    return len(pictures)


def refuse_other(out: Path) -> None:
    """Raises ConfigError where the archive would replace what is no bundle."""
    if out.suffix.lower() != ".zip":
        raise ConfigError(f"{out} is no name of a bundle. Name it FILE.zip.")
    if not (out.is_symlink() or out.exists()):
        return
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(out) as archive:
        if archive.namelist()[:1] == [MARK]:
            return
    raise ConfigError(f"{out} exists and is no bundle, so it is kept. Choose another name.")


def _pictures(store: Store, contents: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """The pictures of the rows with their names in the archive, without those that the store has lost."""
    for row in (row for each in contents for row in each["evidence"]):
        found = {"reference": row["reference"]["copy_sha256"]}
        if row["candidate"] and row["match"]:
            found["recovered"] = row["candidate"]["image_sha256"]
        for kind, sha256 in found.items():
            if sha256:
                with suppress(FileNotFoundError):
                    content = store.image(sha256)
                    end = "png" if content.startswith(b"\x89PNG") else "webp"
                    yield f"pictures/{kind}-{sha256}.{end}", content


def _public(key: Path) -> str:
    """The public key as one line of text."""
    if key.suffix == ".pub":
        try:
            return key.read_text().strip()
        except OSError as error:
            raise ConfigError(f"the key {key} cannot be read: {first_line(error)}.") from error
    return _keygen("-y", "-f", str(key)).decode().strip()


def _signature(content: bytes, key: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        message = Path(folder) / "SHA256SUMS"
        message.write_bytes(content)
        _keygen("-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(message))
        return message.with_suffix(".sig").read_bytes()


def _keygen(*words: str) -> bytes:
    """Runs ssh-keygen, which asks for a passphrase on the terminal. Raises ConfigError."""
    program = shutil.which("ssh-keygen")
    if program is None:
        raise ConfigError("signing needs ssh-keygen of OpenSSH, which is not on the PATH. Install it.")
    try:
        done = subprocess.run([program, *words], capture_output=True, check=True, timeout=SIGN_S)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip() or f"it ended with {error.returncode}"
        raise ConfigError(
            f"nothing was signed: ssh-keygen said: {printable(said.splitlines()[-1], 200)}\n"
            "Pass a private SSH key, such as ~/.ssh/id_ed25519, with --sign-with."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError("nothing was signed: ssh-keygen did not end within five minutes.") from error
    return done.stdout


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    at = time.gmtime()[:6]
    with replacing(out) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, at)
            entry.external_attr = 0o600 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
