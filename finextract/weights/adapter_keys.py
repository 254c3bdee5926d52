"""The grammar of adapter keys: algorithm, layer and model family. Works on names and shapes alone.

An adapter file holds a few small tensors for each layer that it changes, "<layer>.<ending>", and the endings
name the algorithm: LoRA (Hu et al. 2022), DoRA (Liu et al. 2024), and those of LyCORIS (Yeh et al. 2024), as
kohya's sd-scripts, LyCORIS, PEFT, diffusers and XLabs write them. Reads no tensor and imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from finextract.weights.embedding_keys import parse_embedding_key
from finextract.weights.families import Layer, Origin, named_origin, transformer_origin
from finextract.weights.headers import Header
from finextract.weights.unet_names import fitting_families

# The two matrices of a LoRA, as kohya, PEFT (with and without the adapter's name) and diffusers call them.
_LORA_DOWN = r"(?:lora_down|lora_A(?:\.default)?|lora\.down|lora_linear_layer\.down)\.weight"
_LORA_UP = r"(?:lora_up|lora_B(?:\.default)?|lora\.up|lora_linear_layer\.up)\.weight"
# Before PEFT, diffusers stored the adapters of an attention as processor.<projection>_lora.
_OLD = r"processor\.(?P<projection{0}>to_(?:q|k|v|out))_lora\.{0}\.weight"
_OLD_DOWN, _OLD_UP = _OLD.format("down"), _OLD.format("up")
ONETRAINER_OFT = "OFT of OneTrainer"  # of PEFT's tensors, under kohya's names or beside parts of its own
OFT_PARTS = ("oft_blocks_0", "oft_blocks_1", "oft_blocks_2", "oft_blocks_3")
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
# Algorithm -> the parts of a layer that it alone has -> their endings. "" are parts of any algorithm.
_ENDINGS: dict[str, dict[str, str]] = {
    "LoRA": {
        "lora_down": f"{_LORA_DOWN}|{_OLD_DOWN}",
        "lora_up": f"{_LORA_UP}|{_OLD_UP}",
        "lora_bias": r"lora_B(?:\.default)?\.bias",
    },
    "XLabs LoRA": {
        f"{name}_{half}": rf"processor\.{name}\.{half}\.weight"
        for name in ("qkv_lora", "qkv_lora1", "qkv_lora2", "proj_lora", "proj_lora1", "proj_lora2")
        for half in ("down", "up")
    },
    "DoRA": {
        "dora_scale": r"dora_scale",
        "lora_magnitude": r"lora_magnitude_vector(?:\.default)?(?:\.weight)?",
    },
    "Tucker decomposition": {"lora_mid": r"lora_mid\.weight"},
    "LoHa": {name: name for name in _LOHA},
    "LoKr": {name: name for name in _LOKR},
    "OFT": {
        "oft_blocks": "oft_blocks",
        "oft_diag": "oft_diag",
        "oft_R": r"oft_R(?:\.default)?(?:\.weight)?",
        "scaled_oft": r"oft_R\.scaled_oft",
        # kohya's OFT of FLUX.1 rotates the parts of a fused layer by themselves.
        **{part: rf"oft_blocks\.{i}" for i, part in enumerate(OFT_PARTS)},
    },
    "BOFT": {"boft_R": r"boft_R(?:\.default)?", "boft_s": r"boft_s(?:\.default)?"},
    "IA3": {"on_input": "on_input", "ia3_l": r"ia3_l(?:\.default)?(?:\.weight)?"},
    "GLoRA": {name: rf"{name}\.weight" for name in ("a1", "a2", "b1", "b2", "bm")},
    "full difference": {"diff": "diff", "diff_b": "diff_b"},
    "norm layers": {"w_norm": "w_norm", "b_norm": "b_norm"},
    "scalars": {"scalar": "scalar", "rescale": "rescale"},
    "": {"alpha": "alpha"},
}
_GROUPS = [(algorithm, part) for algorithm, parts in _ENDINGS.items() for part in parts]
_KEY = re.compile(
    r"(?P<layer>.+)\.(?:"
    + "|".join(f"(?P<g{i}>{_ENDINGS[algorithm][part]})" for i, (algorithm, part) in enumerate(_GROUPS))
    + ")",
    re.DOTALL,
)
# LyCORIS stores the vector of its (IA)3 as a plain weight beside on_input, and GLoRA has further matrices.
_IA3_WEIGHT = ".weight"
_GLORA = {"a1", "a2", "b1", "b2"}
_UNET_BLOCK = re.compile(
    r"(?:^|[._])(?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)[._]"
)
_CROSS_KEY = re.compile(r"[._]attn2[._](?:processor[._])?to_k(?:_lora)?\.")
# The tensors of any algorithm whose second axis is a layer's input width, or whose first is its output width.
_WIDTH_IN = re.compile(rf"(?:{_LORA_DOWN}|(?:lora[12]?\.down|\.b2)\.weight|\.(?:hada_w1_b|diff))$")
_WIDTH_OUT = re.compile(rf"(?:{_LORA_UP}|(?:lora[12]?\.up|\.b1)\.weight|\.hada_w1_a)$")
_ADDED = re.compile(r"(?:add_embedding[._]linear_1|label_emb[._]0[._]0)$")  # SDXL's second conditioning
_SIDEWAYS = ("motion_modules", "temporal", "time_stack", "controlnet")  # of video models and ControlNets
# kohya's scripts give a UNet's layers their original names for SDXL alone, and number its text encoders.
_SDXL_UNET_NAME = re.compile(r"(?:lora|oft)_unet_(?:input|output|middle)_blocks?_")
_SDXL_TEXT_NAME = re.compile(r"lora_te[12]_|text_encoder_2\.")
_KOLORS_WIDTH = 5632  # of Kolors' second conditioning; SDXL's is 2816


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """The key of one tensor of an adapter."""

    layer: str  # the layer's name, in the style of the file
    part: str  # what the tensor is to the layer: "lora_down", "hada_w1_a", "alpha"; see _ENDINGS
    algorithm: str  # the algorithm that alone has this part; "" where several have it


def parse_key(key: str) -> AdapterKey | None:
    """Layer, part and algorithm of an adapter's tensor, whichever tool wrote it; None for any other tensor.

    The plain weight that LyCORIS stores for (IA)3 is recognised by `group_by_layer` alone.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    group = next(i for i in range(len(_GROUPS)) if match[f"g{i}"] is not None)
    algorithm, part = _GROUPS[group]
    layer, projection = match["layer"], match["projectiondown"] or match["projectionup"]
    if algorithm == "XLabs LoRA":  # a plain LoRA; the names of its layers are in weights/original_names.py
        name, _, half = part.rpartition("_")
        return AdapterKey(f"{layer}.processor.{name}", f"lora_{half}", algorithm)
    if projection:
        layer = f"{layer}.{projection}.0" if projection == "to_out" else f"{layer}.{projection}"
    return AdapterKey(layer, part, algorithm)


