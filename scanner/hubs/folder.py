"""A local folder as a source: diffusers folders and single weight files in it, and the cards beside them.

Nothing is copied: a fetched checkpoint is the file or folder itself, verified again by its SHA256.
Symbolic links to files are followed, those to folders are not. Only regular files are opened, and none is
read before its size is known.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from finextract.errors import CheckpointError
from finextract.metadata.captions import find_caption
from finextract.metadata.local_files import read_card, read_object, read_sidecar_files
from finextract.reasons import Reason, ReasonCode
from finextract.regular_files import kind_of_special_file
from finextract.weights.files import shards_of
from finextract.weights.formats import read_header
from scanner.errors import Skipped, SourceError, Unavailable
from scanner.hashing import identify, sha256_of
from scanner.hubs.base import Query
from scanner.hubs.base_models import local_base
from scanner.hubs.cache import DownloadCache, check_sha256
from scanner.hubs.fields import MAX_SIZE, UNKNOWN_TIME, placeholder_id, visible
from scanner.hubs.inspection import BASE_HINTS, base_hint, refine, refine_unread
from scanner.hubs.layout import (
    COMPONENTS,
    DENOISERS,
    INTERMEDIATE,
    Layout,
    is_safe,
    is_weight_file,
    layouts,
    pipeline_configs,
    unusable,
)
from scanner.hubs.pickles import scannable
from scanner.records import Checkpoint, InspectionStatus, now
from scanner.text import first_line
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
        found = (self._checkpoint(*place, query.max_bytes) for place in places)
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
            yield from ((folder, f) for f in found if f.reason)  # shards, one for all of them
            weights = sorted(filter(is_weight_file, names))
            for name in weights:
                if not is_safe(name):
                    yield folder, unusable(name)
                    continue
                if shards_of(name):
                    continue
                pickled = not name.endswith(".safetensors")
                hashed = not pickled or self._allow_pickle
                yield folder, Layout(name, {name: name} if hashed else {}, pickled)
            if weights:  # intermediate saves of a training run are no checkpoints
                folders[:] = [f for f in folders if not INTERMEDIATE.fullmatch(f)]

    def _unreadable(self, error: OSError) -> None:
        if Path(error.filename) == self.root:
            raise SourceError(f"{self.root} cannot be read: {first_line(error)}.") from error

    def _checkpoint(self, folder: Path, layout: Layout, max_bytes: int) -> Checkpoint:
        path = folder.relative_to(self.root).as_posix()
        repo = visible(path, 500)
        reason = layout.reason or _why_unread(folder, layout, max_bytes)
        card = read_card(folder, layout.file)
        caption = find_caption(card)
        try:
            sizes = {path: (folder / path).stat().st_size for path in layout.weights}
            hashes = [] if reason else [(path, sha256_of(folder / path)) for path in layout.weights]
            dated = folder if layout.reason else folder / layout.file
            created = datetime.fromtimestamp(dated.stat().st_mtime, UTC)
        except OSError:  # `inspect` tries again and reports it
            hashes, sizes, created = [], {}, None
        if layout.file and hashes:
            self._listed[hashes[0][1]] = str(folder / layout.file)
        return Checkpoint(
            checkpoint_id=identify(hashes) if hashes else placeholder_id(self.name, repo, "", layout.file),
            source=self.name,
            repo=repo,
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
                {"path": path, "weights": dict(hashes), "sizes": sizes, "pickled": layout.pickled}
            ),
            inspection_status=InspectionStatus.SKIPPED if reason else InspectionStatus.UNKNOWN,
            reason=f"{repo}: {reason}" if reason else "",
            reason_code=reason.reason_code if reason else None,
        )

    def coverage(self) -> str:
        """Always "": a folder states no total. See `Source.coverage`."""
        return ""

    def inspect(self, checkpoint: Checkpoint) -> Checkpoint:
        """Reads the header, the card and a configuration file. See `Source.inspect`."""
        if checkpoint.inspection_status is InspectionStatus.SKIPPED:
            raise Skipped(checkpoint.reason, checkpoint.reason_code or ReasonCode.INVALID_ENTRY)
        entry = json.loads(checkpoint.raw)
        folder, where = self.root / entry["path"], f"{checkpoint.repo}/{checkpoint.file}".rstrip("/")
        sidecar_files = read_sidecar_files(folder)
        card = read_card(folder, checkpoint.file)
        hint = None
        for name in BASE_HINTS:
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
                f"{where} cannot be read: {first_line(error)}. The next crawl tries again.",
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
        layout = Layout(checkpoint.file, {path: path for path in entry["weights"]}, entry["pickled"])
        if (reason := _why_unread(folder, layout, downloads.max_bytes)) is not None:
            raise Skipped(f"{checkpoint.repo}: {reason}", reason.reason_code)
        try:
            for path, sha256 in entry["weights"].items():
                check_sha256(sha256_of(folder / path), sha256, str(folder / path))
        except OSError as error:
            raise Unavailable(
                f"{folder} cannot be read: {first_line(error)}. The next crawl tries again.",
                ReasonCode.UNREADABLE,
            ) from error
        if entry["pickled"]:
            name = checkpoint.file
            return scannable(folder / name, into, name, f"{checkpoint.repo}/{name}")
        return folder / checkpoint.file


def _why_unread(folder: Path, layout: Layout, max_bytes: int) -> Reason | None:
    """Why the files of a checkpoint are not read: a pipe, a device, or too many bytes; None where they are.

    A file that is not there is read in vain, and reported then.
    """
    beside = [] if layout.file else [p.relative_to(folder).as_posix() for p in folder.glob("*/*")]
    configs = [] if layout.file else pipeline_configs([*_names(folder), *beside])
    size = 0
    for path in [*layout.weights, *([layout.file] if layout.pickled else []), *configs]:
        with contextlib.suppress(OSError):
            if (kind := kind_of_special_file(folder / path)) is not None:
                return Reason(
                    ReasonCode.INVALID_ENTRY,
                    f"{path} is a {kind} instead of a file, and was not opened. Replace or remove it.",
                )
            size += (folder / path).stat().st_size if path in layout.weights else 0
    if size > max_bytes:
        return Reason(
            ReasonCode.TOO_LARGE,
            f"it is {show_size(size)}, and at most {show_size(max_bytes)} are read. "
            "Pass a larger --max-download.",
        )
    return None


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
