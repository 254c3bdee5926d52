"""What an examination found, in words for people. They say "trained on", and never "gives back"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finextract.membership import Membership, SetEvidence

UNSHOWN = (
    "Where training is not shown it is not ruled out: little training leaves little trace in the losses."
)


def trained_on_sentence(result: Membership, noun: str) -> str:
    """The answer in a sentence; `noun` is "picture" or "image"."""
    count, total, alpha = len(result.trained_on), len(result.references), result.settings.alpha
    if count:
        were = "was" if count == 1 else "were"
        return f"{count} of your {total} {noun}{_s(total)} {were} trained on (q <= {alpha:g})."
    if any(found.trained_on for found in result.sets):
        return f"Some of your {total} {noun}s were trained on (q <= {alpha:g}), but it is not shown which."
    return (
        f"It is not shown that {'any of ' if total > 1 else ''}your {total} {noun}{_s(total)} was trained on."
    )


def set_line(found: SetEvidence, result: Membership) -> str:
    """What was found for all pictures together, in a sentence."""
    total = len(result.references)
    compared = f"{found.num_pictures} of the pictures" if found.num_pictures < total else "the pictures"
    if found.trained_on:
        answer = "some of them were trained on"
    elif result.trained_on:
        answer = "the average adds nothing to what single pictures show"
    else:
        answer = "the set by itself shows no training"
    return (
        f"All together: the log-ratios of {compared} are on average {found.margin:.3f} [{found.low:.3f}, "
        f"{found.high:.3f}] above those of their {_variants(result)}; p {found.p_value:.2g}, "
        f"q {found.q_value:.2g}: {answer}."
    )


def background_lines(result: Membership, noun: str) -> list[str]:
    """What the background is worth, in sentences."""
    count, least = len(result.background_log_ratios), 1 / (1 + len(result.background_log_ratios))
    if not count:
        return [
            "There is no background (--background), so whether something was trained on rests on each "
            f"{noun}'s own variants alone."
        ]
    lines = []
    if least > result.settings.alpha:
        lines.append(
            f"The background has only {count} picture{_s(count)}, too few for a p of "
            f"{result.settings.alpha:g}. A picture stands out if its log-ratio is above all of theirs "
            f"(p = {least:.2g}). A background of {_enough(result.settings.alpha)} pictures or more "
            "tells more."
        )
    if result.background_is_unlike:
        lines.append(
            f"Warning: the background is of another kind than the {noun}s: even {_variants(result)} of those "
            f"that were not trained on have higher log-ratios, in {result.unlikeness:.0%} of comparisons. So "
            f"it proves little, and the answers rest on each {noun}'s own variants."
        )
    return lines


def cost_line(result: Membership) -> str:
    """The evaluations of both models."""
    return f"{result.tuned_evaluations:,} of the tuned model and {result.base_evaluations:,} of the base"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart."""
    lines = (heading, *rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    padded = ("  ".join(f"{c:{width}}" for c, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def _enough(alpha: float) -> int:
    """Pictures of a background with which a conformal p of alpha can be reached."""
    return math.ceil(1 / alpha - 1e-9) - 1


def _variants(result: Membership) -> str:
    return "mirror images" if result.settings.variants[0] == "mirror" else "moved copies"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