@dataclass(frozen=True, slots=True)
class GroupedKeys:
    """The keys of an adapter file, by what they are."""

    layers: dict[str, dict[str, str]]  # layer -> part -> key
    embeddings: list[str]  # of words that were trained together with the adapter (pivotal tuning)
    rest: list[str]  # those that fit nothing, and those of a part that a layer has twice


def parts_of(algorithm: str) -> frozenset[str]:
    """The parts of a layer that an algorithm alone has."""
    return frozenset(_ENDINGS[algorithm])


def group_by_layer(keys: Iterable[str]) -> GroupedKeys:
    """The keys of an adapter file grouped by the layer that they belong to."""
    found = GroupedKeys({}, [], [])
    for key in keys:
        if (parsed := parse_key(key)) is None:
            (found.rest if parse_embedding_key(key) is None else found.embeddings).append(key)
        elif parsed.part in (parts := found.layers.setdefault(parsed.layer, {})):
            found.rest.append(key)
        else:
            parts[parsed.part] = key
    rest = list(found.rest)
    found.rest.clear()
    for key in rest:
        parts = found.layers.get(key.removesuffix(_IA3_WEIGHT), {})
        if key.endswith(_IA3_WEIGHT) and "on_input" in parts and "weight" not in parts:
            parts["weight"] = key
        else:
            found.rest.append(key)
    return found


