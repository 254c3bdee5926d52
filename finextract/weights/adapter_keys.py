"""The grammar of adapter keys: algorithm, layer and model family. Works on names and shapes alone.

An adapter file holds a few small tensors for each layer that it changes, "<layer>.<ending>", and the endings
name the algorithm: LoRA (Hu et al. 2022), DoRA (Liu et al. 2024), and those of LyCORIS (Yeh et al. 2024), as
kohya's sd-scripts, LyCORIS, PEFT, diffusers and XLabs write them. Reads no tensor and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

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
_BLOCK = re.compile(
    r"(?:^|[._])((?:double|single|joint)_blocks|(?:single_|joint_)?transformer_blocks)[._](\d{1,4})[._]"
)
# The tensors of any algorithm whose second axis is a layer's input width, or whose first is its output width.
_WIDTH_IN = re.compile(rf"(?:{_LORA_DOWN}|(?:lora[12]?\.down|\.b2)\.weight|\.(?:hada_w1_b|diff))$")
_WIDTH_OUT = re.compile(rf"(?:{_LORA_UP}|(?:lora[12]?\.up|\.b1)\.weight|\.hada_w1_a)$")
_LORA_KEY = re.compile(
    rf"(?P<layer>.+)\.(?:(?P<down>{_LORA_DOWN})|(?P<up>{_LORA_UP})|(?P<alpha>alpha)|{_OLD_PROCESSOR})",
    re.DOTALL,
)
_DENOISERS = ("unet", "transformer")
_KOHYA_COMPONENTS = {"unet": "lora_unet", "text_encoder": "lora_te"}
_SIDEWAYS = ("motion_modules", "temporal", "time_stack", "controlnet")  # of video models and ControlNets
# How kohya's ss_base_model_version and modelspec.architecture begin -> family.
_METADATA_FAMILIES = (
    ("sd_v1", "sd1"), ("stable-diffusion-v1", "sd1"), ("sd_v2", "sd2"), ("stable-diffusion-v2", "sd2"),
    ("sdxl", "sdxl"), ("stable-diffusion-xl", "sdxl"), ("sd3", "sd3"), ("stable-diffusion-3", "sd3"),
    ("flux1", "flux"), ("flux-1", "flux"),
)  # fmt: skip
_FLUX_WIDTH = 3072
_FLUX_BLOCKS = (19, 38)  # double, single; HunyuanVideo has the same names and 20, 40
_SD3_WIDTHS = {1536, 2432}  # 3 medium and 3.5 medium, 3.5 large


@dataclass(frozen=True, slots=True)
class LoraKey:
    """The key of one tensor of a LoRA."""

    layer: str  # the layer's name, in the style of the file
    part: Literal["down", "up", "alpha"]


def parse_lora_key(key: str) -> LoraKey | None:
    """Layer and part of a LoRA's tensor, whichever tool wrote it; None for any other tensor."""
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
    "base_model.model.down_blocks..." (PEFT), or "down_blocks..." (the training scripts). Where two layers
    would share a name, the first has it.
    """
    names: dict[str, str] = {}
    for layer in layers:
        component, _, name = layer.partition(".")
        # transformers 5 dropped the "text_model." that every stored text encoder has in its names.
        for alias in (name, name.removeprefix("text_model."), f"text_model.{name}"):
            kohya = f"{_KOHYA_COMPONENTS.get(component, component)}_{alias.replace('.', '_')}"
            bare = (alias,) if component in _DENOISERS else ()
            for style in (kohya, f"{component}.{alias}", f"base_model.model.{alias}", *bare):
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


def family_of(header: Header) -> str:
    """The model family that an adapter is for; "unknown" where keys, shapes and metadata do not show it.

    A UNet is recognised by the width of its cross-attention. Transformers of several families share the names
    of their layers: they are recognised by width and number of blocks, unless the metadata name another
    family. A Chroma LoRA without metadata cannot be distinguished from one of FLUX.1.
    """
    keys = header.tensors
    named = family_from_metadata(header.metadata)
    if any(_UNET_BLOCK.search(k) for k in keys):
        if any(word in k for k in keys for word in _SIDEWAYS):
            return "unknown"
        width = context_width(header)
        if width == 2048 or (width is None and any(k.startswith("lora_te2_") for k in keys)):
            return "sdxl"
        return (named or "unknown") if width is None else by_context(width)
    shaped = _transformer_family(header)
    if shaped is not None:
        return shaped if named in (None, shaped) else "unknown"
    return named or "unknown"


def family_from_metadata(metadata: Mapping[str, str]) -> str | None:
    """The family that the training metadata name: "unknown" for a name not listed here, None for no name."""
    named = metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture") or ""
    if not named.strip():
        return None
    return next(
        (family for start, family in _METADATA_FAMILIES if named.lower().startswith(start)), "unknown"
    )


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


def _transformer_family(header: Header) -> str | None:
    """SD3 or FLUX by the names of the blocks, "unknown" for a transformer of another family.

    None where names and widths do not show that it is a transformer.
    """
    blocks: dict[str, int] = {}
    widths: set[int] = set()
    for key, tensor in header.tensors.items():
        if match := _BLOCK.search(key):
            blocks[match[1]] = max(blocks.get(match[1], 0), int(match[2]))
            width = tensor.shape[0] if _WIDTH_OUT.search(key) and tensor.shape else _width_in(header, key)
            widths.add(width or 0)
    widths.discard(0)
    if not widths:
        return None
    if blocks.keys() in ({"joint_blocks"}, {"transformer_blocks"}):
        return "sd3" if widths & _SD3_WIDTHS else "unknown"
    for double, single in (
        ("double_blocks", "single_blocks"),
        ("transformer_blocks", "single_transformer_blocks"),
    ):
        few = blocks.get(double, 0) < _FLUX_BLOCKS[0] and blocks.get(single, 0) < _FLUX_BLOCKS[1]
        if few and _FLUX_WIDTH in widths and blocks.keys() <= {double, single}:
            return "flux"
    return "unknown"
