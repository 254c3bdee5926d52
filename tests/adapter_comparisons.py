"""Adapters merged here and by the tools that made them: the largest difference of a network's outputs.

`python tests/adapter_comparisons.py` prints the table of docs/formats.md, "Adapters: checked against". Each
case makes an adapter with LyCORIS, PEFT or diffusers, gives it random weights, stores its tensors and merges
them into a second copy of the same small network.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # tests/finextract is a folder too

from tried_formats import bfl  # noqa: E402

from finextract.adapters.merge import merge  # noqa: E402
from finextract.adapters.parsing import parse_adapter  # noqa: E402
from finextract.metadata.local_files import read_object  # noqa: E402

LYCORIS, PEFT = "LyCORIS", "PEFT"
PACKAGES = {LYCORIS: "lycoris-lora", PEFT: "peft", "diffusers": "diffusers"}
CASES: dict[str, tuple[str, Callable[[], float]]] = {}  # name -> (tools, the largest relative difference)


class Net(nn.Module):
    """A convolution, a convolution of one pixel, two linear layers, and both kinds of normalisation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.mix = nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(8, 32)
        self.ln = nn.LayerNorm(32)
        self.out = nn.Linear(32, 16, bias=False)
        for name in ("norm", "ln"):
            nn.init.normal_(self.get_submodule(name).get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [N, 8, H, W] -> [N, H, W, 16]."""
        x = self.mix(torch.nn.functional.silu(self.norm(self.conv(x))))
        return self.out(self.ln(torch.nn.functional.silu(self.fc(x.movedim(1, -1)))))


LAYERS = ("conv", "mix", "fc", "out")
NORMS = ("norm", "ln")


def layers_of(model: nn.Module, component: str = "unet") -> dict[str, nn.Module]:
    """The layers of a network, as `Model.layers()` gives them."""
    kinds = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm
    return {f"{component}.{name}": m for name, m in model.named_modules() if isinstance(m, kinds)}


def relative(theirs: Tensor, ours: Tensor) -> float:
    """The largest difference, as a part of the largest output."""
    return float((theirs - ours).abs().max() / theirs.abs().max())


def compared(tools: str, name: str) -> Callable[[Callable[[], float]], Callable[[], float]]:
    """Registers a comparison."""

    def register(compare: Callable[[], float]) -> Callable[[], float]:
        CASES[name] = (tools, compare)
        return compare

    return register


@cache
def difference(name: str) -> float:
    """The largest relative difference that a case gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CASES[name][1]()


def randomised(module: nn.Module, std: float = 0.3) -> None:
    """Gives an adapter weights as training might: none is 0, and magnitudes stay near where they start.

    LyCORIS' full difference holds the layer's own weights once it is applied.
    """
    with torch.no_grad():
        for part, (name, tensor) in (
            (m, p) for m in module.modules() for p in m.named_parameters(recurse=False)
        ):
            if any(start in name for start in ("dora_scale", "magnitude", "rescale", "boft_s", "ia3_l")):
                tensor.mul_(1 + 0.2 * torch.randn_like(tensor))
            elif type(part).__name__ == "FullModule":
                tensor.add_(std * torch.randn_like(tensor))
            else:
                tensor.normal_(std=std)


# --- LyCORIS ----------------------------------------------------------------------------------------------


def lycoris(kinds: Mapping[str, tuple[str, dict[str, Any]]], stored_as: Any = None) -> float:
    """Compares with LyCORIS, whose modules are put around layers of a network, layer -> (kind, options)."""
    from lycoris.modules.boft import ButterflyOFTModule
    from lycoris.modules.diag_oft import DiagOFTModule
    from lycoris.modules.full import FullModule
    from lycoris.modules.glora import GLoRAModule
    from lycoris.modules.ia3 import IA3Module
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule
    from lycoris.modules.norms import NormModule

    modules = {
        "lora": LoConModule, "loha": LohaModule, "lokr": LokrModule, "glora": GLoRAModule, "ia3": IA3Module,
        "oft": DiagOFTModule, "boft": ButterflyOFTModule, "full": FullModule, "norm": NormModule,
    }  # fmt: skip
    theirs, ours = Net(), Net()
    state: dict[str, Tensor] = {}
    for layer, (kind, options) in kinds.items():
        defaults: dict[str, Any] = {"lora_dim": 4, "alpha": 3.0}
        module = modules[kind](f"lycoris_{layer}", theirs.get_submodule(layer), **defaults | options)
        module.apply_to()
        randomised(module)
        stored = stored_as(module) if stored_as else module.state_dict()
        state |= {f"lycoris_{layer}.{k}": v.detach().clone() for k, v in stored.items()}
    merge(layers_of(ours), parse_adapter(state, {}, {}))
    pictures = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        changed, merged, before = theirs(pictures), ours(pictures), Net()(pictures)
    assert relative(changed, before) > 0.01  # the adapter does something
    return relative(changed, merged)


def every_layer(kind: str, **options: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    return dict.fromkeys(LAYERS, (kind, options))


def with_norms(kinds: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, tuple[str, dict[str, Any]]]:
    return {**kinds, **{layer: ("norm", {}) for layer in NORMS}}


DORA = {"weight_decompose": True}
BY_INPUT = {"weight_decompose": True, "wd_on_out": False}
for _name, _kinds in {
    "LoRA and LoCon": every_layer("lora"),
    "LoRA, rank-stabilised": every_layer("lora", rs_lora=True),
    "LoRA, scalar": every_layer("lora", use_scalar=True),
    "LoCon, Tucker": every_layer("lora", use_tucker=True),
    "DoRA by output": every_layer("lora", **DORA),
    "DoRA by input": every_layer("lora", **BY_INPUT),
    "DoRA of a LoCon, Tucker": every_layer("lora", use_tucker=True, **DORA),
    "LoHa": every_layer("loha"),
    "LoHa, Tucker": every_layer("loha", use_tucker=True),
    "LoHa, DoRA by output": every_layer("loha", **DORA),
    "LoHa, DoRA by input": every_layer("loha", use_tucker=True, **BY_INPUT),
    "LoKr, second matrix a product": every_layer("lokr", lora_dim=1, factor=2),
    "LoKr, both matrices products": every_layer("lokr", lora_dim=1, decompose_both=True, factor=4),
    "LoKr, both matrices whole": every_layer("lokr", full_matrix=True, factor=4),
    "LoKr, Tucker": every_layer("lokr", lora_dim=2, use_tucker=True, factor=2),
    "LoKr, unbalanced": every_layer("lokr", lora_dim=1, factor=2, unbalanced_factorization=True),
    "LoKr, DoRA": every_layer("lokr", lora_dim=1, factor=2, **DORA),
    "GLoRA": every_layer("glora"),
    "(IA)3 of outputs": every_layer("ia3"),
    "(IA)3 of inputs": every_layer("ia3", train_on_input=True),
    "OFT": every_layer("oft"),
    "OFT, constrained and rescaled": every_layer("oft", constraint=0.02, rescaled=True),
    "BOFT": every_layer("boft"),
    "BOFT, constrained and rescaled": every_layer("boft", constraint=0.02, rescaled=True),
    "full difference": every_layer("full"),
    "norm layers": with_norms({}),
    "LoCon with norm layers": with_norms(every_layer("lora")),
    "LoRA, LoKr, full difference, norm layers": with_norms(
        {
            "conv": ("lokr", {"lora_dim": 1, "factor": 2}),
            "mix": ("lora", {}),
            "fc": ("full", {}),
            "out": ("loha", {}),
        }
    ),
}.items():
    compared(LYCORIS, _name)(lambda kinds=_kinds: lycoris(kinds))  # type: ignore[misc]
# Until version 2.0 LyCORIS stored the rotations themselves, and until 1.9 the scalar beside the matrices.
compared(LYCORIS, "OFT, rotations stored (oft_diag)")(
    lambda: lycoris(every_layer("oft"), lambda module: {"oft_diag": module.get_r()})
)


def _beside(module: Any) -> dict[str, Tensor]:
    """The tensors of a LoRA with the scalar beside them."""
    return {
        "lora_up.weight": module.lora_up.weight,
        "lora_down.weight": module.lora_down.weight,
        "alpha": module.alpha,
        "scalar": module.scalar,
    }


compared(LYCORIS, "LoRA, scalar stored beside it")(
    lambda: lycoris(every_layer("lora", use_scalar=True), _beside)
)


@compared(LYCORIS, "GLoRA, Tucker")
def _() -> float:
    """LyCORIS never makes this one, but its functions and its file format have it."""
    from lycoris.modules.glora import _glora_weight

    layer = Net().conv
    a1, a2, b1, b2 = (torch.randn(s) * 0.3 for s in ((8, 4), (4, 8), (16, 4), (4, 8)))
    core = torch.randn(4, 4, 3, 3) * 0.3
    parts = {"a1": a1, "a2": a2, "b1": b1, "b2": b2, "bm": core}
    theirs = layer.weight.detach() + _glora_weight(layer.weight.detach(), *parts.values(), 0.75)
    state = {f"lycoris_conv.{k}.weight": v.reshape(*v.shape, *[1] * (4 - v.dim())) for k, v in parts.items()}
    ours = Net()
    merge(layers_of(ours), parse_adapter({**state, "lycoris_conv.alpha": torch.tensor(3.0)}, {}, {}))
    return relative(theirs, ours.conv.weight.detach())


# --- PEFT -------------------------------------------------------------------------------------------------


def peft(kind: str, **options: Any) -> float:
    """Compares with what PEFT merges, from the files that it saves."""
    import peft as package
    from safetensors.torch import load_file

    config = getattr(package, f"{kind}Config")(**{"target_modules": list(LAYERS)} | options)
    torch.manual_seed(3)
    model = package.get_peft_model(Net(), config)
    for tensor in model.parameters():
        if tensor.requires_grad:
            tensor.data = tensor.data * (1 + 0.2 * torch.randn_like(tensor)) + _shift(kind, tensor)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        state = load_file(Path(folder) / "adapter_model.safetensors")
        stated = read_object(Path(folder) / "adapter_config.json")
        theirs = package.PeftModel.from_pretrained(Net(), folder).merge_and_unload()
    ours = Net()
    merge(layers_of(ours), parse_adapter(state, {}, stated))
    pictures = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        changed, merged, before = theirs(pictures), ours(pictures), Net()(pictures)
    assert relative(changed, before) > 0.01
    return relative(changed, merged)


def _shift(kind: str, tensor: Tensor) -> Tensor:
    """What keeps tensors that start at 0 from staying there; a factor starts near its own size."""
    starts_at_zero = not bool(tensor.detach().abs().max() > 0) or kind not in ("IA3", "BOFT")
    return 0.2 * torch.randn_like(tensor) if starts_at_zero else torch.zeros_like(tensor)


for _name, _kind, _options in (
    ("LoRA and LoCon", "Lora", {"r": 4, "lora_alpha": 6}),
    ("LoRA, rank-stabilised", "Lora", {"r": 4, "lora_alpha": 6, "use_rslora": True}),
    ("LoRA with a bias", "Lora",
     {"r": 4, "lora_alpha": 6, "lora_bias": True, "target_modules": ["conv", "mix", "fc"]}),
    ("DoRA by output", "Lora", {"r": 4, "lora_alpha": 6, "use_dora": True}),
    ("LoHa", "LoHa", {"r": 4, "alpha": 6}),
    ("LoHa, Tucker", "LoHa", {"r": 4, "alpha": 6, "use_effective_conv2d": True}),
    ("LoHa, alpha by layer", "LoHa",
     {"r": 4, "alpha": 6, "alpha_pattern": {"fc": 2}, "rank_pattern": {"mix": 2}}),
    ("LoKr, second matrix a product", "LoKr", {"r": 1, "alpha": 2}),
    ("LoKr, both matrices products", "LoKr",
     {"r": 1, "alpha": 2, "decompose_both": True, "target_modules": ["fc", "out"]}),
    ("LoKr, both matrices whole", "LoKr", {"r": 16, "alpha": 8}),
    ("LoKr, Tucker", "LoKr", {"r": 1, "alpha": 2, "decompose_factor": 2, "use_effective_conv2d": True}),
    ("(IA)3 of outputs", "IA3", {"feedforward_modules": []}),
    ("(IA)3 of inputs", "IA3", {"feedforward_modules": ["mix", "fc", "conv", "out"]}),
    ("OFT", "OFT", {"r": 0, "oft_block_size": 8, "use_cayley_neumann": False}),
    ("OFT by a series", "OFT", {"r": 0, "oft_block_size": 8, "use_cayley_neumann": True}),
    ("OFT by a series of 3 terms", "OFT",
     {"r": 0, "oft_block_size": 8, "use_cayley_neumann": True, "num_cayley_neumann_terms": 3}),
    ("OFT, shared block", "OFT",
     {"r": 0, "oft_block_size": 4, "block_share": True, "use_cayley_neumann": False}),
    ("OFT, constrained", "OFT",
     {"r": 0, "oft_block_size": 8, "coft": True, "eps": 0.4, "use_cayley_neumann": False}),
    ("BOFT", "BOFT", {"boft_block_size": 4}),
):  # fmt: skip
    compared(PEFT, _name + ", PEFT")(lambda k=_kind, o=_options: peft(k, **o))  # type: ignore[misc]


@compared(PEFT, "BOFT of several stages, PEFT")
def _() -> float:
    """PEFT needs a CUDA extension for several stages, so the stages are computed from its permutations."""
    from peft.tuners.boft.layer import BOFTLayer

    torch.manual_seed(3)
    stages, blocks, size, inputs = 3, 8, 4, 32
    matrices, scales = torch.randn(stages, blocks, size, size), 1 + 0.2 * torch.randn(16, 1)
    layer = BOFTLayer.__new__(BOFTLayer)
    nn.Module.__init__(layer) if isinstance(layer, nn.Module) else None
    whole = torch.eye(inputs)
    for stage in range(stages):
        order = layer.block_butterfly_perm(inputs, blocks // 2**stage, size // 2, stages - 1)
        permutation = layer.perm2mat(order)
        block = torch.block_diag(*layer.cayley_batch(matrices[stage]))
        whole = permutation @ block @ permutation.T @ whole
    theirs = Net().out.weight.detach() @ whole.T * scales
    ours = Net()
    state = {"base_model.model.out.boft_R": matrices, "base_model.model.out.boft_s": scales}
    merge(layers_of(ours), parse_adapter(state, {}, {}))
    return relative(theirs, ours.out.weight.detach())


# --- key styles, with a UNet and a text encoder -----------------------------------------------------------


def small_unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(4)
    return UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        sample_size=8, cross_attention_dim=32, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


def small_text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(5)
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=99
        )
    ).eval()


@torch.no_grad()
def predicted(unet: Any, text: Any) -> Tensor:
    """What the UNet predicts under the text encoder's output."""
    tokens = torch.arange(12).reshape(1, 12)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    result: Tensor = unet(noise, 300, encoder_hidden_states=text(tokens)[0]).sample
    return result


def merged_into_copies(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Tensor:
    """What a UNet and a text encoder predict into which an adapter is merged here."""
    unet, text = small_unet(), small_text_encoder()
    layers = {**layers_of(unet), **layers_of(text, "text_encoder")}
    merge(layers, parse_adapter(state, metadata, {}))
    return predicted(unet, text)


def trained_by_lycoris(
    text: Any, unet: Any, algorithm: str, on_input: bool = False, **options: Any
) -> dict[str, Tensor]:
    """What LyCORIS' module for kohya's sd-scripts saves. The UNet and the text encoders stay changed by it.

    `on_input`: in all modules but that of conv_in, which LyCORIS' preset names by itself.
    """
    from lycoris.kohya import create_network
    from safetensors.torch import load_file

    of_unet, of_text = ["Transformer2DModel", "ResnetBlock2D"], ["CLIPAttention", "CLIPMLP"]
    overrides = [f"{module} = {{train_on_input = true}}\n" for module in of_unet + of_text if on_input]
    with tempfile.TemporaryDirectory() as folder:
        preset = Path(folder) / "preset.toml"
        preset.write_text(
            f"enable_conv = true\nunet_target_module = {of_unet}\n"
            f'unet_target_name = ["conv_in"]\ntext_encoder_target_module = {of_text}\n'
            f"[module_algo_map]\n{''.join(overrides)}"
        )
        torch.manual_seed(7)
        network = create_network(1.0, 4, 3.0, None, text, unet, algo=algorithm, preset=str(preset), **options)
        network.apply_to(text, unet, True, True)
        randomised(network)
        network.save_weights(str(Path(folder) / "a.safetensors"), torch.float32, {})
        return load_file(Path(folder) / "a.safetensors")


def kohya(algorithm: str, **options: Any) -> float:
    """Compares with LyCORIS' module for kohya's sd-scripts, from the file that it saves."""
    unet, text = small_unet(), small_text_encoder()
    state = trained_by_lycoris(text, unet, algorithm, **options)
    theirs = predicted(unet, text)
    assert relative(theirs, predicted(small_unet(), small_text_encoder())) > 0.01
    return relative(theirs, merged_into_copies(state, {}))


for _name, _algorithm, _options in (
    ("LoCon, kohya's keys", "lora", {}),
    ("LoCon with norm layers, kohya's keys", "lora", {"train_norm": True}),
    ("DoRA, kohya's keys", "lora", {"dora_wd": True}),
    ("LoHa, kohya's keys", "loha", {}),
    ("LoKr, kohya's keys", "lokr", {"factor": 4}),
    ("GLoRA, kohya's keys", "glora", {}),
    ("(IA)3 of outputs, kohya's keys", "ia3", {}),
    ("(IA)3 of inputs and outputs, kohya's keys", "ia3", {"on_input": True}),
    ("OFT, kohya's keys", "diag-oft", {}),
    ("BOFT, kohya's keys", "boft", {}),
    ("full difference, kohya's keys", "full", {}),
):
    compared(LYCORIS, _name)(lambda a=_algorithm, o=_options: kohya(a, **o))  # type: ignore[misc]


@torch.no_grad()
def sdxl_predicted(pipe: Any) -> Tensor:
    """What the UNet of SDXL predicts under both text encoders' outputs."""
    tokens, _, pooled, _ = pipe.encode_prompt("a dog", do_classifier_free_guidance=False)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    added = {"text_embeds": pooled, "time_ids": torch.arange(6.0)[None]}
    result: Tensor = pipe.unet(
        noise, 300, encoder_hidden_states=tokens, added_cond_kwargs=added, return_dict=False
    )[0]
    return result


def sdxl(algorithm: str, by_diffusers: bool = False, **options: Any) -> float:
    """Compares with LyCORIS, and with what diffusers loads, under the names that kohya gives SDXL's layers.

    LyCORIS names them as diffusers does; kohya's sd-scripts hand it a UNet that has the original names.
    """
    from tiny.single_files import unet_names
    from tiny.unet_pipelines import stable_diffusion_xl

    pipe = stable_diffusion_xl(velocity=False)
    names = {}
    for own, original in zip(pipe.unet.state_dict(), unet_names(pipe.unet), strict=True):
        styled = original.removeprefix("model.diffusion_model.").replace(".", "_")
        names[f"lora_unet_{own.replace('.', '_')}".removesuffix("_weight")] = (
            f"lora_unet_{styled.removesuffix('_weight')}"
        )
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    state = {}
    for key, tensor in trained_by_lycoris(encoders, pipe.unet, algorithm, **options).items():
        layer, _, part = key.partition(".")
        layer = names[layer] if layer.startswith("lora_unet_") else layer
        # transformers 5 dropped the "text_model." of CLIPTextModel.
        state[re.sub(r"^(lora_te\d)_(?!text_model)", r"\1_text_model_", f"{layer}.{part}")] = tensor
    theirs = [sdxl_predicted(pipe)]
    before = sdxl_predicted(stable_diffusion_xl(velocity=False))
    if by_diffusers:
        pipe = stable_diffusion_xl(velocity=False)
        pipe.load_lora_weights(dict(state))
        theirs.append(sdxl_predicted(pipe))
    pipe = stable_diffusion_xl(velocity=False)
    parts = {name: getattr(pipe, name) for name in ("unet", "text_encoder", "text_encoder_2")}
    layers = {k: v for name, part in parts.items() for k, v in layers_of(part, name).items()}
    merge(layers, parse_adapter(state, {}, {}))
    ours = sdxl_predicted(pipe)
    assert all(relative(changed, before) > 0.01 for changed in theirs)
    return max(relative(changed, ours) for changed in theirs)


for _name, _tools, _algorithm, _options in (
    ("LoCon", "LyCORIS, diffusers and PEFT", "lora", {"by_diffusers": True}),
    ("DoRA", LYCORIS, "lora", {"dora_wd": True}),  # diffusers leaves the magnitudes out
    ("LoHa", LYCORIS, "loha", {}),
    ("LoKr", LYCORIS, "lokr", {"factor": 4}),
):
    compared(_tools, f"{_name} of SDXL, kohya's original names")(
        lambda a=_algorithm, o=_options: sdxl(a, **o)  # type: ignore[misc]
    )


def diffusers_file(old_keys: bool = False, **options: Any) -> float:
    """Compares with diffusers and PEFT, from the file that `save_lora_weights` saves."""
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from safetensors import safe_open

    from finextract.weights.formats import read_header

    unet, text = small_unet(), small_text_encoder()
    targets = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "text_encoder": ["q_proj", "fc1"]}
    torch.manual_seed(8)
    for name, model in (("unet", unet), ("text_encoder", text)):
        model.add_adapter(LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets[name]} | options))
        for key, tensor in model.named_parameters():
            if "lora_B" in key:
                tensor.data.normal_(std=0.3)
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(unet),
            text_encoder_lora_layers=get_peft_model_state_dict(text),
            **_collate_lora_metadata({"unet": unet, "text_encoder": text}),
        )
        path = next(Path(folder).glob("*.safetensors"))
        metadata = read_header(path).metadata
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if old_keys:
        state, metadata = {_old_key(key): tensor for key, tensor in state.items()}, {}
    theirs = predicted(unet, text)
    assert relative(theirs, predicted(small_unet(), small_text_encoder())) > 0.01
    return relative(theirs, merged_into_copies(state, metadata))


