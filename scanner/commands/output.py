"""How verdicts look on a terminal.

Names and reasons come from strangers: they are printed as they are, never as markup.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
            Text(plain(row["reason"])),
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)
