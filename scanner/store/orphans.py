"""Orphans: what killed crawls leave in a store, and its removal beside running crawls.

Candidates, memberships and matches without their scan, images that neither a candidate nor a reference names,
leases that nobody renews, and temporary files. A scan's other rows are written before the scan itself, so a
running crawl has such rows for a moment. Therefore nothing is removed that was not an orphan `GRACE` ago: of
files their time of writing tells, of rows the time in STORE/orphans.json at which they were first found.

Losses of a base that no scan has added to for `LOSSES_KEPT` go too; a scan that needs them computes them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from scanner.errors import StoreError
from scanner.records import now
from scanner.store.compaction import remove_rows
from scanner.store.leases import FOLDER as LEASES
from scanner.store.storage import Storage
from scanner.store.store import Store
from scanner.store.tables import among
from scanner.text import first_line

LOGGER = logging.getLogger("scanner.store")
GRACE = timedelta(hours=24)
BASE_LOSSES = "base-losses"  # the folder of what the workers of all machines share, by base
LOSSES_KEPT = timedelta(days=30)
FOUND = "orphans.json"  # scan_id of orphaned rows -> when they were first found
OF_SCANS = ("candidates", "memberships", "matches")  # tables whose rows belong to a scan


@dataclass(frozen=True, slots=True)
class Orphans:
    """How many there were of each kind."""

    candidates: int = 0
    memberships: int = 0
    matches: int = 0
    images: int = 0
    leases: int = 0
    temporary_files: int = 0
    base_losses: int = 0  # files

    def __bool__(self) -> bool:
        return any(astuple(self))

    def __str__(self) -> str:
        return (
            f"{self.candidates:,} candidates, {self.memberships:,} memberships and {self.matches:,} matches "
            f"without a scan, {self.images:,} images that no row names, {self.leases:,} abandoned leases, "
            f"{self.temporary_files:,} temporary files, {self.base_losses:,} files of old losses"
        )


def collect(store: Store, *, grace: timedelta = GRACE, dry_run: bool = False) -> Orphans:
    """Removes what has been an orphan for `grace`; with `dry_run` it only counts.

    Nothing is removed from a store with damaged data files: what they held may be what the rest belongs to.
    Raises StoreError where the store cannot be read or written.
    """
    at = now()
    since = at - grace
    try:
        scans = _long_orphaned(store, at, grace, dry_run=dry_run)
        named = store.query_arrow(
            "SELECT image_sha256 FROM candidates WHERE scan_id NOT IN (SELECT unnest(string_split(?, ' '))) "
            "UNION SELECT image_sha256 FROM all_references WHERE image_sha256 IS NOT NULL",
            [" ".join(scans)],
        )["image_sha256"]
        if store.is_damaged:
            LOGGER.warning("The orphans of %s are kept until its damaged files are restored.", store.uri)
            return Orphans()
        of_scans = among("scan_id", scans)
        rows = {
            table: remove_rows(store, table, of_scans, dry_run=dry_run) if scans else 0 for table in OF_SCANS
        }
        return Orphans(
            **rows,
            images=_remove(store.storage, _unnamed(store.storage, named), since, dry_run=dry_run),
            leases=_remove(store.storage, store.storage.below(LEASES), since, dry_run=dry_run),
            temporary_files=store.storage.leftovers(since, remove=not dry_run),
            base_losses=_remove(
                store.storage, store.storage.below(BASE_LOSSES), at - LOSSES_KEPT, dry_run=dry_run
            ),
        )
    except (OSError, DeltaError, duckdb.Error) as error:
        raise StoreError(f"the orphans of {store.uri} cannot be removed: {first_line(error)}.") from error


def _long_orphaned(store: Store, at: datetime, grace: timedelta, *, dry_run: bool) -> list[str]:
    """Ids of scans that were never written, and whose rows were found that long ago; notes new ones."""
    either = " UNION ".join(f"SELECT scan_id FROM {table}" for table in OF_SCANS)
    orphaned = store.query(f"FROM ({either}) ANTI JOIN all_scans USING (scan_id)")
    before = _found_before(store.storage)
    found = {row["scan_id"]: before.get(row["scan_id"], at) for row in orphaned}
    if found != before and not dry_run:
        stated = {scan_id: time.isoformat() for scan_id, time in found.items()}
        store.storage.put(FOUND, json.dumps(stated, indent=1).encode())
    return [scan_id for scan_id, time in found.items() if at - time >= grace]


def _found_before(storage: Storage) -> dict[str, datetime]:
    try:
        stated = json.loads(storage.read(FOUND))
        return {scan_id: datetime.fromisoformat(time) for scan_id, time in stated.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):  # not ours any more: it begins anew
        return {}


def _unnamed(storage: Storage, named: pa.ChunkedArray) -> list[str]:
    """The paths of images whose SHA256 is not among those."""
    paths = pa.array(storage.below("images"), pa.string())
    sha256 = pc.utf8_slice_codeunits(paths, -len(".png") - 64, -len(".png"))
    unnamed: list[str] = paths.filter(pc.invert(pc.is_in(sha256, named))).to_pylist()
    return unnamed


def _remove(storage: Storage, paths: Sequence[str], since: datetime, *, dry_run: bool) -> int:
    """Removes the files that have not changed since; returns their number."""
    removed = 0
    for path in paths:
        try:
            if storage.changed(path) < since:
                removed += dry_run or storage.remove_unchanged(path, since)
        except FileNotFoundError:
            pass
    return removed