def _old_key(key: str) -> str:
    """The name that diffusers gave a tensor before it used PEFT."""
    half = "down" if "lora_A" in key else "up"
    layer = key.partition(".lora_")[0]
    if layer.startswith("text_encoder"):
        return f"{layer}.lora_linear_layer.{half}.weight"
    attention, _, projection = layer.removesuffix(".0").rpartition(".")
    return f"{attention}.processor.{projection}_lora.{half}.weight"


compared("diffusers and PEFT", "LoRA, diffusers' keys")(diffusers_file)
compared("diffusers and PEFT", "DoRA, diffusers' keys")(lambda: diffusers_file(use_dora=True))
compared("diffusers and PEFT", "LoRA, diffusers' keys before PEFT")(
    lambda: diffusers_file(old_keys=True, lora_alpha=4)
)


# --- key styles of FLUX.1, with a transformer of two blocks of each sort ----------------------------------


def lora(layers: dict[str, tuple[int, int]], ends: tuple[str, str], alpha: bool) -> dict[str, Tensor]:
    """A LoRA of rank 2 for layers of those widths, (in, out)."""
    torch.manual_seed(2)
    made: dict[str, Tensor] = {}
    for name, (wide, out) in layers.items():
        made[f"{name}.{ends[0]}.weight"] = torch.randn(2, wide)
        made[f"{name}.{ends[1]}.weight"] = torch.randn(out, 2)
        if alpha:
            made[f"{name}.alpha"] = torch.tensor(1.0)
    return made


