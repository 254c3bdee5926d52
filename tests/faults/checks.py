"""What must hold of a store and of a machine when the crawls of tests/reliability.py have ended."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from faults.scene import original

from scanner.records import Candidate, Decision, Match, Scan, Verdict
from scanner.store.leases import NAME, Leases
from scanner.store.rows import rows_of
from scanner.store.store import Store
from scanner.store.tables import record

# How far two runs may be apart. Another number of threads rounds differently, and the steps of the sampler
# enlarge it: one candidate of a hundred moved by 0.006. A p-value has steps of 0.01 here, a q of 0.1.
CLOSE = {"best_similarity": 0.02, "similarity": 0.02, "null_similarity": 0.02, "p_value": 0.05,
         "q_value": 0.2}  # fmt: skip
ENDED_S = 30.0  # within which what an ended crawl started has ended too


@dataclass(frozen=True)
class Evidence:
    """What a store holds of each checkpoint."""

    repos: dict[str, str]  # checkpoint_id -> the name of its repository
    scans: list[Scan]  # every row that was ever written
    candidates: dict[str, list[Candidate]]  # by scan_id
    matches: dict[str, list[Match]]  # by scan_id

    @classmethod
    def of(cls, store: Store) -> Evidence:
        repos = store.query("SELECT checkpoint_id AS id, repo FROM checkpoints")
        read = cls(
            {row["id"]: row["repo"] for row in repos}, all_scans(store), defaultdict(list), defaultdict(list)
        )
        for candidate in store.select(Candidate):
            read.candidates[candidate.scan_id].append(candidate)
        for match in store.select(Match):
            read.matches[match.scan_id].append(match)
        return read

    @property
    def conclusive(self) -> list[Scan]:
        return [scan for scan in self.scans if scan.verdict is not Verdict.FAILED]

    def by_original(self) -> dict[str, Scan]:
        """One conclusive scan of each checkpoint that others are copies of."""
        return {original(self.repos[scan.checkpoint_id]): scan for scan in self.conclusive}


def all_scans(store: Store) -> list[Scan]:
    """Every scan row that was ever committed; compaction drops some, so replaced files are read too."""
    written = {scan.scan_id: scan for scan in store.select(Scan)}
    added = set[str]()
    for name in store.storage.names("scans/_delta_log"):
        if name.endswith(".json"):
            commit = store.storage.read(f"scans/_delta_log/{name}").decode().splitlines()
            added |= {action["add"]["path"] for line in commit if "add" in (action := json.loads(line))}
    for name in added & set(store.storage.names("scans")):
        file = io.BytesIO(store.storage.read(f"scans/{name}"))
        written |= {row["scan_id"]: record(Scan, row) for row in rows_of(pq.read_table(file))}
    return list(written.values())


@dataclass
class Findings:
    """What is wrong at the end; every list must be empty."""

    ends: list[str] = field(default_factory=list)  # crawls that did not end
    lost: list[str] = field(default_factory=list)  # checkpoints without a verdict
    twice: list[str] = field(default_factory=list)  # checkpoints with two conclusive rows
    different: list[str] = field(default_factory=list)  # verdicts, similarities, q: from the undisturbed run
    evidence: list[str] = field(default_factory=list)  # candidates, matches: from the undisturbed run
    duplicates: list[str] = field(default_factory=list)  # rows with the key of another
    images: list[str] = field(default_factory=list)  # missing, or other than their name says
    decisions: list[str] = field(default_factory=list)  # lost, or twice
    leases: list[str] = field(default_factory=list)  # that still hold a checkpoint
    orphans: list[str] = field(default_factory=list)  # after `scanner compact` without a grace period
    processes: list[str] = field(default_factory=list)  # that an ended crawl left
    files: list[str] = field(default_factory=list)  # temporary ones, in the store, the cache, or TMPDIR
    tracebacks: list[str] = field(default_factory=list)  # that a command printed

    @property
    def held(self) -> bool:
        return not any(vars(self).values())


def check_store(
    found: Findings, store: Store, now: Evidence, calm: Evidence, repos: Iterable[str], recorded: list[str]
) -> None:
    """All that must hold before and after the orphans were collected."""
    check_verdicts(found, now, calm, repos)
    check_images(found, store, now)
    check_decisions(found, store, recorded)


def check_verdicts(found: Findings, now: Evidence, calm: Evidence, repos: Iterable[str]) -> None:
    """Each repository has one conclusive scan, with the verdict and evidence of the undisturbed run."""
    count = Counter(now.repos[scan.checkpoint_id] for scan in now.conclusive)
    found.lost += sorted(set(repos) - set(count))
    found.twice += sorted(repo for repo, n in count.items() if n > 1)
    undisturbed = calm.by_original()
    for scan in now.conclusive:
        repo = now.repos[scan.checkpoint_id]
        expected = undisturbed[original(repo)]
        if not same(scan, expected):
            found.different.append(f"{repo}: {scan.verdict} {scan.reason}")
        for kind, told in differences(now, scan, calm, expected):
            found.evidence.append(f"{repo}: {kind}: {told}")


def same(one: Scan, other: Scan) -> bool:
    """Whether two scans came to the same."""
    return one.verdict == other.verdict and all(
        _close(one, other, name) for name in ("best_similarity", "q_value")
    )


def differences(now: Evidence, scan: Scan, calm: Evidence, expected: Scan) -> Iterable[tuple[str, str]]:
    """In what the candidates and matches of two scans differ."""
    if scan.verdict is Verdict.SKIPPED:
        return
    mine, theirs = now.candidates[scan.scan_id], calm.candidates[expected.scan_id]
    if len(mine) != scan.num_candidates:
        yield "candidates", f"{len(mine)} rows, and the scan states {scan.num_candidates}"
    cliques = [sorted((c.seed, c.clique_size) for c in some) for some in (mine, theirs)]
    if cliques[0] != cliques[1]:
        yield "candidates", f"{cliques[0]} instead of {cliques[1]}"
    own = {c.candidate_id for c in mine}
    matched = [
        {(m.corpus, m.reference_id): m for m in some}
        for some in (now.matches[scan.scan_id], calm.matches[expected.scan_id])
    ]
    if matched[0].keys() != matched[1].keys():
        yield "matches", f"{len(matched[0])} references instead of {len(matched[1])}"
    for key in matched[0].keys() & matched[1].keys():
        one, other = matched[0][key], matched[1][key]
        names = ("similarity", "null_similarity", "p_value", "q_value")
        alike = all(_close(one, other, name) for name in names)
        if not alike or one.candidate_id not in own or one.flagged != other.flagged:
            yield "matches", f"{key}: {one} instead of {other}"


def _close(one: Scan | Match, other: Scan | Match, name: str) -> bool:
    mine, theirs = getattr(one, name), getattr(other, name)
    if mine is None or theirs is None:
        return mine is theirs
    return bool(abs(mine - theirs) < CLOSE[name])


def check_rows(found: Findings, now: Evidence) -> None:
    """No two rows have one key."""
    candidates = [c for some in now.candidates.values() for c in some]
    matches = [m for some in now.matches.values() for m in some]
    for name, keys in {
        "candidate_id": [c.candidate_id for c in candidates],
        "scan, seed": [(c.scan_id, c.seed) for c in candidates],
        "match_id": [m.match_id for m in matches],
        "scan, corpus, reference": [(m.scan_id, m.corpus, m.reference_id) for m in matches],
    }.items():
        found.duplicates += [f"{name}: {key}" for key, n in Counter(keys).items() if n > 1]


def images_of(store: Store) -> dict[str, str]:
    """The images of a store: the name of each without its ending, and its path."""
    files = store.storage
    return {
        name.partition(".")[0]: f"images/{folder}/{name}"
        for folder in files.names("images")
        for name in files.names(f"images/{folder}")
    }


def check_images(found: Findings, store: Store, now: Evidence) -> None:
    """Each image is what its name says, and each candidate of a scan has one."""
    there = images_of(store)
    for name, path in there.items():
        if hashlib.sha256(store.storage.read(path)).hexdigest() != name:
            found.images.append(f"{path} has another hash")
    for scan in now.conclusive:
        for candidate in now.candidates[scan.scan_id]:
            if candidate.image_sha256 not in there:
                found.images.append(f"{now.repos[scan.checkpoint_id]}: {candidate.image_sha256} is missing")


def orphans(store: Store) -> dict[str, int]:
    """Rows whose scan has no row, and images that no row names."""
    without = "WHERE scan_id NOT IN (SELECT scan_id FROM all_scans)"
    rows = {
        name: store.query(f"SELECT count(*) AS n FROM {name} {without}")[0]["n"]
        for name in ("candidates", "matches", "memberships")
    }
    images = "SELECT image_sha256 AS at FROM candidates UNION SELECT image_sha256 FROM all_references"
    named = {row["at"] for row in store.query(images)}
    return {**rows, "images": len(images_of(store).keys() - named)}


def check_decisions(found: Findings, store: Store, recorded: list[str]) -> None:
    """Each event that the reviewer saw recorded is there once."""
    count = Counter(event.decision_id for event in store.select(Decision))
    found.decisions += [id_ for id_ in recorded if count[id_] != 1]


def check_leases(found: Findings, store: Store) -> None:
    """Nothing is held any more: another crawl could take every lease that has a file."""
    keys = {m["key"] for name in store.storage.names("leases") if (m := NAME.fullmatch(name))}
    leases = Leases(store.storage, "reliability")
    found.leases = sorted(keys - leases.acquire(keys))
    leases.release()


def check_processes(found: Findings, sessions: set[int]) -> None:
    """No process of the drivers' sessions runs, and no worker of theirs on the cluster."""
    until = time.monotonic() + ENDED_S
    found.processes = left_processes(sessions)
    while found.processes and time.monotonic() < until:
        time.sleep(0.5)
        found.processes = left_processes(sessions)


def left_processes(sessions: set[int]) -> list[str]:
    """Processes of those sessions, and scanners of the cluster."""
    left = []
    for process in psutil.process_iter(["pid", "status", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])[:200]
        ours = "ray::Scanner" in line and any(p.pid == os.getpid() for p in process.parents())
        try:
            ours = ours or os.getsid(process.pid) in sessions
        except ProcessLookupError:
            continue
        if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            left.append(f"{process.pid} {line}")
    return left


def left_files(folder: Path) -> list[str]:
    """Temporary files below a folder, hidden ones included, by their relative paths."""
    kinds = (".part", ".tmp", ".lock-new")
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != ".lock"
        and (
            path.suffix in kinds
            or path.name.startswith("_commit_")
            or any(part.startswith((".compaction-", "tmp")) for part in path.relative_to(folder).parts)
            or (path.name.startswith(".") and path.name.count(".") > 2)
        )
    )
