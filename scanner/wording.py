"""Numbers, counts and times as people read them."""

from __future__ import annotations

from datetime import datetime

NONE = "–"  # stands for a value that is missing
RAREST = 1e-6  # a smaller p-value rests on the far tail of a distribution


def similarity(value: float | None) -> str:
    """Returns a cosine with three decimal places."""
    return NONE if value is None else f"{value:.3f}"


def probability(value: float | None) -> str:
    """Returns a p or q value with four decimal places; never a bare zero."""
    if value is None:
        return NONE
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def one_in(value: float) -> str:
    """Returns a probability as a frequency: 0.001 is `1 in 1,000`."""
    return f"1 in {round(1 / value):,}" if 0 < value <= 0.5 else f"{value:.0%}"


def rarely(value: float) -> str:
    """Returns a p value as a frequency: `at most 1 in 1,000`, or `fewer than` the rarest that is told."""
    return f"fewer than {one_in(RAREST)}" if value < RAREST else f"at most {one_in(value)}"


def share(value: float) -> str:
    """Returns the largest share that a q value allows: `about 2.5% or fewer`; never a bare zero."""
    return f"about {value:.1%} or fewer" if value >= 0.001 else "fewer than 0.1%"


def count(number: int, noun: str, plural: str = "") -> str:
    """Returns a number with its noun: `1 match`, `2,000 matches`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def utc(time: datetime | None) -> str:
    """Returns a time in UTC to the second."""
    return NONE if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"