FLUX_NAMES = bfl(guidance=True, w=32, doubles=2, singles=2, text=48, pooled=16, head=8)
FLUX_BFL = {
    key.removesuffix(".weight"): (shape[1], shape[0])
    for key, shape in FLUX_NAMES.items()
    if key.endswith(".weight")
}
FLUX_KOHYA = {
    f"lora_unet_{name.replace('.', '_')}": widths
    for name, widths in FLUX_BFL.items()
    if name.startswith("double_blocks.")
}
FLUX_XLABS = {
    "double_blocks.0.processor.qkv_lora1": (32, 96),
    "double_blocks.1.processor.qkv_lora2": (32, 96),
    "double_blocks.0.processor.proj_lora1": (32, 32),
    "double_blocks.1.processor.proj_lora2": (32, 32),
    "single_blocks.0.processor.qkv_lora": (32, 96),
    "single_blocks.1.processor.proj_lora": (160, 32),
}
FLUX_DIFFUSERS = {
    "transformer_blocks.0.attn.to_q": (32, 32),
    "transformer_blocks.1.attn.to_add_out": (32, 32),
    "transformer_blocks.1.ff.net.0.proj": (32, 128),
    "single_transformer_blocks.0.proj_mlp": (32, 128),
    "single_transformer_blocks.1.attn.to_v": (32, 32),
}


