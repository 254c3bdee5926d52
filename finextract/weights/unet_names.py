"""The families of UNets that an adapter may be for, by the names of its layers alone.

For adapters without a tensor whose shape shows the width of the text embeddings: most of OFT, BOFT and IA3.
The blocks are those of the published models; a smaller model may have the blocks of another family. Imports
no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

type _Blocks = Mapping[str, tuple[range, tuple[int, ...]]]
# Blocks of a side -> their numbers, and the numbers of those with attention.
_SD: _Blocks = {
    "down_blocks": (range(4), (0, 1, 2)),
    "up_blocks": (range(4), (1, 2, 3)),
    "input_blocks": (range(12), (1, 2, 4, 5, 7, 8)),
    "output_blocks": (range(12), tuple(range(3, 12))),
}
_SDXL: _Blocks = {
    "down_blocks": (range(3), (1, 2)),
    "up_blocks": (range(3), (0, 1)),
    "input_blocks": (range(9), (4, 5, 7, 8)),
    "output_blocks": (range(9), tuple(range(6))),
}
_DEPTH = {"sd": 1, "sdxl": 10}  # transformer blocks one after another in one attention, at most
_BLOCK = re.compile(
    r"(?:^|_)(?P<side>down_blocks|up_blocks|input_blocks|output_blocks)_(?P<number>\d{1,3})_"
    r"(?P<attention>attentions_|1_(?:transformer_blocks|proj_in|proj_out|norm)(?:_|$))?"
)
_DEEPER = re.compile(r"(?:^|_)transformer_blocks_(\d{1,3})_")
_TEXT_LAYER = re.compile(
    r"(?P<start>lora_te[12]?|text_encoder(?:_2)?|base_model_model_text_model)_.*?encoder_layers_(?P<number>\d{1,3})_"
    r"(?P<square>self_attn_(?:[qkv]|out)_proj$)?"
)
_CLIP_L_LAYERS = 12
_OF_TEXT_WIDTH: Mapping[int, frozenset[str]] = {
    768: frozenset({"sd1", "sdxl"}),
    1024: frozenset({"sd2"}),
    1280: frozenset({"sdxl"}),
}


def fitting_families(widths: Mapping[str, int], stable_diffusion_2: str | None) -> tuple[str, ...]:
    """Those of sd1, sd2 and sdxl whose models have the layers of an adapter; empty for another model.

    `widths` maps a layer's name, in any style, to a width that its tensors show, 0 for none.
    `stable_diffusion_2` is what kohya's metadata say of it (ss_v2): "True" or "False". It decides between
    Stable Diffusion 1.x and 2, whose UNets have layers of the same names.
    """
    names = {name.replace(".", "_"): width for name, width in widths.items()}
    families: set[str] = set()
    if _all_inside(names, _SD, _DEPTH["sd"]):
        families |= {"sd1", "sd2"}
    if _all_inside(names, _SDXL, _DEPTH["sdxl"]):
        families |= {"sdxl"}
    for name, width in names.items():
        if match := _TEXT_LAYER.search(name):
            families &= _of_text_layer(match, width)
    if families == {"sd1", "sd2"} and stable_diffusion_2 in ("True", "False"):
        families = {"sd2"} if stable_diffusion_2 == "True" else {"sd1"}
    return tuple(sorted(families))


def _all_inside(names: Iterable[str], blocks: _Blocks, depth: int) -> bool:
    for name in names:
        for match in _BLOCK.finditer(name):
            numbers, attending = blocks[match["side"]]
            if int(match["number"]) not in (attending if match["attention"] else numbers):
                return False
        if (deeper := _DEEPER.search(name)) and int(deeper[1]) >= depth:
            return False
    return True


def _of_text_layer(match: re.Match[str], width: int) -> set[str]:
    """The families that have a text encoder with this layer.

    kohya's scripts and OneTrainer number the text encoders of SDXL, and not the one of Stable Diffusion.
    """
    start, number = match["start"], int(match["number"])
    if start in ("lora_te2", "text_encoder_2"):
        return {"sdxl"}
    found = {"lora_te": {"sd1", "sd2"}, "lora_te1": {"sdxl"}}.get(start, {"sd1", "sd2", "sdxl"})
    if number >= _CLIP_L_LAYERS:
        found = found & {"sd2"}
    if match["square"] and width in _OF_TEXT_WIDTH:
        found = found & _OF_TEXT_WIDTH[width]
    return found
