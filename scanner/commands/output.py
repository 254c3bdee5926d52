"""How verdicts, listings and reasons are printed, and in which colours.

Names and reasons are untrusted text: they are printed without control characters, and never as markup.
Colours are for a terminal, or where $FORCE_COLOR is set; with $NO_COLOR there are none. Each goes with the
word that it colours, so nothing is told by colour alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scanner.records import Examination, Ground, Verdict
from scanner.store.grounds import grounds_label, shown_q
from scanner.store.queries import ReasonCount, VerdictCounts, names_in_list, shorter
from scanner.text import for_terminal
from scanner.units import show_size

if TYPE_CHECKING:
    from scanner.crawl.summary import ListingResult

SHOWN_ROWS = 100  # checkpoints in a table
VERDICTS = {"flagged": "FLAGGED", "nothing_found": "nothing found"}
STYLES = {"flagged": "bold red", "failed": "yellow", "skipped": "dim", "wrong": "bold red", "note": "yellow"}
PIPED_WIDTH = 140  # of a table where there is no terminal


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The reader has gone: for scanner.cli, whose exit code says so; rich would exit with 1."""
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """What all verbs print texts and tables with."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPED_WIDTH
    return _Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)


def say(text: str | Text, *, err: bool = False) -> None:
    """Prints a text as it is, without wrapping it."""
    console(stderr=err).print(text, soft_wrap=True)


def marked(text: str, *words: str) -> Text:
    """A text in which the first occurrence of each word has the word's colour."""
    shown = Text(text)
    for word in words:
        if (at := text.lower().find(spelt := word.replace("_", " "))) >= 0:
            shown.stylize(STYLES.get(word, ""), at, at + len(spelt))
    return shown


def marked_counts(counts: VerdictCounts) -> Text:
    """The sum of the verdicts; what is flagged or failed has its colour."""
    shown = Text(str(counts))
    for number, word in ((counts.flagged, "flagged"), (counts.failed, "failed")):
        if number:
            shown.highlight_words([f"{number:,} {word}"], STYLES[word])
    return shown


def verdict_line(
    repo: str,
    verdict: str,
    best_similarity: float | None,
    q_value: float | None,
    reason: str,
    *further: str,
    grounds: Sequence[str] = (),
    examined: str | None = None,
    membership_q: float | None = None,
) -> str:
    """A verdict on one line, with the grounds of a flag, or how a checkpoint without one was looked at."""
    parts = [f"{verdict.replace('_', ' '):13} {repo}"]
    if grounds:
        parts.append(grounds_label(grounds))
    elif verdict == Verdict.NOTHING_FOUND and examined:
        parts.append(Examination(examined).label)
    if Ground.TRAINED_ON in grounds and membership_q is not None:
        parts.append(f"training q {_q(membership_q)}")
    if best_similarity is not None and q_value is not None:
        parts.append(f"best {best_similarity:.2f}, q {_q(q_value)}")
    parts += [shorter(reason, repo)] if reason else []
    return for_terminal("  ".join([*parts, *further]))


def outcome_table(rows: list[dict[str, Any]], total: int) -> None:
    """Prints a row for each checkpoint to stdout, and how many of the `total` are not shown."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("checkpoint", "left"),
        ("verdict", "left"),
        ("similarity", "right"),
        ("q", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("grounds or reason", overflow="fold")
    names = names_in_list((row["source"], row["repo"], row["revision"], row["file"]) for row in rows)
    for name, row in zip(names, rows, strict=True):
        q = shown_q(row["grounds"], row["q_value"], row["membership_q"])
        table.add_row(
            Text(for_terminal(name)),
            Text(VERDICTS.get(row["verdict"], row["verdict"]), style=STYLES.get(row["verdict"], "")),
            "" if row["best_similarity"] is None else f"{row['best_similarity']:.2f}",
            "" if q is None else _q(q),
            Text(for_terminal(_details(row))),
        )
    console().print(table)
    if len(rows) < total:
        click.echo(
            f"... and {total - len(rows):,} more. `scanner status --limit N` shows N of them, --json all."
        )


def _details(row: dict[str, Any]) -> str:
    """The grounds of a flag; how a checkpoint without one was looked at; or why there is no result."""
    if row["grounds"]:
        return grounds_label(row["grounds"])
    if row["verdict"] == Verdict.NOTHING_FOUND and row["examined"] and not row["reason"]:
        return Examination(row["examined"]).label
    return shorter(row["reason"], row["repo"])


def _q(value: float) -> str:
    """A q-value with three decimal places; never a bare zero."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def rows_table(names: Iterable[str], rows: Iterable[Iterable[str | Text]]) -> None:
    """Prints rows of text to stdout, under the names of their columns."""
    console().print(_table(names, rows))


