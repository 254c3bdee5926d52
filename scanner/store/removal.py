"""Removal for good: of a checkpoint, of a corpus, or of the images that were recovered long ago.

Data files are rewritten without the rows, and the files that they replace are deleted at once, with the
images that no other row names. A row of `removals` says what was removed, without its content. Where a
removal is interrupted, the same removal again ends it: the rows by which it finds the rest go last.

What was recovered long ago are the candidates, with their images and embeddings. The verdicts, similarities
and decisions stay, and so does every candidate of a scan of which a reviewer confirmed something.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError

from scanner.errors import CorpusError, StoreError
from scanner.records import Ground, Night, Record, Removal, Scan, Verdict, new_id, now
from scanner.store.compaction import RETENTION_HOURS, remove_rows
from scanner.store.decisions import STANDING_DECISIONS
from scanner.store.leases import Leases, leases_of
from scanner.store.orphans import BASE_LOSSES
from scanner.store.storage import Storage
from scanner.store.store import Store
from scanner.store.tables import TABLES, among, quoted
from scanner.text import first_line

PASSES = 5  # over a table, of which another process may replace files meanwhile
EPOCH, MICROSECOND = datetime.fromtimestamp(0, UTC), timedelta(microseconds=1)
CORPUS_REMOVED = "what it was flagged for was in a corpus that was removed"  # the reason of a scan
WAITING = "notify/waiting"  # messages about flags that were not delivered yet
OLD_STORE = "before-migration"  # what `scanner migrate --keep-old` leaves
# Images of the rows that go, which no other row names.
UNNAMED = """
    (SELECT image_sha256 FROM candidates WHERE {candidates}
     UNION SELECT image_sha256 FROM all_references WHERE {references})
    EXCEPT SELECT image_sha256 FROM candidates WHERE NOT ({candidates})
    EXCEPT SELECT image_sha256 FROM all_references WHERE NOT ({references})"""
# A copy of an image in a later scan, which compared it again, is as old as the first one.
RECOVERED = """
    SELECT image_sha256 FROM candidates JOIN all_scans USING (scan_id)
    GROUP BY image_sha256 HAVING min(finished_at) < $before"""
CONFIRMED = f"""
    WITH decided AS (SELECT subject_id FROM ({STANDING_DECISIONS}) WHERE decision = 'confirm')
    SELECT scan_id FROM all_scans WHERE scan_id IN (FROM decided)
    UNION SELECT scan_id FROM matches WHERE match_id IN (FROM decided)
    UNION SELECT scan_id FROM memberships WHERE membership_id IN (FROM decided)"""
SUBJECTS = """
    SELECT match_id FROM matches WHERE {0} UNION ALL SELECT membership_id FROM memberships WHERE {0}"""
# What is left of the evidence of scans, of which a corpus is removed.
REMAINING = """
    WITH m AS (
        SELECT scan_id, max(similarity) AS best_similarity, min(q_value) AS q_value,
            bool_or(flagged) AS gives_back
        FROM matches WHERE corpus <> $corpus AND scan_id IN (SELECT unnest($scans)) GROUP BY scan_id
    ), t AS (
        SELECT scan_id, min(q_value) AS membership_q, bool_or(trained_on) AS is_trained_on,
            count(*) FILTER (trained_on AND reference_id <> '') AS trained_on
        FROM memberships WHERE corpus <> $corpus AND scan_id IN (SELECT unnest($scans)) GROUP BY scan_id
    )
    FROM m FULL JOIN t USING (scan_id)"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a removal removes. Rows are named by conditions in SQL, in the order in which they go."""

    what: str  # see Removal
    name: str
    rows: Mapping[str, str]  # table -> the condition of its rows
    images: frozenset[str] = frozenset()  # SHA256s
    files: tuple[str, ...] = ()  # paths in the store
    lines: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # path of a text -> words of its lines
    instead: tuple[Record, ...] = ()  # new rows, which are written before old ones of the same key go
    counts: dict[str, int] = field(default_factory=dict)  # what goes: rows by table, images and files

    def __bool__(self) -> bool:
        return any(self.counts.values())


