"""Kind, family and key style of weights, from a safetensors header. Reads no tensor and imports no torch.

Kinds and families are recognised by keys and shapes that no other has; metadata decide only where keys and
shapes do not. Weights that resemble several kinds are `unknown`: nothing is guessed. The keys are those that
diffusers, PEFT, kohya's sd-scripts, LyCORIS and the models' own code write; docs/formats.md lists them with
the files that were tried.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import cast

from finextract.weights import adapter_keys
from finextract.weights.embedding_keys import parse_embedding_key
from finextract.weights.families import origin_of_model
from finextract.weights.headers import (
    MAX_HEADER_BYTES,
    PICKLE_SUFFIXES,
    Header,
    TensorInfo,
    parse_header,
    read_header,
)
from finextract.weights.kinds import (
    ADAPTER_KINDS,
    Family,
    Kind,
    Style,
    TuningKind,
    WeightsKind,
    settled,
)

__all__ = [
    "ADAPTER_KINDS",
    "MAX_HEADER_BYTES",
    "PICKLE_SUFFIXES",
    "Family",
    "Header",
    "Kind",
    "Style",
    "TensorInfo",
    "TuningKind",
    "WeightsKind",
    "classify",
    "parse_header",
    "read_header",
    "settled",
]

_LDM = "model.diffusion_model."
_UNET_PARTS = {
    "conv_in", "time_embedding", "add_embedding", "class_embedding", "encoder_hid_proj", "down_blocks",
    "mid_block", "up_blocks", "conv_norm_out", "conv_out",
}  # fmt: skip
_VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "loss.")
# Of ControlNets by diffusers, lllyasviel, XLabs, InstantX and Stability.
_CONTROLNET = re.compile(
    r"(?:^|\.)(?:control_model|controlnet\w*|zero_convs|input_hint_block|pos_embed_input)\."
)
_POOLED = "time_text_embed.text_embedder.linear_1.weight"
# Transformers of diffusers with a layer of their own: name, a key, and its shape where others have the key.
_OTHER_TRANSFORMERS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("Chroma", "distilled_guidance_layer.in_proj.weight", ()),
    ("FLUX.2", "double_stream_modulation_img.linear.weight", ()),
    ("FIBO", "caption_projection.0.linear.weight", ()),
    ("LongCat", "context_embedder.weight", (3072, 3584)),
    ("Ovis", "context_embedder_norm.weight", (2048,)),
    ("Mochi", "time_embed.pooler.to_kv.weight", ()),
    ("Bria", "time_embed.timestep_embedder.linear_1.weight", (3072, 256)),
    ("Stable Audio", "global_proj.0.weight", ()),
    ("Qwen-Image", "txt_in.weight", (3072, 3584)),
    ("Z-Image", "all_x_embedder.2-1.weight", ()),
)
# Two layers of Z-Image under its own names. Lumina, of which it is a descendant, has the first alone.
_Z_IMAGE = {"noise_refiner.0.attention.qkv.weight", "cap_pad_token"}
_FIRST_BLOCKS = ("transformer_blocks.0.", "single_transformer_blocks.0.", "noise_refiner.0.")
# The layer that takes FLUX.1's packed latents -> the variant, "" for dev and schnell.
_FLUX_INPUTS: Mapping[tuple[int, ...], str] = {
    (3072, 64): "",
    (3072, 128): "canny or depth",
    (3072, 384): "fill",
}
_CLIP_LAYER = re.compile(r"(?:text_model\.)?encoder\.layers\.0\.self_attn\.q_proj\.weight")
_INTEGERS = ("I8", "U8", "I32")  # of 8 and of 4 bits, the latter packed
_T5_LAYER = "encoder.block.0.layer.0.SelfAttention.q.weight"


UNKNOWN = WeightsKind("unknown", "unknown", "unknown", False)


def classify(header: Header) -> WeightsKind:
    """Kind, family and key style of weights, from their keys and shapes.

    A family that these do not determine is taken from the metadata. Raises nothing, whatever the header
    contains.
    """
    keys = header.tensors
    found = (
        _adapter(header)
        or _controlnet(keys)
        or _original(keys)
        or _diffusers_model(keys)
        or _like_a_family(keys)
        or _textual_inversion(keys)
        or _vae(keys)
        or _text_encoder(keys)
        or UNKNOWN
    )
    return replace(found, integers=_integers(keys)) if found.kind in ("full", "unet") else found


def _integers(keys: Mapping[str, TensorInfo]) -> str:
    """The dtype of a weight that is quantised to integers, as bitsandbytes stores it; "" for none."""
    return next((t.dtype for k, t in keys.items() if k.endswith(".weight") and t.dtype in _INTEGERS), "")


def _adapter(header: Header) -> WeightsKind | None:
    found, whole = adapter_keys.algorithms(header)
    if not found:
        return None
    if not whole:
        return WeightsKind(
            "unknown", "unknown", "unknown", False, f"{' and '.join(sorted(found))} beside other tensors"
        )
    detail = " and ".join(sorted(found))
    kind: Kind = "lycoris"
    if found == {"LoRA"}:
        kind, detail = "lora", "LoCon" if adapter_keys.is_locon(header) else ""
    elif found == {"XLabs LoRA"}:
        kind, detail, found = "lora", "XLabs", {"LoRA"}  # the same algorithm under other names
    elif found == {"LoRA", "DoRA"}:
        kind, detail = "dora", ""
    elif found == {"LoRA", "Tucker decomposition"}:
        detail = "LoCon with Tucker decomposition"
    if adapter_keys.has_embeddings(header.tensors):
        detail = f"{detail} with learned embeddings".lstrip()
    origin = adapter_keys.origin_of(header)
    return WeightsKind(
        kind,
        cast(Family, origin.family),
        _adapter_style(header.tensors),
        adapter_keys.has_text_encoder(header.tensors),
        detail,
        tuple(sorted(found)),
        origin.model,
        cast(tuple[Family, ...], origin.fits),
    )


def _adapter_style(keys: Iterable[str]) -> Style:
    styles: tuple[tuple[Style, tuple[str, ...]], ...] = (
        ("peft", ("base_model.model.",)),
        ("kohya", ("lora_unet_", "oft_unet_", "lora_transformer_", "lora_te", "lycoris_")),
        ("diffusers", ("unet.", "text_encoder", "transformer.", "diffusion_model.")),
        ("xlabs", ("double_blocks.", "single_blocks.")),
    )
    keys = list(keys)
    return next((style for style, starts in styles if any(k.startswith(starts) for k in keys)), "unknown")


def _original(keys: Mapping[str, TensorInfo]) -> WeightsKind | None:
    """Weights with the key names of the models' own code: all components, or the denoiser alone."""
    inner = {k.removeprefix(_LDM): t for k, t in keys.items() if k.startswith(_LDM)}
    text = any(k.startswith(("cond_stage_model.", "conditioner.", "text_encoders.")) for k in keys)
    bare = not inner
    inner = inner or dict(keys)
    if "joint_blocks.0.x_block.attn.qkv.weight" in inner:
        return WeightsKind("full", "sd3", "ldm", text, _sd3_variant(inner, "x_embedder.proj.weight"))
    if "double_blocks.0.img_attn.qkv.weight" in inner:
        return _original_flux(inner, text)
    if inner.keys() >= _Z_IMAGE:
        return WeightsKind("full", "z_image", "ldm", text)
    if any(k.startswith("input_blocks.") for k in inner):
        parts = ("time_embed.", "output_blocks.")
        if bare and not all(any(k.startswith(p) for k in inner) for p in parts):
            return None
        family, detail, model = _unet_family(
            inner, "label_emb.", "label_emb.0.0.weight", "input_blocks.0.0.weight", "out.2.weight"
        )
        if not bare and any(_CONTROLNET.search(k) for k in keys):
            detail = "with a ControlNet"
        kind: Kind = "unet" if bare else "full"
        return WeightsKind(kind, family, "ldm", text and not bare, detail, model=model)
    return None if bare else WeightsKind("full", "unknown", "ldm", text)


