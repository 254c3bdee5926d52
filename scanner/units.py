"""Sizes and durations, as people write and read them."""

from __future__ import annotations

import re
from datetime import timedelta

from scanner.errors import ConfigError

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


def parse_size(text: str) -> int:
    """Bytes of a size such as "2GB", "500MB", "1.5 GiB" or "1000". Raises ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(
            f"{text} is not a size. Write a number of bytes, or one with a unit: 500MB, 2GB, 1.5GiB."
        )
    return int(float(match[1]) * _UNITS[match[2]])


def parse_age(text: str) -> timedelta:
    """The time that a text such as "90d", "12w" or "36h" states. Raises ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*([hdw])\s*", text.lower())
    if match is None:
        raise ConfigError(f"{text} is not an age. Write hours, days or weeks: 36h, 90d, 12w.")
    return (
        int(match[1]) * {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}[match[2]]
    )


def show_size(size_bytes: int) -> str:
    """A size for people: "1.9 GB"."""
    value, unit = float(size_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"


def show_duration(seconds: float) -> str:
    """Seconds for people: "34 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
