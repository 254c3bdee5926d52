"""The evidence for a row in words, its decision log, and all facts about the scan; as Rich renderables."""

from __future__ import annotations

from rich.table import Table as Grid
from rich.text import Text

from scanner.records import Checkpoint, Decision, EventKind, Examination, Match, Scan, Verdict
from scanner.store.decisions import fold
from scanner.store.desk_queries import CandidateImage, EvidenceRow, OpenedCheckpoint
from scanner.store.grounds import grounds_label, grounds_of_scan
from scanner.text import for_terminal
from tui.content import membership
from tui.content.formatting import (
    NONE,
    VERDICTS,
    count,
    decision_text,
    one_in,
    probability,
    share,
    similarity,
    utc,
)

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
UNLIKE = (
    "is of another kind than the references: their losses stand apart from it whatever was trained on, so it "
    "says little about training. Add works like yours that no checkpoint was trained on: scanner corpus add "
    "NAME DIR --background, or --unseen for works of yours that were never published."
)
WITHOUT_NULL = (
    "There was no background, so it is not known how often pictures are as similar by chance. Add works like "
    "yours that no checkpoint was trained on: scanner corpus add NAME DIR --background. The next crawl "
    "compares what was sampled again."
)
ADVICE = {
    Verdict.FAILED: "The checkpoint is not the cause. The next crawl scans it again.",
    Verdict.SKIPPED: "The checkpoint is the cause, so it was not scanned and has no result.",
}


def verdict_in_words(scan: Scan) -> str:
    """Returns a verdict with the grounds of a flag, or with how a checkpoint without one was looked at."""
    words = VERDICTS[scan.verdict]
    if grounds := grounds_of_scan(scan):
        return f"{words}: {grounds_label(grounds)}"
    if scan.verdict is Verdict.NOTHING_FOUND and scan.examined:
        return f"{words}: {scan.examined.label}"
    return words


def evidence(opened: OpenedCheckpoint, row: EvidenceRow) -> Grid:
    """Returns the evidence for one row: on each line a name, a number, and what the number means."""
    grid = Grid.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, width=10, style="bold")
    grid.add_column(no_wrap=True, width=9, style="bold")
    grid.add_column(ratio=1)
    if row.match:
        for line in _of_match(opened.scan, row.match, row.candidate):
            grid.add_row(*line)
    if row.match and row.membership:
        grid.add_row("")
    if row.membership:
        for name, number, meaning in membership.rows_of(opened.scan, row.membership):
            grid.add_row(name, number, meaning)
    return grid


def _of_match(
    scan: Scan | None, match: Match, candidate: CandidateImage | None
) -> list[tuple[str, str, str]]:
    if match.null_similarity is None:
        return [
            ("Gives back", "no flag", WITHOUT_NULL),
            (
                "Similarity",
                similarity(match.similarity),
                "between the two images, from -1 to 1; higher is closer.",
            ),
            ("Clique", *_clique(candidate)),
        ]
    needed = match.needed if match.needed is not None else scan.tau if scan else None
    needs = f" A flag needs {similarity(needed)} or more." if needed is not None else ""
    background = (
        f"{scan.num_background:,} background images" if scan and scan.num_background else "background images"
    )
    references = (
        count(scan.num_references, "reference") if scan and scan.num_references else "many references"
    )
    level = f" A flag needs {scan.alpha:g} or less." if scan and scan.alpha is not None else ""
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
            f"between the two images, from -1 to 1; higher is closer.{needs}",
        ),
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
            f"{one_in(match.p_value)} comparisons.",
        ),
        (
            "q value",
            probability(match.q_value),
            f"The p value, corrected for comparing {references}: of this scan's matches with this q value or "
            f"less, {share(match.q_value)} are expected to be false.{level}",
        ),
        ("Clique", *_clique(candidate)),
    ]


def _of_others(match: Match) -> list[tuple[str, str, str]]:
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
    text = Text(verdict_in_words(scan).capitalize(), style="bold")
    if scan.reason:
        text.append(f": {for_terminal(scan.reason)}", style="not bold")
    nothing = NOTHING[scan.examined] if scan.verdict is Verdict.NOTHING_FOUND else None
    if advice := nothing or ADVICE.get(scan.verdict):
        text.append(f"\n{advice}", style="not bold")
    return text


def decision_log(history: tuple[Decision, ...]) -> Text:
    """Returns all events about one subject, newest first. Events that stand are bold."""
    text = Text()
    text.append("Decision log\n" if history else "", style="bold")
    events = {event.decision_id: event for event in history}
    standing = fold(history)
    for event in reversed(history):
        stands = event in (standing.decided, standing.noted)
        line = f"{_event(event, events)}, by {for_terminal(event.reviewer, 60)}, {utc(event.decided_at)}\n"
        text.append(line, style="bold" if stands else "dim")
    text.rstrip()
    return text


def _event(event: Decision, events: dict[str, Decision]) -> str:
    if event.event is EventKind.DECIDE:
        return decision_text(event.decision)
    if event.event is EventKind.NOTE:
        return f"note “{for_terminal(event.note)}”" if event.note else "note removed"
    withdrawn = events.get(event.withdraws or "")
    if withdrawn is None or withdrawn.event is EventKind.WITHDRAW:
        return "withdrew an event that is not in the log"
    return f"withdrew {_event(withdrawn, {})} of {for_terminal(withdrawn.reviewer, 60)}"


