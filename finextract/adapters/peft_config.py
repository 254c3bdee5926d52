"""What a PEFT configuration says of one layer: its scale and its rank. It comes from strangers."""

from __future__ import annotations

from collections.abc import Mapping

from finextract.adapters.patterns import value_of_layer
from finextract.errors import UnsupportedWeights

_COMPONENTS = (
    "unet.", "text_encoder.", "text_encoder_2.", "text_encoder_3.", "transformer.",
)  # fmt: skip  # so diffusers opens names of layers and fields
# Values of init_lora_weights, beside true and false, with which PEFT leaves the base's weights as they are.
# With pissa, olora, corda, lora_ga and loftq it changes them (peft.tuners.lora.LoraLayer.update_layer).
_LEAVE_THE_BASE = frozenset({"gaussian", "eva", "orthogonal", "mica"})
_PEFT_ALPHA = 8  # of a PEFT configuration that states none (peft.LoraConfig.lora_alpha, LoHaConfig.alpha)


def configured_scale(layer: str, rank: int, fields: Mapping[str, object], alpha_field: str) -> float:
    """alpha / r of one layer as PEFT's configuration states it (alpha / sqrt(r) for rank-stabilised LoRA).

    `rank` is that of the layer's tensors, which is what `r` and `rank_pattern` state. Patterns match the name
    that the layer has in its component (peft.tuners.lora.LoraModel._create_and_replace). 1 where no alpha is
    stated.
    """
    component, prefix = _component(layer, fields)
    alpha = _pattern_value(layer, component, fields.get(f"{prefix}alpha_pattern"))
    if alpha is None:
        alpha = fields.get(f"{prefix}{alpha_field}", _PEFT_ALPHA if f"{prefix}r" in fields else None)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        return 1.0
    return float(alpha) / (rank**0.5 if fields.get(f"{prefix}use_rslora") is True else rank)


def configured_rank(layer: str, fields: Mapping[str, object]) -> int | None:
    """The rank of one layer as PEFT's configuration states it; None where it states none."""
    component, prefix = _component(layer, fields)
    rank = _pattern_value(layer, component, fields.get(f"{prefix}rank_pattern"))
    if rank is None:
        rank = fields.get(f"{prefix}r")
    return rank if type(rank) is int and rank > 0 else None


def require_unchanged_base(layer: str, fields: Mapping[str, object]) -> None:
    """Raises UnsupportedWeights for a LoRA whose PEFT configuration says that it is for changed base weights.

    PiSSA and its like start with a part of the base's weight in the two matrices, and take it out of the base
    whenever the adapter is loaded. A file that was saved with `path_initial_model_for_weight_conversion` is a
    plain LoRA, and its configuration says true.
    """
    _, prefix = _component(layer, fields)
    stated = fields.get(f"{prefix}init_lora_weights", True)
    if isinstance(stated, str) and stated.lower() not in _LEAVE_THE_BASE:
        raise UnsupportedWeights(
            f"the adapter's configuration has init_lora_weights = {stated[:40]!r}, with which PEFT changes "
            "the base model's own weights: merged into the published base it would be another model. Ask its "
            "author for a copy saved with path_initial_model_for_weight_conversion, or for the merged model."
        )


def name_in_component(layer: str) -> str:
    """The layer's name without what PEFT and diffusers put before it."""
    name = layer.removeprefix("base_model.model.")
    return name.removeprefix(next((c for c in _COMPONENTS if name.startswith(c)), ""))


def _component(layer: str, fields: Mapping[str, object]) -> tuple[str, str]:
    """The component that opens a layer's name, and what opens the fields that hold for it."""
    component = next((c for c in _COMPONENTS if layer.startswith(c)), "")
    return component, component if any(name.startswith(component) for name in fields) else ""


def _pattern_value(layer: str, component: str, patterns: object) -> object | None:
    if not isinstance(patterns, dict):
        return None
    return value_of_layer(patterns, layer.removeprefix("base_model.model.").removeprefix(component))