def plan_checkpoint(store: Store, checkpoint_id: str) -> Plan:
    """Removes a checkpoint with all that was found in it. Raises StoreError while a crawl scans it."""
    leases = leases_of(store.storage, checkpoint_id)
    if not all(map(Leases(store.storage, "").is_free, leases)):
        raise StoreError(f"a crawl scans {checkpoint_id} now. Run the command again when it has ended.")
    scans = _ids(store, "SELECT DISTINCT scan_id FROM all_scans WHERE checkpoint_id = ?", [checkpoint_id])
    of_scans = among("scan_id", scans)
    subjects = [*scans, *_ids(store, SUBJECTS.format(of_scans))]
    nights = store.select(Night, "WHERE contains(flagged, ?)", [checkpoint_id])
    rows = {
        "candidates": of_scans,
        "memberships": of_scans,
        "matches": of_scans,
        "decisions": among("subject_id", subjects),
        "nights": f"contains(flagged, {quoted(checkpoint_id)})",
        "scans": of_scans,
        "checkpoints": f"checkpoint_id = {quoted(checkpoint_id)}",
    }
    names = _ids(store, "SELECT DISTINCT repo FROM all_checkpoints WHERE checkpoint_id = ?", [checkpoint_id])
    logs = [path for path in store.storage.below("logs") if path.rpartition("/")[2][:-4] in set(scans)]
    reports = [path for path in store.storage.below("reports") if _mentions(store.storage, path, names)]
    kept = {path: tuple(names) for path in reports if path.endswith(".md")}  # of nights, about others too
    told = [
        path
        for folder in (WAITING, "logs/notify")
        for path in store.storage.below(folder)
        if _mentions(store.storage, path, [checkpoint_id, *names])
    ]
    files = [*leases, *logs, *told, *(path for path in reports if path not in kept)]
    instead = [
        replace(night, flagged=night.flagged.replace(checkpoint_id, "removed"), recorded_at=now())
        for night in nights
    ]
    plan = Plan("checkpoint", checkpoint_id, rows, files=tuple(files), lines=kept, instead=tuple(instead))
    return _counted(store, plan)


def plan_corpus(store: Store, name: str) -> Plan:
    """Removes a corpus with all that was found about it; scans that it alone flagged are flagged no more.

    What checkpoints gave back stays, because it is theirs. Raises CorpusError where there is no such corpus.
    """
    ids = reference_ids(store, name)
    of_corpus = f"corpus = {quoted(name)}"
    if not ids:
        known = _ids(store, 'SELECT DISTINCT corpus FROM "references" ORDER BY corpus')
        existing = f"Existing corpora: {', '.join(known)}." if known else "The store has no corpus."
        raise CorpusError(f"there is no corpus {name}. {existing}")
    scans = _ids(store, f"SELECT scan_id FROM matches WHERE {of_corpus} "
                 f"UNION SELECT scan_id FROM memberships WHERE {of_corpus}")  # fmt: skip
    stored = store.scans_with_ids(scans)
    newest = {scan.scan_id: scan for scan in sorted(stored, key=lambda scan: scan.finished_at)}
    left = {row["scan_id"]: row for row in store.query(REMAINING, {"corpus": name, "scans": scans})}
    new = [_without(scan, left.get(scan_id, {})) for scan_id, scan in newest.items()]
    unflagged = [scan.scan_id for scan in new if scan.verdict is not newest[scan.scan_id].verdict]
    subjects = [*_ids(store, SUBJECTS.format(of_corpus)), *unflagged]
    changed = [f"{scan.scan_id}@{(scan.finished_at - EPOCH) // MICROSECOND}" for scan in stored]
    rows = {
        "memberships": of_corpus,
        "matches": of_corpus,
        "decisions": among("subject_id", subjects),
        "scans": among("concat(scan_id, '@', epoch_us(finished_at))", changed),
        "references": of_corpus,
    }
    files = [path for path in store.storage.below(BASE_LOSSES) if _has_losses(store.storage, path, ids)]
    in_message = [f'"corpus": {json.dumps(name)}']
    files += [p for p in store.storage.below(WAITING) if _mentions(store.storage, p, in_message)]
    plan = Plan("corpus", name, rows, files=tuple(files), instead=tuple(new))
    return _counted(store, plan, unflagged=len(unflagged))


def reference_ids(store: Store, corpus: str) -> list[str]:
    """The ids of a corpus's references; none where there is no such corpus."""
    return _ids(store, "SELECT DISTINCT reference_id FROM all_references WHERE corpus = ?", [corpus])


def plan_recovered(store: Store, before: datetime, *, with_confirmed: bool = False) -> Plan:
    """Removes the candidates that were recovered before a time, but not those of a confirmed scan."""
    images = set(_ids(store, RECOVERED, {"before": before}))
    if not with_confirmed:
        kept = f"SELECT DISTINCT image_sha256 FROM candidates WHERE scan_id IN ({CONFIRMED})"
        images.difference_update(_ids(store, kept))
    rows = {"candidates": among("image_sha256", sorted(images))}
    return _counted(store, Plan("older_than", before.isoformat(timespec="seconds"), rows))


