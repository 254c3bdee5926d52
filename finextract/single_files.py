"""A single file of full weights as a base model: what it holds, and which published pipeline it belongs to.

`finextract/published/` has the configuration files of the published pipelines, without weights and
vocabularies. Works on the header of the file alone; imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finextract.metadata.untrusted import flag_of
from finextract.reasons import Reason, ReasonCode
from finextract.support import why_unsupported_base
from finextract.supported_families import SUPPORTED_FAMILIES
from finextract.weights.files import component_paths
from finextract.weights.formats import Family, Header, WeightsKind, classify
from finextract.weights.scales import is_scale

PUBLISHED = Path(__file__).with_name("published")
DENOISER_PREFIX = "model.diffusion_model."
# Family -> text encoder -> how its tensors' names begin in a single file.
TEXT_ENCODER_PREFIXES: Mapping[str, Mapping[str, str]] = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "sd3": {
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.clip_g.transformer.",
        "text_encoder_3": "text_encoders.t5xxl.transformer.",
    },
    "flux": {
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
    },
}
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
VAE_PREFIXES = ("first_stage_model.", "vae.")
# (family, variant) -> the published pipeline, and the tensors of its denoiser in a single file. A file with
# fewer is another model, such as a distilled one with fewer layers.
_TENSORS: Mapping[tuple[str, str], tuple[str, int]] = {
    ("sd1", ""): ("sd1", 686),
    ("sd2", ""): ("sd2", 686),
    ("sdxl", ""): ("sdxl", 1680),
    ("sd3", "3 medium"): ("sd3-medium", 491),
    ("sd3", "3.5 medium"): ("sd35-medium", 665),
    ("sd3", "3.5 large"): ("sd35-large", 923),
    ("flux", "dev"): ("flux-dev", 780),
    ("flux", "schnell"): ("flux-schnell", 776),
}
_UNET_FIRST, _UNET_WIDTH = "model.diffusion_model.input_blocks.0.0.weight", 320  # of every published UNet
# The pipeline of a family that supplies what a file of no published shape lacks.
_USUAL: Mapping[str, str] = {
    "sd1": "sd1",
    "sd2": "sd2",
    "sdxl": "sdxl",
    "sd3": "sd3-medium",
    "flux": "flux-dev",
}
# Tensors that tell a noise schedule of Karras et al. (NeurIPS 2022): Playground 2.5, CosXL.
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max")


@dataclass(frozen=True)
class SingleFile:
    """A base model of one file, as its header shows it."""

    family: Family
    published: str  # the pipeline below PUBLISHED that has its shapes; "" where none has
    holds: frozenset[str]  # the components of a pipeline whose weights it has
    velocity: bool | None  # it predicts the velocity, or the noise, as it states; None where it does not
    zero_terminal: bool = False  # it states a schedule that ends without a signal

    @property
    def lacking(self) -> tuple[str, ...]:
        """The components, tokenizers among them, that it needs from a pipeline folder of its family, sorted.

        CLIP's vocabulary comes with the program. Stable Diffusion 3's T5, which many of its files lack, is
        not needed.
        """
        family = SUPPORTED_FAMILIES[self.family]
        known = frozenset({"CLIPTokenizer"}) if self.published else frozenset()
        return tuple(
            component
            for component, classes in sorted(family.components.items())
            if component not in self.holds and component not in family.optional_in_files and classes != known
        )

    @property
    def wanted(self) -> tuple[str, ...]:
        """What is lacking, and the tokenizer of an optional text encoder that the file holds; sorted."""
        optional = SUPPORTED_FAMILIES[self.family].optional_in_files
        tokenizers = {c.replace("text_encoder", "tokenizer") for c in self.holds & optional}
        return tuple(sorted({*self.lacking, *tokenizers}))

    @cached_property
    def pipeline(self) -> str:
        """The published pipeline that supplies what it lacks, OWNER/NAME."""
        name: str = published_config(self.published or _USUAL[self.family], "model_index.json")[
            "_name_or_path"
        ]
        return name


def published_config(name: str, path: str) -> dict[str, Any]:
    """A configuration file of a published pipeline, by its place in the pipeline's folder."""
    config: dict[str, Any] = json.loads((PUBLISHED / name / path).read_text(encoding="utf-8"))
    return config


def supplies(folder: Path, component: str) -> bool:
    """Whether a folder of parts has a component of a pipeline: weights as safetensors, or a vocabulary."""
    if component.startswith("tokenizer"):
        return any((folder / component / name).is_file() for name in _VOCABULARIES)
    return bool(component_paths(folder, component))


def lacks(name: str, found: SingleFile, components: tuple[str, ...]) -> str:
    """The sentence that says what a single file lacks, and from where it can be had."""
    folders = ", ".join(f"{component}/" for component in components)
    return (
        f"{name} alone is no base model: it lacks {folders}. "
        f"Pass --base-parts with a folder that has them, such as these folders of {found.pipeline}."
    )


def single_file(header: Header) -> SingleFile:
    """What the header of a single file shows that `why_no_base` does not refuse."""
    kind, keys = classify(header), header.tensors
    family = SUPPORTED_FAMILIES[kind.family]
    prefixes = TEXT_ENCODER_PREFIXES[kind.family]
    holds = {
        family.denoiser,
        *(name for name, start in prefixes.items() if any(k.startswith(start) for k in keys)),
    }
    if any(f"{start}decoder.conv_out.weight" in keys for start in VAE_PREFIXES):
        holds.add("vae")
    velocity = states_velocity(header)
    published = _published(kind, header)
    if published == "sd2" and velocity:
        published = "sd2-v"
    return SingleFile(kind.family, published, frozenset(holds), velocity, "ztsnr" in keys)


def why_no_base(header: Header, where: str) -> Reason | None:
    """Why a single file cannot be a base model; None where it can. `where` names it in the sentence."""
    if any(key in header.tensors for key in _EDM):
        return Reason(
            ReasonCode.BASE_UNAVAILABLE,
            f"its base {where} has the noise schedule of EDM, for which there is no solver. "
            "Pass --base with another one.",
        )
    return why_unsupported_base(classify(header), where)


def states_velocity(header: Header) -> bool | None:
    """Whether weights state that they predict the velocity (True) or the noise (False); None for neither.

    Trainers state it in `modelspec.prediction_type`, kohya's in `ss_v_parameterization`; full weights that
    predict the velocity may have a tensor `v_pred`, as NoobAI XL has.
    """
    stated = header.metadata.get("modelspec.prediction_type", "").lower()
    by_kohya = flag_of(header.metadata.get("ss_v_parameterization"))
    if "v_pred" in header.tensors or stated in ("v", "v_prediction") or by_kohya:
        return True
    return False if stated in ("epsilon", "eps") else by_kohya


def _published(kind: WeightsKind, header: Header) -> str:
    name, count = _TENSORS.get((kind.family, kind.detail), ("", 0))
    tensors = [k for k in header.tensors if not is_scale(k)]
    keys = [k for k in tensors if k.startswith(DENOISER_PREFIX)]
    if kind.family in ("sd1", "sd2", "sdxl"):
        first = header.tensors.get(_UNET_FIRST)
        if first is None or first.shape[0] != _UNET_WIDTH:
            return ""
    other = ("text_encoders.", *VAE_PREFIXES)
    denoiser = keys or [k for k in tensors if not k.startswith(other)]  # of the transformer alone
    return name if len(denoiser) >= count else ""
