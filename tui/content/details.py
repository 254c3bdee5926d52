"""Everything that is needed to repeat a scan and to name what it found: ids, hashes, configuration."""

from __future__ import annotations

from rich.table import Table as Grid
from rich.text import Text

from scanner.records import Checkpoint, Examination, Scan
from scanner.store.desk_queries import EvidenceRow, OpenedCheckpoint
from scanner.text import for_terminal_lines
from tui.content.about import caption_in_words, named_values, warnings
from tui.content.formatting import NONE, count, utc


def facts(opened: OpenedCheckpoint, row: EvidenceRow | None) -> Grid:
    """Returns everything that is needed to repeat the scan, as a grid of names and values."""
    checkpoint, scan = opened.checkpoint, opened.scan
    rows = [
        *(_screening(scan) if scan else []),
        ("Address", checkpoint.url or "not known"),
        ("Source", checkpoint.source),
        ("File", checkpoint.file or "the whole repo"),
        ("Revision", checkpoint.revision),
        ("SHA256", checkpoint.sha256 or "not stated"),
        ("Kind", f"{checkpoint.kind}, {checkpoint.family}, {checkpoint.size_bytes / 1e6:,.1f} MB"),
        ("Base", (scan.base if scan else None) or checkpoint.base or "not known"),
        ("Caption", caption_in_words(checkpoint, scan)),
        *(_sampling(scan) if scan else []),
        *(_images(row) if row else []),
        ("Licence", checkpoint.license or "not stated"),
        ("Published", utc(checkpoint.created_at)),
        ("Listed", utc(checkpoint.listed_at)),
        *_identifiers(checkpoint, scan, row),
    ]
    return named_values(rows)


def _screening(scan: Scan) -> list[tuple[str, str]]:
    rows = warnings(scan)
    if scan.examined:
        rows += [("Looked at", scan.examined.label)]
    if scan.examined in (Examination.SCREENED, Examination.BOTH):
        references = f"{scan.screened_references:,} of {count(scan.num_references, 'reference')}"
        spent = f"{scan.screen_evaluations:,} evaluations and {scan.screen_base_evaluations:,} of the base"
        rows += [("Screen", f"{references}, {spent}")]
    return rows


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


def configuration(toml: str | None) -> Text:
    """Returns the effective configuration of a scan as it is stored."""
    text = Text().append("Configuration\n", style="bold")
    return text.append(for_terminal_lines(toml) if toml else "The store has no copy of it.")
