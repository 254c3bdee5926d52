"""By what the list is sorted, in words and as a mark in the heading of a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scanner.store.desk_filter import Sort, View
from scanner.store.desk_queries import ListFilter
from tui.widgets.table import Column

HEADINGS = {  # in the default order
    ListFilter.FLAGGED: "Flagged, strongest evidence first",
    ListFilter.ALL: "All verdicts",
    ListFilter.NOTHING_FOUND: "Nothing found, nearest first (this does not prove that nothing is there)",
    ListFilter.SKIPPED: "Skipped, by reason",
    ListFilter.FAILED: "Failed, by reason; the next crawl tries again",
    ListFilter.TO_DO: "To do",
}
TITLES = HEADINGS | {
    ListFilter.FLAGGED: "Flagged",
    ListFilter.NOTHING_FOUND: "Nothing found (this does not prove that nothing is there)",
    ListFilter.SKIPPED: "Skipped",
    ListFilter.FAILED: "Failed; the next crawl tries again",
}
ALPHABETICAL = "A to Z", "Z to A"
SORTS = {  # by what, the usual direction, and the other one
    Sort.STRENGTH: ("evidence", "strongest first", "weakest first"),
    Sort.REPO: ("repo", *ALPHABETICAL),
    Sort.SOURCE: ("source", *ALPHABETICAL),
    Sort.KIND: ("kind", *ALPHABETICAL),
    Sort.BASE: ("base", *ALPHABETICAL),
    Sort.VERDICT: ("verdict", *ALPHABETICAL),
    Sort.GROUNDS: ("grounds", *ALPHABETICAL),
    Sort.SIMILARITY: ("similarity", "highest first", "lowest first"),
    Sort.Q_VALUE: ("q value", "lowest first", "highest first"),
    Sort.FLAGS: ("flags", "most first", "fewest first"),
    Sort.DECISION: ("decision", "undecided first", "confirmed first"),
    Sort.REASON: ("reason", *ALPHABETICAL),
    Sort.EXPLANATION: ("explanation", *ALPHABETICAL),
    Sort.SCANNED: ("day of the scan", "newest first", "oldest first"),
}
DESCENDING = (Sort.SIMILARITY, Sort.FLAGS, Sort.SCANNED)  # whose usual direction is downwards


def heading(view: View) -> str:
    """Returns what is listed, and in which order."""
    if view.sort is Sort.STRENGTH and not view.reverse:
        return HEADINGS[view.shown]
    what, usual, other = SORTS[view.sort]
    return f"{TITLES[view.shown]}, by {what}, {other if view.reverse else usual}"


def with_mark(columns: Sequence[Column], view: View) -> list[Column]:
    """Returns the columns; an arrow after the heading of one shows that the list is sorted by it."""
    arrow = "↓" if (view.sort in DESCENDING) is not view.reverse else "↑"
    return [
        replace(column, heading=f"{column.heading}{arrow}", width=max(column.width, len(column.heading) + 1))
        if column.sort and column.sort == view.sort
        else column
        for column in columns
    ]


def next_sort(columns: Sequence[Column], view: View) -> View:
    """Returns the view sorted by the next column that it can be sorted by; the default order comes first."""
    sorts = [Sort.STRENGTH, *(Sort(column.sort) for column in columns if column.sort)]
    at = sorts.index(view.sort) if view.sort in sorts else 0
    return replace(view, sort=sorts[(at + 1) % len(sorts)], reverse=False)


def sorted_by(column: Column, view: View) -> View:
    """Returns the view after a click on a heading: sorted by it, then reversed, then in the default order."""
    if not column.sort:
        return view
    if view.sort != column.sort:
        return replace(view, sort=Sort(column.sort), reverse=False)
    if not view.reverse:
        return replace(view, reverse=True)
    return replace(view, sort=Sort.STRENGTH, reverse=False)
