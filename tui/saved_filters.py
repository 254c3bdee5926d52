"""Filters that a reviewer has saved under a name, in a small TOML file in the user's configuration folder.

[[filter]]
name = "Monet, to do"
words = "corpus:monet undecided"
shown = "flagged"
sort = "scanned"
reverse = false
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import platformdirs
import tomli_w

from scanner.errors import ConfigError
from scanner.store.desk_filter import Sort
from scanner.store.desk_queries import ListFilter

NAME = "desk-filters.toml"
LONGEST_NAME = 60  # characters


@dataclass(frozen=True, slots=True)
class SavedFilter:
    """A list of the desk under a name."""

    name: str
    words: str  # of the filter box
    shown: ListFilter = ListFilter.FLAGGED
    sort: Sort = Sort.STRENGTH
    reverse: bool = False


def file() -> Path:
    """The file of this user; it need not exist."""
    return platformdirs.user_config_path("finextract") / NAME


def load() -> list[SavedFilter]:
    """Returns the saved filters in the order of their names. Raises ConfigError for a file that is broken."""
    path = file()
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8")).get("filter", [])
        found = [
            SavedFilter(
                str(row["name"]),
                str(row["words"]),
                ListFilter(row.get("shown", ListFilter.FLAGGED)),
                Sort(row.get("sort", Sort.STRENGTH)),
                bool(row.get("reverse", False)),
            )
            for row in rows
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the saved filters in {path} cannot be read: {error}.\n"
            "Correct the file, or remove it to begin anew."
        ) from error
    return sorted(found, key=lambda saved: saved.name.casefold())


def save(new: SavedFilter) -> None:
    """Saves a filter; it replaces one of the same name. Raises ConfigError."""
    _write([saved for saved in load() if saved.name != new.name] + [new])


def remove(name: str) -> None:
    """Removes a saved filter. Raises ConfigError."""
    _write([saved for saved in load() if saved.name != name])


def _write(filters: list[SavedFilter]) -> None:
    """Writes the file whole or not at all, readable by its owner alone."""
    path = file()
    rows = [{key: _plain(value) for key, value in asdict(saved).items()} for saved in filters]
    hidden = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            hidden.touch(mode=0o600)
            hidden.write_text(tomli_w.dumps({"filter": rows}), encoding="utf-8")
            os.replace(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"the filter is not saved: {path} cannot be written ({error.strerror}).") from error


def _plain(value: object) -> object:
    return value if isinstance(value, bool) else str(value)
