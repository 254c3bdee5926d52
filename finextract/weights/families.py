"""The model family that an adapter was made for, from names, widths and number of layers, and from metadata.

Several transformers share the names and the widths of their blocks with FLUX.1. They are told apart by the
layers that only some of them have and by the number of their blocks; where several still fit, none is chosen.
The names, widths and numbers are those of the classes in diffusers 0.42 and of Black Forest Labs' own code.
Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# How ss_base_model_version (kohya, ai-toolkit) and modelspec.architecture (kohya, OneTrainer) begin, in lower
# case -> family, and the model's own name where it is of no family here.
_NAMES = (
    ("sd_v1", "sd1", ""), ("sd_1.", "sd1", ""), ("stable-diffusion-v1", "sd1", ""),
    ("sd_v2", "sd2", ""), ("sd_2.", "sd2", ""), ("stable-diffusion-v2", "sd2", ""),
    ("sdxl", "sdxl", ""), ("stable-diffusion-xl", "sdxl", ""),
    ("sd3", "sd3", ""), ("sd_3", "sd3", ""), ("stable-diffusion-3", "sd3", ""),
    ("stable-diffusion-v3", "sd3", ""),
    ("flux1", "flux", ""), ("flux-1", "flux", ""), ("flux.1", "flux", ""),
    ("flux2", "unknown", "FLUX.2"), ("flux-2", "unknown", "FLUX.2"), ("flux.2", "unknown", "FLUX.2"),
    ("bria", "unknown", "Bria"), ("chroma", "chroma", ""), ("fibo", "unknown", "FIBO"),
    ("kolors", "unknown", "Kolors"), ("longcat", "unknown", "LongCat"), ("mochi", "unknown", "Mochi"),
    ("ovis", "unknown", "Ovis"), ("qwen", "unknown", "Qwen-Image"),
    ("stable-audio", "unknown", "Stable Audio"),
    ("zimage", "z_image", ""), ("z-image", "z_image", ""), ("z_image", "z_image", ""),
    *(
        (start, "unknown", model)
        for model, starts in {
            "Anima": ("anima",), "AuraFlow": ("auraflow",), "HiDream": ("hidream",), "Hunyuan": ("hunyuan",),
            "Krea 2": ("krea2", "krea-2", "krea_2"), "LTX-Video": ("ltx",), "Lumina": ("lumina",),
            "PixArt": ("pixart",), "Wan": ("wan",),
        }.items()
        for start in starts
    ),
)  # fmt: skip
_BLOCK = re.compile(
    r"(?:^|_)((?:double|single|joint)_blocks|(?:single_|joint_)?transformer_blocks)_(\d{1,4})(?:_(.+))?"
)
_STREAMS = (("double_blocks", "single_blocks"), ("transformer_blocks", "single_transformer_blocks"))
_W = 3072  # the width of FLUX.1
_FLUX2_WIDTHS = (3072, 4096, 6144)  # klein 4B, klein 9B, dev
# A layer of FLUX.1's double and single blocks -> its input and output width.
_FLUX_LAYERS = (
    (r"(?:img|txt)_mod_lin|norm1(?:_context)?_linear", _W, 6 * _W),
    (r"modulation_lin|norm_linear", _W, 3 * _W),
    (r"(?:img|txt)_attn_qkv|processor_qkv_lora[12]?", _W, 3 * _W),
    (r"(?:img|txt)_attn_proj|processor_proj_lora[12]", _W, _W),
    (r"processor_proj_lora", 5 * _W, _W),
    (r"attn_(?:to_[qkv]|add_[qkv]_proj|to_out_0|to_add_out)", _W, _W),
    (r"(?:img|txt)_mlp_0|ff(?:_context)?_net_0_proj|proj_mlp", _W, 4 * _W),
    (r"(?:img|txt)_mlp_2|ff(?:_context)?_net_2", 4 * _W, _W),
    (r"linear1", _W, 7 * _W),
    (r"linear2|proj_out", 5 * _W, _W),
)
_PER_BLOCK = r"(?:img|txt)_mod_lin|modulation_lin|norm1?(?:_context)?_linear"
_EMBEDDED = r"time_in_|guidance_in_|vector_in_|time_text_embed_"
_MLP = r"(?:img|txt)_mlp_\d|ff_|linear\d|proj_mlp"
_BUT_ATTENTION = f"(?:{_PER_BLOCK})$|(?:{_EMBEDDED})|processor_|(?:{_MLP})"
# The models whose blocks FLUX.1's layers may belong to -> double and single blocks, and the layers of FLUX.1
# that the model lacks or has in other widths.
_LIKE_FLUX = {
    "FLUX.1": (19, 38, None),
    "Chroma": (19, 38, re.compile(f"(?:{_PER_BLOCK})$|(?:{_EMBEDDED})|processor_")),
    "Bria/FIBO": (8, 38, re.compile(f"(?:{_EMBEDDED})|processor_")),
    "LongCat": (10, 20, re.compile(f"(?:{_EMBEDDED})|processor_")),
    "Ovis": (6, 27, re.compile(f"(?:{_EMBEDDED})|processor_|(?:{_MLP})")),
    "FLUX.2": (5, 0, re.compile(_BUT_ATTENTION)),
    "Qwen-Image": (60, 0, re.compile(f"{_BUT_ATTENTION}|_attn_(?:qkv|proj)$")),
}
_FAMILY_OF_MODEL = {"FLUX.1": "flux", "Chroma": "chroma", "Z-Image": "z_image"}
# Z-Image's blocks, and their layers with input and output width. Lumina's have these names and other widths.
_Z_BLOCK = r"(?:^|_)(?:layers|noise_refiner|context_refiner)_\d+"
_Z_LAYERS = (
    (r"attention_(?:to_[qkv]|to_out_0|out)", 3840, 3840),
    (r"attention_qkv", 3840, 3 * 3840),
    (r"feed_forward_w[13]", 3840, 10240),
    (r"feed_forward_w2", 10240, 3840),
    (r"adaLN_modulation_0", 256, 4 * 3840),
)
_Z_NAME = re.compile(f"{_Z_BLOCK}_(?:{'|'.join(layer for layer, _, _ in _Z_LAYERS)})$")
_Z_OUTER = re.compile(  # its layers outside the blocks, and those of a text encoder
    r"(?:^|_)(?:(?:all_)?(?:x_embedder|final_layer)|t_embedder|cap_embedder)(?:_|$)|^text_encoder_"
)
# Layers that one of those models has alone: its name, and the widths where the name alone does not show it.
_OWN_LAYERS = (
    ("Chroma", r"distilled_guidance_layer", 0, 0),
    ("FLUX.2", r"(?:double|single)_stream_modulation|attn_to_qkv_mlp_proj$", 0, 0),
    ("FLUX.2", r"ff(?:_context)?_linear_(?:in|out)$", 0, 0),
    *(
        ("FLUX.2", layer, wide * width, out * width)
        for width in _FLUX2_WIDTHS
        for layer, wide, out in (
            (r"double_blocks_\d+_(?:img|txt)_mlp_0$", 1, 6),
            (r"single_blocks_\d+_linear1$", 1, 9),
            (r"single_blocks_\d+_linear2$", 4, 1),
        )
    ),
    ("FIBO", r"caption_projection", 0, 0),
    ("Qwen-Image", r"transformer_blocks_\d+_(?:img|txt)_(?:mod_1|mlp_net_\d)", 0, 0),
    *(("Z-Image", rf"{_Z_BLOCK}_{layer}$", wide, out) for layer, wide, out in _Z_LAYERS),
    ("Ovis", r"ff(?:_context)?_net_0_proj$|proj_mlp$", _W, 8 * _W),
    ("Mochi", r"(?<!joint_)transformer_blocks_\d+_attn1_add_[qkv]_proj$", 1536, _W),
    ("Mochi", r"(?<!joint_)transformer_blocks_\d+_ff_net_0_proj$", _W, 16384),
    ("Stable Audio", r"(?<!joint_)transformer_blocks_\d+_attn2_to_[kv]$", 768, 768),
    ("Stable Audio", r"(?<!joint_)transformer_blocks_\d+_ff_net_0_proj$", 1536, 12288),
)  # fmt: skip
_ANY_OWN_LAYER = re.compile("|".join(dict.fromkeys(own for _, own, _, _ in _OWN_LAYERS)))
_SD3_WIDTHS = (1536, 2432)  # 3 medium and 3.5 medium, 3.5 large
# A layer of SD3's blocks -> input and output width, in widths of the model; 0 where variants differ.
_SD3_LAYERS = (
    (r"(?:x|context)_block_attn2?_qkv", 1, 3),
    (r"(?:x|context)_block_attn2?_proj", 1, 1),
    (r"(?:x|context)_block_mlp_fc1", 1, 4),
    (r"(?:x|context)_block_mlp_fc2", 4, 1),
    (r"(?:x|context)_block_adaLN_modulation_1", 1, 0),
    (r"attn2?_(?:to_[qkv]|add_[qkv]_proj|to_out_0|to_add_out)", 1, 1),
    (r"ff(?:_context)?_net_0_proj", 1, 4),
    (r"ff(?:_context)?_net_2", 4, 1),
    (r"norm1(?:_context)?_linear", 1, 0),
)
# Family -> the names of its blocks, their layers, and the least width of a published model.
_SMALL = {
    "sd3": (frozenset({"joint_blocks", "transformer_blocks"}), _SD3_LAYERS, min(_SD3_WIDTHS)),
    "flux": (frozenset(name for pair in _STREAMS for name in pair), _FLUX_LAYERS, _W),
    "chroma": (frozenset(name for pair in _STREAMS for name in pair), _FLUX_LAYERS, _W),
}


@dataclass(frozen=True, slots=True)
class Origin:
    """What weights were made for: a family of `formats.Family`, or a model of no family there."""

    family: str
    model: str = ""  # "Chroma"; several that fit: "FLUX.1 or Chroma"; "" where the family says it, or nothing
    fits: tuple[str, ...] = ()  # with the family "unknown", the families whose models have such layers


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that an adapter changes."""

    width_in: int = 0  # 0 where no tensor shows it
    width_out: int = 0

    @property
    def shown(self) -> bool:
        """Whether a tensor shows one of its widths."""
        return bool(self.width_in or self.width_out)


