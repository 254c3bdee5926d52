"""The names that adapter files have for a model's layers: those of every tool, and a UNet's original ones.

Works on names alone and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

_DENOISERS = ("unet", "transformer")
# What opens kohya's names of a component's layers, "oft_unet" in the files of its networks/oft.py. OneTrainer
# calls the transformer lora_transformer.
KOHYA_STARTS = {
    "unet": ("lora_unet", "oft_unet", "lycoris"),
    "transformer": ("lora_unet", "oft_unet", "lora_transformer", "lycoris"),
    "text_encoder": ("lora_te", "lora_te1", "lycoris"),
    "text_encoder_2": ("lora_te2",),
    "text_encoder_3": ("lora_te3",),
}
# The parts of a UNet's block, and what Stability's own code calls the layers of a residual block and others.
_UNET_PART = re.compile(
    r"unet\.(?P<block>(?:down_blocks|up_blocks)\.\d+|mid_block)\."
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<number>\d+)\."
)
_ORIGINAL_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ORIGINAL_UNET = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def layer_names(layers: Iterable[str]) -> dict[str, str]:
    """Every name that an adapter file may have for a layer -> the layer's own name.

    `layers` are names as of `Model.layers()`, such as "unet.down_blocks.0.attentions.0.proj_in". Files name
    it "lora_unet_down_blocks_0_attentions_0_proj_in" (kohya, OneTrainer, LyCORIS with "lycoris_",
    kohya's OFT with "oft_unet_"), "unet.down_blocks..." (diffusers), "base_model.model.down_blocks..."
    (PEFT), "down_blocks..." (the training scripts) or "diffusion_model.down_blocks..." (ai-toolkit), each
    also with the names that the model's original code has for its layers. Where two layers would share a
    name, the first has it.
    """
    layers = list(layers)
    original = original_unet_names(layers)
    names: dict[str, str] = {}
    components = {layer.partition(".")[0] for layer in layers}
    for layer in layers:
        component, _, name = layer.partition(".")
        # transformers 5 dropped the "text_model." that every stored text encoder has in its names.
        aliases = [name, name.removeprefix("text_model."), f"text_model.{name}"]
        aliases += [original[layer]] if layer in original else []
        for alias in aliases:
            for style in _styles(component, components, alias):
                names.setdefault(style, layer)
    return names


def _styles(component: str, components: Collection[str], name: str) -> Iterator[str]:
    """The names that files have for the layer `name` of one of a model's components."""
    yield f"{component}.{name}"
    yield f"base_model.model.{name}"
    for start in KOHYA_STARTS.get(component, (component,)):
        yield f"{start}_{name.replace('.', '_')}"
    last = max((c for c in components if c.startswith("text_encoder")), default="")
    if component == last and "transformer" in components:
        yield f"lora_te3_{name.replace('.', '_')}"  # a T5 has the number that it has in SD3
    if component in _DENOISERS:
        yield name
        yield f"diffusion_model.{name}"


def original_unet_names(layers: Iterable[str]) -> dict[str, str]:
    """The name that Stability's own code has for each layer of a UNet; "unet.mid_block.attentions.0.norm" ->
    "middle_block.1.norm".

    In that code every residual block, with the attention that follows it, is one block of a list, and so is
    every layer that halves the size. So a block's number follows from how many of them `layers` names before
    it.
    """
    unet = [layer for layer in layers if layer.startswith("unet.")]
    resnets: dict[str, int] = {}  # "down_blocks.0" -> number of residual blocks
    scaled: set[str] = set()  # the blocks that change the size
    attending: set[str] = set()
    for layer in unet:
        if match := _UNET_PART.match(layer):
            block, kind, number = match["block"], match["kind"], int(match["number"])
            if kind == "resnets":
                resnets[block] = max(resnets.get(block, 0), number + 1)
            elif kind == "attentions":
                attending.add(block)
            else:
                scaled.add(block)
    starts: dict[str, int] = {}
    for side, first in (("down_blocks", 1), ("up_blocks", 0)):
        at = first  # input_blocks.0 is the first convolution
        blocks = [block for block in resnets if block.startswith(side)]
        for block in sorted(blocks, key=lambda block: int(block.rpartition(".")[2])):
            starts[block] = at
            at += resnets[block] + (side == "down_blocks" and block in scaled)
    names = {}
    for layer in unet:
        name = layer.removeprefix("unet.")
        if match := _UNET_PART.match(layer):
            block, kind, number = match["block"], match["kind"], int(match["number"])
            end = name[len(block) + len(kind) + len(match["number"]) + 3 :]
            if block == "mid_block":
                place = f"middle_block.{2 * number + (kind == 'attentions')}"
            elif block not in starts:
                continue
            elif kind in ("resnets", "attentions"):
                side = "input_blocks" if block.startswith("down") else "output_blocks"
                place = f"{side}.{starts[block] + number}.{int(kind == 'attentions')}"
            elif kind == "downsamplers":
                place, end = f"input_blocks.{starts[block] + resnets[block]}.0", "op"
            else:
                place = f"output_blocks.{starts[block] + resnets[block] - 1}.{1 + (block in attending)}"
            names[layer] = f"{place}.{_ORIGINAL_RESNET.get(end, end) if kind == 'resnets' else end}"
        elif name in _ORIGINAL_UNET:
            names[layer] = _ORIGINAL_UNET[name]
    return names
