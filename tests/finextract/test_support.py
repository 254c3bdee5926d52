"""What is supported: one function for listings, loaders and audits, and each refusal has its code."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest
from tiny.flow_configs import TRANSFORMERS, model_index, pipeline_configs

from finextract import support
from finextract.reasons import ReasonCode
from finextract.support import (
    SUPPORTED_ALGORITHMS,
    component_class,
    describe,
    family_of_pipeline,
    why_unsupported,
    why_unsupported_base,
    why_unsupported_configs,
    why_unsupported_pipeline,
)
from finextract.supported_families import FAMILY_NAMES, SUPPORTED_FAMILIES
from finextract.weights.kinds import ADAPTER_KINDS, Family, Kind, Style, WeightsKind

SAFETY = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
}
# The model_index.json of stable-diffusion-v1-5 as it was first published.
SD15 = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    **SAFETY,
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
# Pipelines of the family as other versions and tools write them.
SD1_PIPELINES = {
    "without a safety checker": {
        **SD15,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
    },
    "of the first versions": {**SD15, "feature_extractor": ["transformers", "CLIPFeatureExtractor"]},
    "with a tiny VAE": {**SD15, "vae": ["diffusers", "AutoencoderTiny"]},
    "image to image": {**SD15, "_class_name": "StableDiffusionImg2ImgPipeline"},
}
SDXL = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "force_zeros_for_empty_prompt": True,
    "add_watermarker": None,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
OTHER_PIPELINES = {
    "SDXL with an image encoder": (
        {**SDXL, "image_encoder": ["transformers", "CLIPVisionModelWithProjection"]},
        "StableDiffusionXLPipeline with image_encoder",
    ),
    "SDXL refiner": (
        {**SDXL, "text_encoder": [None, None], "tokenizer": [None, None]}, "StableDiffusionXLPipeline"
    ),
    "FLUX": ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}, "Flux"),
    "ControlNet": (
        {
            **SD15,
            "_class_name": "StableDiffusionControlNetPipeline",
            "controlnet": ["diffusers", "ControlNetModel"],
        },
        "StableDiffusionControlNetPipeline with controlnet",
    ),
    "depth": (
        {**SD15, "depth_estimator": ["transformers", "DPTForDepthEstimation"]}, "with depth_estimator"
    ),
    "image prompts": (
        {**SD15, "image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}, "with image_encoder"
    ),
    "upscaler": ({**SD15, "low_res_scheduler": ["diffusers", "DDPMScheduler"]}, "with low_res_scheduler"),
    "another UNet": ({**SD15, "unet": ["diffusers", "UNet2DModel"]}, "StableDiffusionPipeline"),
    "no VAE": ({**SD15, "vae": [None, None]}, "StableDiffusionPipeline"),
    "nothing": ({}, "None"),
}  # fmt: skip
PLAIN_UNET = {"in_channels": 4, "out_channels": 4, "class_embed_type": None, "num_class_embeds": None}
LORA = ("LoRA",)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (WeightsKind("full", "sd1", "ldm", True), None),
        (WeightsKind("unet", "sd1", "diffusers", False), None),
        (WeightsKind("lora", "sd1", "kohya", False, "LoCon", LORA), None),
        (WeightsKind("vae", "unknown", "unknown", False), ReasonCode.UNSUPPORTED_KIND),
        (WeightsKind("lycoris", "sd1", "kohya", False, "LoHa", ("LoHa",)), None),
        (WeightsKind("lycoris", "sd1", "kohya", False, "X", ("LoRA", "X")), ReasonCode.UNSUPPORTED_KIND),
        (WeightsKind("lora", "unknown", "kohya", False, "", LORA), ReasonCode.UNKNOWN_FAMILY),
        (
            WeightsKind("lora", "unknown", "kohya", False, "", LORA, "Kolors"),
            ReasonCode.UNSUPPORTED_FAMILY,
        ),
        (WeightsKind("lora", "flux", "kohya", False, "", LORA), None),
        (WeightsKind("full", "flux", "ldm", False, "dev"), None),
        (WeightsKind("unet", "sd3", "diffusers", False, "3.5 large"), None),
        (WeightsKind("full", "flux", "ldm", False, "fill"), ReasonCode.UNSUPPORTED_INPUTS),
        (WeightsKind("unet", "sd1", "diffusers", False, "inpainting"), ReasonCode.UNSUPPORTED_INPUTS),
        (WeightsKind("unet", "sd1", "ldm", False), ReasonCode.UNSUPPORTED_LAYOUT),
        (WeightsKind("full", "flux", "ldm", False, "dev", integers="I8"), ReasonCode.UNSUPPORTED_LAYOUT),
        (WeightsKind("full", "unknown", "ldm", False, integers="U8"), ReasonCode.UNSUPPORTED_LAYOUT),
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
                algorithms = LORA if kind in ADAPTER_KINDS else ()
                weights = WeightsKind(kind, family, style, False, "", algorithms)
                assert describe(weights)
                supported = why_unsupported(weights, "a") is None
                assert supported == (
                    family in SUPPORTED_FAMILIES
                    and (kind in ("full", *ADAPTER_KINDS) or (kind, style) == ("unet", "diffusers"))
                )


def test_only_a_whole_model_in_the_original_key_names_can_be_a_base_of_one_file() -> None:
    assert why_unsupported_base(WeightsKind("full", "sd1", "ldm", True), "a") is None
    assert why_unsupported_base(WeightsKind("full", "flux", "ldm", True, "dev"), "a") is None
    fill = why_unsupported_base(WeightsKind("full", "flux", "ldm", True, "fill"), "a")
    assert fill is not None
    assert "only a full checkpoint of Stable Diffusion 1.x, " in fill.sentence
    assert "Stable Diffusion 3 or FLUX can be" in fill.sentence
    found = why_unsupported_base(WeightsKind("lora", "sd1", "kohya", False), "a")
    assert found is not None
    assert found.reason_code is ReasonCode.BASE_UNAVAILABLE


@pytest.mark.parametrize("algorithms", [("another",), ("LoRA", "another"), ()])
def test_an_adapter_is_judged_by_its_algorithms_and_not_by_its_description(
    algorithms: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = WeightsKind("lycoris", "sd1", "kohya", False, "a text for people", algorithms)
    found = why_unsupported(weights, "a")
    assert found is not None
    assert found.reason_code is ReasonCode.UNSUPPORTED_KIND
    assert found.sentence.endswith(
        "only full checkpoints, UNets, transformers, LoRA, DoRA and LyCORIS weights can be scanned so far."
    )
    monkeypatch.setattr(support, "SUPPORTED_ALGORITHMS", SUPPORTED_ALGORITHMS | {"another"})
    assert (why_unsupported(weights, "a") is None) == bool(algorithms)


@pytest.mark.parametrize("other", sorted(SUPPORTED_ALGORITHMS))
def test_a_file_may_mix_supported_algorithms(other: str) -> None:
    weights = WeightsKind("lycoris", "sd1", "kohya", False, "", tuple(sorted({"LoRA", other})))
    assert why_unsupported(weights, "a") is None


@pytest.mark.parametrize("index", [SD15, *SD1_PIPELINES.values()], ids=["as published", *SD1_PIPELINES])
def test_a_pipeline_of_a_supported_family_can_be_loaded(index: dict[str, Any]) -> None:
    assert family_of_pipeline(index) == "sd1"
    assert why_unsupported_pipeline(index, {}, PLAIN_UNET, "p") is None


@pytest.mark.parametrize(("index", "words"), OTHER_PIPELINES.values(), ids=OTHER_PIPELINES)
def test_a_pipeline_with_other_components_is_refused(index: dict[str, Any], words: str) -> None:
    assert family_of_pipeline(index) == "unknown"
    found = why_unsupported_pipeline(index, {}, {}, "p")
    assert found is not None
    assert found.reason_code is ReasonCode.UNSUPPORTED_FAMILY
    assert words in found.sentence
    known = "Stable Diffusion 1.x, Stable Diffusion 2, SDXL, Stable Diffusion 3, FLUX, Chroma and Z-Image"
    assert found.sentence.endswith(f"only pipelines of {known} can be scanned so far.")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"in_channels": 9, "out_channels": 4}, "unet takes 9 channels and predicts 4"),  # inpainting
        ({"in_channels": 8, "out_channels": 4}, "unet takes 8 channels and predicts 4"),  # InstructPix2Pix
        ({"num_class_embeds": 1000}, "unet has num_class_embeds 1000"),  # upscaler
        ({"class_embed_type": "projection"}, "unet has class_embed_type projection"),  # unCLIP
        ({"time_cond_proj_dim": 256}, "unet has time_cond_proj_dim 256"),  # latent consistency
        ({"addition_embed_type": "text_time"}, "unet has addition_embed_type text_time"),  # SDXL
    ],
)
def test_a_pipeline_whose_unet_takes_a_further_input_is_refused(config: dict[str, Any], words: str) -> None:
    index = {**SD15, "_class_name": "StableDiffusionInpaintPipeline"}
    found = why_unsupported_pipeline(index, {}, {**PLAIN_UNET, **config}, "p")
    assert found is not None
    assert found.reason_code is ReasonCode.UNSUPPORTED_INPUTS
    assert f"p is a StableDiffusionInpaintPipeline whose {words}; only models" in found.sentence


@pytest.mark.parametrize("prediction", ["sample", None, ["epsilon"]])
def test_a_pipeline_that_predicts_something_else_is_refused(prediction: object) -> None:
    found = why_unsupported_pipeline(SD15, {"prediction_type": prediction}, PLAIN_UNET, "p")
    assert found is not None
    assert found.reason_code is ReasonCode.UNSUPPORTED_FAMILY
    assert "only models that predict epsilon and v_prediction can be scanned" in found.sentence


@pytest.mark.parametrize(
    ("width", "words"),
    [(2048, "2048 wide, as SDXL does")],
)
def test_a_unet_of_another_family_in_the_same_components_is_refused_under_its_name(
    width: int, words: str
) -> None:
    found = why_unsupported_pipeline(SD15, {}, {**PLAIN_UNET, "cross_attention_dim": width}, "p")
    assert found is not None
    assert found.reason_code is ReasonCode.UNSUPPORTED_FAMILY
    assert words in found.sentence


def test_a_pipeline_of_stable_diffusion_2_is_known_by_the_width_of_its_text_embeddings() -> None:
    unet = {**PLAIN_UNET, "cross_attention_dim": 1024}
    assert family_of_pipeline(SD15, unet) == "sd2"
    assert why_unsupported_pipeline(SD15, {"prediction_type": "v_prediction"}, unet, "p") is None


# The configuration files of stable-diffusion-v1-5 as they were published.
SD15_CONFIGS: dict[str, dict[str, Any]] = {
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4,
        "sample_size": 64, "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "text_encoder/config.json": {
        "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
        "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0,
        "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
        "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
        "out_channels": 3, "sample_size": 512, "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "scheduler/scheduler_config.json": {
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
        "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
        "clip_sample": False,
    },
    "tokenizer/tokenizer_config.json": {
        "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77,
        "name_or_path": "openai/clip-vit-large-patch14", "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
    },
}  # fmt: skip
OUT_OF_BOUNDS = [
    ("unet/config.json", "sample_size", 4096, "8 to 128"),
    ("unet/config.json", "sample_size", [64, 4096], "8 to 128"),
    ("unet/config.json", "sample_size", None, "does not state sample_size; it may be 8 to 128"),
    ("unet/config.json", "sample_size", "64", "8 to 128"),
    ("unet/config.json", "sample_size", 64.5, "8 to 128"),
    ("unet/config.json", "in_channels", 2**40, "1 to 16"),
    ("unet/config.json", "layers_per_block", 10**6, "1 to 2"),
    ("unet/config.json", "block_out_channels", [320] * 4000, "at most 4"),
    ("unet/config.json", "block_out_channels", [320, 640, 10**9], "1 to 1,280"),
    ("unet/config.json", "block_out_channels", [[320]], "1 to 1,280"),
    ("unet/config.json", "cross_attention_dim", True, "1 to 768"),
    ("unet/config.json", "down_block_types", ["KDownBlock2D"], "CrossAttnDownBlock2D or DownBlock2D"),
    ("unet/config.json", "_class_name", "FluxTransformer2DModel", "may be UNet2DConditionModel"),
    ("unet/config.json", "quantization_config", {"quant_method": "bitsandbytes"}, "could load further code"),
    ("text_encoder/config.json", "num_hidden_layers", 9000, "1 to 12"),
    ("text_encoder/config.json", "max_position_embeddings", 10**8, "1 to 248"),
    ("text_encoder/config.json", "vocab_size", 10**10, "1 to 65,536"),
    ("text_encoder/config.json", "attn_implementation", "a-stranger/kernel", "may be eager or sdpa"),
    ("text_encoder/config.json", "_attn_implementation", "flash_attention_2", "may be eager or sdpa"),
    ("text_encoder/config.json", "auto_map", {"AutoModel": "evil.Model"}, "could load further code"),
    ("text_encoder/config.json", "text_config", {"num_hidden_layers": 9000}, "could load further code"),
    ("text_encoder/config.json", "architectures", ["LlamaModel"], "may be CLIPTextModel"),
    ("vae/config.json", "block_out_channels", [128] * 12, "at most 4"),
    ("vae/config.json", "scaling_factor", 0, "0.001 to 100"),
    ("vae/config.json", "scaling_factor", float("nan"), "0.001 to 100"),
    ("scheduler/scheduler_config.json", "_class_name", "FlowMatchEulerDiscreteScheduler", "DDIMScheduler or"),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12, "10 to 10,000"),
    ("scheduler/scheduler_config.json", "beta_end", -1, "1e-06 to 0.999"),
    ("tokenizer/tokenizer_config.json", "tokenizer_class", "EvilTokenizer", "CLIPTokenizer or"),
    ("tokenizer/tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.T", None]}, "could load"),
]


def test_the_configuration_of_stable_diffusion_1_5_is_within_the_bounds_of_its_family() -> None:
    assert why_unsupported_configs("sd1", SD15_CONFIGS, "p") is None


@pytest.mark.parametrize(("file", "name", "value", "words"), OUT_OF_BOUNDS)
def test_a_configuration_out_of_bounds_is_refused_with_the_field_and_what_it_may_be(
    file: str, name: str, value: object, words: str
) -> None:
    changed = {**SD15_CONFIGS, file: {**SD15_CONFIGS[file], name: value}}
    found = why_unsupported_configs("sd1", changed, "p")
    assert found is not None
    assert found.reason_code is ReasonCode.BASE_UNAVAILABLE
    assert f"p/{file}" in found.sentence
    assert name in found.sentence
    assert words in found.sentence
    assert len(found.sentence) < 700


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_published_pipelines_of_the_flow_families_can_be_loaded(name: str) -> None:
    index, configs = model_index(name), pipeline_configs(name)
    family = family_of_pipeline(index)
    assert family == ("sd3" if name.startswith("sd3") else "flux")
    scheduler = configs["scheduler/scheduler_config.json"]
    assert why_unsupported_pipeline(index, scheduler, configs["transformer/config.json"], "p") is None
    assert why_unsupported_configs(family, configs, "p") is None


@pytest.mark.parametrize("n", ["", "_2", "_3"])
def test_stable_diffusion_3_may_lack_each_of_its_text_encoders_and_nothing_else(n: str) -> None:
    index = model_index("sd3-medium")
    without = {**index, f"text_encoder{n}": [None, None], f"tokenizer{n}": [None, None]}
    assert family_of_pipeline(without) == "sd3"
    assert family_of_pipeline({**without, "vae": [None, None]}) == "unknown"


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux-dev"])
def test_a_pipeline_that_lacks_a_component_is_refused_under_the_name_of_what_is_missing(name: str) -> None:
    index = model_index(name)
    for lacking, words in (
        (["text_encoder"], "no text_encoder, without which"),
        (["text_encoder", "tokenizer"], "no text_encoder and tokenizer, without which"),
        (["vae"], "no vae, without which"),
    ):
        found = why_unsupported_pipeline({**index, **{part: [None, None] for part in lacking}}, {}, {}, "p")
        assert found is not None
        assert f"p is a {index['_class_name']} whose model_index.json names {words}" in found.sentence


@pytest.mark.parametrize(
    ("pipeline", "config", "code"),
    [
        ("FluxFillPipeline", {"in_channels": 384, "out_channels": 64}, ReasonCode.UNSUPPORTED_INPUTS),
        ("FluxKontextPipeline", {}, ReasonCode.UNSUPPORTED_INPUTS),
        ("FluxControlPipeline", {"in_channels": 128, "out_channels": 64}, ReasonCode.UNSUPPORTED_INPUTS),
        ("FluxPipeline", {"in_channels": 128, "out_channels": 64}, ReasonCode.UNSUPPORTED_INPUTS),
        ("FluxImg2ImgPipeline", {}, None),
    ],
)
def test_a_variant_of_flux_that_takes_an_image_is_refused(
    pipeline: str, config: dict[str, Any], code: ReasonCode | None
) -> None:
    index = {**model_index("flux-dev"), "_class_name": pipeline}
    found = why_unsupported_pipeline(index, {}, {**TRANSFORMERS["flux-dev"], **config}, "p")
    assert (found and found.reason_code) == code


@pytest.mark.parametrize(
    ("file", "name", "value", "words"),
    [
        ("transformer/config.json", "num_layers", 9000, "1 to 19"),
        ("transformer/config.json", "in_channels", 384, "4 to 64"),
        ("text_encoder_2/config.json", "d_model", 10**6, "1 to 4,096"),
        ("text_encoder_2/config.json", "auto_map", {"AutoModel": "evil.Model"}, "could load further code"),
        ("vae/config.json", "sample_size", None, "does not state sample_size"),
        ("scheduler/scheduler_config.json", "_class_name", "DDIMScheduler", "FlowMatchEulerDiscrete"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 500, "1,000 to 1,000"),
        ("scheduler/scheduler_config.json", "invert_sigmas", True, "it may be false"),
        ("scheduler/scheduler_config.json", "use_karras_sigmas", 1, "it may be false"),
        ("tokenizer_2/tokenizer_config.json", "tokenizer_class", "EvilTokenizer", "T5Tokenizer or"),
    ],
)
def test_a_configuration_of_flux_out_of_bounds_is_refused(
    file: str, name: str, value: object, words: str
) -> None:
    configs = pipeline_configs("flux-dev")
    found = why_unsupported_configs("flux", {**configs, file: {**configs[file], name: value}}, "p")
    assert found is not None
    assert f"p/{file}" in found.sentence
    assert words in found.sentence


def test_exactly_one_family_fits_each_supported_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
    for name, family in SUPPORTED_FAMILIES.items():
        index = {part: ["library", cls] for part, classes in family.components.items() for cls in classes}
        denoiser = {"cross_attention_dim": widths[name]} if name in widths else {}
        assert family_of_pipeline(index, denoiser) == name
        assert component_class(index, family.denoiser)
        assert name in FAMILY_NAMES


def test_a_family_is_known_by_its_components_and_takes_its_own_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = {name: SUPPORTED_FAMILIES[name] for name in ("sd1", "sdxl")}
    monkeypatch.setattr(support, "SUPPORTED_FAMILIES", tables)
    unet = {**PLAIN_UNET, "addition_embed_type": "text_time"}
    assert family_of_pipeline(SDXL) == "sdxl"
    assert family_of_pipeline(SD15) == "sd1"
    assert why_unsupported_pipeline(SDXL, {}, unet, "p") is None
    assert why_unsupported_pipeline(SD15, {}, unet, "p") is not None
    assert why_unsupported(WeightsKind("lora", "sdxl", "kohya", False, "", LORA), "a") is None
    assert why_unsupported_base(WeightsKind("full", "sdxl", "ldm", True), "a") is None
    assert why_unsupported_base(WeightsKind("full", "sdxl", "ldm", True, "refiner"), "a") is not None
    other = why_unsupported(WeightsKind("lora", "sd2", "kohya", False, "", LORA), "a")
    assert other is not None
    assert "only Stable Diffusion 1.x and SDXL checkpoints" in other.sentence


def test_every_supported_family_has_a_loader_and_every_supported_algorithm_a_parser() -> None:
    from finextract.adapters.parsing import DORA, KINDS
    from finextract.models.loading import FAMILIES
    from finextract.weights.adapter_keys import parts_of

    assert FAMILIES.keys() == SUPPORTED_FAMILIES.keys()
    taken = DORA.union(*(kind.shown_by | kind.takes for kind in KINDS))
    for algorithm in SUPPORTED_ALGORITHMS:
        assert taken >= parts_of(algorithm)


def test_support_is_known_without_torch() -> None:
    child = "import sys, finextract.support; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", child], check=False).returncode == 0


def test_every_reason_code_has_a_label_of_its_own() -> None:
    assert len({code.label for code in ReasonCode}) == len(ReasonCode)
