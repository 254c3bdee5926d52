"""The evidence for a match in words, its decision log, and all facts about the scan; as Rich renderables."""

from __future__ import annotations

from rich.table import Table as Grid
from rich.text import Text

from scanner.records import Checkpoint, Decision, EventKind, Scan, Verdict
from scanner.store.decisions import fold
from scanner.store.desk_queries import MatchRow, OpenedCheckpoint
from scanner.text import for_terminal
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

ADVICE = {
    Verdict.NOTHING_FOUND: (
        "No candidate of this scan matches a reference. This does not prove that the checkpoint was not "
        "trained on one."
    ),
    Verdict.FAILED: "The checkpoint is not the cause. The next crawl scans it again.",
    Verdict.SKIPPED: "The checkpoint is the cause, so it was not scanned and has no result.",
}


def evidence(opened: OpenedCheckpoint, match: MatchRow) -> Grid:
    """Returns the evidence for one match: in each row a name, a number, and what the number means."""
    scan = opened.scan
    grid = Grid.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, width=10, style="bold")
    grid.add_column(no_wrap=True, width=9, style="bold")
    grid.add_column(ratio=1)
    result = "It passes both tests." if match.flagged else "It does not pass both tests."
    grid.add_row("Match", "flagged" if match.flagged else "no flag", result)

    needs = f" A flag needs {similarity(scan.tau)} or more." if scan and scan.tau is not None else ""
    grid.add_row(
        "Similarity",
        similarity(match.similarity),
        f"between the two images, from -1 to 1; higher is closer.{needs}",
    )
    background = (
        f"{scan.num_background:,} background images" if scan and scan.num_background else "background images"
    )
    grid.add_row(
        "By chance",
        similarity(match.null_similarity),
        f"is the highest similarity of any of {background}, on which the checkpoint was not trained, to the "
        "same candidates.",
    )
    grid.add_row(
        "p value",
        probability(match.p_value),
        "If the checkpoint was not trained on this reference, a similarity this high comes up in at most "
        f"{one_in(match.p_value)} comparisons.",
    )
    references = (
        count(scan.num_references, "reference") if scan and scan.num_references else "many references"
    )
    needs = f" A flag needs {scan.alpha:g} or less." if scan and scan.alpha is not None else ""
    grid.add_row(
        "q value",
        probability(match.q_value),
        f"The p value, corrected for comparing {references}: of all matches with this q value or less, about "
        f"{match.q_value:.1%} or fewer are expected to be false.{needs}",
    )
    grid.add_row("Clique", *_clique(match))
    return grid


def _clique(match: MatchRow) -> tuple[str, str]:
    if match.clique_size is None:
        return NONE, ""
    size = count(match.clique_size, "sample")
    if match.clique_size == 1:
        return size, "No other sample is similar to the candidate."
    alike = similarity(match.clique_similarity)
    return size, f"from as many seeds are similar, {alike} on average; the candidate represents them."


def without_match(opened: OpenedCheckpoint) -> Text:
    """Returns the verdict, its reason, and what it means, for a scan that has no match."""
    scan = opened.scan
    if scan is None:
        return Text("This checkpoint has no scan yet. Open it again later to see one.")
    text = Text(VERDICTS[scan.verdict].capitalize(), style="bold")
    if scan.reason:
        text.append(f": {for_terminal(scan.reason)}", style="not bold")
    if advice := ADVICE.get(scan.verdict):
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


def facts(opened: OpenedCheckpoint, match: MatchRow | None) -> Grid:
    """Returns everything that is needed to repeat the scan, as a grid of names and values."""
    checkpoint, scan = opened.checkpoint, opened.scan
    rows = [
        ("Source", checkpoint.source),
        ("File", checkpoint.file or "the whole repo"),
        ("Revision", checkpoint.revision),
        ("Kind", f"{checkpoint.kind}, {checkpoint.family}, {checkpoint.size_bytes / 1e6:,.1f} MB"),
        ("Base", (scan.base if scan else None) or checkpoint.base or "not known"),
        ("Caption", (scan.caption if scan else None) or checkpoint.caption or "not known"),
        *(_sampling(scan) if scan else []),
        *(_images(match) if match else []),
        ("Licence", checkpoint.license or "not stated"),
        ("Published", utc(checkpoint.created_at)),
        ("Listed", utc(checkpoint.listed_at)),
        *_identifiers(checkpoint, scan, match),
    ]
    grid = Grid.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, width=10)
    grid.add_column(ratio=1, overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name, style="bold"), Text(for_terminal(value)))
    return grid


def _sampling(scan: Scan) -> list[tuple[str, str]]:
    scale = NONE if scan.guidance_scale is None else f"w' {scan.guidance_scale:g}"
    guidance = scale if scan.correction is None else f"{scale}, correction {scan.correction:g}"
    candidates = count(scan.num_candidates, "candidate")
    samples = count(scan.num_samples, "sample")
    return [("Guidance", guidance), ("Samples", f"{samples} from seed {scan.seed}, {candidates}")]


def _images(match: MatchRow) -> list[tuple[str, str]]:
    size = f", {match.reference_width} x {match.reference_height} pixels" if match.reference_width else ""
    stored = f"seed {match.seed}, image {match.image_sha256}" if match.image_sha256 else "not stored"
    return [
        ("Candidate", stored),
        ("Reference", f"{match.corpus}: {match.reference_path or match.reference_id}{size}"),
        ("Descriptor", match.descriptor or NONE),
    ]


def _identifiers(checkpoint: Checkpoint, scan: Scan | None, match: MatchRow | None) -> list[tuple[str, str]]:
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
    if match:
        rows += [("Match id", match.match_id)]
    rows += [("Checkpoint", checkpoint.checkpoint_id)]
    if scan and scan.versions:
        versions = ", ".join(f"{name} {number}" for name, number in sorted(scan.versions.items()))
        rows += [("Versions", versions)]
    return rows
