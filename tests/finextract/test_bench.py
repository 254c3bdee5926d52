"""The benchmark of quality on two of the zoo's checkpoints, at a cost that shows how it works."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from finextract.bench.cases import read_cases
from finextract.bench.quality import ARMS, CURVE, Measured, paired, summary
from finextract.cli import cli
from finextract.commands import bench
from finextract.errors import RequestError

ZOO = Path(__file__).resolve().parents[1] / "zoo" / "zoo.json"
EVALUATIONS = 48  # half a sample of the published preset


def run(out: Path, *more: str) -> Result:
    words = [
        "--split",
        "dev",
        "--only",
        "cats-dreambooth",
        "--only",
        "flowers-lora",
        "--out",
        str(out),
        *more,
    ]
    return CliRunner().invoke(cli, ["bench", "quality", "--zoo", str(ZOO), *words], catch_exceptions=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(bench.EVALUATIONS, "cpu", EVALUATIONS)
        return out, run(out)


def rows(out: Path) -> list[Measured]:
    return [Measured(**row) for row in pq.read_table(out / "rows.parquet").to_pylist()]


def test_every_arm_is_measured_on_every_checkpoint_within_its_evaluations(done: tuple[Path, Result]) -> None:
    found = rows(done[0])
    assert len(found) == 2 * len(ARMS) * len(CURVE)
    assert {row.arm for row in found} == set(ARMS)
    for row in found:
        assert row.evaluations <= row.share * EVALUATIONS * 5
        assert (row.samples > 0) == (row.evaluations > 0)
    whole = {(row.case, row.arm): row for row in found if row.share == 1}
    assert whole["cats-dreambooth", "direct"].samples == 20  # of 12 evaluations
    assert whole["cats-dreambooth", "paper"].samples == 2  # of 100
    for case in ("cats-dreambooth", "flowers-lora"):
        assert whole[case, "portfolio"].average_similarity > whole[case, "portfolio"].chance + 0.1


def test_the_table_the_plot_and_the_run_are_written(done: tuple[Path, Result]) -> None:
    out, result = done
    text = (out / "table.md").read_text()
    assert text in result.output
    assert "2 checkpoints of the dev subjects" in text
    assert "| portfolio - paper |" in text
    assert "Membership: 10 of 10 training images found" in text
    assert (out / "curve.svg").read_text().count("<svg") == 1
    assert json.loads((out / "run.json").read_text())["evaluations_per_image"] == EVALUATIONS


def test_what_was_measured_is_not_measured_again_and_other_settings_are_refused(
    done: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = done
    monkeypatch.setitem(bench.EVALUATIONS, "cpu", EVALUATIONS)
    monkeypatch.setattr("finextract.bench.runs.load_base", None)  # it would be called
    assert (out / "table.md").read_text() in run(out).output
    monkeypatch.setitem(bench.EVALUATIONS, "cpu", 2 * EVALUATIONS)
    with pytest.raises(RequestError, match="holds a run with other settings"):
        run(out)


def test_a_file_that_is_no_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "zoo.json").write_text('{"checkpoints": [{"path": 1}]}')
    with pytest.raises(RequestError, match=r"zoo\.json cannot be read as the manifest of a zoo"):
        read_cases([tmp_path / "zoo.json"], "test")
    with pytest.raises(RequestError, match="no checkpoint of the manifests fits"):
        read_cases([ZOO], "test", ["no such name"])


def measured(case: str, arm: str, loose: float) -> Measured:
    return Measured(
        case, "lora", case[0], "test", 100, False, arm, 1.0, 10, 1, 1.0, 0.5, 0.1, loose, 0.2, 0.0, 0.0, 0.4,
        0.0, 0.1,
    )  # fmt: skip


def test_a_paired_difference_is_the_mean_over_the_subjects() -> None:
    pairs = [("a1", 0.6, 0.2), ("a2", 0.4, 0.2), ("b1", 0.1, 0.1)]
    made = [measured(case, arm, value) for case, *two in pairs for arm, value in zip("xy", two, strict=True)]
    found = paired(made, ("x", 1.0), ("y", 1.0), "loose")
    assert found.difference.value == pytest.approx((0.3 + 0.0) / 2)
    assert found.ratio == pytest.approx(1.1 / 0.5)
    assert [row["loose"] for row in summary(made)] == pytest.approx([1.1 / 3, 0.5 / 3])
