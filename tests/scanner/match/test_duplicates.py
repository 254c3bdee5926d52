"""Images that are nearly the same are told: inside a corpus, and between references and the null."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import scanner
from PIL import Image

from scanner.match import duplicates
from scanner.match.corpus import Corpus
from scanner.match.duplicates import near_pairs
from scanner.records import Role

ZOO = Path(__file__).resolve().parents[2] / "zoo/images"


def corpus(embeddings: np.ndarray, first: int = 0) -> Corpus:
    ids = np.array([f"{first + n:064}".encode() for n in range(len(embeddings))])
    return Corpus("c", Role.REFERENCE, ids, embeddings, "")


def embeddings(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, 32)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_every_pair_is_found_once_whatever_the_block(block: int) -> None:
    drawn = embeddings(30)
    drawn[20], drawn[29], drawn[11] = drawn[3], drawn[3], drawn[12]
    found = near_pairs(corpus(drawn), block=block)
    assert (found.pairs, found.images) == (4, 5)
    assert {(int(a), int(b)) for a, b, _ in found.examples} <= {(3, 20), (3, 29), (20, 29), (11, 12)}
    assert len(found.examples) == duplicates.SHOWN
    other = np.concatenate([embeddings(9, 1), drawn[3:5]])
    between = near_pairs(corpus(drawn), corpus(other, 100), block=block)
    assert (between.pairs, between.images) == (4, 4)
    assert near_pairs(corpus(embeddings(9)), block=block).pairs == 0


def test_an_image_that_both_corpora_hold_is_no_near_copy() -> None:
    drawn = embeddings(5)
    assert near_pairs(corpus(drawn), corpus(drawn)).pairs == 0


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three pictures; and three others beside smaller, recompressed copies of two of the first."""
    mine, background = tmp_path / "mine", tmp_path / "background"
    mine.mkdir()
    background.mkdir()
    for path in sorted((ZOO / "subjects").rglob("*.png"))[:3]:
        Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BICUBIC).save(mine / path.name)
    for path in sorted((ZOO / "background").iterdir())[:3]:
        (background / path.name).write_bytes(path.read_bytes())
    for path in sorted(mine.iterdir())[:2]:
        Image.open(path).resize((200, 200)).save(background / f"copy-{path.stem}.jpg", quality=80)
    return mine, background


def test_a_near_copy_of_a_reference_in_the_background_is_told_from_both_sides(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    mine, background = folders
    place = ("--store", tmp_path / "new")
    assert "nearly the same" not in scanner("corpus", "add", "mine", mine, *place).stderr
    told = scanner("corpus", "add", "bg", background, "--background", *place).stderr
    assert "2 of the images are nearly the same as an image of mine. The nearest: copy-" in told
    assert "Take such images out of bg" in told
    again = scanner("corpus", "add", "bg", background, "--background", *place).stderr
    assert "nearly the same" not in again, "nothing was added"
    other = scanner("corpus", "add", "theirs", mine, *place).stderr
    assert "2 of the images are nearly the same as an image of bg." in other
    assert "Take such images out of bg" in other


def test_near_copies_inside_a_corpus_are_counted_and_named(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    mine, background = folders
    told = scanner("corpus", "add", "all", mine, background, "--store", tmp_path / "new").stderr
    assert "4 of the images are nearly the same as another one of them" in told
    assert "2 pairs" in told
    assert "copy-" in told


def test_more_images_than_are_compared_are_told(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "COMPARED", 2)
    told = scanner("corpus", "add", "mine", folders[0], "--store", tmp_path / "new").stderr
    assert "near-duplicates are not told" in told
