"""A local folder as a source: diffusers folders and single weight files in it, and the cards beside them.

Nothing is copied: a fetched checkpoint is the file or folder itself, verified again by its SHA256.
Symbolic links to files are followed, those to folders are not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from finextract.errors import CheckpointError
from finextract.metadata.captions import find_caption
from finextract.metadata.local_files import read_card, read_object, read_sidecar_files
from finextract.reasons import ReasonCode
from finextract.weights.files import NOT_WEIGHTS
from finextract.weights.formats import PICKLE_SUFFIXES, read_header
from scanner.errors import Skipped, SourceError, Unavailable
from scanner.hashing import sha256_of
from scanner.hubs.base import Query
from scanner.hubs.base_models import local_base
from scanner.hubs.cache import DownloadCache, check_sha256
from scanner.hubs.fields import MAX_SIZE, UNKNOWN_TIME, placeholder_id
from scanner.hubs.inspection import base_hint, refine, refine_unread
from scanner.hubs.layout import COMPONENTS, DENOISERS, INTERMEDIATE, Layout, is_safe, layouts
from scanner.hubs.pickles import scannable
from scanner.records import Checkpoint, identify, now
from scanner.text import printable
from scanner.units import show_size


class FolderSource:
    """The checkpoints below a folder. `base` is the base of all of them, whatever their cards state."""

    def __init__(self, path: Path, base: str | None = None, *, allow_pickle: bool = False) -> None:
        self.root = path.expanduser().absolute()
        self.name = f"folder:{self.root}"
        self.position: dict[str, str] = {}  # always empty: a folder is listed from its start
        self._listed: dict[str, str] = {}  # SHA256 of a listed file -> its path
        self._base, self._allow_pickle = local_base(base), allow_pickle
        if not self.root.is_dir():
            raise SourceError(
                f"--source folder:{path} is not a folder. Pass the folder that holds the checkpoints."
            )

    def list(self, query: Query) -> Iterator[Checkpoint]:
        """The checkpoints, each read once for its SHA256. See `Source.list`.

        Large files come first, because the base of a smaller file may be among them.
        """
        places = sorted(self._walk(), key=_file_size, reverse=True)
        found = (self._checkpoint(*place) for place in places)
        wanted = (c for c in found if query.since is None or (c.created_at or UNKNOWN_TIME) >= query.since)
        return islice(wanted, max(query.limit, 0))

    def _walk(self) -> Iterator[tuple[Path, Layout]]:
        """Every checkpoint: its folder, and its layout in that folder."""
        for place, folders, names in os.walk(self.root, onerror=self._unreadable):
            folder = Path(place)
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            parts = [f"{f}/{name}" for f in folders if f in COMPONENTS for name in _names(folder / f)]
            found = layouts([*names, *parts])
            whole = [f for f in found if not f.file or "/" in f.file]
            if whole:
                folders.clear()
                yield folder, whole[0]
                continue
            weights = sorted(n for n in names if Path(n).suffix.lower() in {".safetensors", *PICKLE_SUFFIXES})
            for name in (n for n in weights if is_safe(n) and not NOT_WEIGHTS.fullmatch(n)):
                pickled = not name.endswith(".safetensors")
                hashed = not pickled or self._allow_pickle
                yield folder, Layout(name, {name: name} if hashed else {}, pickled)
            if weights:  # intermediate saves of a training run are no checkpoints
                folders[:] = [f for f in folders if not INTERMEDIATE.fullmatch(f)]

    def _unreadable(self, error: OSError) -> None:
        if Path(error.filename) == self.root:
            raise SourceError(f"{self.root} cannot be read: {error.strerror}.") from error

    def _checkpoint(self, folder: Path, layout: Layout) -> Checkpoint:
        repo = folder.relative_to(self.root).as_posix()
        card = read_card(folder, layout.file)
        caption = find_caption(card)
        try:
            hashes = [(path, sha256_of(folder / path)) for path in layout.weights]
            sizes = {path: (folder / path).stat().st_size for path in layout.weights}
            created = datetime.fromtimestamp((folder / layout.file).stat().st_mtime, UTC)
        except OSError:  # `inspect` tries again and reports it
            hashes, sizes, created = [], {}, None
        if layout.file and hashes:
            self._listed[hashes[0][1]] = str(folder / layout.file)
        return Checkpoint(
            checkpoint_id=identify(hashes) if hashes else placeholder_id(self.name, repo, "", layout.file),
            source=self.name,
            repo=printable(repo, 500),
            revision="",
            file=layout.file,
            url=(folder / layout.file).as_uri(),
            sha256=hashes[0][1] if hashes and layout.file else None,
            size_bytes=min(sum(sizes.values()), MAX_SIZE),
            kind="unknown",
            family="unknown",
            base=self._base or card.base_model,
            caption=caption.text if caption else None,
            num_train_images=None,
            license=card.license,
            created_at=created,
            listed_at=now(),
            raw=json.dumps(
                {"path": repo, "weights": dict(hashes), "sizes": sizes, "pickled": layout.pickled}
            ),
        )

    def coverage(self) -> str:
        """Always "": a folder states no total. See `Source.coverage`."""
        return ""

    def inspect(self, checkpoint: Checkpoint) -> Checkpoint:
        """Reads the header, the card and a configuration file. See `Source.inspect`."""
        entry = json.loads(checkpoint.raw)
        folder, where = self.root / entry["path"], f"{checkpoint.repo}/{checkpoint.file}".rstrip("/")
        sidecar_files = read_sidecar_files(folder)
        card = read_card(folder, checkpoint.file)
        hint = None
        for name in ("adapter_config.json", "unet/config.json"):
            hint = hint or base_hint(read_object(folder / name))
        if entry["pickled"] and self._allow_pickle:
            return refine_unread(checkpoint, card, hint=hint, base=self._base, sidecar_files=sidecar_files)
        if entry["pickled"]:
            raise Skipped(
                f"{where} is a pickle, which can run code when it is opened; it was not opened. "
                "Convert it to safetensors, ask its author for safetensors, or see --allow-pickle.",
                ReasonCode.PICKLE,
            )
        denoiser = checkpoint.file or next((p for p in entry["weights"] if p.startswith(DENOISERS)), "")
        try:
            header = read_header(folder / denoiser)
        except CheckpointError as error:
            raise Skipped(f"{checkpoint.repo}: {error}", error.reason_code) from error
        except OSError as error:
            raise Unavailable(
                f"{where} cannot be read: {error.strerror}. The next crawl tries again.",
                ReasonCode.UNREADABLE,
            ) from error
        return refine(
            checkpoint,
            header,
            card,
            hint=hint,
            base=self._base,
            base_by_hash=self._listed_base,
            sidecar_files=sidecar_files,
        )

    def _listed_base(self, sha256: str) -> str | None:
        """The path of the file with that SHA256, where it was listed."""
        return self._listed.get(sha256)

    def fetch(self, checkpoint: Checkpoint, into: Path, downloads: DownloadCache) -> Path:
        """The path of the file or folder itself; a pickle is converted into `into`. See `Source.fetch`."""
        entry = json.loads(checkpoint.raw)
        folder = self.root / str(entry["path"])
        if checkpoint.size_bytes > downloads.max_bytes:
            raise Skipped(
                f"{checkpoint.repo} is {show_size(checkpoint.size_bytes)}, and at most "
                f"{show_size(downloads.max_bytes)} are read. Pass a larger --max-download.",
                ReasonCode.TOO_LARGE,
            )
        try:
            for path, sha256 in entry["weights"].items():
                check_sha256(sha256_of(folder / path), sha256, str(folder / path))
        except OSError as error:
            raise Unavailable(
                f"{folder} cannot be read: {error.strerror}. The next crawl tries again.",
                ReasonCode.UNREADABLE,
            ) from error
        if entry["pickled"]:
            name = checkpoint.file
            return scannable(folder / name, into, name, f"{checkpoint.repo}/{name}")
        return folder / checkpoint.file


def _file_size(place: tuple[Path, Layout]) -> int:
    """Bytes of a single weight file; 0 for a diffusers folder, which no hash names as a base."""
    folder, layout = place
    try:
        return (folder / layout.file).stat().st_size if layout.file else 0
    except OSError:
        return 0


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
