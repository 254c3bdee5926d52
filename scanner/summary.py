"""The sum that must add up: planned = flagged + nothing found + skipped + failed + to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from scanner.records import Checkpoint, ConfigRow, Scan, Verdict
from scanner.store import Store


@dataclass(frozen=True, slots=True)
class Sum:
    """Checkpoints by verdict under one configuration."""

    planned: int
    flagged: int
    nothing_found: int
    skipped: int
    failed: int

    @property
    def todo(self) -> int:
        """Planned checkpoints without any verdict."""
        return self.planned - self.flagged - self.nothing_found - self.skipped - self.failed

    def __str__(self) -> str:
        return (
            f"{self.planned} planned = {self.flagged} flagged + {self.nothing_found} nothing found "
            f"+ {self.skipped} skipped + {self.failed} failed + {self.todo} to do"
        )

    def as_dict(self) -> dict[str, int]:
        """For --json."""
        return {**asdict(self), "todo": self.todo}


def latest_config(store: Store) -> str | None:
    """The id of the configuration that was used last, or None in a store that never saw a crawl."""
    rows = store.select(ConfigRow, "ORDER BY created_at DESC LIMIT 1")
    return rows[0].config_id if rows else None


def sum_up(store: Store, config_id: str | None) -> Sum:
    """Every listed checkpoint has at most one verdict under a configuration: its newest scan's."""
    (row,) = store.query("SELECT count(*) AS planned FROM checkpoints")
    counts = {
        r["verdict"]: r["n"]
        for r in store.query(
            "SELECT verdict, count(*) AS n FROM scans SEMI JOIN checkpoints USING (checkpoint_id) "
            "WHERE config_id = ? GROUP BY verdict",
            [config_id],
        )
    }
    return Sum(row["planned"], *(counts.get(v, 0) for v in Verdict))


def outcomes(store: Store, config_id: str | None) -> list[dict[str, Any]]:
    """Each listed checkpoint with its verdict: flagged first, the strongest evidence before weaker."""
    order = {verdict: rank for rank, verdict in enumerate(Verdict)}
    scans = {s.checkpoint_id: s for s in store.select(Scan, "WHERE config_id = ?", [config_id])}
    rows = []
    for checkpoint in store.select(Checkpoint):
        scan = scans.get(checkpoint.checkpoint_id)
        rows.append(
            {
                "checkpoint_id": checkpoint.checkpoint_id,
                "repo": checkpoint.repo,
                "kind": checkpoint.kind,
                "verdict": scan.verdict.value if scan else "to do",
                "best_similarity": scan.best_similarity if scan else None,
                "q_value": scan.q_value if scan else None,
                "reason": scan.reason if scan else checkpoint.reason,
            }
        )
    return sorted(
        rows,
        key=lambda r: (
            order.get(Verdict(r["verdict"]), 9) if r["verdict"] != "to do" else 9,
            -(r["best_similarity"] or 0.0),
            r["repo"],
        ),
    )


def shorter(reason: str, repo: str) -> str:
    """A reason without the repository, and the file in it, that stand beside it already."""
    rest = reason.removeprefix(repo)
    return rest.partition(" ")[2] if rest != reason and rest[:1] in ("/", ":", " ") else reason
