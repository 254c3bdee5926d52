"""Adapters as functions of a layer's weight: reading a LoRA of every tool, and merging."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from finextract.adapters.base import Adapter
from finextract.adapters.lora import LoraLayer
from finextract.adapters.merge import merge
from finextract.adapters.parsing import parse_adapter
from finextract.adapters.patterns import value_of_layer
from finextract.errors import BaseMismatch, CorruptWeights, UnsupportedWeights
from finextract.weights.adapter_keys import parse_key
from finextract.weights.layer_names import layer_names

LAYER = "unet.down_blocks.0.attentions.0.to_out.0"


@dataclass(frozen=True)
class Doubled:
    """An adapter that is no difference: it scales the weight."""

    layer: str

    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * 2, bias


def _layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {LAYER: nn.Linear(4, 6), "text_encoder.encoder.layers.0.mlp.fc1": nn.Linear(4, 6)}


def parsed(state: dict[str, Tensor], metadata: dict[str, str]) -> Sequence[Adapter]:
    """The adapters of a file without a configuration beside it."""
    return parse_adapter(state, metadata, {})


def scales(
    state: dict[str, Tensor], metadata: dict[str, str] | None = None, config: dict[str, object] | None = None
) -> dict[str, float]:
    """The scale of each layer of a LoRA."""
    adapters = parse_adapter(state, metadata or {}, config or {})
    return {lora.layer: lora.scale for lora in adapters if isinstance(lora, LoraLayer)}


@pytest.mark.parametrize(
    ("key", "layer", "part"),
    [
        ("lora_unet_mid_block_proj_in.lora_down.weight", "lora_unet_mid_block_proj_in", "lora_down"),
        ("lora_unet_mid_block_proj_in.alpha", "lora_unet_mid_block_proj_in", "alpha"),
        ("unet.a.to_q.lora_A.weight", "unet.a.to_q", "lora_down"),
        ("base_model.model.a.to_q.lora_B.default.weight", "base_model.model.a.to_q", "lora_up"),
        ("unet.a.to_q.lora.up.weight", "unet.a.to_q", "lora_up"),
        ("text_encoder.a.q_proj.lora_linear_layer.down.weight", "text_encoder.a.q_proj", "lora_down"),
        ("a.attn1.processor.to_k_lora.up.weight", "a.attn1.to_k", "lora_up"),
        ("a.attn1.processor.to_out_lora.down.weight", "a.attn1.to_out.0", "lora_down"),
    ],
)
def test_the_keys_of_every_tool_name_a_layer_and_a_part_of_its_lora(key: str, layer: str, part: str) -> None:
    found = parse_key(key)
    assert found is not None
    assert (found.layer, found.part) == (layer, part)


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
    merge(layers, parsed(state, {}))
    torch.testing.assert_close(layers[LAYER].get_parameter("weight"), before + 0.5 * up @ down)


def test_all_is_computed_in_float32_and_cast_to_the_weights_precision_once() -> None:
    layers, down, up = _layers(), torch.randn(2, 4).half(), torch.randn(6, 2).half()
    layers[LAYER].half()
    before = layers[LAYER].get_parameter("weight").clone()
    merge(layers, parsed({f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}, {}))
    after = layers[LAYER].get_parameter("weight")
    assert after.dtype == torch.float16
    assert torch.equal(after, (before.float() + up.float() @ down.float()).half())


def test_a_layer_that_the_base_lacks_or_has_in_another_shape_is_a_mismatch() -> None:
    with pytest.raises(BaseMismatch, match="does not have"):
        merge(_layers(), [Doubled("unet.mid_block.proj")])
    wide = {f"{LAYER}.lora_A.weight": torch.ones(2, 5), f"{LAYER}.lora_B.weight": torch.ones(6, 2)}
    with pytest.raises(BaseMismatch, match="does not fit"):
        merge(_layers(), parsed(wide, {}))


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
        merge(_layers(), parsed({f"{LAYER}.{k}": v for k, v in state.items() if v is not None}, {}))


class Blocks(nn.Module):
    """Layers whose names end alike, as those of a UNet do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.to_k = nn.Linear(4, 6)
        self.add_to_k = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.ModuleDict({"to_k": nn.Linear(4, 6)}) for _ in range(12))
        self.mid = nn.ModuleDict({"conv": nn.Conv2d(4, 6, 3)})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_alpha": 3},
        {"alpha_pattern": {"to_k": 1}},
        {"alpha_pattern": {"^to_k": 1, "to_k": 32}},
        {"alpha_pattern": {"to_k": 32, "^to_k": 1}},
        {"alpha_pattern": {"blocks.1.to_k": 2, r"blocks\.1\d\.to_k": 16}},
        {"alpha_pattern": {"blocks.*.to_k": 5}},
        {"alpha_pattern": {"(blocks.3|blocks.11).to_k": 5, "mid.conv": 7}},
        {"alpha_pattern": {"locks.3.to_k": 40}},
        {"rank_pattern": {"to_k": 2}},
        {"rank_pattern": {"^to_k": 3, r"blocks\.\d+\.to_k": 1}, "alpha_pattern": {"to_k": 6}},
        {"rank_pattern": {"mid.conv": 1}, "alpha_pattern": {"conv": 9}, "lora_alpha": 2},
        {"use_rslora": True, "alpha_pattern": {"add_to_k": 3}},
    ],
    ids=str,
)
def test_a_lora_is_merged_as_peft_merges_it_whatever_patterns_its_configuration_has(
    options: dict[str, object], tmp_path: Path
) -> None:
    theirs = merged_by_peft({"target_modules": ["to_k", "add_to_k", "conv"]} | options, tmp_path)
    assert_as_peft(merged_from(tmp_path), theirs)


