"""The verdict of a scan from its two answers, which are never mixed: trained on, and gives back."""

from __future__ import annotations

from collections.abc import Iterable

from scanner.match.matching import Comparison
from scanner.records import Examination, Ground, Membership, Verdict


def grounds_of(memberships: Iterable[Membership], comparison: Comparison | None) -> list[Ground]:
    """The grounds on which a scan is flagged; empty where it is not."""
    grounds = [Ground.TRAINED_ON] if any(row.trained_on for row in memberships) else []
    if comparison is not None and comparison.verdict is Verdict.FLAGGED:
        grounds.append(Ground.GIVES_BACK)
    return grounds


def examination(screened: bool, sampled: bool) -> Examination:
    """How a checkpoint was looked at."""
    if screened:
        return Examination.BOTH if sampled else Examination.SCREENED
    assert sampled, "a scan screens, samples, or both"
    return Examination.SAMPLED
