"""The grammar of adapter keys: algorithm, layer and model family. Works on names and shapes alone.

An adapter file holds a few small tensors for each layer that it changes, "<layer>.<ending>", and the endings
name the algorithm: LoRA (Hu et al. 2022), DoRA (Liu et al. 2024), and those of LyCORIS (Yeh et al. 2024), as
kohya's sd-scripts, LyCORIS, PEFT, diffusers and XLabs write them. Reads no tensor and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from finextract.weights.families import Layer, Origin, named_origin, transformer_origin
from finextract.weights.headers import Header

# The two matrices of a LoRA, as kohya, PEFT (with and without the adapter's name) and diffusers call them.
_LORA_DOWN = r"(?:lora_down|lora_A(?:\.default)?|lora\.down|lora_linear_layer\.down)\.weight"
_LORA_UP = r"(?:lora_up|lora_B(?:\.default)?|lora\.up|lora_linear_layer\.up)\.weight"
# Before PEFT, diffusers stored the adapters of an attention as processor.<projection>_lora.
_OLD_PROCESSOR = r"processor\.(?P<projection>to_(?:q|k|v|out))_lora\.(?P<old>down|up)\.weight"
# Algorithm -> the endings that it alone has. "" are endings that occur with any algorithm.
_ENDINGS = {
    "LoRA": f"{_LORA_DOWN}|{_LORA_UP}|{re.sub('P<[a-z]+>', ':', _OLD_PROCESSOR)}",
    "XLabs LoRA": r"processor\.(?:qkv|proj)_lora[12]?\.(?:down|up)\.weight",
    "DoRA": r"dora_scale|lora_magnitude_vector(?:\.default)?(?:\.weight)?",
    "Tucker decomposition": r"lora_mid\.weight",
    "LoHa": r"hada_(?:w[12]_[ab]|t[12])",
    "LoKr": r"lokr_(?:w[12](?:_[ab])?|t[12])",
    "OFT": r"oft_blocks|oft_diag|oft_R(?:\.weight)?",
    "BOFT": r"boft_[Rs]",
    "IA3": r"on_input|ia3_l(?:\.weight)?",
    "GLoRA": r"(?:a1|a2|b1|b2|bm)\.weight",
    "full difference": r"diff|diff_b",
    "norm layers": r"w_norm|b_norm",
    "scalars": r"scalar|rescale",
    "": r"alpha",
}
_GROUPS = {f"g{i}": algorithm for i, algorithm in enumerate(_ENDINGS)}
_KEY = re.compile(
    r"(?P<layer>.+)\.(?:"
    + "|".join(f"(?P<g{i}>{ending})" for i, ending in enumerate(_ENDINGS.values()))
    + ")",
    re.DOTALL,
)
_GLORA = {"a1.weight", "a2.weight", "b1.weight", "b2.weight"}
_UNET_BLOCK = re.compile(
    r"(?:^|[._])(?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)[._]"
)
_CROSS_KEY = re.compile(r"[._]attn2[._](?:processor[._])?to_k(?:_lora)?\.")
# The tensors of any algorithm whose second axis is a layer's input width, or whose first is its output width.
_WIDTH_IN = re.compile(rf"(?:{_LORA_DOWN}|(?:lora[12]?\.down|\.b2)\.weight|\.(?:hada_w1_b|diff))$")
_WIDTH_OUT = re.compile(rf"(?:{_LORA_UP}|(?:lora[12]?\.up|\.b1)\.weight|\.hada_w1_a)$")
_LORA_KEY = re.compile(
    rf"(?P<layer>.+)\.(?:(?P<down>{_LORA_DOWN})|(?P<up>{_LORA_UP})|(?P<alpha>alpha)|{_OLD_PROCESSOR})",
    re.DOTALL,
)
_XLABS_KEY = re.compile(
    r"(?P<layer>.+\.processor\.(?:qkv|proj)_lora[12]?)\.(?P<part>down|up)\.weight", re.DOTALL
)
_ADDED = re.compile(r"(?:add_embedding[._]linear_1|label_emb[._]0[._]0)$")  # SDXL's second conditioning
_DENOISERS = ("unet", "transformer")
# How kohya's sd-scripts, and OneTrainer for transformers, begin the names of a component's layers. FLUX.1's
# T5 is lora_te3 as that of Stable Diffusion 3 is; the first versions had lora_te2.
_KOHYA_COMPONENTS = {
    "unet": ("lora_unet",),
    "transformer": ("lora_unet", "lora_transformer"),
    "text_encoder": ("lora_te", "lora_te1"),
    "text_encoder_2": ("lora_te2", "lora_te3"),
    "text_encoder_3": ("lora_te3",),
}
_SIDEWAYS = ("motion_modules", "temporal", "time_stack", "controlnet")  # of video models and ControlNets
_KOLORS_WIDTH = 5632  # of Kolors' second conditioning; SDXL's is 2816


@dataclass(frozen=True, slots=True)
class LoraKey:
    """The key of one tensor of a LoRA."""

    layer: str  # the layer's name, in the style of the file
    part: Literal["down", "up", "alpha"]


def parse_lora_key(key: str) -> LoraKey | None:
    """Layer and part of a LoRA's tensor, whichever tool wrote it; None for any other tensor."""
    if (xlabs := _XLABS_KEY.fullmatch(key)) is not None:
        return LoraKey(xlabs["layer"], "down" if xlabs["part"] == "down" else "up")
    match = _LORA_KEY.fullmatch(key)
    if match is None:
        return None
    if match["old"]:
        projection = f"{match['projection']}.0" if match["projection"] == "to_out" else match["projection"]
        return LoraKey(f"{match['layer']}.{projection}", "down" if match["old"] == "down" else "up")
    return LoraKey(match["layer"], "down" if match["down"] else "up" if match["up"] else "alpha")


