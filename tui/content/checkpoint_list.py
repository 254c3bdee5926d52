"""The content of the list of checkpoints: verdict counts, headings, columns and rows; as Rich renderables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.text import Text

from scanner.records import Ground, ReviewDecision, Verdict
from scanner.store.desk_queries import CheckpointPage, CheckpointRow, ListFilter, StandingReason
from scanner.store.grounds import grounds_cell, grounds_label, shown_q
from scanner.store.queries import COMMIT_DIGITS, VerdictCounts, names_in_list, reason_label, shorter
from scanner.text import for_terminal
from tui.content.formatting import (
    NONE,
    VERDICTS,
    cell,
    count,
    decision_text,
    probability,
    short_time,
    similarity,
    utc,
)
from tui.content.styles import grounds_mark, verdict_mark
from tui.widgets.table import Column, Line

HEADINGS = {
    ListFilter.FLAGGED: "Flagged, strongest evidence first",
    ListFilter.ALL: "All verdicts",
    ListFilter.NOTHING_FOUND: "Nothing found, nearest first (this does not prove that nothing is there)",
    ListFilter.SKIPPED: "Skipped, by reason",
    ListFilter.FAILED: "Failed, by reason; the next crawl tries again",
    ListFilter.TO_DO: "To do",
}
WITH_REASONS = {ListFilter.SKIPPED: Verdict.SKIPPED, ListFilter.FAILED: Verdict.FAILED}
EMPTY_STORE = """\
This store is empty: no crawl has listed a checkpoint yet.

First add your images, and similar ones that no checkpoint was trained on.
Then crawl:

    scanner corpus add NAME DIR
    scanner corpus add background DIR --background
    scanner crawl --source hf --limit 100

You can leave the desk open: it shows the results of a crawl while it runs."""
NOTHING_FLAGGED_YET = """\
Nothing is flagged so far, and {waiting} to do.

The desk shows the results of a running crawl as they come. If no crawl is running,
repeat your last crawl command: it continues where it stopped. For example:

    scanner crawl --source hf --limit 100

v shows the other verdicts."""
NOTHING_FLAGGED = """\
Nothing is flagged: no scan found that a checkpoint was trained on a reference,
or gives one back, under these settings.
This does not prove that no checkpoint was trained on one.

