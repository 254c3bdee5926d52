"""The short form of tests/reliability.py: one seed of a crawl on a cluster where everything goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import reliability


@pytest.mark.timeout(600)  # it comes to an end with what it is disturbed by, however slow the machine
def test_on_a_cluster_where_everything_goes_wrong_each_checkpoint_has_one_verdict_as_in_an_undisturbed_crawl(
    zoo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reliability, "MOST", 2)
    monkeypatch.setattr(reliability, "DEATHS", 1)
    (tally,) = reliability.study([3], 6, None, tmp_path, short=True)
    assert tally.held, tally
    assert tally.drivers_killed == 1, tally
    assert tally.workers_killed + tally.nodes_removed + tally.outages >= 1, tally