def merged_by_peft(options: dict[str, object], folder: Path) -> nn.Module:
    """A LoRA with random numbers that PEFT saved into a folder, merged by PEFT from there.

    Saved anew, since saving sorts the patterns, and the first that matches counts.
    """
    import peft

    model = peft.get_peft_model(Blocks(), peft.LoraConfig(**{"r": 4} | options))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.add_(0.1 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    merged: nn.Module = peft.PeftModel.from_pretrained(Blocks(), folder).merge_and_unload()
    return merged


def merged_from(folder: Path) -> dict[str, nn.Module]:
    """The layers into which the adapter of a folder of PEFT is merged here."""
    layers = {f"unet.{n}": m for n, m in Blocks().named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    stated = json.loads((folder / "adapter_config.json").read_text())
    merge(layers, parse_adapter(load_file(folder / "adapter_model.safetensors"), {}, stated))
    return layers


def assert_as_peft(layers: dict[str, nn.Module], theirs: nn.Module) -> None:
    for name, layer in layers.items():
        expected = theirs.get_parameter(f"{name.removeprefix('unet.')}.weight")
        torch.testing.assert_close(layer.get_parameter("weight"), expected)


@pytest.mark.parametrize("init", [True, False, "gaussian", "Gaussian", "eva", "orthogonal", "mica"])
def test_a_lora_is_merged_as_peft_merges_it_where_its_init_leaves_the_base_as_it_is(
    init: bool | str, tmp_path: Path
) -> None:
    theirs = merged_by_peft({"target_modules": ["to_k"], "init_lora_weights": init}, tmp_path)
    assert_as_peft(merged_from(tmp_path), theirs)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_a_lora_whose_init_changes_the_base_is_refused_with_the_name_of_the_field(
    init: str, tmp_path: Path
) -> None:
    merged_by_peft({"target_modules": ["to_k"], "init_lora_weights": init}, tmp_path)
    with pytest.raises(UnsupportedWeights, match=rf"init_lora_weights = '{init}'.*saved with path_initial"):
        merged_from(tmp_path)


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "OLoRA", "an init of a later version"])
@pytest.mark.parametrize("start", ["", "unet."])
def test_an_init_that_may_change_the_base_is_refused_in_the_header_and_beside_the_file(
    init: str, start: str
) -> None:
    pair = {"unet.a.lora_A.weight": torch.ones(2, 4), "unet.a.lora_B.weight": torch.ones(6, 2)}
    fields = {f"{start}r": 2, f"{start}init_lora_weights": init}
    with pytest.raises(UnsupportedWeights, match="init_lora_weights"):
        parse_adapter(pair, {}, fields)
    with pytest.raises(UnsupportedWeights, match="init_lora_weights"):
        parsed(pair, {"lora_adapter_metadata": json.dumps(fields)})


