"""`finextract audit`, `finextract extract` and `finextract membership`, run on the zoo's models."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import single_files
from transformers import CLIPTextModel

from finextract.cli import cli, main

ZOO = Path(__file__).parents[1] / "zoo"
FLOWERS = ZOO / "checkpoints/flowers-lora"
FEW = ["--base", str(ZOO / "base"), "--samples-per-image", "2", "--steps", "2"]
AUDIT = ["audit", str(FLOWERS), *FEW, "--train-images", str(ZOO / "images/subjects/flowers")]
FRUIT = ZOO / "checkpoints/fruit-lora/fruit-lora.safetensors"
MEMBERSHIP = ["membership", str(FRUIT), "--base", str(ZOO / "base"), "--images", "mine"]
EXTRACT = ["extract", str(FLOWERS), *FEW, "--num-train-images", "2"]


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_audit_says_in_a_sentence_how_many_images_came_back_and_keeps_its_result_privately() -> None:
    done = _run(*AUDIT)
    assert "Gives back: None of your 5 images came back" in done.stdout
    assert "Trained on: 5 of your 5 images were trained on (q <= 0.05)." in done.stdout
    rows = [line.split("  ") for line in done.stdout.splitlines() if line.startswith(("noto", "openclipart"))]
    assert all("no, similarity 0." in row[-2] and "yes, q " in row[-1] for row in rows)
    result = json.loads(Path("finextract-out/flowers-lora/audit-1/result.json").read_text())
    assert {(i["gives_back"], i["trained_on"]) for i in result["train_images"]} == {(False, True)}
    assert result["membership"]["trained_on"] == 5
    assert 0 <= result["average_similarity"] <= 1
    assert set(result["extraction_success_rate"]) == set(result["extracted"]) == {"0.7", "0.6"}
    strengths = [(s["guidance_scale"], s["samples"]) for s in result["strengths"]]
    assert strengths == [(1.0, 3), (2.0, 3), (3.0, 2), (5.0, 2)]
    assert result["unet_evaluations"] == 2 * (3 + 2 * 7) + 2 * 10  # and the losses of the ten samples
    assert result["checkpoint"] == str(FLOWERS)
    for file in (Path(result["contact_sheet"]), *Path("finextract-out").rglob("*.json")):
        assert file.stat().st_mode & 0o777 == 0o600
    assert Path(result["contact_sheet"]).parent.stat().st_mode & 0o777 == 0o700


def test_the_base_may_be_one_file_and_another_folder_has_what_it_lacks(tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(ZOO / "base", subfolder="unet")
    text_encoder = CLIPTextModel.from_pretrained(ZOO / "base", subfolder="text_encoder")
    names = {
        **single_files.unet_names(unet),
        **single_files.clip_names(text_encoder, "cond_stage_model.transformer."),
    }
    save_file({key: tensor.clone().contiguous() for key, tensor in names.items()}, "base.safetensors")
    few = ["--samples-per-image", "2", "--steps", "2", "--num-train-images", "2", "--json"]
    of_file = ["extract", str(FLOWERS), "--base", "base.safetensors", *few]
    refused = CliRunner().invoke(cli, of_file)
    assert refused.exit_code != 0
    assert "Pass --base-parts" in str(refused.exception)
    one = json.loads(_run(*of_file, "--base-parts", str(ZOO / "base")).stdout)
    two = json.loads(_run("extract", str(FLOWERS), "--base", str(ZOO / "base"), *few).stdout)
    assert one["candidates"][0]["clique_similarity"] == two["candidates"][0]["clique_similarity"]


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
    assert "drawing at most 4 samples of 2 steps" in done.stderr
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
        "It is not shown that any of your 2 images was trained on.",
        "training is not shown",
    ):
        assert part in text
    assert any(t.startswith("bbb") and "..." in t and t.endswith(".png") for t in heading)


def _pictures(folder: str, **counts: int) -> Path:
    """A folder with some pictures of each subject, or of the background."""
    Path(folder).mkdir()
    for name, count in counts.items():
        source = ZOO / "images" / (name if name == "background" else f"subjects/{name}")
        for file in sorted(source.iterdir())[:count]:
            shutil.copy(file, folder)
    return Path(folder)


def test_membership_says_in_a_sentence_what_was_trained_on_and_then_shows_each_picture() -> None:
    _pictures("mine", fruit=3, trees=1)
    done = _run(*MEMBERSHIP)
    lines = done.stdout.splitlines()
    assert lines[0] == "3 of your 4 pictures were trained on (q <= 0.05)."
    assert lines[2].split() == ["picture", "log-ratio", "margin", "p", "q", "framing"]
    fruit = {file.name for file in sorted((ZOO / "images/subjects/fruit").iterdir())[:3]}
    assert {line.split()[0] for line in lines[3:6]} == fruit
    assert all(line.endswith("trained on") for line in lines[3:6])
    assert not lines[6].endswith("trained on")
    assert any(line.startswith("Evaluations: ") for line in lines)
    assert any("rests on each picture's own variants alone" in line for line in lines)
    assert "not ruled out" in lines[-1]
    assert "references 4/4" in done.stderr


def test_membership_as_json_has_the_evidence_and_the_cost_of_every_picture_and_set() -> None:
    mine, background = _pictures("mine", fruit=5, trees=2), _pictures("other", background=19)
    done = _run(*MEMBERSHIP, "--background", str(background), "--budget", "120", "--seed", "3", "--json")
    result = json.loads(done.stdout)
    rows = {row["name"]: row for row in result["pictures"]}
    assert set(rows) == {file.name for file in mine.iterdir()}
    for name, row in rows.items():
        assert row["sha256"] == hashlib.sha256((mine / name).read_bytes()).hexdigest()
    trained = [row for row in rows.values() if row["trained_on"]]
    assert {row["name"] for row in trained} == {f.name for f in (ZOO / "images/subjects/fruit").iterdir()}
    assert all(len(row["variant_log_ratios"]) == 9 and row["background_p"] == 0.05 for row in trained)
    (whole,) = result["sets"]
    assert (whole["num_pictures"], whole["low"] < whole["margin"] < whole["high"]) == (7, True)
    assert result["background"]["pictures"] == 19
    assert result["tuned_evaluations"] <= result["budget"] == 120
    assert (result["noise_seed"], result["trained_on"], result["checkpoint"]) == (3, 5, str(FRUIT))


def test_membership_speaks_of_the_whole_folder_and_of_a_background_that_is_too_small() -> None:
    _pictures("mine", fruit=5, trees=1), _pictures("other", background=3)
    done = _run(*MEMBERSHIP, "--background", "other", "--budget", "100")
    assert "All together: the log-ratios of the pictures are on average" in done.stdout
    assert "above those of their mirror images" in done.stdout
    assert "The background has only 3 pictures, too few for a p of 0.05." in done.stdout
    assert "A background of 19 pictures or more tells more." in done.stdout


def test_membership_takes_pictures_of_subfolders_and_leaves_known_ones_out_of_the_background() -> None:
    mine = _pictures("mine", fruit=2)
    (mine / "more").mkdir()
    first, second = sorted(mine.glob("*.png"))
    first.rename(mine / "more" / first.name)
    done = _run(*MEMBERSHIP, "--background", str(mine), "--json")
    result = json.loads(done.stdout)
    assert {row["name"] for row in result["pictures"]} == {f"more/{first.name}", second.name}
    assert result["background"] is None
    assert "2 of the background are among the pictures to ask about, and left out" in done.stderr


def test_membership_says_which_pictures_a_budget_left_out_instead_of_calling_them_untouched() -> None:
    _pictures("mine", fruit=5), _pictures("other", background=19)
    words = *MEMBERSHIP, "--background", "other", "--budget", "60"
    done = _run(*words)
    assert done.stdout.startswith("3 of your 5 pictures were trained on")
    assert "5 pictures stand out, and the budget allowed for comparing 3 of them" in done.stdout
    assert "Of the other 2 it is not known whether they were trained on" in done.stdout
    assert "-: the picture does not stand out, or the budget was spent, so it was not compared" in done.stdout
    result = json.loads(_run(*words, "--json").stdout)
    assert (result["num_evaluated"], result["num_standing"], result["num_compared"]) == (5, 5, 3)


def test_where_the_trainer_mirrored_images_membership_leaves_mirror_images_out() -> None:
    _pictures("mine", fruit=1)
    save_file(load_file(FRUIT), "mirrored.safetensors", {"ss_flip_aug": "True"})
    done = _run("membership", "mirrored.safetensors", *MEMBERSHIP[2:], "--json")
    assert json.loads(done.stdout)["variants"] == ["up-left", "up-right", "down-left", "down-right"]
    assert "the training mirrored images" in done.stderr


def test_a_caption_of_ten_thousand_characters_is_used_and_said_to_have_an_end_without_effect() -> None:
    caption = "flower " * 1500
    done = _run(*EXTRACT, "--caption", caption, "--json")
    assert json.loads(done.stdout)["caption"] == caption
    assert "the caption is longer than CLIP reads (75 tokens): its end has no effect" in done.stderr
    assert max(map(len, done.stderr.splitlines())) < 300


def test_more_samples_than_can_be_compared_are_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finextract.models.loading.load_pair", None)  # it would be called
    monkeypatch.setattr("sys.argv", ["finextract", *EXTRACT[:2], "--base", str(ZOO / "base"),
                                     "--num-train-images", "10000"])  # fmt: skip
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert "are 500,000, and at most 20,000 can be compared" in capsys.readouterr().err
    assert not Path("finextract-out").exists()


def test_weights_that_are_no_numbers_are_an_error_of_the_checkpoint_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = shutil.copytree(ZOO / "base", tmp_path / "tuned")
    file = tuned / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    save_file(weights, file)
    _pictures("mine", fruit=1)
    monkeypatch.setattr("sys.argv", ["finextract", "membership", "tuned", *MEMBERSHIP[2:]])
    with pytest.raises(SystemExit) as exit:
        main()
    printed = capsys.readouterr()
    assert (exit.value.code, printed.out) == (2, "")
    assert "tuned is damaged: its mid_block.resnets.0.conv1.weight holds numbers that are not" in printed.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--images", "nowhere"], "nowhere is not a folder"),
        (["--images", "empty"], "empty holds no images"),
        (["--images", "broken"], "broken/a.png is not an image in a supported format. Repair or remove it."),
        (["--background", "nowhere"], "nowhere is not a folder"),
        (
            ["--background", "broken"],
            "broken/a.png is not an image in a supported format. Repair or remove it.",
        ),
        (["--budget", "9"], "Allow at least 10"),
        (["--alpha", "0"], "--alpha"),
        (["--budget", "0"], "--budget"),
        (["--base", "nowhere"], "nowhere"),
    ],
)
def test_what_membership_cannot_examine_is_an_error_that_says_what_to_do(
    given: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _pictures("mine", fruit=1), _pictures("empty")
    (_pictures("broken") / "a.png").write_bytes(b"not a picture")
    monkeypatch.setattr("sys.argv", ["finextract", *MEMBERSHIP, *given])
    with pytest.raises(SystemExit) as exit:
        main()
    printed = capsys.readouterr()
    assert exit.value.code == 2
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
