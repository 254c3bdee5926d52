"""The key names of full-size files map one to one onto models of the real configurations, without weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import full_size, single_files
from torch import Tensor

from finextract.models import unet as unets
from finextract.models.stable_diffusion import StableDiffusion
from finextract.models.stable_diffusion_xl import StableDiffusionXL
from finextract.models.unet import UNetModel
from finextract.sampling import DDIM
from finextract.weights.formats import classify
from finextract.weights.headers import Header, TensorInfo

SOLVER = DDIM(torch.linspace(0.999, 0.005, 1000).tolist())
PARAMETERS = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}  # of the published UNets


def model_of(family: str) -> UNetModel:
    parts: dict[str, Any] = {**full_size.parts(family), "vae": None, "solver": SOLVER, "tokenizer": None}
    if family == "sdxl":
        return StableDiffusionXL(**parts, tokenizer_2=None)
    return StableDiffusion(**parts)


def file_of(family: str, model: UNetModel) -> dict[str, Tensor]:
    """A file as it was published: the UNet, and the text encoders under the names of their own code."""
    text: dict[str, Tensor] = {}
    if family == "sd1":
        text = single_files.clip_names(model.text_encoder, "cond_stage_model.transformer.")  # type: ignore[attr-defined]
    elif family == "sd2":
        text = full_size.open_clip_text("ViT-H-14", "cond_stage_model.model.")
    else:
        first = "conditioner.embedders.0.transformer."
        text = single_files.clip_names(model.text_encoder, first)  # type: ignore[attr-defined]
        text |= full_size.open_clip_text("ViT-bigG-14", "conditioner.embedders.1.model.")
    return {**single_files.unet_names(model.unet), **text}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[str]]:
    """The names of the tensors that are loaded into each module."""
    found: dict[int, set[str]] = {}
    load_into = unets.load_into

    def noted(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
        load_into(module, state)  # raises for a key too many, a key that is missing, and another shape
        found[id(module)] = set(state)

    monkeypatch.setattr(unets, "load_into", noted)
    return found


@pytest.mark.parametrize("family", PARAMETERS)
def test_every_tensor_of_a_published_file_fits_a_parameter_of_the_model(
    family: str, loaded: dict[int, set[str]]
) -> None:
    model = model_of(family)
    assert sum(p.numel() for p in model.unet.parameters()) == PARAMETERS[family]
    weights = file_of(family, model)
    header = Header({}, {k: TensorInfo("F16", tuple(t.shape)) for k, t in weights.items()}, 0)
    kind = classify(header)
    assert (kind.kind, kind.family, kind.style, kind.detail) == ("full", family, "ldm", "")
    model.load_single_file(weights)
    for component in model.components:
        module = getattr(model, component)
        assert len(loaded[id(module)]) == len(module.state_dict())