def test_a_pissa_that_was_saved_as_a_plain_lora_is_merged_into_the_published_base(tmp_path: Path) -> None:
    import peft

    def pissa() -> peft.PeftModel:
        config = peft.LoraConfig(r=4, target_modules=["to_k"], init_lora_weights="pissa")
        return peft.get_peft_model(Blocks(), config)

    start = pissa()
    start.peft_config["default"].init_lora_weights = True
    start.save_pretrained(tmp_path / "start")
    trained = pissa()
    with torch.no_grad():
        trained.get_parameter("base_model.model.to_k.lora_B.default.weight").add_(0.5)
    trained.save_pretrained(tmp_path / "lora", path_initial_model_for_weight_conversion=tmp_path / "start")
    assert_as_peft(merged_from(tmp_path / "lora"), trained.merge_and_unload())


def test_a_configuration_in_the_header_holds_for_the_component_that_it_names() -> None:
    unet, text = "unet.a.to_k", "text_encoder.text_model.b.q_proj"
    pair = {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(6, 2)}
    state = {f"{layer}.{k}": v for layer in (unet, text) for k, v in pair.items()}
    stated = {
        "unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {"b.q_proj": 50},
        "text_encoder.r": 2, "text_encoder.lora_alpha": 4, "text_encoder.alpha_pattern": {"b.q_proj": 10},
    }  # fmt: skip
    metadata = {"lora_adapter_metadata": json.dumps(stated)}
    assert scales(state, metadata) == {unet: 3.0, text: 5.0}


def test_without_a_configuration_and_without_an_alpha_the_scale_is_one() -> None:
    state = {"unet.a.lora_A.weight": torch.ones(2, 4), "unet.a.lora_B.weight": torch.ones(6, 2)}
    assert [*scales(state).values()] == [1.0]
    assert [*scales(state, config={"r": 2}).values()] == [4.0]  # PEFT's alpha is 8


@pytest.mark.parametrize("stated", ["x", None, [], True, {"to_k": "x"}])
def test_an_alpha_of_another_type_counts_as_missing(stated: object) -> None:
    state = {"unet.a.lora_A.weight": torch.ones(2, 4), "unet.a.lora_B.weight": torch.ones(6, 2)}
    assert [*scales(state, config={"lora_alpha": stated}).values()] == [1.0]
    config = {"lora_alpha": 4, "alpha_pattern": stated}
    assert [*scales(state, config=config).values()] == [2.0]


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "(.*)*", "(?P<x>a)", "a{9999}", ".*.*.*x", "(a|b)*", "a**", "a*?", "(", "x" * 400,
        "(a|a)" * 5, ".*.*",
        r"(\w\w)+", "(?=a)", r"\1", "a+",
    ],
)  # fmt: skip
def test_a_pattern_that_could_take_time_without_bound_is_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedWeights, match="its alpha cannot be read"):
        value_of_layer({pattern: 1}, "a.to_k")


def test_accepted_patterns_match_hostile_names_in_seconds() -> None:
    costly = {rf"(a|a)(a|a)(a|a)(a|a).*x{i}": i for i in range(16)}
    patterns = costly | {f"blocks.{i}.to_k": i for i in range(200)}
    layers = [".".join(["a" * 40] * 7) + f".{i}" for i in range(200)] + ["a." * 5_000_000]
    before = time.process_time()
    assert all(value_of_layer(patterns, layer) is None for layer in layers)
    assert time.process_time() - before < 30


def test_a_merge_keeps_precision_and_place_and_leaves_biases_alone() -> None:
    layers = _layers()
    layers[LAYER].double()
    weight, bias = layers[LAYER].get_parameter("weight"), layers[LAYER].get_parameter("bias").clone()
    merge(
        layers,
        parsed({f"{LAYER}.lora_A.weight": torch.ones(2, 4), f"{LAYER}.lora_B.weight": torch.ones(6, 2)}, {}),
    )
    merged = layers[LAYER].get_parameter("weight")
    assert (merged.dtype, merged.device, merged.stride()) == (torch.float64, weight.device, weight.stride())
    assert not torch.equal(merged, weight)
    assert torch.equal(layers[LAYER].get_parameter("bias"), bias)


def test_the_lora_of_a_convolution_is_merged_over_its_kernel() -> None:
    conv = nn.Conv2d(4, 6, 3)
    down, up = torch.randn(2, 4, 3, 3), torch.randn(6, 2, 1, 1)
    before = conv.weight.detach().clone()
    state = {"unet.conv.lora_down.weight": down, "unet.conv.lora_up.weight": up}
    merge(
        {"unet.conv": conv},
        parsed({k.replace("unet.conv", "lora_unet_conv"): v for k, v in state.items()}, {}),
    )
    expected = before + torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    torch.testing.assert_close(conv.weight.detach(), expected)
