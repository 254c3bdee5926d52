"""A checkpoint in short, and what weakens the evidence of its scan; as Rich renderables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from rich.table import Table as Grid
from rich.text import Text

from scanner.records import Checkpoint, Examination, Scan
from scanner.store.desk_queries import EvidenceRow, OpenedCheckpoint
from scanner.text import for_terminal
from tui.content.styles import MUTED

UNLIKE = (
    "is of another kind than the references: their losses stand apart from it whatever was trained on, so it "
    "says little about training. Add works like yours that no checkpoint was trained on: scanner corpus add "
    "NAME DIR --background, or --unseen for works of yours that were never published."
)


def about(opened: OpenedCheckpoint, row: EvidenceRow | None) -> Grid:
    """Returns what a reviewer asks of a checkpoint before deciding: its caption, base, origin and age."""
    checkpoint, scan = opened.checkpoint, opened.scan
    rows = [
        *(warnings(scan) if scan else []),
        ("Caption", caption_in_words(checkpoint, scan)),
        ("Base", (scan.base if scan else None) or checkpoint.base or "not known"),
        ("Kind", f"{checkpoint.kind}, {checkpoint.family}"),
        *([("Looked at", scan.examined.label)] if scan and scan.examined else []),
        ("Published", f"{checkpoint.created_at:%d %B %Y}" if checkpoint.created_at else "not stated"),
        ("Licence", checkpoint.license or "not stated"),
    ]
    if row is not None:
        reference = PurePath(row.reference.path).name if row.reference else row.reference_id[:16]
        name = f"{reference}, of {row.corpus}" if reference else f"all of {row.corpus}"
        rows.insert(0, ("Reference", name))
    return named_values(rows)


def named_values(rows: Sequence[tuple[str, str]]) -> Grid:
    """Returns names and values below each other; the values may come from strangers."""
    grid = Grid.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, width=10)
    grid.add_column(ratio=1, overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name, style=MUTED), Text(for_terminal(value)))
    return grid


def warnings(scan: Scan) -> list[tuple[str, str]]:
    """Returns what weakens the evidence of a scan."""
    rows = [("Background", UNLIKE)] if scan.background_unlike else []
    standing, compared = scan.standing_references, scan.compared_references
    if scan.examined in (Examination.SCREENED, Examination.BOTH) and compared < standing:
        left_out = (
            f"{standing:,} references stood out, and the budget of the screen allowed for comparing "
            f"{compared:,} of them. Of the others it is not known whether they were trained on."
        )
        rows.append(("Left out", left_out))
    return rows


def caption_in_words(checkpoint: Checkpoint, scan: Scan | None) -> str:
    """Returns the caption that a scan used, and where it is from."""
    caption = checkpoint.caption if scan is None else scan.caption
    if caption is None:
        return "not known"
    if scan is not None and scan.caption_score is not None and caption:
        return f"{caption} (none is stated: recovered, score {scan.caption_score:.2f})"
    return caption or "none is stated; samples are drawn without a prompt"
