"""A report as two files: the page for people, and its JSON twin. Both are readable by their owner alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from scanner.errors import ConfigError
from scanner.report.contents import as_json, contents_of
from scanner.report.page import rendered
from scanner.store.report_queries import Target
from scanner.store.store import Store
from scanner.text import first_line

PAGE_MARK, TWIN_MARK = b'content="finextract-scanner"', b'"finextract-scanner '
LONGEST = 80  # characters of a file's name that are taken from a repository's
UNSAFE = re.compile(r"[^A-Za-z0-9._]+")


def refuse_others(out: Path) -> None:
    """Raises ConfigError where the page or its twin would replace what is no report."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{out} is no name of a page. Name it FILE.html.")
    for file, mark in ((out, PAGE_MARK), (out.with_suffix(".json"), TWIN_MARK)):
        try:
            is_other = (file.is_symlink() or file.exists()) and mark not in file.read_bytes()
        except OSError:  # a folder, or a file of somebody else
            is_other = True
        if is_other:
            raise ConfigError(f"{file} exists and is no report, so it is kept. Choose another name.")


def write_report(store: Store, targets: Sequence[Target], out: Path) -> Path:
    """Writes the page about one or more targets and its JSON twin; returns the path of the twin.

    An existing report of that name is replaced. Raises ConfigError where another file has that name, or where
    the files cannot be written.
    """
    assert targets, "a report is about something"
    refuse_others(out)
    contents = [contents_of(store, target) for target in targets]
    page, data = rendered(store, contents)
    twin = out.with_suffix(".json")
    _write(out, page)
    _write(twin, as_json(data))
    return twin


def file_name(repo: str, checkpoint_id: str) -> str:
    """A name for a checkpoint's page that is safe in every folder, whatever its repository is called."""
    words = UNSAFE.sub("-", repo)[:LONGEST].strip("-.")
    end = UNSAFE.sub("", checkpoint_id)[:8]
    return "-".join(part for part in ("report", words, end) if part) + ".html"


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """A file that its owner alone may read, and that takes the place of `file` when the block has ended.

    Raises ConfigError where it cannot be written.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as stream:
            yield stream
        part.replace(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {first_line(error)}. Choose another name.") from error


def _write(file: Path, text: str) -> None:
    with replacing(file) as stream:
        stream.write(text.encode())
