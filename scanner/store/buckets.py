"""The files of a store below a prefix in an object store; see scanner.store.storage. A PUT is atomic."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb

from scanner.errors import StoreError
from scanner.store.locks import exclusive
from scanner.store.patience import NO_PATIENCE, Patience, repeated

NEWS_S = 1.0  # between two listings of a folder
REMEMBERED = 10_000  # data files whose size and date are kept
# Without the cache of instances: a cached one keeps settings that have changed since.
CLIENT: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
NO_NAMES = hashlib.sha256(b"").hexdigest()


class BucketStorage:
    """A prefix in an object store. AWS_ENDPOINT_URL and the like select a server other than Amazon's."""

    def __init__(self, uri: str, patience: Patience = NO_PATIENCE) -> None:
        import fsspec  # type: ignore[import-untyped]

        self.uri, self.patience = uri.rstrip("/"), patience
        self.scheme, _, self._prefix = self.uri.partition("://")
        try:
            self._files: Any = fsspec.filesystem(self.scheme, **CLIENT)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"the store {uri} cannot be opened: {error}.\n"
                "A store is a folder, or s3://BUCKET/PREFIX once s3fs is installed."
            ) from error
        self.options = {"AWS_CONDITIONAL_PUT": "etag"} if self.scheme.startswith("s3") else {}
        if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
            self.options["AWS_ALLOW_HTTP"] = "true"
        self._seen: dict[str, tuple[float, str]] = {}  # folder -> (when it was listed, digest of the names)

    @repeated
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

    @repeated
    def put(self, path: str, content: bytes) -> None:
        """See `Storage.put`."""
        with _os_errors():
            self._files.pipe_file(self._at(path), content)
        self._seen.clear()

    @repeated
    def take(self, path: str, local: Path) -> None:
        """See `Storage.take`."""
        with _os_errors():
            self._files.put_file(str(local), self._at(path))
        local.unlink()
        self._seen.clear()

    @repeated
    def create(self, path: str, content: bytes) -> bool:
        """See `Storage.create`; by a conditional PUT."""
        try:
            with _os_errors():
                self._files.pipe_file(self._at(path), content, mode="create")
        except FileExistsError:
            return False
        self._seen.clear()
        return True

    def create_all(self, paths: Sequence[str], content: bytes) -> set[str]:
        """See `Storage.create_all`; one request each."""
        return {path for path in paths if self.create(path, content)}

    @repeated
    def read(self, path: str) -> bytes:
        """See `Storage.read`."""
        with _os_errors():
            content: bytes = self._files.cat_file(self._at(path))
        return content

    @repeated
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
        connection.register_filesystem(self._data_files)

    def restrict(self, own: Container[str]) -> None:
        """Who may open a bucket is a matter of its own policy."""

    @repeated
    def below(self, folder: str) -> list[str]:
        """See `Storage.below`."""
        with _os_errors():
            found: list[str] = self._files.find(self._at(folder))
        start = len(self._at("").split("://")[-1].lstrip("/"))
        return [path[start:] for path in found]

    @repeated
    def changed(self, path: str) -> datetime:
        """See `Storage.changed`."""
        with _os_errors():
            changed: datetime = self._files.modified(self._at(path))
        return changed

    def refresh(self, path: str, content: bytes) -> None:
        """See `Storage.refresh`."""
        self.put(path, content)

    def remove_unchanged(self, path: str, since: datetime) -> bool:
        """See `Storage.remove_unchanged`; a file that is refreshed within the same moment is lost."""
        try:
            if self.changed(path) >= since:
                return False
        except FileNotFoundError:
            return False
        self.remove(path)
        return True

    def leftovers(self, since: datetime, *, remove: bool) -> int:
        """See `Storage.leftovers`: none, because an object appears whole or not at all."""
        return 0

    def stamp(self, folder: str) -> tuple[object, bool]:
        """A digest of the names; listed again after `NEWS_S`, or after a write of this process."""
        at, digest = self._seen.get(folder, (-NEWS_S, ""))
        if time.monotonic() - at >= NEWS_S:
            digest = hashlib.sha256("\n".join(sorted(self.names(folder))).encode()).hexdigest()
            self._seen[folder] = time.monotonic(), digest
        return None if digest == NO_NAMES else digest, True

    @cached_property
    def _data_files(self) -> Any:
        """A client for DuckDB, which asks about thirty times for the size and the date of a file it reads.

        A data file never changes, so what the bucket once said of it holds: one request instead of thirty.
        """
        kind, known = type(self._files), dict[str, Any]()

        class Remembering(kind):  # type: ignore[misc, valid-type]
            async def _info(self, path: str, *rest: Any, **more: Any) -> Any:
                name = self._strip_protocol(path)
                if name not in known:
                    if len(known) == REMEMBERED:
                        known.clear()
                    known[name] = await super()._info(path, *rest, **more)
                return known[name]

        asks = hasattr(kind, "_info")  # as all clients do that are not for local files
        return Remembering(**CLIENT) if asks else self._files

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
        kinds = {kind.__name__ for kind in type(error).__mro__}  # of botocore and of aiohttp
        lost = kinds & {"HTTPClientError", "ConnectionError", "ClientConnectionError", "ClientPayloadError"}
        raise (ConnectionError if lost else OSError)(str(error) or type(error).__name__) from error