def _controlnet(keys: Mapping[str, TensorInfo]) -> WeightsKind | None:
    """A ControlNet alone; a checkpoint that holds one beside its own weights is no ControlNet."""
    if not any(_CONTROLNET.search(k) for k in keys) or any(k.startswith(_LDM) for k in keys):
        return None
    return WeightsKind("controlnet", "unknown", "unknown", False)


def _original_flux(keys: Mapping[str, TensorInfo], text: bool) -> WeightsKind:
    """FLUX.1 under Black Forest Labs' names, or one of the models that were built like it."""
    if any("_stream_modulation" in k for k in keys):
        return WeightsKind("full", "unknown", "ldm", text, model="FLUX.2")
    if any(k.startswith("distilled_guidance_layer.") for k in keys):
        return WeightsKind("full", "chroma", "ldm", text)
    embeds_text = _shape(keys, "txt_in.weight") == (3072, 4096) and "vector_in.in_layer.weight" in keys
    if not embeds_text or _shape(keys, "double_blocks.0.img_attn.qkv.weight") != (9216, 3072):
        return WeightsKind("full", "unknown", "ldm", text)
    variant = _flux_variant(keys, "img_in.weight", "time_in.", "guidance_in.")
    return WeightsKind("full", "flux", "ldm", text, variant)