@torch.no_grad()
def flux_predicted(transformer: Any) -> Tensor:
    """What a transformer of FLUX.1 predicts for 16 patches under 8 tokens."""
    numbers = torch.Generator().manual_seed(9)
    patches, tokens, pooled = (
        torch.randn(1, *shape, generator=numbers) for shape in ((16, 64), (8, 48), (16,))
    )
    result: Tensor = transformer(
        patches, tokens, pooled, torch.tensor([0.3]), torch.rand(16, 3, generator=numbers).round(),
        torch.zeros(8, 3), torch.tensor([3.5]), return_dict=False,
    )[0]  # fmt: skip
    return result


def flux_file(state: Mapping[str, Tensor], loaded: Mapping[str, Tensor] | None = None) -> float:
    """Compares with what diffusers' pipeline of FLUX.1 loads from a file, or from `loaded` in its place."""
    from tiny.flow_pipelines import flux_components, flux_pipeline

    pipe = flux_pipeline()
    before = flux_predicted(pipe.transformer)
    pipe.load_lora_weights(dict(loaded or state))
    pipe.fuse_lora()
    theirs = flux_predicted(pipe.transformer)
    assert relative(theirs, before) > 0.01
    ours = flux_components()["transformer"]
    merge(layers_of(ours, "transformer"), parse_adapter(state, {}, {}))
    return relative(theirs, flux_predicted(ours))


