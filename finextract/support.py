"""Which checkpoints can be scanned, and for all others the reason: the only place that decides it.

The functions work on what a header, or a pipeline's own configuration files, state. They read no file and
import no torch, so that a listing can be judged before any weights are downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finextract.reasons import Reason, ReasonCode
from finextract.weights.formats import WeightsKind

FAMILY_NAMES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2",
    "sdxl": "SDXL",
    "sd3": "Stable Diffusion 3",
    "flux": "FLUX",
}
KIND_NAMES = {
    "full": "weights",
    "unet": "UNet weights",
    "lora": "LoRA weights",
    "lycoris": "LyCORIS weights",
    "dora": "DoRA weights",
    "textual_inversion": "a textual inversion",
    "vae": "a VAE",
    "text_encoder": "a text encoder",
    "unknown": "weights of a kind that is not known",
}
SUPPORTED_KINDS = frozenset({"full", "unet", "lora"})
SUPPORTED_FAMILIES = frozenset({"sd1"})
SUPPORTED_VAES = frozenset({"AutoencoderKL", "AutoencoderTiny"})
_SUPPORTED_PARTS = {
    "unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer",
}  # fmt: skip


def describe(kind: WeightsKind) -> str:
    """What weights are, for people: "SDXL weights (refiner)", "LyCORIS weights (LoHa)"."""
    name = KIND_NAMES[kind.kind]
    if kind.kind == "unet" and kind.family in ("sd3", "flux"):
        name = "transformer weights"
    if kind.kind in ("full", "unet", "lora", "lycoris", "dora") and kind.family != "unknown":
        name = f"{FAMILY_NAMES[kind.family]} {name}"
    return f"{name} ({kind.detail})" if kind.detail else name


def why_unsupported(kind: WeightsKind, where: str) -> Reason | None:
    """Why a fine-tuned checkpoint of this kind cannot be scanned; None where it can.

    `where` names the file in the sentence.
    """
    holds = f"{where} holds {describe(kind)}"
    if kind.kind not in SUPPORTED_KINDS:
        return Reason(
            ReasonCode.UNSUPPORTED_KIND,
            f"{holds}: only full checkpoints, UNets and LoRA weights can be scanned so far.",
        )
    if kind.family == "unknown":
        return Reason(
            ReasonCode.UNKNOWN_FAMILY, f"{holds}, and its keys and shapes match no known model family."
        )
    if kind.family not in SUPPORTED_FAMILIES:
        return Reason(
            ReasonCode.UNSUPPORTED_FAMILY,
            f"{holds}: only Stable Diffusion 1.x checkpoints can be scanned so far.",
        )
    if kind.kind != "lora" and kind.detail:
        return Reason(
            ReasonCode.UNSUPPORTED_INPUTS,
            f"{holds}: only models whose single input is a noisy latent image can be scanned so far.",
        )
    if kind.kind == "unet" and kind.style != "diffusers":
        return Reason(
            ReasonCode.UNSUPPORTED_LAYOUT,
            f"{holds} under the original key names: a lone UNet can be scanned "
            "with diffusers key names only.",
        )
    return None


def why_unsupported_base(kind: WeightsKind, where: str) -> Reason | None:
    """Why a single file of this kind cannot be a base model; None where it can."""
    if (kind.kind, kind.family, kind.style, kind.detail) == ("full", "sd1", "ldm", ""):
        return None
    return Reason(
        ReasonCode.BASE_UNAVAILABLE,
        f"its base {where} holds {describe(kind)}: only a full checkpoint of Stable Diffusion 1.x can be "
        "a base so far. Pass --base with one.",
    )


def why_unsupported_pipeline(
    model_index: Mapping[str, Any], scheduler: Mapping[str, Any], where: str
) -> Reason | None:
    """Why a diffusers pipeline folder cannot be loaded; None where it can.

    `model_index` is its model_index.json, `scheduler` its scheduler_config.json; both are untrusted.
    """
    parts = {name: component_class(model_index, name) for name in _SUPPORTED_PARTS}
    if parts != _SUPPORTED_PARTS or component_class(model_index, "vae") not in SUPPORTED_VAES:
        return Reason(
            ReasonCode.UNSUPPORTED_FAMILY,
            f"{where} is a {model_index.get('_class_name')!s:.60}; "
            "only Stable Diffusion 1.x-shaped pipelines can be scanned so far.",
        )
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        return Reason(
            ReasonCode.UNSUPPORTED_FAMILY,
            f"{where} predicts {prediction!s:.40}; only models that predict epsilon can be scanned so far.",
        )
    return None


def component_class(model_index: Mapping[str, Any], name: str) -> str:
    """The class that a model_index.json states for a component, without its library; "" for none."""
    entry = model_index.get(name)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 else ""
