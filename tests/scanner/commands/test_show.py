"""`scanner show`: a checkpoint on the terminal, and the checkpoints that contain a picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from filled_store import Crawl
from PIL import Image

from scanner.cli import cli
from scanner.records import Match, ReviewDecision, Verdict
from scanner.store.store import Store

CATS = Path(__file__).resolve().parents[2] / "zoo/images/subjects/cats"


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Crawl:
    folder = tmp_path_factory.mktemp("show")
    (folder / "mine").mkdir()
    made = Crawl(Store(folder / "store", create=True), folder / "mine")
    made.flagged("anna/style", (0.81, 0.4), 0.004, margins=(0.3, 0.02), of_corpus=0.2)
    made.scan("kim/plain", Verdict.NOTHING_FOUND)
    made.decide(made.matches["anna/style"][0].match_id, ReviewDecision.CONFIRM, "rosa")
    return made


def show(store: Path | str, *words: str) -> Result:
    return CliRunner().invoke(cli, ["show", "--store", str(store), *words])


def test_a_checkpoint_is_told_in_sentences_and_a_table(crawl: Crawl) -> None:
    lines = show(crawl.store.root, "anna/style").stdout.splitlines()
    assert lines[0].startswith("anna/style: Flagged: it was trained on images")
    assert any(line.startswith("1 image came back") for line in lines)
    (row,) = [line for line in lines if line.startswith("1-0.png")]
    assert "trained on and given back, confirmed" in row
    assert crawl.matches["anna/style"][0].match_id in row
    assert "Nothing was found." in show(crawl.store.root, "kim/plain").stdout


def test_json_is_what_a_report_has(crawl: Crawl) -> None:
    data = json.loads(show(crawl.store.root, "anna/style", "--json").stdout)
    assert data["checkpoint"]["repo"] == "anna/style"
    assert data["evidence"][0]["match"]["similarity"] == 0.81


def test_a_picture_names_the_checkpoints_that_contain_it(crawl: Crawl) -> None:
    told = show(crawl.store.root, "--image", str(crawl.folder / "1-0.png")).stdout
    assert "1-0.png is an image of mine." in told
    assert "1 of 2 checkpoints that were scanned contains it:" in told
    (row,) = [line for line in told.splitlines() if line.startswith("anna/style")]
    assert "similarity 0.810, q 0.0040" in row
    assert "confirmed" in row
    weak = show(crawl.store.root, "--image", str(crawl.folder / "1-1.png")).stdout
    assert "None of 2 checkpoints that were scanned was shown to contain it." in weak


def test_the_same_picture_in_another_file_is_found_by_its_looks(tmp_path: Path) -> None:
    shutil.copytree(CATS, tmp_path / "cats")
    store = tmp_path / "store"
    added = CliRunner().invoke(cli, ["corpus", "add", "cats", str(tmp_path / "cats"), "--store", str(store)])
    assert added.exit_code == 0, added.output
    opened = Store(store)
    first = sorted((tmp_path / "cats").iterdir())[0]
    (row,) = opened.query('SELECT reference_id FROM "references" WHERE path = ?', [str(first)])
    made = Crawl(opened, tmp_path / "cats")
    scan = made.scan("anna/cats", Verdict.FLAGGED, grounds="gives_back", best_similarity=0.8, q_value=0.01)
    opened.append(
        [Match("m" * 32, scan.scan_id, "k", "cats", row["reference_id"], 0.8, 0.3, 0.001, 0.01, True)]
    )
    Image.open(first).convert("RGB").resize((200, 200)).save(tmp_path / "again.jpg", quality=80)
    told = show(store, "--image", str(tmp_path / "again.jpg")).stdout
    assert f"is by its looks the same picture as {first} of cats (similarity 0." in told
    assert "anna/cats" in told
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    other = show(store, "--image", str(tmp_path / "noise.png"))
    assert "noise.png is no image of a corpus: the nearest, " in str(other.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a checkpoint, or a picture"),
        (["anna/style", "--image", __file__], "one of the two"),
        (["nobody/x"], "the store knows no checkpoint or match nobody/x"),
        (["--image", __file__], "test_show.py"),
    ],
)
def test_what_cannot_be_shown_is_an_error(crawl: Crawl, words: list[str], message: str) -> None:
    assert message in str(show(crawl.store.root, *words).exception)


def test_a_mistyped_repository_is_answered_with_the_one_that_was_meant(crawl: Crawl) -> None:
    assert "Did you mean anna/style?" in str(show(crawl.store.root, "anna/stlye").exception)
    assert "the store knows no checkpoint or match" in str(show(crawl.store.root, "somebody/else").exception)
