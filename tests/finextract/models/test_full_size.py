"""The key names of full-size files map one to one onto models of the real configurations, without weights."""

from __future__ import annotations

import pytest
import torch
import tried_formats
from tiny import full_size, single_files
from tiny.full_models import unet_model
from torch import Tensor

from finextract.models import parts
from finextract.models.unet import UNetModel
from finextract.weights.adapter_keys import group_by_layer
from finextract.weights.formats import classify
from finextract.weights.headers import Header, TensorInfo
from finextract.weights.layer_names import original_unet_names
from finextract.weights.original_names import file_layers

PARAMETERS = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}  # of the published UNets


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
    load_into = parts.load_into

    def noted(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
        load_into(module, state)  # raises for a key too many, a key that is missing, and another shape
        found[id(module)] = set(state)

    monkeypatch.setattr(parts, "load_into", noted)
    return found


@pytest.mark.parametrize("family", PARAMETERS)
def test_every_tensor_of_a_published_file_fits_a_parameter_of_the_model(
    family: str, loaded: dict[int, set[str]]
) -> None:
    model = unet_model(family)
    assert sum(p.numel() for p in model.unet.parameters()) == PARAMETERS[family]
    weights = file_of(family, model)
    header = Header({}, {k: TensorInfo("F16", tuple(t.shape)) for k, t in weights.items()}, 0)
    kind = classify(header)
    assert (kind.kind, kind.family, kind.style, kind.detail) == ("full", family, "ldm", "")
    model.load_single_file(weights)
    for component in model.components:
        module = getattr(model, component)
        assert len(loaded[id(module)]) == len(module.state_dict())


ADAPTERS = {"lora-sd2-diffusers": "sd2", "lora-sdxl-onetrainer": "sdxl",
            "lora-sdxl-kohya": "sdxl", "lora-sd1-diffusers": "sd1", "lora-sd1-kohya": "sd1",
            "dora-sd1-kohya": "sd1", "lora-sd1-old-processor": "sd1"}  # fmt: skip


@pytest.mark.parametrize(("adapter", "family"), ADAPTERS.items())
def test_every_layer_of_an_adapter_is_one_of_the_models_layers(adapter: str, family: str) -> None:
    names = file_layers(unet_model(family).layers())
    shapes = tried_formats.read(adapter)["tensors"]
    grouped = group_by_layer(shapes)
    assert grouped.layers
    assert not grouped.rest
    assert [layer for layer in grouped.layers if layer not in names] == []


@pytest.mark.parametrize("prefix", ["lora_te1_text_model_", "lora_te2_text_model_"])
def test_kohyas_two_text_encoders_of_sdxl_are_told_apart(prefix: str) -> None:
    (target,) = file_layers(unet_model("sdxl").layers())[f"{prefix}encoder_layers_0_mlp_fc1"].layers
    assert target.startswith("text_encoder." if "te1" in prefix else "text_encoder_2.")


@pytest.mark.parametrize("family", PARAMETERS)
def test_every_layer_of_the_unet_has_its_name_in_the_original_code(family: str) -> None:
    """As kohya writes them for SDXL; the names are those that diffusers' own conversion reads."""
    model = unet_model(family)
    layers = [f"unet.{name.removesuffix('.weight')}" for name in model.unet.state_dict() if "weight" in name]
    theirs = {key.removeprefix("model.diffusion_model.") for key in single_files.unet_names(model.unet)}
    found = original_unet_names(layers)
    assert found.keys() == set(layers)
    assert {f"{name}.weight" for name in found.values()} == {k for k in theirs if k.endswith(".weight")}
