"""The short form of tests/reliability.py: one seed, a few checkpoints, on a cluster of three nodes."""

from __future__ import annotations

from pathlib import Path

from reliability import study


def test_a_crawl_where_everything_goes_wrong_ends_in_one_verdict_each(tmp_path: Path) -> None:
    (tally,) = study([3], 10, None, tmp_path)
    assert tally.held, tally
    assert tally.workers_killed + tally.nodes_removed + tally.outages + tally.drivers_killed > 0, tally
