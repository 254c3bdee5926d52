"""The files of a store: in a folder (of this machine or on NFS), or below a prefix in an object store.

A file appears whole or not at all. A folder's file is written under a hidden name and renamed; an object
store's PUT is atomic. Files are not flushed to the disk (fsync). Paths are relative, with slashes. Knows no
table. Object stores are those that fsspec opens by their scheme; `s3://` needs the package s3fs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import duckdb

from scanner.errors import StoreError
from scanner.store.locks import exclusive

NEWS_S = 1.0  # between two listings of a folder of an object store
UNSURE_NS = 100_000_000  # a folder that changed so recently may change again without a new modification time
LOCKS = ".locks"  # the folder of lock files
NO_NAMES = hashlib.sha256(b"").hexdigest()


class Storage(Protocol):
    """The files of one store. Methods raise OSError; FileNotFoundError for a file that is not there."""

    uri: str  # as a person names it
    options: dict[str, str]  # with which delta-rs opens the addresses

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

    def stamp(self, folder: str) -> tuple[object, bool]:
        """A value that changes when a file is added or removed, and whether an equal value is conclusive.

        The value is None where there is no such folder.
        """
        ...


class FolderStorage:
    """A folder, readable by its owner alone."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.uri = str(self.root)
        self.options: dict[str, str] = {}

    def names(self, folder: str) -> list[str]:
        """See `Storage.names`."""
        try:
            return [name for name in os.listdir(self.root / folder) if not name.startswith(".")]
        except FileNotFoundError:
            return []

    def put(self, path: str, content: bytes) -> None:
        """See `Storage.put`."""
        hidden = self._hidden(path, content)
        os.replace(hidden, self.root / path)

    def take(self, path: str, local: Path) -> None:
        """See `Storage.take`; `local` must be on the same disk."""
        local.chmod(0o600)
        self._make((self.root / path).parent)
        os.replace(local, self.root / path)

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

    def _hidden(self, path: str, content: bytes) -> Path:
        target = self.root / path
        self._make(target.parent)
        hidden = target.with_name(f".{target.name}.{uuid4().hex}")
        hidden.touch(mode=0o600)
        hidden.write_bytes(content)
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

    def read(self, path: str) -> bytes:
        """See `Storage.read`."""
        return (self.root / path).read_bytes()

    def remove(self, path: str) -> None:
        """See `Storage.remove`."""
        (self.root / path).unlink(missing_ok=True)

    def address(self, path: str) -> str:
        """See `Storage.address`."""
        return str(self.root / path)

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """DuckDB reads a folder by itself."""

    def stamp(self, folder: str) -> tuple[object, bool]:
        """The folder's modification time; not conclusive within the tick of the file system's clock."""
        try:
            changed = (self.root / folder).stat().st_mtime_ns
        except FileNotFoundError:
            return None, False
        return changed, time.time_ns() - changed >= UNSURE_NS


class BucketStorage:
    """A prefix in an object store. AWS_ENDPOINT_URL and the like select a server other than Amazon's."""

    def __init__(self, uri: str) -> None:
        import fsspec  # type: ignore[import-untyped]

        self.uri = uri.rstrip("/")
        self.scheme, _, self._prefix = self.uri.partition("://")
        try:
            # Without the cache of instances: a cached one keeps settings that have changed since.
            self._files: Any = fsspec.filesystem(
                self.scheme, use_listings_cache=False, skip_instance_cache=True
            )
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"the store {uri} cannot be opened: {error}.\n"
                "A store is a folder, or s3://BUCKET/PREFIX once s3fs is installed."
            ) from error
        self.options = {"AWS_CONDITIONAL_PUT": "etag"} if self.scheme.startswith("s3") else {}
        if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
            self.options["AWS_ALLOW_HTTP"] = "true"
        self._seen: dict[str, tuple[float, str]] = {}  # folder -> (when it was listed, digest of the names)

    def names(self, folder: str) -> list[str]:
        """See `Storage.names`."""
        try:
            with _os_errors():
                found = self._files.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []
        return [name for path in found if (name := path.rstrip("/").rpartition("/")[2])]

    def make(self, folder: str) -> None:
        """An object store has no folders."""

    def lock(self, name: str) -> AbstractContextManager[None]:
        """See `Storage.lock`."""
        digest = hashlib.sha256(f"{self.uri}/{name}".encode()).hexdigest()[:16]
        return exclusive(Path(tempfile.gettempdir()) / f"finextract-{os.getuid()}-{digest}.lock")

    def put(self, path: str, content: bytes) -> None:
        """See `Storage.put`."""
        with _os_errors():
            self._files.pipe_file(self._at(path), content)
        self._seen.clear()

    def take(self, path: str, local: Path) -> None:
        """See `Storage.take`."""
        with _os_errors():
            self._files.put_file(str(local), self._at(path))
        local.unlink()
        self._seen.clear()

    def create(self, path: str, content: bytes) -> bool:
        """See `Storage.create`; by a conditional PUT."""
        try:
            with _os_errors():
                self._files.pipe_file(self._at(path), content, mode="create")
        except FileExistsError:
            return False
        self._seen.clear()
        return True

    def read(self, path: str) -> bytes:
        """See `Storage.read`."""
        with _os_errors():
            content: bytes = self._files.cat_file(self._at(path))
        return content

    def remove(self, path: str) -> None:
        """See `Storage.remove`."""
        with contextlib.suppress(FileNotFoundError), _os_errors():
            self._files.rm_file(self._at(path))
        self._seen.clear()

    def address(self, path: str) -> str:
        """See `Storage.address`."""
        return f"{self.uri}/{path}"

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """See `Storage.attach`: DuckDB's own S3 reader would have to be downloaded."""
        connection.execute("SET autoload_known_extensions = false")
        connection.execute("SET autoinstall_known_extensions = false")
        connection.register_filesystem(self._files)

    def stamp(self, folder: str) -> tuple[object, bool]:
        """A digest of the names; listed again after `NEWS_S`, or after a write of this process."""
        at, digest = self._seen.get(folder, (-NEWS_S, ""))
        if time.monotonic() - at >= NEWS_S:
            digest = hashlib.sha256("\n".join(sorted(self.names(folder))).encode()).hexdigest()
            self._seen[folder] = time.monotonic(), digest
        return None if digest == NO_NAMES else digest, True

    def _at(self, path: str) -> str:
        return f"{self._prefix}/{path}"


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Raises OSError for every error of the client, such as botocore's own for missing credentials."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from error


def open_storage(uri: str | Path) -> Storage:
    """The storage that a URI names: a path, file://PATH, or SCHEME://BUCKET/PREFIX.

    Raises StoreError for a scheme that fsspec does not support.
    """
    named = str(uri).removeprefix("file://")
    return BucketStorage(named) if "://" in named else FolderStorage(Path(named))
