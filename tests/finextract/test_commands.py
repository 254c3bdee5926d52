"""`finextract audit` and `finextract extract`, run on the zoo's models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from finextract.cli import cli

ZOO = Path(__file__).parents[1] / "zoo"
FLOWERS = ZOO / "checkpoints/flowers-lora"
FEW = ["--base", str(ZOO / "base"), "--samples-per-image", "2", "--steps", "2"]
AUDIT = ["audit", str(FLOWERS), *FEW, "--train-images", str(ZOO / "images/subjects/flowers")]
EXTRACT = ["extract", str(FLOWERS), *FEW, "--num-train-images", "2"]


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_audit_says_in_a_sentence_how_many_images_came_back_and_keeps_its_result_privately() -> None:
    done = _run(*AUDIT)
    assert "None of your 5 images came back" in done.stdout
    result = json.loads(Path("finextract-out/flowers-lora/audit-1/result.json").read_text())
    assert 0 <= result["average_similarity"] <= 1
    assert set(result["extraction_success_rate"]) == set(result["extracted"]) == {"0.7", "0.6"}
    assert (result["guidance_scale"], result["unet_evaluations"]) == (5.0, 10 * 2 * 2)
    assert result["checkpoint"] == str(FLOWERS)
    for file in (Path(result["contact_sheet"]), *Path("finextract-out").rglob("*.json")):
        assert file.stat().st_mode & 0o777 == 0o600
    assert Path(result["contact_sheet"]).parent.stat().st_mode & 0o777 == 0o700


def test_the_results_of_two_runs_and_of_two_verbs_are_in_separate_folders() -> None:
    folders = [Path(json.loads(_run(*EXTRACT, "--json").stdout)["candidates"][0]["file"]).parent]
    folders += [
        Path(json.loads(_run(*EXTRACT, "--seed", "9", "--json").stdout)["candidates"][0]["file"]).parent
    ]
    folders += [Path(json.loads(_run(*AUDIT, "--json").stdout)["contact_sheet"]).parent]
    assert [str(f) for f in folders] == [
        f"finextract-out/flowers-lora/{name}" for name in ("extract-1", "extract-2", "audit-1")
    ]
    assert [json.loads((f / "result.json").read_text())["seed"] for f in folders] == [0, 9, 0]


def test_a_folder_that_holds_files_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/holiday.png").write_bytes(b"")
    done = CliRunner().invoke(cli, [*EXTRACT, "--out", "mine"])
    assert "mine holds files already" in str(done.exception)
    assert "sampling" not in done.stderr
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["holiday.png"]


def test_progress_is_printed_where_stderr_is_not_a_terminal() -> None:
    done = _run(*EXTRACT)
    assert "drawing 4 samples of 2 steps" in done.stderr
    assert "sampling 4/4" in done.stderr


def test_a_contact_sheet_states_what_was_audited_and_how(tmp_path: Path) -> None:
    heading: list[str] = []
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, name in enumerate(("a.png", "b" * 90 + ".png")):
        Image.new("RGB", (64, 48), (40 * i, 90, 200)).save(pictures / name)
    with pytest.MonkeyPatch.context() as patch:  # reads the text that is drawn; the drawing itself is real
        from PIL import ImageDraw

        draw = ImageDraw.ImageDraw.text

        def recorded(self: ImageDraw.ImageDraw, xy: object, text: str, **options: object) -> None:
            heading.append(text)
            draw(self, xy, text, **options)  # type: ignore[arg-type]

        patch.setattr(ImageDraw.ImageDraw, "text", recorded)
        _run(*AUDIT[:-1], str(pictures))
    text = "\n".join(heading)
    for part in (
        str(FLOWERS),
        "Caption: ",
        "4 samples of 2 steps",
        "seed 0",
        "None of your 2 images",
        "a.png",
    ):
        assert part in text
    assert any(t.startswith("bbb") and "..." in t and t.endswith(".png") for t in heading)
