"""The content of the list of checkpoints: verdict counts, headings, columns and rows; as Rich renderables."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.text import Text

from scanner.records import Ground, ReviewDecision, Verdict
from scanner.store.desk_filter import Sort, View
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
from tui.content.sorting import heading
from tui.content.styles import grounds_mark, verdict_mark
from tui.widgets.table import Column, Line

MARK = "■ "  # before the name of a marked row
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
NO_SUCH_ROW = "No checkpoint in this list fits the filter. Escape clears it; v shows the other verdicts."
NO_SUCH_VERDICT = "No checkpoint has this verdict. v shows the next verdict."


@dataclass(frozen=True, slots=True)
class ListState:
    """What stands above the table, and instead of the table if no checkpoint is listed."""

    heading: Text
    advice: Text | None


def counts_line(counts: VerdictCounts | None, width: int, *, read_only: bool = False) -> Text:
    """Returns the counts of all verdicts as a sum, on two lines if it is longer than `width` cells.

    `counts` is None while they are being counted.
    """
    text = Text(("read-only · " if read_only else "") + ("Counting …" if counts is None else str(counts)))
    if text.cell_len > width:
        text = Text(text.plain.replace(" = ", "\n= "))
    text.highlight_regex(r"^read-only|[\d,]+ (planned|flagged)", "bold")
    return text


def reasons_text(reasons: Sequence[StandingReason]) -> Text:
    """Returns the number of checkpoints for each reason, the most frequent first."""
    text = Text()
    for place, reason in enumerate(reasons):
        text.append(" · " if place else "")
        text.append(f"{reason.count:,}", style="bold")
        text.append(f" {reason_label(reason.reason_code)}")
    return text


def list_state(
    page: CheckpointPage, counts: VerdictCounts | None, view: View, words: str, marked: int = 0
) -> ListState:
    """Returns the heading of the list and, if the list is empty, advice what to do next.

    `words` are those of the filter box, and `marked` is the number of marked rows.
    """
    text = Text(no_wrap=True, overflow="ellipsis")
    if marked:
        text.append(f"{marked:,} marked", style="bold reverse")
        text.append(" · ")
    text.append(heading(view), style="bold")
    if words.strip():
        text.append(f" · filter “{for_terminal(words.strip(), 60)}”")
    if len(page.rows) < page.total:
        last = page.offset + len(page.rows)
        place = f"{page.offset + 1:,} to {last:,}" if page.offset else f"first {last:,}"
        text.append(f" · {place} of {page.total:,}")
    elif words.strip():
        text.append(f" · {page.total:,}")
    if page.as_of is not None:
        text.append(f" · as of {page.as_of.astimezone():%H:%M:%S}")
    if page.rows:
        return ListState(text, None)
    if counts is None:
        return ListState(text, Text(""))
    if counts.planned == 0:
        advice = EMPTY_STORE
    elif view.where:
        advice = NO_SUCH_ROW
    elif view.shown is ListFilter.FLAGGED and counts.todo:
        waiting = count(counts.todo, "checkpoint is", "checkpoints are")
        advice = NOTHING_FLAGGED_YET.format(waiting=waiting)
    elif view.shown is ListFilter.FLAGGED:
        advice = NOTHING_FLAGGED
    else:
        advice = NO_SUCH_VERDICT
    return ListState(text, Text(advice))


def columns(shown: ListFilter, wide: bool) -> list[Column]:
    """Returns the columns of a list."""
    # What tells two revisions apart comes last.
    repo = Column("Repo", 16, share=3, keep_end=True, sort=Sort.REPO)
    kind = [Column("Kind", 9, sort=Sort.KIND)] if shown is not ListFilter.FLAGGED else []
    base = Column("Base", 10, share=2, keep_end=True, sort=Sort.BASE)
    origin = [Column("Source", 7, sort=Sort.SOURCE), *kind, base] if wide else []
    scanned = Column("Scanned", 7, sort=Sort.SCANNED)
    if shown is ListFilter.FLAGGED:
        flags = [
            Column("Grounds", 12, sort=Sort.GROUNDS),
            Column("Similar", 7, right=True, sort=Sort.SIMILARITY),
            Column("q value", 7, right=True, sort=Sort.Q_VALUE),
            Column("Flags", 5, right=True, sort=Sort.FLAGS),
        ]
        if wide:
            return [repo, *origin, *flags, Column("Decision", 17, sort=Sort.DECISION), scanned]
        return [repo, *flags, Column("Decision", 16, sort=Sort.DECISION)]
    if shown in WITH_REASONS:
        reason = Column("Reason", 18, share=2, sort=Sort.REASON)
        return [repo, *origin, reason, Column("Explanation", 12, share=2, sort=Sort.EXPLANATION), scanned]
    verdict = [Column("Verdict", 15, sort=Sort.VERDICT)] if shown is ListFilter.ALL else []
    return [repo, *origin, *verdict, Column("Result", 20, share=3, sort=Sort.SIMILARITY), scanned]


def lines(
    rows: Sequence[CheckpointRow],
    shown: ListFilter,
    present: datetime,
    wide: bool,
    marked: Container[str] = (),
) -> list[Line]:
    """Returns the rows of a list. Checkpoints of the same repo are named so that they can be told apart.

    `marked` holds the ids of the marked ones.
    """
    names = names_in_list((r.source, r.repo, r.revision, r.file.removesuffix(".safetensors")) for r in rows)
    return [
        _line(row, f"{MARK if row.checkpoint_id in marked else ''}{name}", shown, present, wide)
        for row, name in zip(rows, names, strict=True)
    ]


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
    """Returns the decision on the scan, or else how many flags are decided, such as `3 ✓ 1 ✗ 1 ?`."""
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
    return " ".join(marks)


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
