"""What a perfect copy of a picture would have as its similarity, after the autoencoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finextract.audit import read_images
from finextract.ceilings import ceilings
from finextract.models.base import TunableModel
from finextract.models.loading import load_base
from finextract.sscd import load_embedder

ZOO = Path(__file__).resolve().parents[1] / "zoo"


@pytest.fixture(scope="module")
def base() -> TunableModel:
    return load_base(ZOO / "base", torch.device("cpu"), torch.float32)


def test_paintings_have_a_lower_ceiling_than_clip_art_and_none_is_a_perfect_copy(base: TunableModel) -> None:
    paintings = ceilings(base, read_images(ZOO / "images/style/van-gogh")[1], load_embedder())
    clip_art = ceilings(base, read_images(ZOO / "images/subjects/trees")[1], load_embedder())
    assert 0.65 < paintings.min() < paintings.max() < 0.85
    assert clip_art.mean() > paintings.mean() + 0.1
    assert clip_art.max() < 1


def test_a_wide_picture_is_judged_as_the_better_of_the_ways_in_which_trainers_cut_it(
    base: TunableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On white, a picture of twice the width loses nothing when its middle is cut out."""
    _, (tree, *_) = read_images(ZOO / "images/subjects/trees")
    wide = Image.new("RGB", (2 * tree.width, tree.height), "white")
    wide.paste(tree, (tree.width // 2, 0))
    found = ceilings(base, [wide], load_embedder())
    alone = []
    for framing in ("squash", "centre"):
        monkeypatch.setattr("finextract.ceilings.FRAMINGS", (framing,))
        alone.append(ceilings(base, [wide], load_embedder()))
    assert found == pytest.approx(np.maximum(*alone))
    assert abs(alone[0] - alone[1]) > 0.02
