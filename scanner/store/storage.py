"""The files of a store: in a folder (of this machine or on NFS), or below a prefix in an object store.

A file appears whole or not at all. A folder's file is written under a hidden name and renamed; an object
store's PUT is atomic. Files are not flushed to the disk (fsync). Paths are relative, with slashes. Knows no
table. Object stores are those that fsspec opens by their scheme; `s3://` needs the package s3fs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Container, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from itertools import batched
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import duckdb

from scanner.store.buckets import BucketStorage
from scanner.store.locks import exclusive
from scanner.store.patience import NO_PATIENCE, Patience, repeated

LOGGER = logging.getLogger("scanner.store")
UNSURE_NS = 100_000_000  # a folder that changed so recently may change again without a new modification time
LINKS = 10_000  # to one file; file systems allow some 65,000
LOCKS = ".locks"  # the folder of lock files
SCRATCH = ".compaction-"  # how a folder of a compaction begins, in the store's own folder
# Files that are written under a name of their own and renamed when they are whole: ours, and delta-rs's.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}|_commit_.+\.json\.tmp|.+#\d+")


class Storage(Protocol):
    """The files of one store. Methods raise OSError; FileNotFoundError for a file that is not there."""

    uri: str  # as a person names it
    options: dict[str, str]  # with which delta-rs opens the addresses
    patience: Patience  # every method that asks the storage is repeated as this says

    def names(self, folder: str) -> list[str]:
        """The files and folders directly in a folder, without hidden ones; none where it does not exist."""
        ...

    def make(self, folder: str) -> None:
        """Makes a folder, readable by its owner alone, where the storage has folders."""
        ...

    def lock(self, name: str) -> AbstractContextManager[None]:
        """A lock among the processes of this machine; see `scanner.store.locks`."""
        ...

    def put(self, path: str, content: bytes) -> None:
        """Writes a file, over one of that name."""
        ...

    def take(self, path: str, local: Path) -> None:
        """Moves a local file into the storage, or uploads it."""
        ...

    def create(self, path: str, content: bytes) -> bool:
        """Writes a file unless it exists; of several callers at once exactly one gets True."""
        ...

    def create_all(self, paths: Sequence[str], content: bytes) -> set[str]:
        """`create` for many files of one folder and one content; returns the paths that gave True."""
        ...

    def read(self, path: str) -> bytes:
        """A file's content."""
        ...

    def remove(self, path: str) -> None:
        """Removes a file if it exists."""
        ...

    def address(self, path: str) -> str:
        """The path or address by which DuckDB and delta-rs read the file."""
        ...

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Lets a connection read those addresses."""
        ...

    def restrict(self, own: Container[str]) -> None:
        """Takes a store away from other users of this machine, with a warning; `own` are its names."""
        ...

    def below(self, folder: str) -> list[str]:
        """The paths of all files below a folder, at any depth, without hidden ones."""
        ...

    def changed(self, path: str) -> datetime:
        """When a file was last written or refreshed."""
        ...

    def refresh(self, path: str, content: bytes) -> None:
        """Makes a file with that content as new as one that is written now, and writes it if it is gone."""
        ...

    def remove_unchanged(self, path: str, since: datetime) -> bool:
        """Removes a file unless it was written or refreshed since; whether it did."""
        ...

    def leftovers(self, since: datetime, *, remove: bool) -> int:
        """Counts, or removes, temporary files and folders of killed writers that have not changed since."""
        ...

    def stamp(self, folder: str) -> tuple[object, bool]:
        """A value that changes when a file is added or removed, and whether an equal value is conclusive.

        The value is None where there is no such folder.
        """
        ...


class FolderStorage:
    """A folder, readable by its owner alone."""

    def __init__(self, root: Path, patience: Patience = NO_PATIENCE) -> None:
        self.root = root.expanduser().absolute()
        self.uri = str(self.root)
        self.options: dict[str, str] = {}
        self.patience = patience

    @repeated
    def names(self, folder: str) -> list[str]:
        """See `Storage.names`."""
        try:
            return [name for name in os.listdir(self.root / folder) if not name.startswith(".")]
        except FileNotFoundError:
            return []

    @repeated
    def put(self, path: str, content: bytes) -> None:
        """See `Storage.put`."""
        hidden = self._hidden(path, content)
        os.replace(hidden, self.root / path)

    @repeated
    def take(self, path: str, local: Path) -> None:
        """See `Storage.take`; `local` must be on the same disk."""
        local.chmod(0o600)
        self._make((self.root / path).parent)
        os.replace(local, self.root / path)

    @repeated
    def create(self, path: str, content: bytes) -> bool:
        """See `Storage.create`."""
        hidden = self._hidden(path, content)
        try:
            os.link(hidden, self.root / path)
        except FileExistsError:
            return False
        finally:
            hidden.unlink()
        return True

    @repeated
    def create_all(self, paths: Sequence[str], content: bytes) -> set[str]:
        """See `Storage.create_all`; the files are links to one."""
        created: set[str] = set()
        for some in batched(paths, LINKS):
            hidden = self._hidden(some[0], content)
            try:
                for path in some:
                    with contextlib.suppress(FileExistsError):
                        os.link(hidden, f"{self.root}/{path}")
                        created.add(path)
            finally:
                hidden.unlink()
        return created

    def _hidden(self, path: str, content: bytes) -> Path:
        target = self.root / path
        self._make(target.parent)
        hidden = target.with_name(f".{target.name}.{uuid4().hex}")
        try:
            hidden.touch(mode=0o600)
            hidden.write_bytes(content)
        except OSError:  # the disk is full: nothing of it stays there
            with contextlib.suppress(OSError):
                hidden.unlink(missing_ok=True)
            raise
        return hidden

    def make(self, folder: str) -> None:
        """See `Storage.make`."""
        self._make(self.root / folder)

    def lock(self, name: str) -> AbstractContextManager[None]:
        """See `Storage.lock`."""
        self._make(self.root / LOCKS)
        return exclusive(self.root / LOCKS / name)

    def _make(self, folder: Path) -> None:
        missing = [p for p in (folder, *folder.parents) if not p.is_dir()]
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True, mode=0o700)

    @repeated
    def read(self, path: str) -> bytes:
        """See `Storage.read`."""
        return (self.root / path).read_bytes()

    @repeated
    def remove(self, path: str) -> None:
        """See `Storage.remove`."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.root}/{path}")

    def address(self, path: str) -> str:
        """See `Storage.address`."""
        return str(self.root / path)

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """DuckDB reads a folder by itself."""

    def restrict(self, own: Container[str]) -> None:
        """See `Storage.restrict`: a folder that holds other files too keeps its mode."""
        found = self.root.stat()
        open_to = stat.S_IMODE(found.st_mode) & 0o077
        mine = found.st_uid == os.geteuid()
        if not open_to or not (mine or open_to & stat.S_IWOTH):
            return
        said = (
            f"the store {self.uri} was open to other users of this machine (mode {found.st_mode & 0o777:o})"
        )
        why = "belongs to another user" if not mine else "holds other files too"
        if mine and all(name in own for name in self.names("")):
            try:
                self.root.chmod(stat.S_IMODE(found.st_mode) & ~0o077)
                LOGGER.warning("%s. From now on only you can open it (mode 700).", said)
                return
            except OSError as error:  # such as a file system that is mounted read-only
                why = f"cannot be changed ({error.strerror})"
        LOGGER.warning(
            "%s and still is, because the folder %s. Give the store a folder of its own with mode 700.",
            said, why,
        )  # fmt: skip

    def below(self, folder: str) -> list[str]:
        """See `Storage.below`."""
        top = str(self.root / folder)
        return [
            f"{folder}{at[len(top) :]}/{name}"
            for at, _, names in os.walk(top)
            for name in names
            if not name.startswith(".")
        ]

    @repeated
    def changed(self, path: str) -> datetime:
        """See `Storage.changed`."""
        return datetime.fromtimestamp((self.root / path).stat().st_mtime, UTC)

    @repeated
    def refresh(self, path: str, content: bytes) -> None:
        """See `Storage.refresh`."""
        try:
            os.utime(self.root / path)
        except FileNotFoundError:
            self.create(path, content)

    @repeated
    def remove_unchanged(self, path: str, since: datetime) -> bool:
        """See `Storage.remove_unchanged`: it is renamed first, so a writer finds it either new or gone."""
        hidden = (self.root / path).with_name(f".{Path(path).name}.{uuid4().hex}")
        try:
            os.rename(self.root / path, hidden)
        except FileNotFoundError:
            return False
        if hidden.stat().st_mtime < since.timestamp():
            hidden.unlink()
            return True
        with contextlib.suppress(FileExistsError):
            os.link(hidden, self.root / path)
        hidden.unlink()
        return False

    def leftovers(self, since: datetime, *, remove: bool) -> int:
        """See `Storage.leftovers`."""
        found: list[str] = []
        for at, folders, names in os.walk(self.root):
            scratch = [name for name in folders if name.startswith(SCRATCH)]
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in (*scratch, *(name for name in names if TEMPORARY.fullmatch(name))):
                with contextlib.suppress(FileNotFoundError):
                    if os.lstat(f"{at}/{name}").st_mtime < since.timestamp():
                        found.append(f"{at}/{name}")
        for path in found if remove else ():
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                Path(path).unlink(missing_ok=True)
        return len(found)

    @repeated
    def stamp(self, folder: str) -> tuple[object, bool]:
        """The folder's modification time; not conclusive within the tick of the file system's clock."""
        try:
            changed = (self.root / folder).stat().st_mtime_ns
        except FileNotFoundError:
            return None, False
        return changed, time.time_ns() - changed >= UNSURE_NS


def open_storage(uri: str | Path, patience: Patience = NO_PATIENCE) -> Storage:
    """The storage that a URI names: a path, file://PATH, or SCHEME://BUCKET/PREFIX.

    Raises StoreError for a scheme that fsspec does not support.
    """
    named = str(uri).removeprefix("file://")
    return BucketStorage(named, patience) if "://" in named else FolderStorage(Path(named), patience)