def _shape(keys: Mapping[str, TensorInfo], key: str) -> tuple[int, ...]:
    """The shape of a tensor; empty where there is none."""
    return keys[key].shape if key in keys else ()


def _diffusers_model(keys: Mapping[str, TensorInfo]) -> WeightsKind | None:
    """A UNet or a transformer as diffusers stores it, or its first shard."""
    firsts = {k.partition(".")[0] for k in keys}
    if {"conv_in", "down_blocks"} <= firsts <= _UNET_PARTS:
        if any(word in k for k in keys for word in ("motion_modules", "temporal")):
            return None
        family, detail, model = _unet_family(
            keys, "add_embedding.", "add_embedding.linear_1.weight", "conv_in.weight", "conv_out.weight"
        )
        return WeightsKind("unet", family, "diffusers", False, detail, model=model)
    if not {"transformer_blocks.0.norm1_context.linear.weight", "context_embedder.weight"} <= keys.keys():
        return None
    flux = {"context_embedder.weight": (3072, 4096), _POOLED: (3072, 768)}
    taken = _shape(keys, "x_embedder.weight")
    if all(_shape(keys, k) == shape for k, shape in flux.items()) and taken[:1] == (3072,):
        variant = _flux_variant(
            keys, "x_embedder.weight", "time_text_embed.timestep_", "time_text_embed.guidance_"
        )
        return WeightsKind("unet", "flux", "diffusers", False, variant)
    if len(_shape(keys, "pos_embed.proj.weight")) == 4 and "single_transformer_blocks" not in firsts:
        return WeightsKind("unet", "sd3", "diffusers", False, _sd3_variant(keys, "pos_embed.proj.weight"))
    return None


def _like_a_family(keys: Mapping[str, TensorInfo]) -> WeightsKind | None:
    """A transformer of diffusers that was built like another one, by a layer that it alone has."""
    if not any(k.startswith(_FIRST_BLOCKS) for k in keys):
        return None
    for model, key, shape in _OTHER_TRANSFORMERS:
        if key in keys and (not shape or keys[key].shape == shape):
            origin = origin_of_model(model)
            return WeightsKind("unet", cast(Family, origin.family), "diffusers", False, model=origin.model)
    return None