def facts(opened: OpenedCheckpoint, row: EvidenceRow | None) -> Grid:
    """Returns everything that is needed to repeat the scan, as a grid of names and values."""
    checkpoint, scan = opened.checkpoint, opened.scan
    rows = [
        *(_screening(scan) if scan else []),
        ("Source", checkpoint.source),
        ("File", checkpoint.file or "the whole repo"),
        ("Revision", checkpoint.revision),
        ("Kind", f"{checkpoint.kind}, {checkpoint.family}, {checkpoint.size_bytes / 1e6:,.1f} MB"),
        ("Base", (scan.base if scan else None) or checkpoint.base or "not known"),
        ("Caption", _caption(checkpoint, scan)),
        *(_sampling(scan) if scan else []),
        *(_images(row) if row else []),
        ("Licence", checkpoint.license or "not stated"),
        ("Published", utc(checkpoint.created_at)),
        ("Listed", utc(checkpoint.listed_at)),
        *_identifiers(checkpoint, scan, row),
    ]
    grid = Grid.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, width=10)
    grid.add_column(ratio=1, overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name, style="bold"), Text(for_terminal(value)))
    return grid


def _screening(scan: Scan) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if scan.background_unlike:
        rows += [("Background", UNLIKE)]
    if scan.examined:
        rows += [("Looked at", scan.examined.label)]
    if scan.examined in (Examination.SCREENED, Examination.BOTH):
        references = f"{scan.screened_references:,} of {count(scan.num_references, 'reference')}"
        spent = f"{scan.screen_evaluations:,} evaluations and {scan.screen_base_evaluations:,} of the base"
        rows += [("Screen", f"{references}, {spent}")]
        standing, compared = scan.standing_references, scan.compared_references
        if compared < standing:
            rows += [
                (
                    "Left out",
                    f"{standing:,} references stood out, and the budget of the screen allowed for comparing "
                    f"{compared:,} of them. Of the others it is not known whether they were trained on.",
                )
            ]
    return rows


def _caption(checkpoint: Checkpoint, scan: Scan | None) -> str:
    caption = checkpoint.caption if scan is None else scan.caption
    if caption is None:
        return "not known"
    if scan is not None and scan.caption_score is not None and caption:
        return f"{caption} (none is stated: recovered, score {scan.caption_score:.2f})"
    return caption or "none is stated; samples are drawn without a prompt"


def _sampling(scan: Scan) -> list[tuple[str, str]]:
    if scan.examined is Examination.SCREENED:
        return [("Samples", "none")]
    several = "several strengths" if scan.rounds else NONE
    scale = several if scan.guidance_scale is None else f"w' {scan.guidance_scale:g}"
    guidance = scale if scan.correction is None else f"{scale}, correction {scan.correction:g}"
    candidates = count(scan.num_candidates, "candidate")
    samples = count(scan.num_samples, "sample")
    rounds = f" in {count(scan.rounds, 'round')}" if scan.rounds else ""
    rows = [("Guidance", guidance), ("Samples", f"{samples}{rounds} from seed {scan.seed}, {candidates}")]
    if scan.sampled_for:
        origin = "as its metadata state" if scan.sampled_for_stated else "assumed"
        rows.append(("Sampled for", f"{count(scan.sampled_for, 'training image')}, {origin}"))
    return rows


def _images(row: EvidenceRow) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    candidate, reference = row.candidate, row.reference
    if row.match:
        stored = f"seed {candidate.seed}, image {candidate.image_sha256}" if candidate else "not stored"
        rows += [("Candidate", stored)]
    if row.reference_id:
        size = f", {reference.width} x {reference.height} pixels" if reference else ""
        place = reference.path if reference else row.reference_id
        rows += [("Reference", f"{row.corpus}: {place}{size}")]
    else:
        rows += [("Corpus", row.corpus)]
    if row.match:
        rows += [("Descriptor", candidate.descriptor if candidate else NONE)]
    return rows


def _identifiers(
    checkpoint: Checkpoint, scan: Scan | None, row: EvidenceRow | None
) -> list[tuple[str, str]]:  # fmt: skip
    rows: list[tuple[str, str]] = []
    if scan:
        seconds = (scan.finished_at - scan.started_at).total_seconds()
        device = scan.device or "an unknown device"
        rows += [
            ("Scanned", f"{utc(scan.finished_at)}, {seconds:,.0f} s on {device}"),
            ("Stage", scan.stage),
            ("Config id", scan.config_id),
            ("Scan id", scan.scan_id),
            ("Run id", scan.run_id),
        ]
    if row and row.match:
        rows += [("Match id", row.match.match_id)]
    if row and row.membership:
        rows += [("Membership", row.membership.membership_id)]
    rows += [("Checkpoint", checkpoint.checkpoint_id)]
    if scan and scan.versions:
        versions = ", ".join(f"{name} {number}" for name, number in sorted(scan.versions.items()))
        rows += [("Versions", versions)]
    return rows
