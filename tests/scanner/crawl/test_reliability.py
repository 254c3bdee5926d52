"""The short form of tests/reliability.py: one seed of a crawl on a cluster where everything goes wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import reliability
from faults import checks

from scanner.store.leases import Leases
from scanner.store.store import Store


def test_on_a_cluster_where_everything_goes_wrong_each_checkpoint_has_one_verdict_as_in_an_undisturbed_crawl(
    zoo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reliability, "MOST", 2)
    monkeypatch.setattr(reliability, "DEATHS", 1)
    (tally,) = reliability.study([8], 6, None, tmp_path, short=True)
    assert tally.held, tally
    assert tally.happened.pop("driver killed") == 1, tally
    assert sum(tally.happened.values()) >= 1, tally
    assert tally.compactions >= 1, tally
    assert tally.decisions >= 1, tally
    _the_checks_see_what_is_wrong(Store(tmp_path / "seed-8/store-at-the-end"), tmp_path / "left")


def _the_checks_see_what_is_wrong(store: Store, scratch: Path) -> None:
    """Damages the store of the seed, one thing after another."""
    calm, found = checks.Evidence.of(store), checks.Findings()
    scan = next(scan for scan in calm.conclusive if calm.candidates[scan.scan_id])
    repos = [calm.repos[scan.checkpoint_id] for scan in calm.conclusive]
    (candidate, *_), (match, *_) = calm.candidates[scan.scan_id], calm.matches[scan.scan_id]
    name = candidate.image_sha256
    store.storage.put(f"images/{name[:2]}/{name}.png", b"another picture")
    store.append([candidate])
    store.append([replace(match, match_id="another", similarity=match.similarity - 0.1)])
    store.append([replace(scan, scan_id="another", best_similarity=-1.0)])
    store.append([replace(candidate, scan_id="killed", candidate_id="killed")])
    Leases(store.storage, "still here").acquire(["held"])
    scratch.mkdir()
    (scratch / "x.part").touch()
    now = checks.Evidence.of(store)
    checks.check_verdicts(found, now, calm, [*repos, "o/lost"])
    checks.check_rows(found, now)
    checks.check_images(found, store, now)
    checks.check_decisions(found, store, ["lost"])
    checks.check_leases(found, store)
    assert found.lost == ["o/lost"]
    assert found.twice == [calm.repos[scan.checkpoint_id]]
    assert found.different
    assert any("candidates" in told for told in found.evidence)
    assert any("matches" in told for told in found.evidence)
    assert len(found.duplicates) == 3
    assert len(found.images) == 1
    assert found.decisions == ["lost"]
    assert found.leases == ["held"]
    assert checks.orphans(store)["candidates"] == 1
    assert checks.left_files(scratch) == ["x.part"]