for _name, _layers, _ends, _alpha in (
    ("LoRA of FLUX.1, kohya's keys", FLUX_KOHYA, ("lora_down", "lora_up"), True),
    ("LoRA of FLUX.1, XLabs' keys", FLUX_XLABS, ("down", "up"), False),
    ("LoRA of FLUX.1, diffusers' and ai-toolkit's keys",
     {f"transformer.{name}": widths for name, widths in FLUX_DIFFUSERS.items()}, ("lora_A", "lora_B"), False),
    ("LoRA of FLUX.1's attention, OneTrainer's keys",  # diffusers misplaces the keys of other layers
     {f"lora_transformer_{name.replace('.', '_')}": widths for name, widths in FLUX_DIFFUSERS.items()
      if ".attn." in name},
     ("lora_down", "lora_up"), True),
):  # fmt: skip
    compared("diffusers and PEFT", _name)(
        lambda s=(_layers, _ends, _alpha): flux_file(lora(*s))  # type: ignore[misc]
    )


def small_conversion(convert: Callable[..., Any]) -> Callable[..., Any]:
    """A conversion of diffusers that states FLUX.1's numbers, with those of the small transformer instead."""
    from diffusers.loaders import lora_conversion_utils

    source = inspect.getsource(convert)
    for line, small in (("num_layers = 19", 2), ("num_single_layers = 38", 2), ("inner_dim = 3072", 32)):
        assert f" {line}\n" in source
        source = source.replace(f" {line}\n", f" {line.partition(' =')[0]} = {small}\n")
    names = dict(vars(lora_conversion_utils))
    exec(source, names)
    converted: Callable[..., Any] = names[convert.__name__]
    return converted


