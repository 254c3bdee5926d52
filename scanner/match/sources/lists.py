"""Lists of pictures: a path or an address on each line, or in one column of a table.

CSV, TSV and JSON lines are read here, Parquet in `parquet`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from finextract.regular_files import open_regular
from scanner.errors import CorpusError
from scanner.match.sources.base import Download, Item, Pictures, item_of
from scanner.text import printable

# Usual names of a column of paths or addresses.
COLUMNS = (
    "path", "filepath", "file_path", "file", "filename", "file_name", "image", "image_path", "img",
    "img_path", "url", "image_url", "img_url", "uri", "image_uri",
)  # fmt: skip
MAX_LINE_CHARS = 16 * 1024**2  # of a table; its other columns may hold anything
SHOWN = 20  # columns that a message names


def text_pictures(named: str, lines: Iterable[str], folder: Path, download: Download | None) -> Pictures:
    """The pictures that a text names, one a line; empty lines are left out. Raises CorpusError."""
    items = []
    for line in lines:
        if "\0" in line:
            raise CorpusError(f"{named} is not a text: a list has a path or an address on each line.")
        if line.strip():
            items.append(item_of(line, folder, download))
    return Pictures(named, _some(items, named))


def text_file_pictures(file: Path, download: Download | None) -> Pictures:
    """The pictures that a text file names. Raises CorpusError."""
    with _open_text(file) as text:
        return text_pictures(str(file), _lines(file, text), file.absolute().parent, download)


def csv_pictures(file: Path, column: str | None, download: Download | None) -> Pictures:
    """The pictures that a column of a CSV or TSV file names; the first line names the columns."""
    with _open_text(file) as text:
        lines = _lines(file, text)
        first = next(lines, "")
        delimiter = max("\t,;|", key=first.count)
        try:
            names = next(csv.reader([first], delimiter=delimiter), [])
            place = names.index(chosen_column(file, names, column))
            rows = csv.reader(lines, delimiter=delimiter)
            entries = [row[place] if place < len(row) else "" for row in rows if row]
        except csv.Error as error:
            raise CorpusError(f"{file} cannot be read as a table: {error}.") from error
    return Pictures(str(file), _some(_of_rows(file, entries, download), str(file)))


def json_lines_pictures(file: Path, column: str | None, download: Download | None) -> Pictures:
    """The pictures that a field of a file of JSON objects, one a line, names."""
    entries, name = [], ""
    with _open_text(file) as text:
        for number, line in enumerate(_lines(file, text), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"{file} has no JSON on line {number}.") from error
            if not isinstance(row, dict):
                raise CorpusError(f"{file} has no JSON object on line {number}.")
            name = name or chosen_column(file, list(row), column)
            value = row.get(name)
            entries.append(value if isinstance(value, str) else "")
    return Pictures(str(file), _some(_of_rows(file, entries, download), str(file)))


def chosen_column(file: Path, names: Sequence[str], column: str | None) -> str:
    """The column that is named, or the only one with a usual name. Raises CorpusError, with all columns."""
    has = ", ".join(printable(name, 60) for name in names[:SHOWN]) or "no columns"
    if len(names) > SHOWN:
        has += f" and {len(names) - SHOWN} more"
    if column is not None:
        if column not in names:
            raise CorpusError(f"{file} has no column {column}. It has: {has}.")
        return column
    fitting = [name for name in names if name.strip().lower() in COLUMNS]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise CorpusError(
            f"{file} has several columns that may name the pictures: {', '.join(fitting)}.\n"
            "Name the right one with --column."
        )
    raise CorpusError(
        f"{file} has no column with a usual name for pictures ({', '.join(COLUMNS)}). It has: {has}.\n"
        "Name the column of paths or addresses with --column."
    )


def _of_rows(file: Path, entries: Sequence[str], download: Download | None) -> list[Item]:
    folder = file.absolute().parent
    return [
        item_of(entry, folder, download, "" if entry.strip() else f"row {number} of {file.name}")
        for number, entry in enumerate(entries, 1)
    ]


def _some(items: Sequence[Item], named: str) -> tuple[Item, ...]:
    if not items:
        raise CorpusError(f"{named} names no pictures.")
    return tuple(items)


def _open_text(file: Path) -> TextIO:
    try:
        open_regular(file).close()
        return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise CorpusError(f"{file} cannot be read: {error.strerror}.") from error


def _lines(file: Path, text: TextIO) -> Iterator[str]:
    while line := text.readline(MAX_LINE_CHARS):
        if len(line) == MAX_LINE_CHARS:
            raise CorpusError(f"{file} has a line of more than {MAX_LINE_CHARS:,} characters.")
        yield line