def is_onetrainers_oft(layer: str, parts: Iterable[str]) -> bool:
    """Whether a layer's rotations are those of OneTrainer, or kohya's oft_v2, which PEFT's resemble."""
    parts = set(parts)
    return "oft_R" in parts and (layer.startswith("lora_") or not parts.isdisjoint({"alpha", "scaled_oft"}))


def algorithms(header: Header) -> tuple[set[str], bool]:
    """The algorithms that the keys' endings name, and whether every tensor belongs to one of them.

    Learned embeddings may be beside them.
    """
    grouped = group_by_layer(header.tensors)
    found: set[str] = set()
    whole = not grouped.rest
    for layer, parts in grouped.layers.items():
        for part, key in parts.items():
            parsed = parse_key(key)
            algorithm = parsed.algorithm if parsed else "IA3"
            if part == "oft_blocks" and len(header.tensors[key].shape) == 4:  # one more axis, the factors
                algorithm = "BOFT"
            if algorithm == "OFT" and is_onetrainers_oft(layer, parts):
                algorithm = ONETRAINER_OFT
            if algorithm == "GLoRA" and not parts.keys() >= _GLORA:
                whole = False
            elif algorithm:
                found.add(algorithm)
    return (set() if found == {"scalars"} else found), whole


def is_locon(header: Header) -> bool:
    """Whether a LoRA changes convolutions with a kernel of more than one pixel too."""
    return any(len(t.shape) == 4 and t.shape[-1] > 1 for t in header.tensors.values())


def has_embeddings(keys: Iterable[str]) -> bool:
    """Whether an adapter file holds learned embeddings beside its layers."""
    return any(parse_embedding_key(key) is not None for key in keys)


def has_text_encoder(keys: Iterable[str]) -> bool:
    """Whether an adapter changes a text encoder."""
    return any(k.startswith(("lora_te", "text_encoder", "base_model.model.text_model.")) for k in keys)


def origin_of(header: Header) -> Origin:
    """The model that an adapter is for; "unknown" where keys, shapes and metadata do not show it.

    A UNet is recognised by the width of its cross-attention, or where no tensor shows it by the names of its
    layers, a transformer by its layers, their widths and their number. An adapter of Kolors that changes the
    attention alone has the keys and shapes of one of SDXL: only metadata show the difference.
    """
    keys, named = header.tensors, named_origin(header.metadata)
    if not any(_UNET_BLOCK.search(k) for k in keys):
        return transformer_origin(_layers(header), named) or named or Origin("unknown")
    if any(word in k for k in keys for word in _SIDEWAYS):
        return Origin("unknown")
    layers, width = _layers(header), context_width(header)
    if width is None:
        return _by_names(header, layers, named)
    if width == 2048 or (width <= 768 and _is_small_sdxl(keys, named)):
        return _sdxl_or_kolors(layers, named)
    if width <= 768 and named is None and any(map(_SDXL_UNET_NAME.match, keys)):
        return Origin("sdxl") if width < 768 else Origin("unknown", fits=("sd1", "sdxl"))
    return Origin(by_context(width))


