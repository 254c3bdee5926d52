"""The grounds of a flag, in SQL and in words, and the order of verdicts by the strength of their evidence.

"Trained on" is a claim about training, made from the models' losses on a reference. "Gives back" is a claim
about what anybody can generate now: an extracted image matches a reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scanner.records import Ground, Scan, Verdict

# What a scan's flag claims: a Ground, or both joined by "+"; "" without a flag. Before there was a screen,
# every flag was by a match.
GROUNDS = "CASE WHEN verdict = 'flagged' THEN coalesce(nullif(grounds, ''), 'gives_back') ELSE '' END"
# Strongest evidence first, for rows with verdict, grounds (as above), best_similarity and membership_q: flags
# on both grounds, then those that give back, then those by training alone. Similarity orders only the first
# two, because it is no evidence of training.
STRONGEST = """
    coalesce(list_position(['flagged', 'nothing_found', 'skipped', 'failed'], verdict), 5),
    list_position(['trained_on+gives_back', 'gives_back', 'trained_on'], grounds) NULLS LAST,
    CASE WHEN grounds <> 'trained_on' THEN best_similarity END DESC NULLS LAST, membership_q NULLS LAST"""


def grounds_of(grounds: str | None) -> tuple[Ground, ...]:
    """The value of `GROUNDS` as a tuple; empty without a flag."""
    return tuple(Ground(part) for part in (grounds or "").split("+") if part)


def grounds_label(grounds: Iterable[str]) -> str:
    """Returns the grounds of a flag in words: "trained on", "gives back", or "trained on and gives back"."""
    return " and ".join(ground.replace("_", " ") for ground in grounds)


def grounds_cell(grounds: Sequence[str]) -> str:
    """Returns the grounds of a flag for a column of 10 cells: "trained on", "gives back" or "both"."""
    return "both" if len(grounds) > 1 else grounds_label(grounds)


def shown_q(grounds: Sequence[str], q_value: float | None, membership_q: float | None) -> float | None:
    """Returns the q-value of what a scan found: of its matches, or of its memberships where a flag is by
    training alone or nothing was sampled."""
    return membership_q if q_value is None or list(grounds) == [Ground.TRAINED_ON] else q_value


def grounds_of_scan(scan: Scan) -> tuple[Ground, ...]:
    """The grounds of a scan's flag, which an older row does not name; empty without a flag."""
    return scan.grounds_of_flag or (Ground.GIVES_BACK,) * (scan.verdict is Verdict.FLAGGED)
