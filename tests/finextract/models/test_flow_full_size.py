"""Stable Diffusion 3 and FLUX.1 in full size without their weights: every key has its place.

The models are built on torch's meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import tried_formats
from diffusers.loaders import single_file_utils
from tiny.checks import assert_adapter_fits
from tiny.flow_configs import TRANSFORMERS
from tiny.full_models import flow_model
from torch import Tensor

from finextract.adapters.fused import whole_layer
from finextract.errors import BaseMismatch
from finextract.weights.original_names import FileLayer, file_layers, original_layers

ADAPTERS = {
    "lora-flux-diffusers": "flux-dev",
    "lora-flux-attention-diffusers": "flux-schnell",
    "lora-flux-kohya": "flux-dev",
    "lora-flux-ai-toolkit": "flux-dev",
    "lora-flux-bfl-keys": "flux-dev",
    "lora-flux-xlabs": "flux-dev",
    "lora-flux-onetrainer": "flux-dev",
    "lora-sd3-diffusers": "sd3-medium",
    "lora-sd3-kohya": "sd3-medium",
    "lora-sd35-large-diffusers": "sd35-large",
}


def empty(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    return {key: torch.empty(shape, dtype=dtype, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_single_file_of_the_original_names_fills_every_parameter(
    name: str, prefix: str, dtype: torch.dtype
) -> None:
    keys = tried_formats.transformer_names(name)
    flow_model(name).load_single_file(empty({f"{prefix}{key}": shape for key, shape in keys.items()}, dtype))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_tried_files_hold_the_keys_and_shapes_of_the_full_transformer(name: str) -> None:
    original = tried_formats.read(f"full-{name}")
    names = tried_formats.transformer_names(name)
    assert original["keys"] == len(names)
    for key, shape in original["tensors"].items():
        assert names[key.removeprefix("model.diffusion_model.")] == tuple(shape), key
    stored = tried_formats.read(f"transformer-{name}")
    own = {key: list(t.shape) for key, t in flow_model(name).transformer.state_dict().items()}
    assert stored["keys"] == len(own)
    assert stored["tensors"].items() <= own.items()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_file_with_a_tensor_too_many_or_too_few_is_refused_by_name(name: str) -> None:
    keys = empty(tried_formats.transformer_names(name))
    with pytest.raises(BaseMismatch, match=r"it has scaled_fp8, which the base model lacks"):
        flow_model(name).load_single_file({**keys, "scaled_fp8": torch.empty(2, device="meta")})
    del keys["final_layer.linear.bias"]
    with pytest.raises(BaseMismatch, match=r"it lacks 'final_layer.linear.bias'"):
        flow_model(name).load_single_file(keys)


@pytest.mark.parametrize("file", TRANSFORMERS)
@pytest.mark.parametrize("base", TRANSFORMERS)
def test_a_file_of_another_model_is_refused(base: str, file: str) -> None:
    if base != file:
        with pytest.raises(BaseMismatch):
            flow_model(base).load_single_file(empty(tried_formats.transformer_names(file)))


@pytest.mark.parametrize(("adapter", "base"), ADAPTERS.items())
def test_every_layer_of_an_adapter_is_one_of_the_models_layers_with_fitting_widths(
    adapter: str, base: str
) -> None:
    assert_adapter_fits(adapter, flow_model(base).layers())


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_rows_of_a_fused_layer_are_those_that_diffusers_conversion_takes_apart(name: str) -> None:
    """Each row of each original layer has a number of its own, and comes back in its place."""
    keys = tried_formats.transformer_names(name)
    numbered: dict[str, Tensor] = {}
    start = 0
    for key, shape in keys.items():
        rows = 1 if key == "pos_embed" else shape[0]
        numbered[key] = torch.arange(start, start + rows, dtype=torch.float64)[:, None]
        start += rows
    original = {key: tensor.clone() for key, tensor in numbered.items()}
    family = "sd3" if name.startswith("sd3") else "flux"
    convert = getattr(single_file_utils, f"convert_{family}_transformer_checkpoint_to_diffusers")
    back = {f"transformer.{key}": tensor for key, tensor in convert(numbered).items()}
    found = original_layers(flow_model(name).layers())
    layers: dict[str, Any] = {
        key.removesuffix(".weight"): SimpleNamespace(weight=t) for key, t in back.items()
    }
    placed: set[str] = set()
    for layer, target in found.items():
        if "processor" not in layer:
            assert torch.equal(whole_layer(layers, target)[0], original[f"{layer}.weight"]), layer
            placed.update(target.layers)
    assert placed == {
        key
        for key, layer in flow_model(name).layers().items()
        if key.startswith("transformer.") and not isinstance(layer, torch.nn.LayerNorm)
    }


def test_the_names_of_other_models_are_left_alone() -> None:
    layers = ["unet.conv_in", "text_encoder.text_model.encoder.layers.0.mlp.fc1"]
    assert original_layers(layers) == {}
    assert file_layers(layers)["lora_unet_conv_in"] == FileLayer(("unet.conv_in",))
