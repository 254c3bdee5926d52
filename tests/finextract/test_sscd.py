"""SSCD: similar embeddings for copies, and reading of Meta's weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from finextract.errors import RequestError
from finextract.images import flatten
from finextract.sscd import DEFAULT, TorchEmbedder, crop224, load_embedder, short_side

ZOO = Path(__file__).resolve().parents[1] / "zoo"
PICTURES = sorted((ZOO / "images/subjects/fruit").iterdir())


def test_a_copy_is_near_and_another_picture_is_far() -> None:
    one, other = Image.open(PICTURES[0]), Image.open(PICTURES[1])
    embedder = load_embedder()
    embedded = embedder.embed([one, one.filter(ImageFilter.GaussianBlur(0.7)), other])
    assert embedder.descriptor == DEFAULT
    assert np.linalg.norm(embedded, axis=1) == pytest.approx(np.ones(3), abs=1e-3)
    assert embedded[0] @ embedded[1] > 0.75
    assert embedded[0] @ embedded[2] < 0.5


def test_a_picture_embeds_the_same_alone_and_among_others_of_other_sizes() -> None:
    one, wide = Image.open(PICTURES[0]), Image.open(PICTURES[1]).resize((96, 64))
    embedder = load_embedder()
    together = embedder.embed([wide, one, wide])
    assert together[1] == pytest.approx(embedder.embed([one])[0], abs=1e-4)
    assert together[0] == pytest.approx(together[2], abs=1e-4)


def test_preparations_have_their_sizes_and_transparency_becomes_white() -> None:
    assert short_side(Image.new("RGB", (100, 50))).size == (576, 288)
    assert crop224(Image.new("L", (100, 50))).size == (224, 224)
    assert flatten(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_metas_state_dict_is_read_and_its_embeddings_carry_another_descriptor(tmp_path: Path) -> None:
    from torchvision.models import resnet50

    network = resnet50(num_classes=512)
    weights = tmp_path / "sscd_disc_mixup.torchvision.pt"
    torch.save({f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}, weights)
    embedder = TorchEmbedder(weights)
    embedded = embedder.embed([Image.open(PICTURES[0]), Image.open(PICTURES[1])])
    assert embedder.descriptor == "sscd_disc_mixup" != DEFAULT
    assert embedded.shape == (2, 512)
    assert np.linalg.norm(embedded, axis=1) == pytest.approx(np.ones(2), abs=1e-4)


def test_other_weights_than_metas_are_refused_with_what_to_pass(tmp_path: Path) -> None:
    weights = tmp_path / "other.torchvision.pt"
    torch.save({"conv1.weight": torch.zeros(3)}, weights)
    with pytest.raises(RequestError, match=r"sscd_disc_mixup\.torchvision\.pt"):
        TorchEmbedder(weights)
    weights.write_bytes(b"no archive")
    with pytest.raises(RequestError, match="cannot be read"):
        TorchEmbedder(weights)


def test_an_unknown_descriptor_is_refused_with_the_known_names() -> None:
    with pytest.raises(RequestError, match=DEFAULT):
        load_embedder("sscd_imagined")
