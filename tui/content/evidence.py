"""What a reviewer decides by: the evidence for a row in words, and its decision log.

Everything else about the row and the scan is in tui.content.details. As Rich renderables.
"""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table as Grid
from rich.text import Text

from scanner.records import Decision, EventKind, Examination, Ground, Match, Scan, Verdict
from scanner.store.decisions import fold
from scanner.store.desk_queries import CandidateImage, EvidenceRow, OpenedCheckpoint
from scanner.store.grounds import grounds_label, grounds_of_scan
from scanner.text import for_terminal
from scanner.wording import rarely
from tui.content import membership
from tui.content.formatting import (
    NONE,
    VERDICTS,
    count,
    decision_text,
    one_in,
    probability,
    similarity,
    utc,
)
from tui.content.membership import Row
from tui.content.scale import Mark, Scale
from tui.content.styles import GROUND_MARKS, MUTED

NO_PROOF = "This does not prove that the checkpoint was not trained on one."
NOTHING = {
    None: f"No candidate of this scan matches a reference. {NO_PROOF}",
    Examination.SAMPLED: f"No candidate of this scan matches a reference. {NO_PROOF}",
    Examination.SCREENED: (
        f"By the models' losses no reference stands out, and nothing was sampled. {NO_PROOF}"
    ),
    Examination.BOTH: (
        "By the models' losses no reference stands out, and no candidate of this scan matches one. "
        f"{NO_PROOF}"
    ),
}
WITHOUT_NULL = (
    "There was no background, so it is not known how often pictures are as similar by chance. Add works like "
    "yours that no checkpoint was trained on: scanner corpus add NAME DIR --background. The next crawl "
    "compares what was sampled again."
)
ADVICE = {
    Verdict.FAILED: "The checkpoint is not the cause. The next crawl scans it again.",
    Verdict.SKIPPED: "The checkpoint is the cause, so it was not scanned and has no result.",
}
GROUND_OF = {"Gives back": Ground.GIVES_BACK, "Trained on": Ground.TRAINED_ON}
# The rows that a reviewer decides by; the others explain how they were found.
DECIDED_BY = {"Gives back", "Trained on", "Similarity", "Scale", "Margin", "Drawn", "Where", "q value"}


def verdict_in_words(scan: Scan) -> str:
    """Returns a verdict with the grounds of a flag, or with how a checkpoint without one was looked at."""
    words = VERDICTS[scan.verdict]
    if grounds := grounds_of_scan(scan):
        return f"{words}: {grounds_label(grounds)}"
    if scan.verdict is Verdict.NOTHING_FOUND and scan.examined:
        return f"{words}: {scan.examined.label}"
    return words


def evidence(opened: OpenedCheckpoint, row: EvidenceRow, *, in_full: bool = False) -> Grid:
    """Returns the evidence for one row: on each line a name, a number, and what the number means.

    `in_full` adds how each number was found.
    """
    grid = Grid.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, width=12, style="bold")
    grid.add_column(no_wrap=True, width=9, style="bold")
    grid.add_column(ratio=1)
    parts = []
    if row.match:
        parts.append(_of_match(opened.scan, row.match, row.candidate))
    if row.membership:
        parts.append(membership.rows_of(opened.scan, row.membership))
    for place, part in enumerate(parts):
        if place:
            grid.add_row("")
        for name, number, meaning in part:
            if in_full or name in DECIDED_BY:
                grid.add_row(*_line(name, number, meaning))
    return grid


def _line(name: str, number: str, meaning: RenderableType) -> tuple[RenderableType, ...]:
    ground = GROUND_OF.get(name)
    if ground is None:
        return Text("" if name == "Scale" else name), Text(number), meaning
    style = f"ground.{ground}" if number == "flagged" else MUTED
    return Text(f"{GROUND_MARKS[ground]} {name}", style=style), Text(number, style=style), meaning


