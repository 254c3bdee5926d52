"""What is supported: one function for listings, loaders and audits, and each refusal has its code."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from finextract.reasons import ReasonCode
from finextract.support import (
    describe,
    why_unsupported,
    why_unsupported_base,
    why_unsupported_pipeline,
)
from finextract.weights.formats import Family, Kind, Style, WeightsKind

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (WeightsKind("full", "sd1", "ldm", True), None),
        (WeightsKind("unet", "sd1", "diffusers", False), None),
        (WeightsKind("lora", "sd1", "kohya", False, "LoCon"), None),
        (WeightsKind("vae", "unknown", "unknown", False), ReasonCode.UNSUPPORTED_KIND),
        (WeightsKind("lycoris", "sd1", "kohya", False, "LoHa"), ReasonCode.UNSUPPORTED_KIND),
        (WeightsKind("lora", "unknown", "kohya", False), ReasonCode.UNKNOWN_FAMILY),
        (WeightsKind("lora", "flux", "kohya", False), ReasonCode.UNSUPPORTED_FAMILY),
        (WeightsKind("unet", "sd1", "diffusers", False, "inpainting"), ReasonCode.UNSUPPORTED_INPUTS),
        (WeightsKind("unet", "sd1", "ldm", False), ReasonCode.UNSUPPORTED_LAYOUT),
    ],
)
def test_each_refusal_has_its_reason_code(kind: WeightsKind, code: ReasonCode | None) -> None:
    found = why_unsupported(kind, "o/a/a.safetensors")
    assert (found and found.reason_code) == code
    if found is not None:
        assert found.sentence.startswith(f"o/a/a.safetensors holds {describe(kind)}")
        assert found.sentence.endswith(".")


def test_every_kind_and_family_can_be_described_and_judged() -> None:
    for kind in get_args(Kind):
        for family in get_args(Family):
            for style in get_args(Style):
                weights = WeightsKind(kind, family, style, False)
                assert describe(weights)
                supported = why_unsupported(weights, "a") is None
                assert supported == (
                    family == "sd1" and (kind in ("full", "lora") or (kind, style) == ("unet", "diffusers"))
                )


def test_only_a_whole_model_in_the_original_key_names_can_be_a_base_of_one_file() -> None:
    assert why_unsupported_base(WeightsKind("full", "sd1", "ldm", True), "a") is None
    found = why_unsupported_base(WeightsKind("lora", "sd1", "kohya", False), "a")
    assert found is not None
    assert found.reason_code is ReasonCode.BASE_UNAVAILABLE


def test_a_pipeline_is_judged_by_its_configuration_files() -> None:
    assert why_unsupported_pipeline(INDEX, {}, "p") is None
    other = why_unsupported_pipeline({**INDEX, "_class_name": "FluxPipeline", "unet": None}, {}, "p")
    velocity = why_unsupported_pipeline(INDEX, {"prediction_type": "v_prediction"}, "p")
    assert other is not None
    assert velocity is not None
    assert "p is a FluxPipeline" in str(other)
    assert "p predicts v_prediction" in str(velocity)
    assert other.reason_code is velocity.reason_code is ReasonCode.UNSUPPORTED_FAMILY


def test_support_is_known_without_torch() -> None:
    child = "import sys, finextract.support; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", child], check=False).returncode == 0


def test_every_reason_code_has_a_label_of_its_own() -> None:
    assert len({code.label for code in ReasonCode}) == len(ReasonCode)