def _unet_family(
    keys: Mapping[str, TensorInfo], added: str, added_first: str, first: str, last: str
) -> tuple[Family, str, str]:
    """Family and variant of a UNet, and the model's own name where it is of no family here.

    `added` opens the keys of SDXL's second conditioning, `added_first` is its first layer, `first` and `last`
    are the UNet's outer convolutions.
    """
    if any(word in k for k in keys for word in ("time_stack", "time_mixer", "temporal", "motion_modules")):
        return "unknown", "", ""  # of a video model
    width = adapter_keys.context_width(Header({}, dict(keys), 0))
    has_added = any(k.startswith(added) for k in keys)
    taken = keys[first].shape[1] if first in keys and len(keys[first].shape) == 4 else None
    given = keys[last].shape[0] if last in keys and keys[last].shape else None
    detail = "" if given in (None, taken) else f"{taken} input channels"
    if taken == 9 and given != 9:
        detail = "inpainting"
    if any("cond_proj." in k for k in keys):
        detail = detail or "latent consistency"
    if _shape(keys, added_first)[1:] == (5632,):
        return "unknown", detail, "Kolors"
    if any(k.startswith("encoder_hid_proj.") for k in keys):
        return "unknown", detail, ""
    if has_added and width is not None and (width in (1280, 2048) or width <= 768):  # a small SDXL
        return "sdxl", detail or ("refiner" if width == 1280 else ""), ""
    if has_added and width != 1024:
        return "unknown", detail, ""
    family = adapter_keys.by_context(width)
    return cast(Family, "unknown" if family == "sdxl" else family), detail, ""


def _sd3_variant(keys: Mapping[str, TensorInfo], patches: str) -> str:
    """3 medium, 3.5 medium or 3.5 large, by the width and the second attention of 3.5 medium."""
    shape = keys[patches].shape if patches in keys else ()
    if shape[:1] == (2432,):
        return "3.5 large"
    if shape[:1] == (1536,):
        return "3.5 medium" if any(".attn2." in k for k in keys) else "3 medium"
    return ""


def _flux_variant(keys: Mapping[str, TensorInfo], first: str, time: str, guidance: str) -> str:
    """dev embeds the guidance, schnell does not; "" for a part of a model.

    `first` is the layer that takes the latents; fill, canny and depth give it those of further images.
    """
    if (taken := _shape(keys, first)) and taken != (3072, 64):
        return _FLUX_INPUTS.get(taken) or "further input channels"
    if any(k.startswith(guidance) for k in keys):
        return "dev"
    return "schnell" if any(k.startswith(time) for k in keys) else ""


def _textual_inversion(keys: Mapping[str, TensorInfo]) -> WeightsKind | None:
    if not keys or len(keys) > 64 or any(len(t.shape) not in (1, 2) for t in keys.values()):
        return None
    parsed = [parse_embedding_key(key) for key in keys]
    if not all(key is not None and not key.bundled for key in parsed):
        return None
    if any(key is not None and key.numbered for key in parsed):
        detail = "several text encoders" if len(keys) > 1 else ""
    else:
        detail = "diffusers" if all(k.startswith("<") for k in keys) else "A1111"
    return WeightsKind("textual_inversion", "unknown", "unknown", True, detail)


def _vae(keys: Collection[str]) -> WeightsKind | None:
    first_stage = [k.removeprefix("first_stage_model.") for k in keys]
    if not keys or not all(k.startswith(_VAE_PARTS) for k in first_stage):
        return None
    convolutions = any(k.startswith(("decoder.conv_in.", "decoder.conv_out.")) for k in first_stage)
    tiny = all(
        any(k.startswith(f"{p}.layers.") for k in keys) for p in ("encoder", "decoder")
    )  # AutoencoderTiny
    if not convolutions and not (tiny and not any("attn" in k for k in keys)):
        return None
    return WeightsKind("vae", "unknown", "unknown", False)


def _text_encoder(keys: Collection[str]) -> WeightsKind | None:
    if any(k.startswith(("vision_model.", "decoder.")) for k in keys):
        return None
    if _T5_LAYER in keys:
        return WeightsKind("text_encoder", "unknown", "unknown", True, "T5")
    if any(_CLIP_LAYER.fullmatch(k) for k in keys) and any("token_embedding." in k for k in keys):
        return WeightsKind("text_encoder", "unknown", "unknown", True, "CLIP")
    return None