def _by_names(header: Header, layers: Mapping[str, Layer], named: Origin | None) -> Origin:
    """The origin of an adapter of a UNet whose shapes do not show the width of the text embeddings."""
    widths = {name: layer.width_out or layer.width_in for name, layer in layers.items()}
    for key, tensor in header.tensors.items():  # LyCORIS' (IA)3: one number for each output, or each input
        layer = key.removesuffix(_IA3_WEIGHT)
        if layer != key and f"{layer}.on_input" in header.tensors:
            widths[layer] = math.prod(tensor.shape)
    fitting = fitting_families(widths, header.metadata.get("ss_v2"))
    if named is not None:
        agree = named.family in fitting or named.family == "unknown" or not fitting
        return named if agree else Origin("unknown")
    if fitting == ("sdxl",):
        return _sdxl_or_kolors(layers, named)
    return Origin(fitting[0]) if len(fitting) == 1 else Origin("unknown", fits=fitting)


def _is_small_sdxl(keys: Iterable[str], named: Origin | None) -> bool:
    """Whether an adapter for narrow text embeddings is for a small model of the shape of SDXL.

    By the second of its text encoders, or its metadata.
    """
    return (named is not None and named.family == "sdxl") or any(map(_SDXL_TEXT_NAME.match, keys))


def _sdxl_or_kolors(layers: Mapping[str, Layer], named: Origin | None) -> Origin:
    kolors = any(
        "encoder_hid_proj" in name or (_ADDED.search(name) and layer.width_in == _KOLORS_WIDTH)
        for name, layer in layers.items()
    )
    if kolors or (named is not None and named.model == "Kolors"):
        return Origin("unknown", "Kolors")
    return Origin("sdxl")


def _layers(header: Header) -> dict[str, Layer]:
    """The layers that an adapter changes, with the widths that its tensors show."""
    layers: dict[str, Layer] = {}
    for key, tensor in header.tensors.items():
        if (parsed := parse_key(key)) is None:
            continue
        name = parsed.layer
        layer = layers.get(name, Layer())
        if (_WIDTH_OUT.search(key) or parsed.part == "ia3_l") and tensor.shape:
            layers[name] = replace(layer, width_out=tensor.shape[0])
        elif parsed.part.startswith("oft_blocks") and len(tensor.shape) >= 3:  # [..., blocks, size, size]
            rows = tensor.shape[-3] * tensor.shape[-2]
            layers[name] = replace(layer, width_out=layer.width_out + rows)  # of all parts
        else:
            layers[name] = replace(layer, width_in=_width_in(header, key) or layer.width_in)
    return layers


def by_context(width: int | None) -> str:
    """The family of a UNet by the width of the text embeddings that its cross-attention takes.

    A smaller model of the shape of Stable Diffusion 1 belongs to that family.
    """
    if width is None or width > 2048:
        return "unknown"
    return {1024: "sd2", 2048: "sdxl"}.get(width, "sd1" if width <= 768 else "unknown")


def context_width(header: Header) -> int | None:
    """The width of the text embeddings, from the first cross-attention key projection of a UNet."""
    for key in header.tensors:
        if _UNET_BLOCK.search(key) and _CROSS_KEY.search(key):
            width = _width_in(header, key)
            if width is not None:
                return width
    return None


def _width_in(header: Header, key: str) -> int | None:
    """A layer's input width, from one of its tensors; None where that tensor does not show it."""
    shape = header.tensors[key].shape
    if len(shape) < 2:
        return None
    if _WIDTH_IN.search(key) or key.endswith("attn2.to_k.weight"):
        return shape[1]
    parsed = parse_key(key)
    if parsed is not None and parsed.part == "boft_R" and len(shape) == 4:  # blocks of inputs
        return shape[1] * shape[2]
    if parsed is not None and parsed.part == "oft_R" and len(shape) == 2 and shape[0] > 1:  # as triangles
        return shape[0] * ((1 + math.isqrt(1 + 8 * shape[1])) // 2)
    layer, _, ending = key.rpartition(".")
    if ending in ("lokr_w1", "lokr_w1_b"):  # a Kronecker product: the widths multiply
        for other in (f"{layer}.lokr_w2", f"{layer}.lokr_w2_b"):
            if other in header.tensors and len(header.tensors[other].shape) >= 2:
                return shape[1] * header.tensors[other].shape[1]
    return None
