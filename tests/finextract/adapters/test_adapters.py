"""Adapters as functions of a layer's weight: reading a LoRA of every tool, and merging."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from finextract.adapters.lora import parse_lora
from finextract.adapters.merge import merge
from finextract.adapters.parsing import parse_adapter
from finextract.errors import BaseMismatch, CorruptWeights, UnsupportedWeights
from finextract.weights.adapter_keys import LoraKey, layer_names, parse_lora_key
from finextract.weights.formats import WeightsKind

LAYER = "unet.down_blocks.0.attentions.0.to_out.0"


@dataclass(frozen=True)
class Doubled:
    """An adapter that is no difference: it scales the weight."""

    layer: str

    def __call__(self, weight: Tensor) -> Tensor:
        return weight * 2


def _layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {LAYER: nn.Linear(4, 6), "text_encoder.encoder.layers.0.mlp.fc1": nn.Linear(4, 6)}


@pytest.mark.parametrize(
    ("key", "layer", "part"),
    [
        ("lora_unet_mid_block_proj_in.lora_down.weight", "lora_unet_mid_block_proj_in", "down"),
        ("lora_unet_mid_block_proj_in.alpha", "lora_unet_mid_block_proj_in", "alpha"),
        ("unet.a.to_q.lora_A.weight", "unet.a.to_q", "down"),
        ("base_model.model.a.to_q.lora_B.default.weight", "base_model.model.a.to_q", "up"),
        ("unet.a.to_q.lora.up.weight", "unet.a.to_q", "up"),
        ("text_encoder.a.q_proj.lora_linear_layer.down.weight", "text_encoder.a.q_proj", "down"),
        ("a.attn1.processor.to_k_lora.up.weight", "a.attn1.to_k", "up"),
        ("a.attn1.processor.to_out_lora.down.weight", "a.attn1.to_out.0", "down"),
    ],
)
def test_the_keys_of_every_tool_name_a_layer_and_a_part_of_its_lora(key: str, layer: str, part: str) -> None:
    parsed = parse_lora_key(key)
    assert parsed == LoraKey(layer, part)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_down_blocks_0_attentions_0_to_out_0",
        LAYER,
        "base_model.model.down_blocks.0.attentions.0.to_out.0",
        "down_blocks.0.attentions.0.to_out.0",
    ],
)
def test_a_layer_is_found_under_the_names_of_every_tool(name: str) -> None:
    assert layer_names(_layers())[name] == LAYER


def test_a_text_encoders_layer_is_found_with_and_without_the_prefix_of_older_transformers() -> None:
    names = layer_names(_layers())
    for name in ("lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_te_encoder_layers_0_mlp_fc1"):
        assert names[name] == "text_encoder.encoder.layers.0.mlp.fc1"


def test_an_adapter_may_be_any_function_of_the_weight_and_changes_its_own_layer_alone() -> None:
    layers = _layers()
    before = {name: layer.get_parameter("weight").clone() for name, layer in layers.items()}
    merge(layers, [Doubled(LAYER)])
    for name, layer in layers.items():
        factor = 2 if name == LAYER else 1
        assert torch.equal(layer.get_parameter("weight"), factor * before[name])


def test_a_lora_adds_its_scaled_product() -> None:
    layers, down, up = _layers(), torch.randn(2, 4), torch.randn(6, 2)
    before = layers[LAYER].get_parameter("weight").clone()
    state = {
        f"{LAYER}.lora_A.weight": down,
        f"{LAYER}.lora_B.weight": up,
        f"{LAYER}.alpha": torch.tensor(1.0),
    }
    merge(layers, parse_lora(state, {}))
    torch.testing.assert_close(layers[LAYER].get_parameter("weight"), before + 0.5 * up @ down)


def test_the_product_is_computed_in_float32_and_cast_to_the_weights_precision_once() -> None:
    layers, down, up = _layers(), torch.randn(2, 4).half(), torch.randn(6, 2).half()
    layers[LAYER].half()
    before = layers[LAYER].get_parameter("weight").clone()
    merge(layers, parse_lora({f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}, {}))
    after = layers[LAYER].get_parameter("weight")
    assert after.dtype == torch.float16
    assert torch.equal(after, before + (up.float() @ down.float()).half())


def test_a_layer_that_the_base_lacks_or_has_in_another_shape_is_a_mismatch() -> None:
    with pytest.raises(BaseMismatch, match="does not have"):
        merge(_layers(), [Doubled("unet.mid_block.proj")])
    wide = {f"{LAYER}.lora_A.weight": torch.ones(2, 5), f"{LAYER}.lora_B.weight": torch.ones(6, 2)}
    with pytest.raises(BaseMismatch, match="does not fit"):
        merge(_layers(), parse_lora(wide, {}))


@pytest.mark.parametrize(
    ("down", "up", "alpha", "words"),
    [
        (torch.ones(2, 4), None, None, "only half"),
        (torch.ones(3, 4), torch.ones(6, 2), None, "do not fit"),
        (torch.ones(2, 4), torch.full((6, 2), torch.nan), None, "not finite"),
        (torch.ones(4), torch.ones(6), None, "unusable shape"),
        (torch.ones(0, 4), torch.ones(6, 0), None, "unusable shape"),
        (torch.ones(2, 4), torch.ones(6, 2), torch.ones(3), "unusable shape"),
    ],
)
def test_a_damaged_layer_is_corrupt(
    down: Tensor, up: Tensor | None, alpha: Tensor | None, words: str
) -> None:
    state = {"lora_A.weight": down, "lora_B.weight": up, "alpha": alpha}
    with pytest.raises(CorruptWeights, match=words):
        merge(_layers(), parse_lora({f"{LAYER}.{k}": v for k, v in state.items() if v is not None}, {}))


def test_a_tensor_of_another_algorithm_is_refused() -> None:
    with pytest.raises(UnsupportedWeights, match="only plain LoRA"):
        parse_lora({f"{LAYER}.dora_scale": torch.ones(6)}, {})


def test_an_adapter_file_is_parsed_by_its_algorithms() -> None:
    state = {f"{LAYER}.lora_A.weight": torch.ones(2, 4), f"{LAYER}.lora_B.weight": torch.ones(6, 2)}
    lora = WeightsKind("lora", "sd1", "diffusers", False, algorithms=("LoRA",))
    (parsed,) = parse_adapter(lora, state, {}, {})
    assert parsed.layer == LAYER
    loha = WeightsKind("lycoris", "sd1", "kohya", False, "LoHa", ("LoHa",))
    with pytest.raises(UnsupportedWeights, match=r"^Stable Diffusion 1.x LyCORIS weights \(LoHa\) cannot be"):
        parse_adapter(loha, state, {}, {})