def flux_bfl(start: str, control: bool = False) -> float:
    """Compares with what diffusers loads from Black Forest Labs' own names, which have `start` before them.

    Diffusers converts them with "base_model.model." before them, or as a control LoRA, which has all layers,
    biases, and norms of queries and keys. Those replace the base's and are no adapter: they are left out.
    """
    from diffusers.loaders import lora_conversion_utils, lora_pipeline

    name = f"_convert_{'bfl_flux_control' if control else 'fal_kontext'}_lora_to_diffusers"
    convert = small_conversion(getattr(lora_conversion_utils, name))
    some = ("",) if control else ("double_blocks.", "single_blocks.", "final_layer.linear")
    layers = {layer: widths for layer, widths in FLUX_BFL.items() if layer.startswith(some)}
    state = lora(layers, ("lora_A", "lora_B"), alpha=False)
    if control:
        state |= {f"{layer}.lora_B.bias": torch.randn(out) for layer, (_, out) in layers.items()}
    loaded = {f"{'' if control else 'base_model.model.'}{key}": tensor for key, tensor in state.items()}
    if control:
        last = "final_layer.adaLN_modulation.1.lora_A.weight"
        loaded[last] = loaded[last].flip(0)  # diffusers exchanges the halves of lora_A's rows too, of 2 here
        loaded |= {key: torch.ones(shape) for key, shape in FLUX_NAMES.items() if key.endswith(".scale")}

    def without_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in convert(state).items() if ".attn.norm_" not in key}

    with mock.patch.object(lora_pipeline, name, without_norms):
        return flux_file({f"{start}{key}": tensor for key, tensor in state.items()}, loaded)


