"""Which checkpoints can be scanned, and for all others the reason: the only place that decides it.

The functions work on what a header, or a pipeline's own configuration files, state. They read no file and
import no torch, so that a listing can be judged before any weights are downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from finextract.bounds import why_refused
from finextract.reasons import Reason, ReasonCode
from finextract.supported_families import FAMILY_NAMES, SUPPORTED_FAMILIES, SupportedFamily
from finextract.weights.adapter_keys import ONETRAINER_OFT, by_context
from finextract.weights.formats import Family, Kind, WeightsKind

KIND_NAMES = {
    "full": "weights",
    "unet": "UNet weights",
    "lora": "LoRA weights",
    "lycoris": "LyCORIS weights",
    "dora": "DoRA weights",
    "textual_inversion": "a textual inversion",
    "vae": "a VAE",
    "text_encoder": "a text encoder",
    "controlnet": "a ControlNet",
    "unknown": "weights of a kind that is not known",
}


# Kinds of full weights that can be scanned, as messages list them.
SUPPORTED_KINDS: Mapping[Kind, str] = {"full": "full checkpoints", "unet": "UNets, transformers"}
# The algorithms of adapters that can be scanned, as `WeightsKind.algorithms` names them. A file may have
# several of them, in one layer or in different layers. finextract.adapters.parsing has their parsers.
SUPPORTED_ALGORITHMS: frozenset[str] = frozenset(
    {
        "LoRA", "DoRA", "Tucker decomposition", "LoHa", "LoKr", "OFT", "BOFT", "IA3", "GLoRA",
        "full difference", "norm layers", "scalars",
    }
)  # fmt: skip
# Why OneTrainer's OFT cannot be merged, and what to do.
WHY_NO_ONETRAINER_OFT = (
    "its file does not say how the rotations are computed, which OneTrainer and kohya's oft_v2 keep in the "
    "settings of the training. Ask its author for a LoRA, or for the whole model with the adapter merged."
)
# What such weights are, and what to do.
_QUANTISED = (
    "that are quantised to integers ({}), from which the differences to a base cannot be told: only weights "
    "in floating point, of 8 bits or more, can be scanned. Ask its author for such a file."
)
# The adapters that can be scanned, as messages list them.
_ADAPTERS = ("LoRA", "DoRA", "LyCORIS weights")
# Components that any pipeline may have: they do not change what the denoiser predicts under a prompt.
NEUTRAL_COMPONENTS = frozenset({"scheduler", "safety_checker", "feature_extractor"})
# Fields of a denoiser's config.json that add an input to the latents, the time and the text embeddings.
INPUT_FIELDS = (
    "addition_embed_type", "class_embed_type", "encoder_hid_dim", "encoder_hid_dim_type",
    "num_class_embeds", "time_cond_proj_dim",
)  # fmt: skip


def describe(kind: WeightsKind) -> str:
    """What weights are, for people: "SDXL weights (refiner)", "LyCORIS weights (LoHa)"."""
    name = KIND_NAMES[kind.kind]
    family = SUPPORTED_FAMILIES.get(kind.family)
    is_transformer = family.denoiser == "transformer" if family else kind.model not in ("", "Kolors")
    if kind.kind == "unet" and is_transformer:
        name = "transformer weights"
    if kind.is_adapter or kind.kind in ("full", "unet"):
        name = " ".join(filter(None, (FAMILY_NAMES.get(kind.family) or kind.model, name)))
    return f"{name} ({kind.detail})" if kind.detail else name


def why_unsupported(kind: WeightsKind, where: str) -> Reason | None:
    """Why a fine-tuned checkpoint of this kind cannot be scanned; None where it can.

    `where` names the file in the sentence.
    """
    holds = f"{where} holds {describe(kind)}"
    supported = kind.kind in SUPPORTED_KINDS
    if kind.is_adapter:
        supported = bool(kind.algorithms) and SUPPORTED_ALGORITHMS.issuperset(kind.algorithms)
    if ONETRAINER_OFT in kind.algorithms:
        return Reason(ReasonCode.UNSUPPORTED_KIND, f"{holds}: {WHY_NO_ONETRAINER_OFT}")
    if not supported:
        return Reason(
            ReasonCode.UNSUPPORTED_KIND,
            f"{holds}: only {_listed([*SUPPORTED_KINDS.values(), *_ADAPTERS])} can be scanned so far.",
        )
    if kind.integers:
        return Reason(ReasonCode.UNSUPPORTED_LAYOUT, f"{holds} {_QUANTISED.format(kind.integers)}")
    if kind.fits:
        names = _listed([FAMILY_NAMES[family] for family in kind.fits], " or ")
        return Reason(
            ReasonCode.UNKNOWN_FAMILY,
            f"{holds}: its layers may be those of {names}, and neither metadata nor a stated base decide it. "
            "Pass --base, or put base_model in the model card.",
        )
    if kind.family == "unknown" and not kind.model:
        return Reason(
            ReasonCode.UNKNOWN_FAMILY, f"{holds}, and its keys and shapes match no known model family."
        )
    if kind.family not in SUPPORTED_FAMILIES:
        return Reason(
            ReasonCode.UNSUPPORTED_FAMILY,
            f"{holds}: only {_supported_families()} checkpoints can be scanned so far.",
        )
    if not kind.is_adapter and kind.detail not in SUPPORTED_FAMILIES[kind.family].variants:
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
    family = SUPPORTED_FAMILIES.get(kind.family)
    if kind.integers:
        return Reason(
            ReasonCode.BASE_UNAVAILABLE,
            f"its base {where} holds {describe(kind)} that are quantised to integers ({kind.integers}): only "
            "weights in floating point can be a base. Pass --base with one.",
        )
    if family and (kind.kind, kind.style) in family.single_file_bases and kind.detail in family.variants:
        return None
    return Reason(
        ReasonCode.BASE_UNAVAILABLE,
        f"its base {where} holds {describe(kind)}: only a full checkpoint of {_single_file_families()} "
        "can be a base so far. Pass --base with one.",
    )


def why_unsupported_pipeline(
    model_index: Mapping[str, Any], scheduler: Mapping[str, Any], denoiser: Mapping[str, Any], where: str
) -> Reason | None:
    """Why a diffusers pipeline folder cannot be loaded; None where it can.

    `model_index` is its model_index.json, `scheduler` its scheduler_config.json, and `denoiser` the
    config.json of the component that `SupportedFamily.denoiser` names, where a family fits. All of them are
    untrusted.
    """
    what = f"{where} is a {model_index.get('_class_name')!s:.60}"
    name = family_of_pipeline(model_index, denoiser)
    family = SUPPORTED_FAMILIES.get(name)
    if family is None:
        return Reason(
            ReasonCode.UNSUPPORTED_FAMILY,
            f"{what}{_further_components(model_index) or _missing_components(model_index)}; "
            f"only pipelines of {_supported_families()} can be scanned so far.",
        )
    if family.pipelines and model_index.get("_class_name") not in family.pipelines:
        return Reason(
            ReasonCode.UNSUPPORTED_INPUTS,
            f"{what}; only models whose single input is a noisy latent image can be scanned so far.",
        )
    if (other := _other_unet(name, denoiser)) is not None:
        return Reason(
            ReasonCode.UNSUPPORTED_FAMILY,
            f"{what} whose {family.denoiser} {other}; "
            f"only pipelines of {_supported_families()} can be scanned so far.",
        )
    if (further := _further_input(family, denoiser)) is not None:
        return Reason(
            ReasonCode.UNSUPPORTED_INPUTS,
            f"{what} whose {family.denoiser} {further}; "
            "only models whose single input is a noisy latent image can be scanned so far.",
        )
    prediction = scheduler.get("prediction_type", family.unstated_prediction)
    if not isinstance(prediction, str) or prediction not in family.predictions:
        return Reason(
            ReasonCode.UNSUPPORTED_FAMILY,
            f"{where} predicts {prediction!s:.40}; "
            f"only models that predict {_listed(sorted(family.predictions))} can be scanned so far.",
        )
    return None


def why_unsupported_configs(
    family: Family, configs: Mapping[str, Mapping[str, Any]], where: str, *, partial: bool = False
) -> Reason | None:
    """Why the configuration files of a supported family's pipeline are refused; None where they are not.

    `configs` maps the files that `SupportedFamily.bounds` names to their contents, all of them untrusted. Of
    a `partial` folder a file that is left out is not asked for.
    """
    bounds = SUPPORTED_FAMILIES[family].bounds
    asked = {file: fields for file, fields in bounds.items() if not partial or file in configs}
    refused = why_refused(asked, configs, where)
    if refused is None:
        return None
    return Reason(
        ReasonCode.BASE_UNAVAILABLE,
        f"{refused} Such a model is not loaded; pass --base with another one.",
    )


def family_of_pipeline(model_index: Mapping[str, Any], denoiser: Mapping[str, Any] | None = None) -> Family:
    """The supported family whose pipelines have exactly the components of a model_index.json, or "unknown".

    A component that is optional in the family may be missing. Components without a class ([null, null]) and
    NEUTRAL_COMPONENTS do not count. Where several families have the same components, `denoiser` (the
    config.json of the component that predicts) decides.
    """
    stated = _stated_components(model_index)
    fitting = [
        name
        for name, family in SUPPORTED_FAMILIES.items()
        if family.components.keys() - family.optional <= stated.keys() <= family.components.keys()
        and all(stated[component] in family.components[component] for component in stated)
    ]
    width = (denoiser or {}).get("cross_attention_dim")
    shown = by_context(width) if type(width) is int else "unknown"
    return next((name for name in fitting if name == shown), fitting[0] if fitting else "unknown")


def component_class(model_index: Mapping[str, Any], name: str) -> str:
    """The class that a model_index.json states for a component, without its library; "" for none."""
    entry = model_index.get(name)
    return str(entry[1] or "") if isinstance(entry, list) and len(entry) == 2 else ""


def _stated_components(model_index: Mapping[str, Any]) -> dict[str, str]:
    stated = {name: component_class(model_index, name) for name in model_index.keys() - NEUTRAL_COMPONENTS}
    return {name: cls for name, cls in stated.items() if cls and not name.startswith("_")}


def _further_components(model_index: Mapping[str, Any]) -> str:
    """The components that a pipeline has beyond those of a supported family, as " with ..."; "" for none."""
    stated = _stated_components(model_index)
    for family in SUPPORTED_FAMILIES.values():
        if family.components.keys() < stated.keys():
            return f" with {_listed(sorted(stated.keys() - family.components.keys())):.80}"
    return ""


def _missing_components(model_index: Mapping[str, Any]) -> str:
    """The components that a pipeline lacks, all others of which are a supported family's; "" for none.

    Of several families the one counts of which it lacks least.
    """
    stated = _stated_components(model_index)
    missing = [
        sorted(family.components.keys() - family.optional - stated.keys())
        for family in SUPPORTED_FAMILIES.values()
        if family.denoiser in stated
        and all(stated[name] in family.components.get(name, ()) for name in stated)
        and (not family.pipelines or model_index.get("_class_name") in family.pipelines)
    ]
    least = min(missing, key=len, default=[])
    return (
        f" whose model_index.json names no {_listed(least)}, without which it is not loaded" if least else ""
    )


def _other_unet(family: Family, denoiser: Mapping[str, Any]) -> str | None:
    """What shows that a UNet is of another family than its pipeline's components, as a predicate.

    Any family has small models, whose text embeddings are narrow.
    """
    width = denoiser.get("cross_attention_dim")
    if type(width) is not int or (shown := by_context(width)) in (family, "sd1", "unknown"):
        return None
    return f"takes text embeddings {width} wide, as {FAMILY_NAMES[shown]} does"


def _further_input(family: SupportedFamily, denoiser: Mapping[str, Any]) -> str | None:
    """What a denoiser takes beyond the inputs of its family, as a predicate; None for nothing."""
    taken, given = denoiser.get("in_channels"), denoiser.get("out_channels")
    if taken is not None and given is not None and taken != given:
        return f"takes {taken!s:.20} channels and predicts {given!s:.20}"
    for name in INPUT_FIELDS:
        if (denoiser.get(name) or None) != family.inputs.get(name):
            return f"has {name} {denoiser.get(name)!s:.40}"
    return None


def _supported_families(last: str = " and ") -> str:
    return _listed([FAMILY_NAMES[family] for family in SUPPORTED_FAMILIES], last)


def _single_file_families() -> str:
    families = (name for name, family in SUPPORTED_FAMILIES.items() if family.single_file_bases)
    return _listed((FAMILY_NAMES[name] for name in families), " or ")


def _listed(names: Iterable[str], last: str = " and ") -> str:
    """The names as a sentence lists them: a, b and c."""
    *head, tail = names
    return f"{', '.join(head)}{last}{tail}" if head else tail
