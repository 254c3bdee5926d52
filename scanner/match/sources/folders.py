"""A folder of pictures, and a single one."""

from __future__ import annotations

import os
from pathlib import Path

from scanner.errors import CorpusError
from scanner.images import SUFFIXES
from scanner.match.sources.base import OTHERS, READ, Item, Pictures, place_of, readable


def folder_pictures(folder: Path) -> Pictures:
    """Every file below `folder` with the suffix of a picture, sorted. Raises CorpusError for none.

    Links to folders are not followed. A folder that cannot be read is told among the problems.
    """
    if not folder.is_dir():
        raise CorpusError(f"{folder} is not a folder. Pass the folder that holds the images.")
    problems: list[OSError] = []
    files = sorted(
        Path(place, name)
        for place, _, names in os.walk(folder, onerror=problems.append)
        for name in names
        if Path(name).suffix.lower() in READ | OTHERS | _ELSEWHERE
    )
    found = [file for file in files if file.suffix.lower() in READ]
    not_read = [file for file in files if file.suffix.lower() in OTHERS]
    if not found:
        raise CorpusError(f"{folder} holds no images ({_listed()}).{_what_else(files)}")
    return Pictures(
        str(folder),
        tuple(Item(place_of(file), readable(str(file.relative_to(folder))), file) for file in found),
        (place_of(folder).rstrip("/") + "/",),
        tuple(readable(str(file.relative_to(folder))) for file in not_read),
        tuple((readable(str(p.filename)), f"cannot be read: {p.strerror}") for p in problems),
    )


def one_picture(file: Path) -> Pictures:
    """A single picture file."""
    return Pictures(str(file), (Item(place_of(file), readable(file.name), file),))


_ELSEWHERE = frozenset({".tar", ".parquet", ".csv", ".tsv", ".jsonl", ".ndjson"})


def _listed() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))


def _what_else(files: list[Path]) -> str:
    """Which files of a folder without pictures may hold some."""
    suffixes = sorted({file.suffix.lower() for file in files})
    if not suffixes:
        return ""
    hint = " Name such files themselves." if _ELSEWHERE & set(suffixes) else " Convert them to PNG or JPEG."
    return f" It holds {len(files)} files with the endings {', '.join(suffixes)}.{hint}"
