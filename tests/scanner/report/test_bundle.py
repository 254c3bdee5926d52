"""`scanner report --bundle`: one archive whose files can be checked, and signed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from filled_store import Crawl

from scanner.cli import cli
from scanner.records import Verdict
from scanner.store.store import Store


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Crawl:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "mine").mkdir()
    made = Crawl(Store(folder / "store", create=True), folder / "mine")
    made.flagged("anna/style", (0.81, 0.7), 0.004)
    made.scan("kim/plain", Verdict.NOTHING_FOUND)
    return made


def bundle(crawl: Crawl, out: Path, *words: object) -> Result:
    given = ["report", "--bundle", str(out), "--store", str(crawl.store.root), *map(str, words)]
    return CliRunner().invoke(cli, given)


def extracted(out: Path, into: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(out) as archive:
        archive.extractall(into)
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_bundle_holds_page_data_pictures_and_the_hash_of_every_file(crawl: Crawl, tmp_path: Path) -> None:
    out = tmp_path / "anna.zip"
    done = bundle(crawl, out, "anna/style")
    assert done.exit_code == 0, done.output
    assert "2 pictures, not signed" in done.output
    assert out.stat().st_mode & 0o777 == 0o600
    files = extracted(out, tmp_path / "out")
    data = json.loads(files["report.json"])
    candidates = {row["candidate"]["image_sha256"] for row in data["evidence"]}
    assert {f"pictures/recovered-{sha256}.png" for sha256 in candidates} < set(files)
    assert b"anna/style" in files["report.html"]
    stated = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
    assert stated == {n: hashlib.sha256(c).hexdigest() for n, c in files.items() if n != "SHA256SUMS"}
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out", check=False
    )
    assert checked.returncode == 0
    assert "not who wrote them" in files["READ-ME.txt"].decode()


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen of OpenSSH")
def test_a_signature_is_checked_as_the_bundle_says_and_fails_for_a_changed_file(
    crawl: Crawl, tmp_path: Path
) -> None:
    key, out, folder = tmp_path / "key", tmp_path / "anna.zip", tmp_path / "out"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    done = bundle(crawl, out, "anna/style", "--sign-with", key)
    assert done.exit_code == 0, done.output
    files = extracted(out, folder)
    (folder / "signers").write_text(f"rosa {key.with_suffix('.pub').read_text()}")
    told = next(line for line in files["READ-ME.txt"].decode().splitlines() if "-Y verify" in line)
    command, _, message = told.replace("WHO", "rosa").partition(" < ")

    def verify() -> int:
        with (folder / message).open("rb") as signed:
            done = subprocess.run(command.split(), stdin=signed, cwd=folder, capture_output=True, check=False)
        return done.returncode

    assert verify() == 0
    (folder / "SHA256SUMS").write_bytes(files["SHA256SUMS"].replace(b"report.html", b"other.html"))
    assert verify() != 0


def test_a_bundle_replaces_nothing_but_a_bundle_and_says_what_it_needs(crawl: Crawl, tmp_path: Path) -> None:
    out = tmp_path / "anna.zip"
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("letters.txt", "mine")
    refused = bundle(crawl, out, "anna/style")
    assert "is no bundle, so it is kept" in str(refused.exception)
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["letters.txt"]
    out.unlink()
    assert bundle(crawl, out, "anna/style").exit_code == bundle(crawl, out, "kim/plain").exit_code == 0
    assert "no name of a bundle" in str(bundle(crawl, tmp_path / "anna.tar", "anna/style").exception)
    (tmp_path / "no-key").write_text("nothing")
    unsigned = bundle(crawl, tmp_path / "b.zip", "anna/style", "--sign-with", tmp_path / "no-key")
    assert "nothing was signed" in str(unsigned.exception)
    assert not (tmp_path / "b.zip").exists()
    nothing = CliRunner().invoke(cli, ["report", "anna/style", "--store", str(crawl.store.root)])
    assert "-o FILE.html" in str(nothing.exception)