def rows_or_records(names: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Prints rows as a table where the table fits the terminal, else each row with one field a line."""
    shown_on, table = console(), _table(names, rows)
    everything = shown_on.options.update(max_width=10**6)
    if table.__rich_measure__(shown_on, everything).maximum <= shown_on.width:
        shown_on.print(table)
        return
    shown = [for_terminal(name) for name in names]
    for number, row in enumerate(rows, 1):
        record = Table(box=None, pad_edge=False, show_header=False)
        record.add_column(style="bold", no_wrap=True)
        record.add_column(overflow="fold")
        for name, value in zip(shown, row, strict=True):
            record.add_row(Text(name), _cell(value))
        shown_on.print(Text(f"row {number:,}", style="dim"))
        shown_on.print(record)


def _cell(value: str | Text) -> Text:
    return value if isinstance(value, Text) else Text(value)


def _table(names: Iterable[str], rows: Iterable[Iterable[str | Text]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(Text(for_terminal(name)), overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def reasons_table(reasons: Sequence[ReasonCount]) -> None:
    """Prints why checkpoints were skipped or failed: each reason with its number and an example."""
    rows = (
        (
            f"{r.count:,}", Text(r.verdict, style=STYLES.get(r.verdict, "")), for_terminal(r.label),
            for_terminal(f"{r.repo}: {shorter(r.reason, r.repo)}"),
        )
        for r in reasons
    )  # fmt: skip
    rows_table(("number", "verdict", "reason", "example"), rows)


CHECKPOINT_FIELDS = ("checkpoint_id", "source", "repo", "revision", "file", "size_bytes", "kind", "family",
                     "base", "base_origin", "caption", "num_train_images", "inspection_status", "reason",
                     "reason_code")  # fmt: skip


def listing_as_dict(result: ListingResult) -> dict[str, Any]:
    """The counts of a listing for --json."""
    reasons = [
        {"status": r.verdict, "reason_code": r.reason_code, "count": r.count, "example": r.reason}
        for r in result.reasons
    ]
    return {
        "ready": result.ready, "skipped": result.skipped, "unavailable": result.unavailable,
        "download_bytes": result.download_bytes, "bases": result.bases, "reasons": reasons,
    }  # fmt: skip


def show_listing(
    result: ListingResult, rows: Sequence[dict[str, Any]], max_download: int, *, dry_run: bool
) -> None:  # fmt: skip
    """Prints a listing to stdout: its counts, the reasons, and the checkpoints that cannot be scanned."""
    if not result.checkpoints:
        click.echo("Nothing was listed. Try other values of --since, --filter or --base-model.")
        return
    limit, too_large = show_size(max_download), result.too_large
    click.echo(
        f"{result.checkpoints} checkpoints = {result.ready - too_large} can be scanned "
        f"+ {result.skipped} skipped "
        + (f"+ {too_large} larger than --max-download ({limit}) " if too_large else "")
        + f"+ {result.unavailable} unavailable"
    )
    if result.ready - too_large:
        bases = result.bases
        click.echo(
            f"Their weights are {show_size(result.download_bytes)}. They need {bases} base "
            f"model{'s' if bases != 1 else ''}, whose size comes on top."
        )
    if result.reasons:
        click.echo()
        reasons_table(result.reasons)
        click.echo()
        names = ("checkpoint", "status", "reason")
        cells = ((r["repo"], r["inspection_status"], shorter(r["reason"], r["repo"])) for r in rows)
        rows_table(names, (map(for_terminal, row) for row in cells))
        if result.skipped + result.unavailable > len(rows):
            click.echo(f"... and {result.skipped + result.unavailable - len(rows)} more. --json shows all.")
    click.echo(
        "Nothing was written." if dry_run else "Recorded. To scan, run the command without --list-only."
    )
