"""LoRA adapters, in kohya, diffusers and PEFT key styles, merged into a model's weights.

W <- W + (alpha / r) * up @ down, Hu et al. (ICLR 2022), section 4.1. A convolution's adapter (LoCon) is the
same product over its kernel. r = rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finextract.errors import BaseMismatch, CorruptWeights, UnsupportedWeights

_DOWN = (
    "lora_down.weight",
    "lora_A.weight",
    "lora_A.default.weight",
    "lora.down.weight",
    "lora_linear_layer.down.weight",
)
_UP = (
    "lora_up.weight",
    "lora_B.weight",
    "lora_B.default.weight",
    "lora.up.weight",
    "lora_linear_layer.up.weight",
)
# Before PEFT, diffusers stored attention adapters as <attention>.processor.<projection>_lora.down.weight.
_OLD_PROCESSOR = re.compile(r"^(.*)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")


@dataclass(frozen=True)
class LoraLayer:
    """One layer's adapter: `down` [r, in, *kernel], `up` [out, r, *1], and what to multiply by."""

    down: Tensor
    up: Tensor
    scale: float

    def delta(self) -> Tensor:
        """The weight difference, [out, in, *kernel], float32."""
        down, up = self.down.float(), self.up.float()
        product = up.flatten(1) @ down.flatten(1)  # [out, in * kernel]
        return self.scale * product.reshape(up.shape[0], *down.shape[1:])


def parse_lora(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], alphas: Mapping[str, object] | None = None
) -> dict[str, LoraLayer]:
    """Groups an adapter file's tensors by the layer they belong to.

    Layers are named as in the file ("lora_unet_down_blocks_0_...", "unet.down_blocks.0...."). `alphas` are
    the fields of a PEFT adapter_config.json, where there is one; diffusers keeps the same fields in the
    header (`lora_adapter_metadata`). Without any, alpha = r.
    Raises UnsupportedWeights for a tensor that is no part of a plain LoRA, CorruptWeights for half a layer.
    """
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    alpha: dict[str, float] = {}
    for key, tensor in state.items():
        if old := _OLD_PROCESSOR.match(key):
            layer = f"{old[1]}.{old[2]}" + (".0" if old[2] == "to_out" else "")
            (downs if old[3] == "down" else ups)[layer] = tensor
        elif key.endswith(".alpha"):
            alpha[key.removesuffix(".alpha")] = float(tensor)
        elif ending := next((e for e in _DOWN if key.endswith("." + e)), None):
            downs[key.removesuffix("." + ending)] = tensor
        elif ending := next((e for e in _UP if key.endswith("." + e)), None):
            ups[key.removesuffix("." + ending)] = tensor
        else:
            raise UnsupportedWeights(
                f"the adapter holds {key[:120]!r}; only plain LoRA layers can be merged so far."
            )
    if downs.keys() != ups.keys():
        lonely = sorted(downs.keys() ^ ups.keys())[0]
        raise CorruptWeights(f"the adapter holds only half of the layer {lonely[:120]!r}. Fetch it again.")
    told = {**_header_config(metadata), **(alphas or {})}
    return {
        layer: LoraLayer(down, ups[layer], _scale(layer, down.shape[0], alpha, told))
        for layer, down in downs.items()
    }


def _header_config(metadata: Mapping[str, str]) -> dict[str, object]:
    try:
        value = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _scale(layer: str, rank: int, alpha: Mapping[str, float], told: Mapping[str, object]) -> float:
    """alpha / r of one layer (alpha / sqrt(r) for rank-stabilised LoRA)."""
    if layer in alpha:
        return alpha[layer] / rank
    prefix = next(
        (p for p in ("unet.", "text_encoder.") if layer.startswith(p) and f"{p}lora_alpha" in told), ""
    )
    value = told.get(f"{prefix}lora_alpha")
    patterns = told.get(f"{prefix}alpha_pattern")
    if isinstance(patterns, dict):
        for pattern, special in patterns.items():
            if layer.endswith(str(pattern)):
                value = special
    if not isinstance(value, int | float):
        return 1.0
    return float(value) / (rank**0.5 if told.get(f"{prefix}use_rslora") is True else rank)


def _layers(unet: nn.Module, text_encoder: nn.Module) -> dict[str, nn.Module]:
    """Every layer under every name that an adapter file may call it by."""
    names: dict[str, nn.Module] = {}
    for module, kohya, diffusers in (
        (unet, "lora_unet_", "unet."),
        (text_encoder, "lora_te_", "text_encoder."),
    ):
        for name, layer in module.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            # transformers 5 dropped the text_model. that stands in every stored text encoder's names.
            for alias in {name, name.removeprefix("text_model."), f"text_model.{name}"}:
                names[kohya + alias.replace(".", "_")] = layer
                names[diffusers + alias] = layer
                if module is unet:
                    names["base_model.model." + alias] = layer
                    names[alias] = layer
                else:
                    names.setdefault("base_model.model." + alias, layer)
    return names


@torch.no_grad()
def merge_lora(adapter: Mapping[str, LoraLayer], unet: nn.Module, text_encoder: nn.Module) -> None:
    """Adds an adapter to the weights of a UNet and a text encoder, in place.

    Raises BaseMismatch where a layer is unknown to the model or has another shape; nothing is changed then.
    """
    names = _layers(unet, text_encoder)
    deltas: list[tuple[nn.Module, Tensor]] = []
    for name, low_rank in adapter.items():
        layer = names.get(name)
        if layer is None:
            raise BaseMismatch(f"the adapter is for a layer that the base model has not: {name[:120]!r}.")
        weight = layer.weight
        try:
            delta = low_rank.delta()
        except RuntimeError as error:
            raise CorruptWeights(f"the adapter's layer {name[:120]!r} has halves that do not fit.") from error
        assert isinstance(weight, Tensor)
        if delta.numel() != weight.numel() or delta.shape[0] != weight.shape[0]:
            raise BaseMismatch(
                f"the adapter does not fit its base: {name[:120]!r} is {list(delta.shape)}, "
                f"the base model's {list(weight.shape)}."
            )
        if not torch.isfinite(delta).all():
            raise CorruptWeights(f"the adapter's layer {name[:120]!r} holds numbers that are not finite.")
        deltas.append((layer, delta.reshape(weight.shape)))
    for layer, delta in deltas:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        weight.add_(delta.to(weight))
