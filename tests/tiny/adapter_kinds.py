"""Every kind of adapter for a layer of any size, without numbers: the tensors that its tool stores for it.

LyCORIS and PEFT make most modules themselves, on torch's meta device, so that the shapes are theirs. Single
numbers (alpha, on_input) are real ones, since parsing reads them.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

type Parts = dict[str, Tensor]  # "lora_down.weight" -> tensor


def _lycoris(module: str, cls: str, **options: Any) -> Callable[[nn.Module], Parts]:
    def make(layer: nn.Module) -> Parts:
        made = getattr(__import__(f"lycoris.modules.{module}", fromlist=[cls]), cls)
        adapter = made("a", layer, **{"lora_dim": 4, "alpha": 3.0} | options)
        adapter.apply_to()
        return {key: tensor.detach() for key, tensor in adapter.state_dict().items()}

    return make


def _peft(kind: str, **options: Any) -> Callable[[nn.Module], Parts]:
    def make(layer: nn.Module) -> Parts:
        import peft
        from peft.utils import get_peft_model_state_dict

        config = getattr(peft, f"{kind}Config")(**{"target_modules": ["0"]} | options)
        model = peft.get_peft_model(nn.Sequential(layer), config)
        start = "base_model.model.0."
        return {key.removeprefix(start): t for key, t in get_peft_model_state_dict(model).items()}

    return make


def _full(layer: nn.Module) -> Parts:
    """LyCORIS' module copies the layer's own numbers to the CPU, of which there are none."""
    found = {"weight": "diff", "bias": "diff_b"}
    return {found[name]: torch.empty_like(tensor) for name, tensor in layer.named_parameters()}


def _kohyas_oft(layer: nn.Module) -> Parts:
    """networks/oft.py of kohya, which is on no package index."""
    rows = layer.get_parameter("weight").shape[0]
    return {"oft_blocks": torch.empty(4, rows // 4, rows // 4), "alpha": torch.tensor(1e-3)}


def _boft_of_peft(layer: nn.Module) -> Parts:
    """PEFT's module has permutations of all inputs, which take long to make."""
    weight = layer.get_parameter("weight")
    inputs = weight[0].numel()
    return {"boft_R": torch.empty(1, inputs // 4, 4, 4), "boft_s": torch.empty(len(weight), 1)}


def _with_dora(make: Callable[[nn.Module], Parts]) -> Callable[[nn.Module], Parts]:
    """LyCORIS computes the magnitudes of a DoRA from the layer's numbers, of which there are none."""

    def made(layer: nn.Module) -> Parts:
        weight = layer.get_parameter("weight")
        return make(layer) | {"dora_scale": torch.empty(len(weight), *[1] * (weight.dim() - 1))}

    return made


def _ia3(on_input: bool) -> Callable[[nn.Module], Parts]:
    make = _lycoris("ia3", "IA3Module", train_on_input=on_input)
    return lambda layer: make(layer) | {"on_input": torch.tensor(int(on_input), device="cpu")}


def _loha(tucker: bool = False) -> Callable[[nn.Module], Parts]:
    """LyCORIS' module reads the pixels of a kernel from a tensor, which has no numbers."""

    def make(layer: nn.Module) -> Parts:
        outputs, inputs, *kernel = layer.get_parameter("weight").shape
        pixels, rank = math.prod(kernel), 4
        shapes: dict[str, tuple[int, ...]] = {}
        for n in (1, 2):
            shapes |= {f"hada_w{n}_a": (outputs, rank), f"hada_w{n}_b": (rank, inputs * pixels)}
            if tucker and pixels > 1:
                shapes |= {f"hada_w{n}_a": (rank, outputs), f"hada_w{n}_b": (rank, inputs)}
                shapes[f"hada_t{n}"] = (rank, rank, *kernel)
        return {name: torch.empty(shape) for name, shape in shapes.items()} | {"alpha": torch.empty(())}

    return make


def _lokr(first: str = "whole", second: str = "product") -> Callable[[nn.Module], Parts]:
    """LyCORIS looks for numbers that are not finite in the product, which has none."""

    def make(layer: nn.Module) -> Parts:
        outputs, inputs, *kernel = layer.get_parameter("weight").shape
        pixels = math.prod(kernel)
        factor = math.gcd(4, outputs, inputs)
        outputs, inputs, rank = outputs // factor, inputs // factor, 2
        shapes: dict[str, tuple[int, ...]] = {"lokr_w1": (factor, factor)}
        if first == "product":
            shapes = {"lokr_w1_a": (factor, rank), "lokr_w1_b": (rank, factor)}
        if second == "whole":
            shapes["lokr_w2"] = (outputs, inputs, *kernel)
        elif second == "Tucker" and pixels > 1:
            shapes["lokr_t2"] = (rank, rank, *kernel)
            shapes |= {"lokr_w2_a": (rank, outputs), "lokr_w2_b": (rank, inputs)}
        else:
            shapes |= {"lokr_w2_a": (outputs, rank), "lokr_w2_b": (rank, inputs * pixels)}
        return {name: torch.empty(shape) for name, shape in shapes.items()} | {"alpha": torch.empty(())}

    return make


def _boft(rescaled: bool = False) -> Callable[[nn.Module], Parts]:
    """LyCORIS' module has no blocks for most of these widths, unless their size is chosen for each."""

    def make(layer: nn.Module) -> Parts:
        weight = layer.get_parameter("weight")
        rows, size = len(weight), 4
        stages = 2 if rows % (2 * size) == 0 else 1
        parts = {"oft_blocks": torch.empty(stages, rows // size, size, size), "alpha": torch.empty(())}
        return parts | ({"rescale": torch.empty(rows, *[1] * (weight.dim() - 1))} if rescaled else {})

    return make


# Kinds by LyCORIS, which kohya's scripts, OneTrainer and ai-toolkit store in the same way.
LYCORIS: dict[str, Callable[[nn.Module], Parts]] = {
    "LoRA": _lycoris("locon", "LoConModule"),
    "LoCon, Tucker": _lycoris("locon", "LoConModule", use_tucker=True),
    "DoRA": _with_dora(_lycoris("locon", "LoConModule")),
    "LoHa": _loha(),
    "LoHa, Tucker": _loha(tucker=True),
    "LoKr": _lokr(),
    "LoKr, both whole": _lokr(second="whole"),
    "LoKr, both products": _lokr(first="product"),
    "LoKr, Tucker": _lokr(second="Tucker"),
    "LoKr, DoRA": _with_dora(_lokr()),
    "GLoRA": _lycoris("glora", "GLoRAModule"),
    "(IA)3 of outputs": _ia3(on_input=False),
    "(IA)3 of inputs": _ia3(on_input=True),
    "OFT": _lycoris("diag_oft", "DiagOFTModule"),
    "OFT, constrained and rescaled": _lycoris("diag_oft", "DiagOFTModule", constraint=0.02, rescaled=True),
    "BOFT": _boft(),
    "BOFT, rescaled": _boft(rescaled=True),
    "full difference": _full,
}
LYCORIS_NORMS = _lycoris("norms", "NormModule")
OFT_OF_KOHYA = {"kohya's OFT": _kohyas_oft}
PEFT: dict[str, Callable[[nn.Module], Parts]] = {
    "LoRA, PEFT": _peft("Lora", r=4),
    "DoRA, PEFT": _peft("Lora", r=4, use_dora=True),
    "LoHa, PEFT": _peft("LoHa", r=4),
    "LoKr, PEFT": _peft("LoKr", r=4),
    "LoKr, both products, PEFT": _peft("LoKr", r=1, decompose_both=True),
    "(IA)3 of outputs, PEFT": _peft("IA3", feedforward_modules=[]),
    "(IA)3 of inputs, PEFT": _peft("IA3", feedforward_modules=["0"]),
    "OFT, PEFT": _peft("OFT", r=0, oft_block_size=4),
    "BOFT, PEFT": _boft_of_peft,
}


def parts_of(make: Callable[[nn.Module], Parts], layer: nn.Module) -> Parts:
    """The tensors of one layer by their endings."""
    with torch.device("meta"), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        made = make(copy.copy(layer))
    return {key: torch.ones(t.shape) if t.is_meta and t.numel() == 1 else t for key, t in made.items()}


def plain_layer(weight: Tensor, bias: Tensor | None, like: nn.Module) -> nn.Module:
    """A layer of its own with the shapes of a weight and a bias, of the kind of another one."""
    options: Mapping[str, Any] = {"bias": bias is not None, "device": "meta"}
    if isinstance(like, nn.Conv2d):
        outputs, inputs, *kernel = weight.shape
        return nn.Conv2d(inputs, outputs, kernel, **options)
    if isinstance(like, nn.GroupNorm):
        return nn.GroupNorm(like.num_groups, len(weight), device="meta")
    if isinstance(like, nn.LayerNorm):
        return nn.LayerNorm(len(weight), **options)
    return nn.Linear(weight.shape[1], weight.shape[0], **options)
