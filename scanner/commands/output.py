"""How verdicts look on a terminal.

Names and reasons come from strangers: they are printed as they are, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scanner.fetch import show_size
from scanner.records import Checkpoint, Prospect
from scanner.summary import shorter

SHOWN_REASONS = 50  # on a terminal
SHOWN = {"flagged": "FLAGGED", "nothing_found": "nothing found"}


def plain(text: str) -> str:
    """A stranger's text on one line, without control characters."""
    return "".join(c if c.isprintable() else " " for c in text)


def outcome_table(rows: list[dict[str, Any]]) -> None:
    """Prints one row a checkpoint to stdout."""
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


def listed_summary(
    checkpoints: Iterable[Checkpoint], max_bytes: int, *, as_json: bool, dry_run: bool
) -> None:
    """What was listed: how much can be scanned and what it would download, and why the rest cannot."""
    rows = list(checkpoints)
    ready = [c for c in rows if c.prospect is Prospect.READY]
    small = [c for c in ready if c.size_bytes <= max_bytes]
    bases = {c.base for c in small}
    size_bytes = sum(c.size_bytes for c in small)
    skipped = [c for c in rows if c.prospect is Prospect.SKIPPED]
    unavailable = [c for c in rows if c.prospect is Prospect.UNAVAILABLE]
    if as_json:
        fields = ("checkpoint_id", "source", "repo", "revision", "file", "size_bytes", "kind", "family",
                  "base", "base_evidence", "caption", "num_train_images", "prospect", "reason")  # fmt: skip
        shown = [{name: getattr(c, name) for name in fields} for c in rows]
        click.echo(json.dumps({"ready": len(ready), "skipped": len(skipped), "unavailable": len(unavailable),
                               "download_bytes": size_bytes, "bases": len(bases), "checkpoints": shown},
                              indent=2))  # fmt: skip
        return
    if not rows:
        click.echo("Nothing was listed. Loosen --since, --filter or --base-model, or look at another source.")
        return
    larger = len(ready) - len(small)
    click.echo(
        f"{len(rows)} checkpoints = {len(small)} can be scanned + {len(skipped)} skipped "
        + (f"+ {larger} larger than --max-download ({show_size(max_bytes)}) " if larger else "")
        + f"+ {len(unavailable)} unavailable"
    )
    if small:
        click.echo(
            f"They hold {show_size(size_bytes)} of weights, and need {len(bases)} "
            f"base{'s' if len(bases) != 1 else ''} beside, which may be larger."
        )
    for title, some in (("skipped", skipped), ("unavailable", unavailable)):
        if some:
            table = Table(box=None, pad_edge=False, header_style="bold")
            table.add_column(title, no_wrap=True)
            table.add_column("why", overflow="fold")
            for checkpoint in some[:SHOWN_REASONS]:
                table.add_row(
                    Text(plain(checkpoint.repo)),
                    Text(plain(shorter(checkpoint.reason, checkpoint.repo))),
                )
            _console().print(table)
            if len(some) > SHOWN_REASONS:
                click.echo(f"... and {len(some) - SHOWN_REASONS} more: --json tells all")
    click.echo(
        "Nothing was written." if dry_run else "Recorded. To scan: the same command without --list-only."
    )
