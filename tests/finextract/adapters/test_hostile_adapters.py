"""Adapter files that no trainer wrote: every one is an error that names the layer, before memory runs out."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from finextract.adapters.merge import MAX_CHANGE, merge
from finextract.adapters.parsing import KINDS, parse_adapter
from finextract.errors import BaseMismatch, CheckpointError, CorruptWeights, UnsupportedWeights
from finextract.weights.adapter_keys import group_by_layer

ENDINGS = {
    "lora_down": "lora_down.weight",
    "lora_up": "lora_up.weight",
    "lora_mid": "lora_mid.weight",
    "lora_bias": "lora_B.bias",
    "lora_magnitude": "lora_magnitude_vector",
    **{name: f"{name}.weight" for name in ("a1", "a2", "b1", "b2", "bm")},
}


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "unet.fc": nn.Linear(4, 6),
        "unet.bare": nn.Linear(4, 4, bias=False),
        "unet.conv": nn.Conv2d(4, 6, 3),
        "unet.norm": nn.LayerNorm(6),
    }


def merged(layer: str, parts: dict[str, Tensor], config: dict[str, object] | None = None) -> None:
    state = {f"unet.{layer}.{ENDINGS.get(part, part)}": tensor for part, tensor in parts.items()}
    merge(layers(), parse_adapter(state, {}, config or {}))


def huge(*shape: int) -> Tensor:
    """A tensor that takes no memory, whose product with another one would."""
    return torch.ones(1).expand(*shape)


@pytest.mark.parametrize(
    "parts",
    [
        {"lora_down": huge(1, 10**6), "lora_up": huge(10**6, 1)},
        {"lora_down": huge(2, 10**6, 1, 1), "lora_up": huge(10**6, 2, 1, 1), "lora_mid": huge(2, 2, 9, 9)},
        {"hada_w1_a": huge(10**6, 1), "hada_w1_b": huge(1, 10**6),
         "hada_w2_a": huge(10**6, 1), "hada_w2_b": huge(1, 10**6)},
        {"lokr_w1": huge(10**5, 10**5), "lokr_w2": huge(10**5, 10**5)},
        {"lokr_w1_a": huge(10**6, 1), "lokr_w1_b": huge(1, 10**6), "lokr_w2": huge(1, 1)},
        {"lokr_w1": huge(1, 1), "lokr_w2_a": huge(10**6, 1), "lokr_w2_b": huge(1, 10**6)},
        {"a1": huge(10**6, 1), "a2": huge(1, 10**6), "b1": huge(6, 1), "b2": huge(1, 4)},
        {"oft_blocks": huge(1, 10**5, 10**5)},
        {"oft_blocks": huge(64, 1, 10**4, 10**4)},
        {"boft_R": huge(1, 1, 10**5, 10**5)},
        {"on_input": torch.tensor(1), "weight": huge(10**9)},
        {"diff": huge(10**5, 10**5)},
    ],
    ids=lambda parts: "-".join(parts),
)  # fmt: skip
def test_a_product_that_would_be_huge_is_a_mismatch_before_it_is_computed(parts: dict[str, Tensor]) -> None:
    with pytest.raises(BaseMismatch, match=r"'unet\.fc'"):
        merged("fc", parts)


def test_a_huge_rotation_of_pefts_is_a_mismatch_before_it_is_computed() -> None:
    with pytest.raises(BaseMismatch, match=r"'unet\.fc'"):
        merged("fc", {"oft_R": huge(10**6, 28)}, {"oft_block_size": 8})


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"lora_down": torch.ones(2, 4), "lora_up": torch.ones(6, 2), "lora_mid": torch.ones(3, 2)},
         "do not fit"),
        ({"hada_w1_a": torch.ones(6, 2), "hada_w1_b": torch.ones(2, 4)}, "lacks hada_w2_a"),
        ({"hada_w1_a": torch.ones(6, 3), "hada_w1_b": torch.ones(2, 4),
          "hada_w2_a": torch.ones(6, 2), "hada_w2_b": torch.ones(2, 4)}, "do not fit"),
        ({"lokr_w1": torch.ones(2, 2)}, "lacks lokr_w2_a"),
        ({"lokr_w1": torch.ones(2, 2, 1), "lokr_w2": torch.ones(3, 2)}, "unusable shape"),
        ({"lokr_w1": torch.ones(2, 0), "lokr_w2": torch.ones(3, 2)}, "unusable shape"),
        ({"a1": torch.ones(4, 1), "a2": torch.ones(1, 4), "b1": torch.ones(6, 1)}, "lacks b2"),
        ({"oft_blocks": torch.ones(2, 3)}, "unusable shape"),
        ({"oft_blocks": torch.ones(2, 3, 3), "alpha": torch.ones(2)}, "unusable shape"),
        ({"ia3_l": torch.ones(6, 4)}, "unusable shape"),
        ({"on_input": torch.tensor(0)}, "lacks weight"),
        ({"lora_down": torch.ones(2, 4), "lora_up": torch.ones(6, 2), "alpha": torch.tensor(torch.nan)},
         "not finite"),
        ({"diff": torch.ones(6, 4), "diff_b": torch.full((6,), torch.inf)}, "not finite"),
        ({"oft_blocks": torch.full((2, 3, 3), torch.nan)}, "not finite"),
        ({"diff": torch.ones(6, 4, dtype=torch.int32)}, "no trainer writes"),
        ({"diff": torch.ones(6, 4, dtype=torch.complex64)}, "no trainer writes"),
    ],
)  # fmt: skip
def test_damaged_parts_of_a_layer_are_corrupt(parts: dict[str, Tensor], words: str) -> None:
    with pytest.raises(CorruptWeights, match=words):
        merged("fc", parts)


def test_a_change_far_beyond_the_weights_is_corrupt_and_a_large_one_is_not() -> None:
    norm = float(layers()["unet.bare"].get_parameter("weight").detach().norm())
    for factor in (0.9, 1.1):
        difference = {"diff": torch.full((4, 4), factor * MAX_CHANGE * norm / 4)}
        if factor < 1:
            merged("bare", difference)
        else:
            with pytest.raises(CorruptWeights, match=r"'unet\.bare' by 110 times the norm"):
                merged("bare", difference)


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        ("fc", {"diff_b": torch.full((6,), 1e30)}),
        ("fc", {"diff": torch.zeros(6, 4), "diff_b": torch.full((6,), 1e4)}),
        ("conv", {"diff_b": torch.full((6,), 1e30)}),
        ("norm", {"b_norm": torch.full((6,), 1e30)}),
        ("norm", {"w_norm": torch.full((6,), 1e30)}),
        ("norm", {"w_norm": torch.zeros(6), "b_norm": torch.full((6,), 1e4)}),
        (
            "fc",
            {
                "lora_down": torch.zeros(2, 4),
                "lora_up": torch.ones(6, 2),
                "lora_bias": torch.full((6,), 1e30),
            },
        ),
        ("fc", {"ia3_l": torch.full((6, 1), 1e30)}),
    ],
)
def test_a_bias_or_a_norm_layer_that_changes_far_beyond_its_size_is_corrupt(
    layer: str, parts: dict[str, Tensor]
) -> None:
    with pytest.raises(CorruptWeights, match=rf"'unet\.{layer}' by .* times the norm of its"):
        merged(layer, parts)


@pytest.mark.parametrize("layer", ["fc", "norm"])
def test_a_bias_that_was_0_may_change_as_training_changes_it(layer: str) -> None:
    module = layers()[f"unet.{layer}"]
    nn.init.zeros_(module.get_parameter("bias"))
    part = "b_norm" if layer == "norm" else "diff_b"
    merge({"unet.a": module}, parse_adapter({f"unet.a.{part}": torch.full((6,), 3.0)}, {}, {}))
    assert torch.equal(module.get_parameter("bias"), torch.full((6,), 3.0))


def test_a_number_that_the_layers_precision_does_not_have_is_corrupt() -> None:
    half = {"unet.fc": nn.Linear(2, 2).half()}
    nn.init.constant_(half["unet.fc"].get_parameter("weight"), 50_000)
    large = {"unet.fc.diff": torch.full((2, 2), 50_000.0)}
    with pytest.raises(CorruptWeights, match="not finite"):
        merge(half, parse_adapter(large, {}, {}))
    assert torch.isfinite(half["unet.fc"].get_parameter("weight")).all()


@pytest.mark.parametrize(
    "parts", [{"diff_b": torch.ones(4)}, {"diff": torch.ones(4, 4), "diff_b": torch.ones(4)}]
)
def test_a_bias_for_a_layer_without_one_is_a_mismatch(parts: dict[str, Tensor]) -> None:
    with pytest.raises(BaseMismatch, match="changes a bias"):
        merged("bare", parts)


def test_a_layer_of_several_kinds_or_with_a_stray_part_is_refused_by_name() -> None:
    lora = {"lora_down": torch.ones(2, 4), "lora_up": torch.ones(6, 2)}
    with pytest.raises(UnsupportedWeights, match=r"'unet\.fc' holds tensors of several kinds"):
        merged("fc", {**lora, "a1": torch.ones(4, 1)})
    with pytest.raises(UnsupportedWeights, match="'rescale', which no kind"):
        merged("fc", {**lora, "rescale": torch.ones(6)})
    with pytest.raises(UnsupportedWeights, match="'dora_scale', which no kind"):
        merged("fc", {"dora_scale": torch.ones(6, 1)})


@pytest.mark.parametrize(
    "key",
    [
        "unet.fc.weight",
        "unet.fc.lora_C.weight",
        "lora_down.weight",
        "x",
        "unet.fc.oft_r",
        "a.on_input.weight",
    ],
)
def test_a_key_that_fits_nothing_is_refused_by_name(key: str) -> None:
    with pytest.raises(UnsupportedWeights, match=f"holds {key!r}, which fits no kind"):
        parse_adapter({key: torch.ones(2, 2), "unet.fc.diff": torch.ones(6, 4)}, {}, {})


def test_two_tensors_for_one_part_of_a_layer_are_refused() -> None:
    state = {"unet.fc.lora_A.weight": torch.ones(2, 4), "unet.fc.lora_A.default.weight": torch.ones(2, 4)}
    with pytest.raises(UnsupportedWeights, match=r"lora_A\.default\.weight"):
        parse_adapter(state, {}, {})


@pytest.mark.parametrize(
    "key",
    ["clip_l", "clip_g", "emb_params", "<s0>", "bundle_emb.style.string_to_param.*", "bundle_emb.a.clip_l"],
)
def test_learned_embeddings_are_no_layers_of_an_adapter(key: str) -> None:
    adapters = parse_adapter({"unet.fc.diff": torch.ones(6, 4), key: torch.ones(1, 8)}, {}, {})
    assert [adapter.layer for adapter in adapters] == ["unet.fc"]
    assert group_by_layer([key]).embeddings == [key]


def test_a_rotation_of_pefts_is_refused_without_the_configuration_that_says_how_it_is_computed() -> None:
    with pytest.raises(UnsupportedWeights, match=r"adapter_config\.json"):
        merged("bare", {"oft_R": torch.ones(1, 6)})
    terms: dict[str, object] = {
        "oft_block_size": 4, "use_cayley_neumann": True, "num_cayley_neumann_terms": 10**9,
    }  # fmt: skip
    with pytest.raises(UnsupportedWeights, match=r"adapter_config\.json"):
        merged("bare", {"oft_R": torch.ones(1, 6)}, terms)


@pytest.mark.parametrize(
    ("layer", "further"),
    [
        ("lora_unet_bare", {"alpha": torch.tensor(1.0)}),  # OneTrainer
        ("lora_unet_bare", {}),  # kohya's oft_v2
        ("transformer.bare", {"alpha": torch.tensor(1.0), "oft_R.scaled_oft": torch.tensor(True)}),
    ],
)
def test_an_oft_of_onetrainer_is_refused_in_a_sentence_of_its_own(
    layer: str, further: dict[str, Tensor]
) -> None:
    state = {f"{layer}.oft_R.weight": torch.ones(1, 6)}
    state |= {f"{layer}.{part}": tensor for part, tensor in further.items()}
    with pytest.raises(UnsupportedWeights, match=r"an OFT of OneTrainer: .* Ask its author for a LoRA"):
        parse_adapter(state, {}, {"oft_block_size": 4})


def test_ia3_of_a_square_convolution_is_refused_where_no_configuration_says_what_it_scales() -> None:
    square = {"unet.conv": nn.Conv2d(4, 4, 3)}
    state = {"base_model.model.conv.ia3_l": torch.ones(1, 4, 1, 1)}
    with pytest.raises(UnsupportedWeights, match="as many inputs as outputs"):
        merge(square, parse_adapter(state, {}, {"feedforward_modules": "(a+)+"}))
    merge(square, parse_adapter(state, {}, {"feedforward_modules": ["conv"]}))


PARTS = sorted(
    {part for kind in KINDS for part in kind.shown_by | kind.takes} | {"dora_scale", "lora_magnitude"}
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 36]), max_size=4)
VALUES = st.sampled_from([0.0, 1.0, -0.5, 1e38, math.inf, math.nan])
FITTING = st.sampled_from(
    [[2, 4], [6, 2], [6, 4], [4, 2], [2, 2], [6], [6, 1], [1, 4], [2, 3, 3], [1, 3, 2, 2], []]
)


@settings(max_examples=400)
@given(
    layer=st.sampled_from(["fc", "bare", "conv", "norm"]),
    parts=st.dictionaries(
        st.sampled_from(PARTS), st.tuples(SHAPES | FITTING, VALUES), min_size=1, max_size=5
    ),
    config=st.sampled_from(
        [{}, {"oft_block_size": 2}, {"r": 2, "alpha": 3, "coft": True, "block_share": True}]
    ),
)
def test_any_tensors_are_merged_or_refused_with_an_error_of_this_project(
    layer: str, parts: dict[str, tuple[list[int], float]], config: dict[str, object]
) -> None:
    tensors = {part: torch.full(shape, value) for part, (shape, value) in parts.items()}
    with contextlib.suppress(CheckpointError):
        merged(layer, tensors, config)
