"""How the list says its rows: the sum, the columns, and what to do where there is nothing to list."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from rich.text import Text

from scanner.records import Verdict, Word
from scanner.store.desk_queries import CheckpointPage, CheckpointRow, ListFilter
from scanner.store.queries import VerdictCounts, shorter
from tui.widgets.table import Column, Line
from tui.words import NOTHING, VERDICTS, WORDS, cell, count, plain, probability, similarity, when

TITLES = {
    ListFilter.FLAGGED: "Flagged, strongest evidence first",
    ListFilter.ALL: "All verdicts",
    ListFilter.NOTHING_FOUND: "Nothing found, nearest first (which proves nothing clean)",
    ListFilter.SKIPPED: "Skipped, and why",
    ListFilter.FAILED: "Failed through our own fault; tried again by the next crawl",
    ListFilter.TO_DO: "To do",
}


@dataclass(frozen=True, slots=True)
class Told:
    """A heading above the table, and advice in the table's place where it is empty."""

    heading: Text
    advice: Text | None


def sum_line(counts: VerdictCounts | None) -> Text:
    """The sum of verdicts that must add up; None while the store counts."""
    text = Text(no_wrap=True, overflow="ellipsis")
    if counts is None:
        return text.append("Counting …")
    text.append(f"{counts.planned:,} planned", style="bold")
    text.append(" = ")
    text.append(f"{counts.flagged:,} flagged", style="bold")
    text.append(
        f" + {counts.nothing_found:,} nothing found + {counts.skipped:,} skipped"
        f" + {counts.failed:,} failed + {counts.todo:,} to do"
    )
    return text


def state_of_store(
    answer: CheckpointPage, counts: VerdictCounts | None, listing: ListFilter, part: str
) -> Told:
    """Says what is listed, and where that is nothing, what to do next."""
    heading = Text(TITLES[listing], style="bold", no_wrap=True, overflow="ellipsis")
    if part:
        heading.append(f" · repo contains “{plain(part, 40)}”", style="not bold")
    if len(answer.rows) < answer.total:
        heading.append(f" · first {len(answer.rows):,} of {answer.total:,}", style="not bold")
    if answer.rows:
        return Told(heading, None)
    if counts is None:
        return Told(heading, Text(""))
    if counts.planned == 0:
        advice = (
            "This store is empty: no crawl has listed anything yet.\n\n"
            "First name the pictures that you look for, then crawl:\n\n"
            "    scanner corpus add NAME DIR\n"
            "    scanner crawl --source hf --limit 100\n\n"
            "You can leave the desk open: it shows what a crawl finds while it runs."
        )
    elif part:
        advice = "No repo of this kind has that in its name. Escape clears the filter."
    elif listing is ListFilter.FLAGGED and counts.todo:
        waiting = count(counts.todo, "checkpoint is", "checkpoints are")
        advice = (
            f"Nothing is flagged so far, and {waiting} to do.\n\n"
            "A crawl that is running shows up here. If none is, go on with the one you began:\n\n"
            "    scanner crawl --source hf --limit 100\n\n"
            "v lists the other verdicts."
        )
    elif listing is ListFilter.FLAGGED:
        advice = (
            "Nothing is flagged. That does not prove that no picture is in these checkpoints:\n"
            "it says that none came out under these settings.\n\n"
            "v lists the other verdicts, the skipped ones with their reasons."
        )
    else:
        advice = "There is none of these. v lists the next verdict."
    return Told(heading, Text(advice))


def columns(listing: ListFilter, wide: bool) -> list[Column]:
    """The columns of a listing."""
    repo = Column("Repo", 16, share=3)
    origin = [Column("Source", 7), Column("Kind", 9), Column("Base", 10, share=2)] if wide else []
    if listing is ListFilter.FLAGGED:
        scores = [Column("Similar", 7, right=True), Column("q value", 7, right=True)]
        said = [Column("Matches", 7, right=True), Column("Decision", 17)]
        return [repo, *origin, *scores, *said, Column("Scanned", 7)]
    outcome = Column("Outcome", 20, share=3)
    return [repo, *origin, Column("Verdict", 13), outcome, Column("Scanned", 7)]


def line(row: CheckpointRow, listing: ListFilter, present: datetime, wide: bool) -> Line:
    """One checkpoint as a row of that listing."""
    cells = [cell(plain(row.repo, 200), style="bold")]
    if wide:
        cells.append(cell(plain(row.source.partition(":")[0], 40)))
        cells.append(cell(plain(f"{row.kind}, {row.family}", 40)))
        cells.append(cell(plain(row.base, 100) or "not known"))
    if listing is ListFilter.FLAGGED:
        cells.append(cell(similarity(row.best_similarity), right=True))
        cells.append(cell(probability(row.q_value), right=True))
        cells.append(cell(f"{row.flagged_matches:,}", right=True))
        cells.append(cell(decision_state(row)))
    else:
        cells.append(cell(VERDICTS[row.verdict]))
        cells.append(cell(_outcome(row)))
    cells.append(cell(when(row.finished_at, present)))
    return Line(row.checkpoint_id, tuple(cells))


def decision_state(row: CheckpointRow) -> str:
    """A word on the whole, or how far its matches are decided, in 17 cells."""
    if row.word is not None:
        return WORDS[row.word]
    if not row.decided:
        return "undecided"
    if row.decided < row.flagged_matches:
        return f"{row.decided} of {row.flagged_matches} decided"
    said = {Word.CONFIRM: row.confirmed, Word.DISMISS: row.dismissed, Word.UNSURE: row.unsure}
    return ", ".join(f"{number} {WORDS[word][0]}" for word, number in said.items() if number) + " (all)"


def in_full(row: CheckpointRow) -> Text:
    """What the columns may have cut: the name, and the reason or the word on it."""
    text = Text(plain(row.repo, 300), style="bold")
    text.append(f"  {VERDICTS[row.verdict]}", style="not bold")
    if row.reason:
        text.append(f": {plain(row.reason)}", style="not bold")
    base = f" on {plain(row.base, 100)}" if row.base else ""
    text.append(f" · {plain(row.kind, 40)}, {plain(row.family, 40)}{base}", style="not bold")
    if row.note:
        text.append(f" · note “{plain(row.note)}”", style="not bold")
    return text


def _outcome(row: CheckpointRow) -> str:
    if row.verdict is Verdict.FLAGGED:
        return f"similarity {similarity(row.best_similarity)}, q {probability(row.q_value)}"
    if row.verdict is Verdict.NOTHING_FOUND:
        nearest = similarity(row.best_similarity)
        return "" if nearest == NOTHING else f"nearest reference {nearest}"
    return plain(shorter(row.reason or "", row.repo), 300)
