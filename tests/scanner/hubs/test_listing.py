"""A listing that is killed and resumed on a hub that misbehaves: the short form of tests/listing.py."""

from __future__ import annotations

import pytest
from listing import MEMORY_KIB, compare


@pytest.mark.parametrize("source", ["hf", "civitai"])
def test_a_killed_listing_of_a_misbehaving_hub_ends_in_the_rows_of_an_undisturbed_one(source: str) -> None:
    told = compare(source, entries=250, kills=2, misbehave=0.05, seed=1)
    assert told["returncode"] == 0, told["words"]
    assert told["killed"] >= 1
    assert told["same_rows"], told["differing"]
    assert told["rows"] == 250
    assert not told["twice"]
    assert told["peak_mib"] * 1024 < MEMORY_KIB