def named_origin(metadata: Mapping[str, str]) -> Origin | None:
    """The origin that the training metadata name: "unknown" for a name not listed here, None for no name."""
    stated = metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture") or ""
    if not stated.strip():
        return None
    stated = stated.strip().lower()
    known = (Origin(family, model) for start, family, model in _NAMES if stated.startswith(start))
    return next(known, Origin("unknown"))


def transformer_origin(layers: Mapping[str, Layer], named: Origin | None) -> Origin | None:
    """SD3, FLUX.1 or another transformer by the layers that an adapter changes; `named` by its metadata.

    `layers` maps a layer's name, in any style, to its widths. None where names and widths do not show that
    the model is a transformer; the family "unknown" where it is another one, or where several fit.
    """
    plain = {name.replace(".", "_"): layer for name, layer in layers.items()}
    telling = [(name, layer) for name, layer in plain.items() if _ANY_OWN_LAYER.search(name)]
    for model, own, wide, out in _OWN_LAYERS:
        search = re.compile(own).search
        for name, layer in telling:
            if (not wide or (layer.width_in, layer.width_out) == (wide, out)) and search(name):
                return _agreed(origin_of_model(model), named)
    blocks: dict[str, int] = {}
    inside: list[tuple[str, Layer]] = []
    for name, layer in plain.items():
        if match := _BLOCK.search(name):
            blocks[match[1]] = max(blocks.get(match[1], -1), int(match[2]))
            inside.append((match[3] or "", layer))
    within = [name for name in plain if not _Z_OUTER.search(name)]
    if named is None and within and all(map(_Z_NAME.search, within)):  # small, or without telling shapes
        return Origin("unknown", fits=("z_image",))
    if not any(layer.shown for _, layer in inside):
        by_names = tuple(family for family in _SMALL if inside and _has_names(blocks.keys(), inside, family))
        return Origin("unknown", fits=by_names) if named is None and by_names else None
    if blocks.keys() in ({"joint_blocks"}, {"transformer_blocks"}) and _is_sd3(inside):
        return _agreed(Origin("sd3"), named)
    for double, single in _STREAMS:
        if blocks.keys() <= {double, single} and _all_match(inside, _FLUX_LAYERS):
            return _like_flux(blocks.get(double, -1), blocks.get(single, -1), plain, named)
    small = tuple(family for family in _SMALL if _is_small(blocks.keys(), inside, family))
    if named is not None:
        return named if named.family in small else Origin("unknown")
    return Origin(small[0]) if len(small) == 1 else Origin("unknown", fits=small)


