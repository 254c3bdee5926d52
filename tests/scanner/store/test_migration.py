"""Stores of the format before Delta Lake, written by hand in that layout, and their conversion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from scanner.cli import cli
from scanner.config import config_id_of
from scanner.doctor import State, check_store
from scanner.errors import StoreError
from scanner.records import Candidate, Checkpoint, ConfigRow, Decision, InspectionStatus, Scan, now
from scanner.store import migration
from scanner.store.decisions import fold
from scanner.store.migration import migrate
from scanner.store.store import Store
from scanner.store.tables import TABLES, table_schema

AT = now()
TOML = "alpha = 0.05\nsteps = 50\n"
OLD_CONFIG = hashlib.sha256(TOML.encode()).hexdigest()[:16]


def put(root: Path, table: str, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    (root / table).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), root / table / name)


def renamed(schema: pa.Schema, without: tuple[str, ...] = ()) -> pa.Schema:
    """The columns of today under the names that they had."""
    old = {"inspection_status": "prospect", "base_origin": "base_evidence"}
    return pa.schema([(old.get(f.name, f.name), f.type) for f in schema if f.name not in without])


def checkpoint(n: int, minute: int) -> dict[str, Any]:
    return {
        "checkpoint_id": f"c{n}", "source": "hf", "repo": f"o/{n}", "revision": "", "file": "", "url": "",
        "size_bytes": 1, "kind": "lora", "family": "sd1", "listed_at": AT + timedelta(minutes=minute),
        "raw": "{}", "prospect": "ready", "base_evidence": "card", "reason": "", "training": "{}",
        "public_images": 0,
    }  # fmt: skip


def scan(n: int, minute: int) -> dict[str, Any]:
    at = AT + timedelta(minutes=minute)
    return {
        "scan_id": f"s{n}-{minute}", "checkpoint_id": f"c{n}", "config_id": OLD_CONFIG, "run_id": "r",
        "verdict": "flagged", "reason": "", "stage": "match", "started_at": at, "finished_at": at,
        "seconds": [("sample", 1.5)], "versions": [("torch", "2")], "num_samples": 5, "seed": 0,
        "num_candidates": 1, "num_references": 1, "num_background": 1, "device": "cpu", "precision": "",
    }  # fmt: skip


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A compacted table of checkpoints with a part it replaced and a newer one, and parts of other tables."""
    root = tmp_path / "old"
    schemas = {
        table: renamed(table_schema(table, marks=False), ("reason_code",)) for table in TABLES.values()
    }
    for table, schema in schemas.items():
        put(root, table, "part-schema-0123456789ab.parquet", [], schema)
    marked = schemas["checkpoints"].append(pa.field("counts", pa.bool_()))
    rows = [checkpoint(0, 0) | {"counts": True}, checkpoint(1, 0) | {"counts": True}]
    put(root, "checkpoints", "compacted-000001-abc.parquet", rows, marked)
    manifest = {"file": "compacted-000001-abc.parquet", "stands_for": ["part-replaced.parquet"], "rows": 2}
    (root / "checkpoints/compacted-000001.json").write_text(json.dumps(manifest))
    put(root, "checkpoints", "part-replaced.parquet", [checkpoint(0, 0)], schemas["checkpoints"])
    put(root, "checkpoints", "part-new.parquet", [checkpoint(1, 1)], schemas["checkpoints"])
    for n in range(2):
        put(root, "scans", f"part-{n}.parquet", [scan(0, n)], schemas["scans"])
    candidate = {
        "candidate_id": "k", "scan_id": "s0-0", "seed": 1, "clique_size": 1, "clique_similarity": 1.0,
        "image_sha256": "x", "descriptor": "d", "embedding": [0.5, 0.25],
    }  # fmt: skip
    put(root, "candidates", "part-0.parquet", [candidate], schemas["candidates"])
    config = {"config_id": OLD_CONFIG, "toml": TOML, "created_at": AT}
    put(root, "configs", "part-0.parquet", [config], schemas["configs"])
    columns = [("decision_id", pa.string()), ("subject_id", pa.string()), ("decision", pa.string()),
               ("note", pa.string()), ("reviewer", pa.string()),
               ("decided_at", pa.timestamp("us", tz="UTC"))]  # fmt: skip
    word = {"decision_id": "d", "subject_id": "m", "decision": "confirm", "note": "sure", "reviewer": "me",
            "decided_at": AT}  # fmt: skip
    (root / "decisions/part-schema-0123456789ab.parquet").unlink()
    put(root, "decisions", "part-0.parquet", [word], pa.schema(columns))
    return root


def check(store: Store) -> None:
    checkpoints = store.select(Checkpoint, "ORDER BY checkpoint_id")
    assert [c.checkpoint_id for c in checkpoints] == ["c0", "c1"]
    assert checkpoints[1].listed_at == AT + timedelta(minutes=1)
    assert {c.inspection_status for c in checkpoints} == {InspectionStatus.READY}
    assert {c.base_origin for c in checkpoints} == {"card"}
    (newest,) = store.select(Scan)
    assert (newest.scan_id, newest.config_id) == ("s0-1", config_id_of(TOML))
    assert (newest.seconds, newest.reason_code) == ({"sample": 1.5}, None)
    assert len(store.query("SELECT * FROM all_scans")) == 2
    assert [c.embedding for c in store.select(Candidate)] == [(0.5, 0.25)]
    assert [c.config_id for c in store.select(ConfigRow)] == [config_id_of(TOML)]
    standing = fold(store.select(Decision))
    assert (standing.decision, standing.note) == ("confirm", "sure")


def test_an_old_store_is_refused_with_the_command_that_converts_it(old: Path) -> None:
    with pytest.raises(StoreError, match=f"older version.\nRun `scanner migrate --store {old}`"):
        Store(old)
    with pytest.raises(StoreError, match="scanner migrate"):
        Store(old, create=True)
    check = check_store(str(old))
    assert check.state is State.BAD
    assert "scanner migrate" in check.remedy


@pytest.mark.parametrize("keep", [False, True])
def test_an_old_store_is_converted_in_place(old: Path, keep: bool) -> None:
    done = CliRunner().invoke(cli, ["migrate", "--store", str(old), *(["--keep-old"] if keep else [])])
    assert done.exit_code == 0, done.output
    check(Store(old))
    assert not (old / "checkpoints/part-replaced.parquet").exists()
    assert (old / "before-migration/checkpoints/part-replaced.parquet").exists() is keep
    with pytest.raises(StoreError, match="present format"):
        list(migrate(str(old)))


@pytest.mark.parametrize("steps", range(9))
def test_an_interrupted_conversion_is_still_an_old_store_and_goes_on(
    old: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    left = [steps]
    create: Callable[..., None] = migration.Table.create

    def interrupted(self: migration.Table, added: Any = ()) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        create(self, added)

    monkeypatch.setattr(migration.Table, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(migrate(str(old)))
    monkeypatch.undo()
    with pytest.raises(StoreError, match="scanner migrate"):
        Store(old)
    list(migrate(str(old)))
    check(Store(old))


def test_a_conversion_that_was_killed_while_it_removed_old_files_has_lost_nothing(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(migration, "_retire", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(migrate(str(old)))
    check(Store(old))