for _name, _start, _control in (
    ("LoRA of FLUX.1, original names as PEFT stores them", "base_model.model.", False),
    ("LoRA of FLUX.1, original names as ai-toolkit stores them; diffusers loads PEFT's only",
     "diffusion_model.", False),
    ("LoRA of FLUX.1 with biases, original names of control LoRAs, norms left out", "", True),
):  # fmt: skip
    compared("diffusers and PEFT", _name)(
        lambda s=_start, c=_control: flux_bfl(s, c)  # type: ignore[misc]
    )


# --- telling ----------------------------------------------------------------------------------------------


def stated(value: float) -> str:
    """A difference for the table, rounded up to one digit of a power of ten."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(value))
    return (
        f"{math.ceil(value / 10**exponent):d}e{exponent}" if value < 10**exponent * 9 else f"1e{exponent + 1}"
    )


def tools_with_versions(tools: str) -> str:
    for name, package in PACKAGES.items():
        tools = tools.replace(name, f"{name} {version(package)}")
    return tools


def table_row(name: str) -> str:
    """The case's line in docs/formats.md."""
    return f"| {name} | {tools_with_versions(CASES[name][0])} | {stated(difference(name))} |"


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        try:
            print(table_row(case), flush=True)
        except Exception as error:
            print(f"| {case} | {type(error).__name__}: {error} |", flush=True)
