"""What a match says, in words that a person who is no engineer can check, and the facts it rests on."""

from __future__ import annotations

from rich.table import Table as Grid
from rich.text import Text

from scanner.records import Decision, Verdict
from scanner.store.desk_queries import MatchRow, OpenedCheckpoint, standing
from tui.words import (
    NOTHING,
    VERDICTS,
    WORDS,
    count,
    one_in,
    plain,
    probability,
    similarity,
    utc,
)


def argument(opened: OpenedCheckpoint, found: MatchRow) -> Grid:
    """The evidence for one match, read from top to bottom: a name, a number, and what it means."""
    scan = opened.scan
    points = Grid.grid(padding=(0, 1), expand=True)
    points.add_column(no_wrap=True, width=10, style="bold")
    points.add_column(no_wrap=True, width=9, style="bold")
    points.add_column(ratio=1)
    verdict = "It passes both tests." if found.flagged else "It fails a test below."
    points.add_row("Match", "flagged" if found.flagged else "no flag", verdict)

    needs = f" A flag needs {similarity(scan.tau)} or more." if scan and scan.tau is not None else ""
    points.add_row(
        "Similarity",
        similarity(found.similarity),
        f"between the two pictures; from -1 to 1, higher is closer.{needs}",
    )
    background = (
        f"{scan.num_background:,} background pictures" if scan and scan.num_background else "background"
    )
    points.add_row(
        "By chance",
        similarity(found.null_similarity),
        f"is the closest that {background}, on which nothing was trained, come to the same candidates.",
    )
    points.add_row(
        "p value",
        probability(found.p_value),
        "If this reference were as foreign to the checkpoint as the background is, a likeness this close "
        f"would come up in at most {one_in(found.p_value)} comparisons.",
    )
    tried = count(scan.num_references, "reference") if scan and scan.num_references else "many references"
    needs = f" A flag needs {scan.alpha:g} or less." if scan and scan.alpha is not None else ""
    points.add_row(
        "q value",
        probability(found.q_value),
        f"The p value, corrected for comparing {tried}: of all matches with this q or less, at most about "
        f"{found.q_value:.1%} are expected to be false.{needs}",
    )
    alike = f" of mean similarity {similarity(found.clique_similarity)}; the candidate stands for them"
    size = found.clique_size
    points.add_row(
        "Clique",
        NOTHING if size is None else count(size, "sample"),
        ""
        if size is None
        else f"alike from as many seeds,{alike}."
        if size > 1
        else "and no other came out like it.",
    )
    return points


def unopened(opened: OpenedCheckpoint) -> Text:
    """What to say where there is no match to show."""
    scan = opened.scan
    if scan is None:
        return Text(
            "This checkpoint has not been scanned yet, or its scan was replaced: go back and open it again."
        )
    text = Text(VERDICTS[scan.verdict].capitalize(), style="bold")
    if scan.reason:
        text.append(f": {plain(scan.reason)}", style="not bold")
    if scan.verdict is Verdict.NOTHING_FOUND:
        text.append(
            "\nNo reference picture came out of this checkpoint under this configuration. "
            "That does not prove that none is in it.",
            style="not bold",
        )
    elif scan.verdict is Verdict.FAILED:
        text.append("\nThe fault is ours. The next crawl tries again.", style="not bold")
    elif scan.verdict is Verdict.SKIPPED:
        text.append(
            "\nThe cause lies in the checkpoint, which has therefore not been judged.", style="not bold"
        )
    return text


def spoken(history: tuple[Decision, ...]) -> Text:
    """Everything said about one subject, newest first; a withdrawn word stays readable."""
    text = Text()
    text.append("Said so far\n" if history else "", style="bold")
    stands = standing(history)
    for decision in reversed(history):
        mark = WORDS.get(decision.decision, "note" if decision.note else "taken back")
        style = "bold" if decision is stands else "dim"
        text.append(f"{mark} by {plain(decision.reviewer, 60)}, {utc(decision.decided_at)}", style=style)
        if decision.note:
            text.append(f"\n  “{plain(decision.note)}”", style=style)
        text.append("\n")
    text.rstrip()
    return text


def facts(opened: OpenedCheckpoint, found: MatchRow | None) -> Grid:
    """How the evidence came about: enough to do it again."""
    listed, scan = opened.checkpoint, opened.scan
    rows = [
        ("Source", listed.source),
        ("File", listed.file or "the whole repo"),
        ("Revision", listed.revision),
    ]
    rows += [("Kind", f"{listed.kind}, {listed.family}, {listed.size_bytes / 1e6:,.1f} MB")]
    if scan:
        asked = NOTHING if scan.guidance_scale is None else f"w' {scan.guidance_scale:g}"
        rows += [
            ("Base", scan.base or listed.base or "not known"),
            ("Caption", scan.caption or listed.caption or "not known"),
            ("Guidance", asked if scan.correction is None else f"{asked}, correction {scan.correction:g}"),
            (
                "Samples",
                f"{scan.num_samples:,} from seed {scan.seed}, {count(scan.num_candidates, 'candidate')}",
            ),
        ]
    else:
        rows += [("Base", listed.base or "not known"), ("Caption", listed.caption or "not known")]
    if found:
        size = f", {found.reference_width} x {found.reference_height} pixels" if found.reference_width else ""
        rows += [
            (
                "Candidate",
                f"seed {found.seed}, picture {found.image_sha256}" if found.image_sha256 else "not stored",
            ),
            ("Reference", f"{found.corpus}: {found.reference_path or found.reference_id}{size}"),
            ("Descriptor", found.descriptor or NOTHING),
        ]
    rows += [("Licence", listed.license or "not told"), ("Published", utc(listed.created_at))]
    rows += [("Listed", utc(listed.listed_at))]
    if scan:
        spent = (scan.finished_at - scan.started_at).total_seconds()
        rows += [
            ("Scanned", f"{utc(scan.finished_at)}, {spent:,.0f} s on {scan.device or 'an untold device'}"),
            ("Stage", scan.stage),
            ("Config id", scan.config_id),
            ("Scan id", scan.scan_id),
            ("Run id", scan.run_id),
        ]
    if found:
        rows += [("Match id", found.match_id)]
    rows += [("Checkpoint", listed.checkpoint_id)]
    if scan and scan.versions:
        rows += [
            ("Versions", ", ".join(f"{name} {number}" for name, number in sorted(scan.versions.items())))
        ]
    grid = Grid.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, width=10)
    grid.add_column(ratio=1, overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name, style="bold"), Text(plain(value)))
    return grid