def layer_names(layers: Iterable[str]) -> dict[str, str]:
    """Every name that an adapter file may have for a layer -> the layer's own name.

    `layers` are names as of `Model.layers()`, such as "unet.down_blocks.0.attentions.0.proj_in". Files name
    it "lora_unet_down_blocks_0_attentions_0_proj_in" (kohya), "unet.down_blocks..." (diffusers),
    "base_model.model.down_blocks..." (PEFT), "down_blocks..." (the training scripts), or
    "diffusion_model.down_blocks..." (ai-toolkit). Where two layers would share a name, the first has it. The
    names that a model's own code has for its layers are those of finextract.weights.original_names.
    """
    names: dict[str, str] = {}
    for layer in layers:
        component, _, name = layer.partition(".")
        # transformers 5 dropped the "text_model." that every stored text encoder has in its names.
        for alias in (name, name.removeprefix("text_model."), f"text_model.{name}"):
            flat = alias.replace(".", "_")
            kohya = (f"{start}_{flat}" for start in _KOHYA_COMPONENTS.get(component, (component,)))
            bare = (alias, f"diffusion_model.{alias}") if component in _DENOISERS else ()
            for style in (*kohya, f"{component}.{alias}", f"base_model.model.{alias}", *bare):
                names.setdefault(style, layer)
    return names


def algorithms(header: Header) -> tuple[set[str], bool]:
    """The algorithms that the keys' endings name, and whether every tensor belongs to one of them."""
    layers: dict[str, set[str]] = {}
    found: set[str] = set()
    rest: list[str] = []
    for key, tensor in header.tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or match.lastgroup is None:
            rest.append(key)
            continue
        algorithm = _GROUPS[match.lastgroup]
        if algorithm == "OFT" and len(tensor.shape) == 4:  # LyCORIS: one more axis, the factors
            algorithm = "BOFT"
        layers.setdefault(match["layer"], set()).add(key[len(match["layer"]) + 1 :])
        if algorithm and algorithm != "GLoRA":
            found.add(algorithm)
    glora = [endings for endings in layers.values() if endings & _GLORA]
    if glora and all(endings >= _GLORA for endings in glora):
        found.add("GLoRA")
    elif glora:
        rest.append("")
    # (IA)3 of LyCORIS stores a layer's vector as a plain weight beside on_input.
    rest = [k for k in rest if "on_input" not in layers.get(k.removesuffix(".weight"), ())]
    return (set() if found == {"scalars"} else found), not rest


def is_locon(header: Header) -> bool:
    """Whether a LoRA changes convolutions with a kernel of more than one pixel too."""
    return any(len(t.shape) == 4 and t.shape[-1] > 1 for t in header.tensors.values())


def has_text_encoder(keys: Iterable[str]) -> bool:
    """Whether an adapter changes a text encoder."""
    return any(k.startswith(("lora_te", "text_encoder", "base_model.model.text_model.")) for k in keys)


def origin_of(header: Header) -> Origin:
    """The model that an adapter is for; "unknown" where keys, shapes and metadata do not show it.

    A UNet is recognised by the width of its cross-attention, a transformer by its layers, their widths and
    their number. An adapter of Kolors that changes the attention alone has the keys and shapes of one of
    SDXL: only metadata show the difference.
    """
    keys, named = header.tensors, named_origin(header.metadata)
    if not any(_UNET_BLOCK.search(k) for k in keys):
        return transformer_origin(_layers(header), named) or named or Origin("unknown")
    if any(word in k for k in keys for word in _SIDEWAYS):
        return Origin("unknown")
    width = context_width(header)
    if width == 2048 or (width is None and any(k.startswith("lora_te2_") for k in keys)):
        layers = _layers(header)
        kolors = any(
            "encoder_hid_proj" in name or (_ADDED.search(name) and layer.width_in == _KOLORS_WIDTH)
            for name, layer in layers.items()
        )
        if kolors or (named is not None and named.model == "Kolors"):
            return Origin("unknown", "Kolors")
        return Origin("sdxl")
    return (named or Origin("unknown")) if width is None else Origin(by_context(width))


def _layers(header: Header) -> dict[str, Layer]:
    """The layers that an adapter changes, with the widths that its tensors show."""
    layers: dict[str, Layer] = {}
    for key, tensor in header.tensors.items():
        if (match := _KEY.fullmatch(key)) is None:
            continue
        xlabs = _GROUPS[match.lastgroup or ""] == "XLabs LoRA"
        name = key.rsplit(".", 2)[0] if xlabs else match["layer"]
        layer = layers.get(name, Layer())
        if _WIDTH_OUT.search(key) and tensor.shape:
            layers[name] = replace(layer, width_out=tensor.shape[0])
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
    layer, _, ending = key.rpartition(".")
    if ending in ("lokr_w1", "lokr_w1_b"):  # a Kronecker product: the widths multiply
        for other in (f"{layer}.lokr_w2", f"{layer}.lokr_w2_b"):
            if other in header.tensors and len(header.tensors[other].shape) >= 2:
                return shape[1] * header.tensors[other].shape[1]
    return None