v shows the other verdicts, and the reasons of skipped checkpoints."""
NO_SUCH_REPO = "No repo in this list has that in its name. Escape clears the filter."
NO_SUCH_VERDICT = "No checkpoint has this verdict. v shows the next verdict."


@dataclass(frozen=True, slots=True)
class ListState:
    """What stands above the table, and instead of the table if no checkpoint is listed."""

    heading: Text
    advice: Text | None


def counts_line(counts: VerdictCounts | None, width: int) -> Text:
    """Returns the counts of all verdicts as a sum, on two lines if it is longer than `width` cells.

    `counts` is None while they are being counted.
    """
    text = Text("Counting …" if counts is None else str(counts))
    if text.cell_len > width:
        text = Text(text.plain.replace(" = ", "\n= "))
    text.highlight_regex(r"[\d,]+ (planned|flagged)", "bold")
    return text


def reasons_text(reasons: Sequence[StandingReason]) -> Text:
    """Returns the number of checkpoints for each reason, the most frequent first."""
    text = Text()
    for place, reason in enumerate(reasons):
        text.append(" · " if place else "")
        text.append(f"{reason.count:,}", style="bold")
        text.append(f" {reason_label(reason.reason_code)}")
    return text


def list_state(page: CheckpointPage, counts: VerdictCounts | None, shown: ListFilter, part: str) -> ListState:
    """Returns the heading of the list and, if the list is empty, advice what to do next."""
    heading = Text(HEADINGS[shown], style="bold", no_wrap=True, overflow="ellipsis")
    if part:
        heading.append(f" · repo contains “{for_terminal(part, 40)}”", style="not bold")
    if len(page.rows) < page.total:
        heading.append(f" · first {len(page.rows):,} of {page.total:,}", style="not bold")
    if page.rows:
        return ListState(heading, None)
    if counts is None:
        return ListState(heading, Text(""))
    if counts.planned == 0:
        advice = EMPTY_STORE
    elif part:
        advice = NO_SUCH_REPO
    elif shown is ListFilter.FLAGGED and counts.todo:
        waiting = count(counts.todo, "checkpoint is", "checkpoints are")
        advice = NOTHING_FLAGGED_YET.format(waiting=waiting)
    elif shown is ListFilter.FLAGGED:
        advice = NOTHING_FLAGGED
    else:
        advice = NO_SUCH_VERDICT
    return ListState(heading, Text(advice))


def columns(shown: ListFilter, wide: bool) -> list[Column]:
    """Returns the columns of a list."""
    repo = Column("Repo", 16, share=3, keep_end=True)  # what tells two revisions apart comes last
    kind = [Column("Kind", 9)] if shown is not ListFilter.FLAGGED else []
    origin = [Column("Source", 7), *kind, Column("Base", 10, share=2)] if wide else []
    scanned = Column("Scanned", 7)
    if shown is ListFilter.FLAGGED:
        scores = [Column("Similar", 7, right=True), Column("q value", 7, right=True)]
        flags = [Column("Grounds", 12), *scores, Column("Flags", 5, right=True)]
        if wide:
            return [repo, *origin, *flags, Column("Decision", 17), scanned]
        return [repo, *flags, Column("Decision", 16)]
    if shown in WITH_REASONS:
        return [repo, *origin, Column("Reason", 18, share=2), Column("Explanation", 12, share=2), scanned]
    verdict = [Column("Verdict", 15)] if shown is ListFilter.ALL else []
    return [repo, *origin, *verdict, Column("Result", 20, share=3), scanned]


def lines(rows: Sequence[CheckpointRow], shown: ListFilter, present: datetime, wide: bool) -> list[Line]:
    """Returns the rows of a list. Checkpoints of the same repo are named so that they can be told apart."""
    names = names_in_list((r.source, r.repo, r.revision, r.file.removesuffix(".safetensors")) for r in rows)
    return [_line(row, name, shown, present, wide) for row, name in zip(rows, names, strict=True)]


def _line(row: CheckpointRow, name: str, shown: ListFilter, present: datetime, wide: bool) -> Line:
    """Returns one checkpoint as a row of a list; its cells are those of `columns`."""
    cells = [cell(for_terminal(name, 300), style="bold")]
    if wide:
        cells.append(cell(for_terminal(row.source.partition(":")[0], 40)))
        if shown is not ListFilter.FLAGGED:
            cells.append(cell(for_terminal(f"{row.kind}, {row.family}", 40)))
        cells.append(cell(for_terminal(row.base, 100) or "not known"))
    if shown is ListFilter.FLAGGED:
        cells.append(grounds_mark(row.grounds))
        cells.append(cell(similarity(row.best_similarity), right=True))
        cells.append(cell(probability(_q(row)), right=True))
        cells.append(cell(f"{row.flags:,}", right=True))
        cells.append(cell(decision_state(row), style=f"decision.{row.decision or 'none'}"))
    else:
        if shown in WITH_REASONS:
            cells.append(cell(reason_label(row.reason_code)))
        elif shown is ListFilter.ALL:
            cells.append(verdict_mark(row.verdict))
        cells.append(cell(_result(row)))
    if wide or shown is not ListFilter.FLAGGED:
        cells.append(cell(short_time(row.finished_at, present)))
    return Line(row.checkpoint_id, tuple(cells))


def decision_state(row: CheckpointRow) -> str:
    """Returns the decision on the scan, or else how many flags are decided; at most 17 characters."""
    if row.decision is not None:
        return decision_text(row.decision)
    if not row.decided:
        return decision_text(None)
    if row.decided < row.flags:
        return f"{row.decided} of {row.flags} decided"
    numbers = {
        ReviewDecision.CONFIRM: row.confirmed,
        ReviewDecision.DISMISS: row.dismissed,
        ReviewDecision.UNSURE: row.unsure,
    }
    marks = [f"{number} {decision_text(decision)[0]}" for decision, number in numbers.items() if number]
    return ", ".join(marks) + " (all)"


def in_full(row: CheckpointRow) -> Text:
    """Returns what the columns of a checkpoint may cut: name, revision, file, grounds, reason and note."""
    text = Text(for_terminal(row.repo, 300), style="bold")
    revision = row.revision[:8] if len(row.revision) == COMMIT_DIGITS else row.revision
    place = f"{'@' if revision else ''}{revision} {row.file}".rstrip()
    text.append(for_terminal(place, 300), style="not bold")
    text.append(f"  {VERDICTS[row.verdict]}", style="not bold")
    if row.grounds:
        text.append(f": {grounds_label(row.grounds)}", style="not bold")
    elif row.verdict is Verdict.NOTHING_FOUND and row.examined:
        text.append(f": {row.examined.label}", style="not bold")
    if row.reason:
        text.append(f": {for_terminal(row.reason)}", style="not bold")
    base = f" on {for_terminal(row.base, 100)}" if row.base else ""
    text.append(f" · {for_terminal(row.kind, 40)}, {for_terminal(row.family, 40)}{base}", style="not bold")
    if row.finished_at:
        text.append(f" · scanned {utc(row.finished_at)}", style="not bold")
    if row.note:
        text.append(f" · note “{for_terminal(row.note)}”", style="not bold")
    return text


def _result(row: CheckpointRow) -> str:
    if row.verdict is Verdict.FLAGGED:
        similar = f" {similarity(row.best_similarity)}" if Ground.GIVES_BACK in row.grounds else ""
        return f"{grounds_cell(row.grounds)}{similar}, q {probability(_q(row))}"
    if row.verdict is Verdict.NOTHING_FOUND:
        examined = [row.examined.label] if row.examined else []
        nearest = similarity(row.best_similarity)
        return ", ".join([*examined, *([] if nearest == NONE else [f"nearest {nearest}"])])
    return for_terminal(shorter(row.reason or "", row.repo), 300)


def _q(row: CheckpointRow) -> float | None:
    return shown_q(row.grounds, row.q_value, row.membership_q)