def origin_of_model(model: str) -> Origin:
    """The origin of weights that are for a model of this name."""
    family = _FAMILY_OF_MODEL.get(model)
    return Origin("unknown", model) if family is None else Origin(family)


def _like_flux(double: int, single: int, names: Iterable[str], named: Origin | None) -> Origin:
    """The origin of layers with FLUX.1's names and widths; `double`, `single` number the last blocks."""
    names = list(names)
    fitting = [
        model
        for model, (doubles, singles, lacks) in _LIKE_FLUX.items()
        if double < doubles
        and single < singles
        and not (lacks and any(lacks.search(_within(n)) for n in names))
    ]
    origins = [origin_of_model(model) for model in fitting]
    if len(origins) == 1:
        return _agreed(origins[0], named)
    if named is not None:
        return named if named in origins or named.family == "unknown" else Origin("unknown")
    *first, last = fitting or [""]
    families = tuple(_FAMILY_OF_MODEL[model] for model in fitting if model in _FAMILY_OF_MODEL)
    return Origin("unknown", f"{', '.join(first)} or {last}" if first else last, families)


def _has_names(blocks: Iterable[str], inside: Iterable[tuple[str, Layer]], family: str) -> bool:
    """Whether blocks and layers have the names that a family has."""
    known, layers, _ = _SMALL[family]
    names = [re.compile(pattern) for pattern, _, _ in layers]
    return known.issuperset(blocks) and all(any(p.fullmatch(name) for p in names) for name, _ in inside)


