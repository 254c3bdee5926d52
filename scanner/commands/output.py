"""How verdicts look on a terminal.

Names and reasons come from strangers: they are printed as they are, never as markup.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scanner.records import Checkpoint, InspectionStatus
from scanner.store.queries import shorter
from scanner.units import show_size

SHOWN_REASONS = 50  # on a terminal
SHOWN_ROWS = 100  # checkpoints, on a terminal
SHOWN = {"flagged": "FLAGGED", "nothing_found": "nothing found"}


def plain(text: str) -> str:
    """A stranger's text on one line, without control characters."""
    return "".join(c if c.isprintable() else " " for c in text)


def told(
    repo: str, verdict: str, best_similarity: float | None, q_value: float | None, reason: str, *more: str
) -> str:
    """A verdict on one line."""
    parts = [f"{verdict.replace('_', ' '):13} {repo}"]
    if best_similarity is not None and q_value is not None:
        parts.append(f"best {best_similarity:.2f}, q {q_value:.3f}")
    parts += [shorter(reason, repo)] if reason else []
    return plain("  ".join([*parts, *more]))


def outcome_table(rows: list[dict[str, Any]], total: int) -> None:
    """Prints one row a checkpoint to stdout, and how many of the `total` are not shown."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("checkpoint", "left"),
        ("verdict", "left"),
        ("similarity", "right"),
        ("q", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("why", overflow="fold")
    for row in rows:
        table.add_row(
            Text(plain(row["repo"])),
            Text(
                SHOWN.get(row["verdict"], row["verdict"]), style="bold" if row["verdict"] == "flagged" else ""
            ),
            "" if row["best_similarity"] is None else f"{row['best_similarity']:.2f}",
            "" if row["q_value"] is None else f"{row['q_value']:.3f}",
            Text(plain(shorter(row["reason"], row["repo"]))),
        )
    _console().print(table)
    if len(rows) < total:
        click.echo(f"... and {total - len(rows):,} more: `scanner status --limit N` shows N, --json all")


def rows_table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints rows of text under their names to stdout."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(Text(plain(name)), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=140)


FIELDS = ("checkpoint_id", "source", "repo", "revision", "file", "size_bytes", "kind", "family", "base",
          "base_origin", "caption", "num_train_images", "inspection_status", "reason")  # fmt: skip


class ListingSummary:
    """What was listed: how much can be scanned and what it would download, and why the rest cannot.

    Takes one checkpoint after another, and keeps the counts and what will be shown.
    """

    def __init__(self, max_bytes: int, *, as_json: bool) -> None:
        self._max_bytes, self._as_json = max_bytes, as_json
        self.counts: Counter[InspectionStatus] = Counter()
        self._larger = self._size_bytes = 0
        self._bases: set[str | None] = set()
        self._rows: list[dict[str, Any]] = []  # for --json
        self._reasons: dict[InspectionStatus, list[tuple[str, str]]] = {
            InspectionStatus.SKIPPED: [],
            InspectionStatus.UNAVAILABLE: [],
        }

    def add(self, checkpoint: Checkpoint) -> None:
        """Takes one in."""
        self.counts[checkpoint.inspection_status] += 1
        if self._as_json:
            self._rows.append({name: getattr(checkpoint, name) for name in FIELDS})
        if checkpoint.inspection_status is not InspectionStatus.READY:
            shown = self._reasons.setdefault(checkpoint.inspection_status, [])
            if len(shown) < SHOWN_REASONS:
                shown.append((checkpoint.repo, shorter(checkpoint.reason, checkpoint.repo)))
        elif checkpoint.size_bytes > self._max_bytes:
            self._larger += 1
        else:
            self._size_bytes += checkpoint.size_bytes
            self._bases.add(checkpoint.base)

    def show(self, *, dry_run: bool) -> None:
        """Prints it to stdout."""
        ready, skipped, unavailable = (
            self.counts[p]
            for p in (InspectionStatus.READY, InspectionStatus.SKIPPED, InspectionStatus.UNAVAILABLE)
        )
        if self._as_json:
            told = {"ready": ready, "skipped": skipped, "unavailable": unavailable,
                    "download_bytes": self._size_bytes, "bases": len(self._bases)}  # fmt: skip
            click.echo(json.dumps(told | {"checkpoints": self._rows}, indent=2))
            return
        if not self.counts.total():
            click.echo("Nothing was listed. Loosen --since, --filter or --base-model, or look elsewhere.")
            return
        limit = show_size(self._max_bytes)
        click.echo(
            f"{self.counts.total()} checkpoints = {ready - self._larger} can be scanned + {skipped} skipped "
            + (f"+ {self._larger} larger than --max-download ({limit}) " if self._larger else "")
            + f"+ {unavailable} unavailable"
        )
        if ready - self._larger:
            bases = len(self._bases)
            click.echo(
                f"They hold {show_size(self._size_bytes)} of weights, and need {bases} "
                f"base{'s' if bases != 1 else ''} beside, which may be larger."
            )
        for inspection_status, some in self._reasons.items():
            if some:
                rows_table((inspection_status.value, "why"), (map(plain, pair) for pair in some))
            if self.counts[inspection_status] > len(some):
                click.echo(f"... and {self.counts[inspection_status] - len(some)} more: --json tells all")
        click.echo(
            "Nothing was written." if dry_run else "Recorded. To scan: the same command without --list-only."
        )
