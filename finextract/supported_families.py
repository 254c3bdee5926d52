"""The model families that can be scanned: what their pipelines, files and configurations may be.

Tables alone; finextract.support judges with them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from finextract.bounds import SD1_BOUNDS, SD2_BOUNDS, SDXL_BOUNDS, Bounds
from finextract.flow_bounds import CHROMA_BOUNDS, FLUX_BOUNDS, SD3_BOUNDS, Z_IMAGE_BOUNDS
from finextract.weights.formats import Family, Kind, Style

FAMILY_NAMES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2",
    "sdxl": "SDXL",
    "sd3": "Stable Diffusion 3",
    "flux": "FLUX",
    "chroma": "Chroma",
    "z_image": "Z-Image",
}


@dataclass(frozen=True, slots=True)
class SupportedFamily:
    """The checkpoints, pipelines and single files that the loader of a model family can load."""

    components: Mapping[str, frozenset[str]]  # of its diffusers pipeline -> the classes that are loaded
    predictions: frozenset[str]  # `prediction_type` of the scheduler
    single_file_bases: frozenset[tuple[Kind, Style]]  # single files that can be a base model
    optional: frozenset[str] = frozenset()  # of the components, those that a pipeline may lack
    optional_in_files: frozenset[str] = frozenset()  # of these, those that a single file need not have
    pipelines: frozenset[str] = frozenset()  # classes of pipelines whose models need no image; empty: any
    unstated_prediction: str = "epsilon"  # what is predicted where the scheduler does not say it
    denoiser: str = "unet"  # the component that predicts
    inputs: Mapping[str, object] = field(default_factory=dict)  # those of INPUT_FIELDS that are set -> value
    variants: frozenset[str] = frozenset({""})  # `WeightsKind.detail` of full weights
    bounds: Bounds = field(default_factory=dict)  # of the configuration files of its pipeline


_SD_COMPONENTS: Mapping[str, frozenset[str]] = {
    "unet": frozenset({"UNet2DConditionModel"}),
    "text_encoder": frozenset({"CLIPTextModel"}),
    "tokenizer": frozenset({"CLIPTokenizer"}),
    "vae": frozenset({"AutoencoderKL", "AutoencoderTiny"}),
}
_NOISE_OR_VELOCITY = frozenset({"epsilon", "v_prediction"})
_ORIGINAL_FILE: frozenset[tuple[Kind, Style]] = frozenset({("full", "ldm")})
_T5_TOKENIZERS = frozenset({"T5Tokenizer", "T5TokenizerFast"})
_FLOW = "flow_prediction"  # a velocity; no scheduler of diffusers states it
# finextract.models.loading has the loader of each family.
SUPPORTED_FAMILIES: Mapping[Family, SupportedFamily] = {
    "sd1": SupportedFamily(_SD_COMPONENTS, _NOISE_OR_VELOCITY, _ORIGINAL_FILE, bounds=SD1_BOUNDS),
    "sd2": SupportedFamily(_SD_COMPONENTS, _NOISE_OR_VELOCITY, _ORIGINAL_FILE, bounds=SD2_BOUNDS),
    "sdxl": SupportedFamily(
        {
            **_SD_COMPONENTS,
            "text_encoder_2": frozenset({"CLIPTextModelWithProjection"}),
            "tokenizer_2": frozenset({"CLIPTokenizer"}),
        },
        _NOISE_OR_VELOCITY,
        _ORIGINAL_FILE,
        inputs={"addition_embed_type": "text_time"},
        bounds=SDXL_BOUNDS,
    ),
    "sd3": SupportedFamily(
        components={
            "transformer": frozenset({"SD3Transformer2DModel"}),
            "text_encoder": frozenset({"CLIPTextModelWithProjection"}),
            "text_encoder_2": frozenset({"CLIPTextModelWithProjection"}),
            "text_encoder_3": frozenset({"T5EncoderModel"}),
            "tokenizer": frozenset({"CLIPTokenizer"}),
            "tokenizer_2": frozenset({"CLIPTokenizer"}),
            "tokenizer_3": _T5_TOKENIZERS,
            "vae": frozenset({"AutoencoderKL", "AutoencoderTiny"}),
        },
        predictions=frozenset({_FLOW}),
        single_file_bases=_ORIGINAL_FILE,
        optional=frozenset(f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")),
        optional_in_files=frozenset({"text_encoder_3", "tokenizer_3"}),
        pipelines=frozenset(
            f"StableDiffusion3{task}Pipeline" for task in ("", "Img2Img", "Inpaint", "PAG", "PAGImg2Img")
        ),
        unstated_prediction=_FLOW,
        denoiser="transformer",
        variants=frozenset({"", "3 medium", "3.5 medium", "3.5 large"}),
        bounds=SD3_BOUNDS,
    ),
    "flux": SupportedFamily(
        components={
            "transformer": frozenset({"FluxTransformer2DModel"}),
            "text_encoder": frozenset({"CLIPTextModel"}),
            "text_encoder_2": frozenset({"T5EncoderModel"}),
            "tokenizer": frozenset({"CLIPTokenizer"}),
            "tokenizer_2": _T5_TOKENIZERS,
            "vae": frozenset({"AutoencoderKL"}),
        },
        predictions=frozenset({_FLOW}),
        single_file_bases=_ORIGINAL_FILE,
        pipelines=frozenset({"FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"}),
        unstated_prediction=_FLOW,
        denoiser="transformer",
        variants=frozenset({"", "dev", "schnell"}),
        bounds=FLUX_BOUNDS,
    ),
    "chroma": SupportedFamily(
        components={
            "transformer": frozenset({"ChromaTransformer2DModel"}),
            "text_encoder": frozenset({"T5EncoderModel"}),
            "tokenizer": _T5_TOKENIZERS,
            "vae": frozenset({"AutoencoderKL"}),
        },
        predictions=frozenset({_FLOW}),
        single_file_bases=frozenset(),
        pipelines=frozenset({"ChromaPipeline", "ChromaImg2ImgPipeline"}),
        unstated_prediction=_FLOW,
        denoiser="transformer",
        bounds=CHROMA_BOUNDS,
    ),
    "z_image": SupportedFamily(
        components={
            "transformer": frozenset({"ZImageTransformer2DModel"}),
            "text_encoder": frozenset({"Qwen3Model", "Qwen3ForCausalLM"}),  # loaded without its head
            "tokenizer": frozenset({"Qwen2Tokenizer", "Qwen2TokenizerFast"}),
            "vae": frozenset({"AutoencoderKL"}),
        },
        predictions=frozenset({_FLOW}),
        single_file_bases=frozenset(),
        pipelines=frozenset({"ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline"}),
        unstated_prediction=_FLOW,
        denoiser="transformer",
        bounds=Z_IMAGE_BOUNDS,
    ),
}
