"""What a corpus is made of: folders, pictures, lists, tables, shards and addresses, as people have them.

Each gives the same: items to read, one for each picture that it names. Nothing is opened before its turn,
but the headers of shards and the rows of tables. Addresses are downloaded by a function that the caller
passes, because this layer knows no network.
"""

from __future__ import annotations

import functools
import operator
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from scanner.errors import ConfigError, CorpusError
from scanner.images import ImageError, open_image
from scanner.match.sources.base import READ, Download, Item, Pictures, address_of, item_of
from scanner.match.sources.folders import folder_pictures, one_picture
from scanner.match.sources.lists import (
    csv_pictures,
    json_lines_pictures,
    text_file_pictures,
    text_pictures,
)
from scanner.match.sources.shards import shard_pictures

__all__ = ["Download", "Item", "Pictures", "pictures_of_sources"]

STDIN = "-"
TABLES = {".csv": csv_pictures, ".tsv": csv_pictures, ".jsonl": json_lines_pictures,
          ".ndjson": json_lines_pictures}  # fmt: skip
ARCHIVES = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
KINDS = (
    "a folder, a picture, a list (.txt, or - for standard input), a table (.csv, .tsv, .jsonl, .parquet), "
    "a WebDataset shard (.tar), or an address"
)


def pictures_of_sources(
    sources: Sequence[str | Path], *, column: str | None = None, download: Download | None = None
) -> Pictures:
    """The pictures that sources name, in their order.

    `column` is the column of paths or addresses of the tables among them. Raises CorpusError for a source
    that cannot be read or names no picture, and ConfigError for a column without a table.
    """
    if column is not None and not any(_suffix(source) in (*TABLES, ".parquet") for source in sources):
        raise ConfigError("--column names a column of a table, and none of the sources is one.")
    found = [_pictures(source, column, download) for source in sources]
    return functools.reduce(operator.add, found)


def _pictures(source: str | Path, column: str | None, download: Download | None) -> Pictures:
    if source == STDIN:
        return text_pictures("standard input", sys.stdin, Path.cwd(), download)
    if isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source):
        if _suffix(source.partition("?")[0]) in (*TABLES, *ARCHIVES, ".parquet", ".tar", ".txt"):
            raise CorpusError(
                f"{address_of(source)} is not the address of a picture. Download that file, and name it."
            )
        item = item_of(source, Path.cwd(), download)
        return Pictures(item.label, (item,))
    path, suffix = Path(source), _suffix(source)
    if path.is_dir():
        return folder_pictures(path)
    if not path.exists():
        raise CorpusError(f"{path} does not exist. Pass {KINDS}.")
    if suffix in TABLES:
        return TABLES[suffix](path, column, download)
    if suffix == ".parquet":
        from scanner.match.sources.parquet import parquet_pictures

        return parquet_pictures(path, column, download)
    if suffix == ".tar":
        return shard_pictures(path)
    if suffix in (".txt", ".lst"):
        return text_file_pictures(path, download)
    if suffix in ARCHIVES:
        raise CorpusError(f"{path} is a compressed archive. Unpack it, and pass the folder.")
    if suffix not in READ:
        _check_is_picture(path)
    return one_picture(path)


def _check_is_picture(path: Path) -> None:
    """Raises CorpusError for a file of no known kind that is no picture."""
    try:
        open_image(path)
    except ImageError as error:
        raise CorpusError(f"{path} {error}, and its name does not say what it is. Pass {KINDS}.") from error


def _suffix(source: str | Path) -> str:
    return Path(source).suffix.lower()