def _of_match(scan: Scan | None, match: Match, candidate: CandidateImage | None) -> list[Row]:
    if match.null_similarity is None:
        return [
            ("Gives back", "no flag", WITHOUT_NULL),
            ("Similarity", similarity(match.similarity), "It is between -1 and 1; higher is closer."),
            ("Clique", *_clique(candidate)),
        ]
    needed = match.needed if match.needed is not None else scan.tau if scan else None
    needs = f"A flag needs {similarity(needed)} or more. " if needed is not None else ""
    background = (
        f"{scan.num_background:,} background images" if scan and scan.num_background else "background images"
    )
    references = (
        count(scan.num_references, "reference") if scan and scan.num_references else "many references"
    )
    level = f" A flag needs {scan.alpha:g} or less." if scan and scan.alpha is not None else ""
    marks = [Mark("┊", match.null_similarity, "chance", MUTED)]
    marks += [] if needed is None else [Mark("┃", needed, "needed", "bold")]
    marks += [Mark("●", match.similarity, "this", "ground.gives_back" if match.flagged else "bold")]
    return [
        (
            "Gives back",
            "flagged" if match.flagged else "no flag",
            "Its similarity and its q value are both what a flag needs."
            if match.flagged
            else "The candidate is nearer to another picture than to this reference."
            if match.is_nearest is False
            else "A flag needs both the similarity and the q value that are named below.",
        ),
        (
            "Similarity",
            similarity(match.similarity),
            f"{needs}It is between -1 and 1; higher is closer.",
        ),
        ("Scale", "", Scale(marks)),
        (
            "By chance",
            similarity(match.null_similarity),
            f"is the highest similarity of any of {background}, on which the checkpoint was not trained, to "
            "the same candidates.",
        ),
        *_of_others(match),
        (
            "p value",
            probability(match.p_value),
            "If the checkpoint was not trained on this reference, a similarity this high comes up in at most "
            f"{one_in(match.p_value)} comparisons. Corrected for comparing {references} it is the q value.",
        ),
        (
            "q value",
            probability(match.q_value),
            f"Expected to be false: {rarely(match.q_value)} of this scan's matches with this q value or "
            f"less.{level}",
        ),
        ("Clique", *_clique(candidate)),
    ]


def _of_others(match: Match) -> list[Row]:
    """How alike the reference is to other pictures, where that was asked."""
    if match.nearest_other is None:
        return []
    meaning = "is the highest similarity of the reference itself to any other reference or background image."
    return [("Others", similarity(match.nearest_other), meaning)]


def _clique(candidate: CandidateImage | None) -> tuple[str, str]:
    if candidate is None:
        return NONE, ""
    size = count(candidate.clique_size, "sample")
    if candidate.clique_size == 1:
        return size, "No other sample is similar to the candidate."
    alike = similarity(candidate.clique_similarity)
    return size, f"from as many seeds are similar, {alike} on average; the candidate represents them."


def without_rows(opened: OpenedCheckpoint) -> Text:
    """Returns the verdict, its reason, and what it means, for a scan that has no row of evidence."""
    scan = opened.scan
    if scan is None:
        return Text("This checkpoint has no scan yet. Open it again later to see one.")
    text = Text().append(verdict_in_words(scan).capitalize(), style="bold")
    if scan.reason:
        text.append(f": {for_terminal(scan.reason)}")
    nothing = NOTHING[scan.examined] if scan.verdict is Verdict.NOTHING_FOUND else None
    if advice := nothing or ADVICE.get(scan.verdict):
        text.append(f"\n{advice}")
    return text


def decision_log(history: tuple[Decision, ...]) -> Text:
    """Returns all events about one subject, newest first. Events that stand are bold."""
    text = Text()
    text.append("Decision log\n" if history else "", style="bold")
    events = {event.decision_id: event for event in history}
    standing = fold(history)
    for event in reversed(history):
        stands = event in (standing.decided, standing.noted)
        text.append(_event(event, events), style=_event_style(event, stands=stands))
        said = f", by {for_terminal(event.reviewer, 60)}, {utc(event.decided_at)}\n"
        text.append(said, style="bold" if stands else MUTED)
    text.rstrip()
    return text


def _event_style(event: Decision, *, stands: bool) -> str:
    if not stands:
        return MUTED
    return f"decision.{event.decision}" if event.decision else "bold"


def _event(event: Decision, events: dict[str, Decision]) -> str:
    if event.event is EventKind.DECIDE:
        return decision_text(event.decision)
    if event.event is EventKind.NOTE:
        return f"note “{for_terminal(event.note)}”" if event.note else "note removed"
    withdrawn = events.get(event.withdraws or "")
    if withdrawn is None or withdrawn.event is EventKind.WITHDRAW:
        return "withdrew an event that is not in the log"
    return f"withdrew {_event(withdrawn, {})} of {for_terminal(withdrawn.reviewer, 60)}"