def remove(store: Store, plan: Plan, reviewer: str) -> None:
    """Removes what a plan names, for good, and records that it was removed.

    Raises StoreError where the store cannot be read or written, or other processes keep replacing its files.
    """
    began = now()
    removed = {name: float(number) for name, number in plan.counts.items()}
    store.append([Removal(new_id(), plan.what, plan.name, removed, reviewer, began)])
    for kind in (Scan, Night):
        store.append([row for row in plan.instead if isinstance(row, kind)])
    try:
        for sha256 in plan.images:
            store.storage.remove_unchanged(f"images/{sha256[:2]}/{sha256}.png", began)
        for path in plan.files:
            store.storage.remove(path)
        for path, words in plan.lines.items():
            _remove_lines(store.storage, path, words)
        for table, condition in plan.rows.items():
            _remove_all(store, table, f"({condition})")
            store.tables[table].erase_replaced()
            store.tables[table].vacuum(RETENTION_HOURS)  # files of killed writers
    except (OSError, DeltaError, duckdb.Error) as error:
        raise StoreError(
            f"the removal from {store.uri} was interrupted: {first_line(error)}. Run the same command again: "
            "it removes the rest."
        ) from error


def not_searched(store: Store) -> str | None:
    """A sentence about what a removal does not reach in a store; None where there is nothing."""
    if OLD_STORE not in store.storage.names(""):
        return None
    return f"{store.uri}/{OLD_STORE} holds the store as an older version wrote it. Delete it yourself."


def _counted(store: Store, plan: Plan, **further: int) -> Plan:
    """The plan with its images, and with the numbers of what goes."""
    condition = {table: plan.rows.get(table, "false") for table in ("candidates", "references")}
    images = frozenset(filter(None, _ids(store, UNNAMED.format(**condition))))
    replaced = {TABLES[type(row)] for row in plan.instead}
    counts = {
        table: int(store.query(f'SELECT count(*) AS n FROM "all_{table}" WHERE {rows}')[0]["n"])
        for table, rows in plan.rows.items()
        if table not in replaced
    }
    return replace(
        plan, images=images, counts=counts | {"images": len(images), "files": len(plan.files)} | further
    )


def _remove_all(store: Store, table: str, condition: str) -> None:
    for _ in range(PASSES):
        if not remove_rows(store, table, condition, dry_run=True):
            return
        remove_rows(store, table, condition)
    if remove_rows(store, table, condition, dry_run=True):
        raise OSError("other processes keep replacing the files of the table " + table)


def _without(scan: Scan, left: Mapping[str, Any]) -> Scan:
    """A scan that says what is left of its evidence."""
    gives, trained = bool(left.get("gives_back")), bool(left.get("is_trained_on"))
    grounds = [*([Ground.TRAINED_ON] if trained else []), *([Ground.GIVES_BACK] if gives else [])]
    ended = scan.verdict is Verdict.FLAGGED and not grounds
    return replace(
        scan,
        verdict=Verdict.NOTHING_FOUND if ended else scan.verdict,
        reason=CORPUS_REMOVED if ended else scan.reason,
        grounds="+".join(grounds),
        best_similarity=left.get("best_similarity"),
        q_value=left.get("q_value"),
        membership_q=left.get("membership_q"),
        trained_on=left.get("trained_on") or 0,
        finished_at=scan.finished_at + MICROSECOND,
    )


def _ids(store: Store, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[str]:
    found: list[str] = store.query_arrow(sql, parameters).column(0).to_pylist()
    return found


def _mentions(storage: Storage, path: str, names: Collection[str]) -> bool:
    content = storage.read(path).decode(errors="replace")
    return any(name in content for name in names)


def _remove_lines(storage: Storage, path: str, words: Collection[str]) -> None:
    lines = storage.read(path).decode(errors="replace").splitlines(keepends=True)
    kept = "".join(line for line in lines if not any(word in line for word in words))
    storage.put(path, kept.encode())


def _has_losses(storage: Storage, path: str, reference_ids: Collection[str]) -> bool:
    if not path.endswith(".parquet"):
        return False
    pictures = pq.read_table(io.BytesIO(storage.read(path)), columns=["picture"])["picture"]
    return bool(pc.any(pc.is_in(pictures, pa.array(list(reference_ids)))).as_py())