def _is_small(blocks: Iterable[str], inside: Iterable[tuple[str, Layer]], family: str) -> bool:
    """Whether layers have the names that a family has, and are narrower than in any published model of it."""
    known, layers, published = _SMALL[family]
    names = [re.compile(pattern) for pattern, _, _ in layers]
    return known.issuperset(blocks) and all(
        any(pattern.fullmatch(name) for pattern in names) and 0 < min(filter(None, widths)) < published
        for name, layer in inside
        if any(widths := (layer.width_in, layer.width_out))
    )


def _within(name: str) -> str:
    """A layer's name inside its block, or the whole of it outside blocks."""
    match = _BLOCK.search(name)
    return (match[3] or "") if match else name


def _agreed(shown: Origin, named: Origin | None) -> Origin:
    """What keys and shapes show, unless the metadata name something else."""
    if named is None or named == shown or (shown.model and named.family == "unknown"):
        return shown
    return Origin("unknown", shown.model)


def _fits(layer: Layer, wide: int, out: int) -> bool:
    """Whether a layer has those widths, as far as its tensors show them; 0 is any width."""
    return (not wide or layer.width_in in (0, wide)) and (not out or layer.width_out in (0, out))


def _all_match(inside: Iterable[tuple[str, Layer]], known: Iterable[tuple[str, int, int]]) -> bool:
    """Whether every layer whose widths are shown is one of the known layers, with its widths."""
    compiled = [(re.compile(pattern), wide, out) for pattern, wide, out in known]
    return all(
        any(pattern.fullmatch(name) and _fits(layer, wide, out) for pattern, wide, out in compiled)
        for name, layer in inside
        if layer.shown
    )


def _is_sd3(inside: list[tuple[str, Layer]]) -> bool:
    return any(
        _all_match(inside, [(pattern, wide * width, out * width) for pattern, wide, out in _SD3_LAYERS])
        for width in _SD3_WIDTHS
    )
