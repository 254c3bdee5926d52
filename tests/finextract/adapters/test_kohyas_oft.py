"""kohya's OFT (networks/oft.py and oft_flux.py): its keys, and its formula in whole matrices."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from adapter_comparisons import layers_of, relative, small_unet
from tiny.flow_pipelines import flux_components
from torch import Tensor, nn

from finextract.adapters.fused import whole_layer
from finextract.adapters.merge import merge
from finextract.adapters.parsing import parse_adapter
from finextract.errors import BaseMismatch, CorruptWeights
from finextract.weights.original_names import file_layers

ATTENTION = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_"


def rotation(blocks: Tensor, alpha: float) -> Tensor:
    """The rotation of all rows at once that kohya's networks/oft.py makes of the stored blocks."""
    rows = blocks.shape[0] * blocks.shape[1]
    skew = torch.block_diag(*(blocks - blocks.mT)).double()
    norm = skew.norm()
    skew = skew * min(1.0, alpha * rows / float(norm))
    return (torch.eye(rows) + skew) @ torch.linalg.inv(torch.eye(rows) - skew)


def rotated(weight: Tensor, parts: Sequence[Tensor], alpha: float) -> Tensor:
    """The weight whose rows are rotated, each part of them by itself."""
    whole = torch.block_diag(*(rotation(part, alpha) for part in parts))
    return (whole.T @ weight.detach().flatten(1).double()).reshape(weight.shape).float()


def random_blocks(rows: int, number: int = 4) -> Tensor:
    return torch.randn(number, rows // number, rows // number)


@pytest.mark.parametrize("alpha", [0.01, 100.0])
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (f"oft_unet_{ATTENTION}to_q", "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"),
        (
            f"oft_unet_{ATTENTION}to_out_0",
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        ),
        ("oft_unet_down_blocks_0_resnets_0_conv1", "unet.down_blocks.0.resnets.0.conv1"),
        ("oft_unet_input_blocks_1_0_in_layers_2", "unet.down_blocks.0.resnets.0.conv1"),  # of SDXL
    ],
)
def test_a_layer_of_a_unet_is_rotated_as_kohyas_formula_says(name: str, layer: str, alpha: float) -> None:
    layers = layers_of(small_unet())
    before = layers[layer].get_parameter("weight").clone()
    blocks = random_blocks(len(before))
    merge(layers, parse_adapter({f"{name}.oft_blocks": blocks, f"{name}.alpha": torch.tensor(alpha)}, {}, {}))
    expected = rotated(before, [blocks], alpha)
    assert relative(expected, before) > 0.01
    assert relative(expected, layers[layer].get_parameter("weight").detach()) < 1e-5


def flux_layers() -> dict[str, nn.Module]:
    return {
        f"transformer.{name}": module
        for name, module in flux_components()["transformer"].named_modules()
        if isinstance(module, nn.Linear)
    }


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("oft_unet_double_blocks_0_img_attn_qkv", [32, 32, 32]),
        ("oft_unet_double_blocks_1_txt_attn_proj", [32]),
        ("oft_unet_double_blocks_1_img_mlp_0", [128]),
        ("oft_unet_single_blocks_1_linear1", [32, 32, 32, 128]),
    ],
)
def test_a_fused_layer_of_flux_is_rotated_part_by_part(name: str, rows: list[int]) -> None:
    layers = flux_layers()
    target = file_layers(layers)[name]
    before, bias = whole_layer(layers, target)
    parts = [random_blocks(number) for number in rows]
    state = {f"{name}.oft_blocks.{i}": part for i, part in enumerate(parts)}
    merge(layers, parse_adapter({**state, f"{name}.alpha": torch.tensor(0.02)}, {}, {}))
    after, bias_after = whole_layer(layers, target)
    expected = rotated(before, parts, 0.02)
    assert relative(expected, before) > 0.01
    assert relative(expected, after) < 1e-5
    assert bias is not None
    assert bias_after is not None
    assert torch.equal(bias_after, bias)


def test_rotations_of_another_number_of_rows_are_a_mismatch_and_one_that_is_missing_is_damage() -> None:
    name = "oft_unet_double_blocks_0_img_attn_qkv"
    with pytest.raises(BaseMismatch, match=r"is \[64\], the base model's \[96, 32\]"):
        merge(
            flux_layers(),
            parse_adapter({f"{name}.oft_blocks.{i}": random_blocks(32) for i in (0, 1)}, {}, {}),
        )
    with pytest.raises(CorruptWeights, match="lacks oft_blocks_1"):
        parse_adapter({f"{name}.oft_blocks.{i}": random_blocks(32) for i in (0, 2)}, {}, {})
