"""The files that docs/formats.md lists, as headers: tests/finextract/weights/headers/NAME.json, key -> shape.

`python tests/tried_formats.py` makes them anew and prints the table of docs/formats.md. Where a tool on
the registry writes the format, that tool wrote the file: diffusers, PEFT, transformers, torch, and LyCORIS,
which is no dependency of this project: install `lycoris-lora` anywhere and name the place in PYTHONPATH. The
rest is written here, after the published keys. Of keys that differ in numbers alone, the first is kept.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tiny import z_image
from tiny.flow_configs import TRANSFORMERS

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # tests/finextract is a folder too
HEADERS = ROOT / "tests" / "finextract" / "weights" / "headers"
OURS = "our own helper, from the published keys"
Shapes = dict[str, tuple[int, ...]]
Says = tuple[str, str, str, str]  # kind, family, style, detail
MAKERS: dict[str, tuple[str, Says, Callable[[], Shapes | bytes | tuple[Shapes, dict[str, str]]]]] = {}
SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 8}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def tried(name: str, tool: str, *says: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers what makes the file NAME, and what inspection has to say of it."""
    kind, family, style, detail = (*says, "unknown", "unknown", "")[:4] if len(says) < 4 else says

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        MAKERS[name] = (tool, (kind, family, style, detail), make)
        return make

    return register


def thin(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """The first of the keys that differ in numbers, or in the side of the UNet that they are on, alone.

    Of a transformer's blocks the last one is kept too, since the number of blocks shows the model.
    """
    first: dict[str, str] = {}
    last: dict[str, str] = {}
    for key in shapes:
        side = re.sub(r"(?:down|up|input|output)_blocks|mid(?:dle)?_block", "blocks", key)
        alike = re.sub(r"(?<=[._])\d+(?=[._])", "N", side)
        first.setdefault(alike, key)
        if re.search(r"(?:double|single|joint|transformer)_blocks[._]\d", key):
            last[alike] = key
    return {key: tuple(shapes[key]) for key in dict.fromkeys([*first.values(), *last.values()])}


def shapes_of(state: Mapping[str, Any]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state.items()}


def saved(save: Callable[[Path], object]) -> tuple[Shapes, dict[str, str]]:
    """Shapes and metadata of the one safetensors file that a tool saves."""
    from finextract.weights.formats import read_header

    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        (path,) = Path(folder).rglob("*.safetensors")
        header = read_header(path)
    metadata = {k: v for k, v in header.metadata.items() if not k.startswith("sshs_")}  # of random weights
    config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    if config:  # a set's order differs from run to run
        stated = {k: sorted(v) if k.endswith("target_modules") else v for k, v in config.items()}
        metadata["lora_adapter_metadata"] = json.dumps(stated, sort_keys=True)
    return {k: t.shape for k, t in header.tensors.items()}, metadata


def unet(context: int, **options: Any) -> Any:
    """A small UNet with the text width of a real one."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        cross_attention_dim=context,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **SMALL | options,
    )


def added(width: int) -> dict[str, Any]:
    """SDXL's second conditioning."""
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": width,
    }


CHATGLM = {"encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj"}  # Kolors' text encoder


def text_model() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=99
        )
    )


def on_meta(cls: str, **options: Any) -> Any:
    """A transformer of diffusers with its true widths and few blocks, without memory for its weights."""
    import diffusers
    from tiny import no_numbers

    with no_numbers.on_meta():
        return getattr(diffusers, cls)(**options)


# --- full weights -----------------------------------------------------------------------------------------


def ldm_unet(model: Any) -> Shapes:
    """A UNet under the names of CompVis' and Stability's own code, which diffusers' conversion gives back."""
    import torch
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    sys.path.append(str(ROOT / "tests" / "zoo"))
    from _formats import _ldm_key

    state = shapes_of(model.state_dict())
    extra = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    named = {}
    for key, shape in state.items():
        old = next((e for e in extra if key.startswith(e + ".")), None)
        named[extra[old] + key[len(old) :] if old else _ldm_key(key, 2, 1)] = shape
    stubs = {f"model.diffusion_model.{k}": torch.empty(s, device="meta") for k, s in named.items()}
    back = convert_ldm_unet_checkpoint(stubs, dict(model.config))
    assert shapes_of(back) == state
    return named


CLIP_KEYS = "text_model.encoder.layers.0.self_attn.q_proj.weight"
OPEN_CLIP_KEYS = "model.transformer.resblocks.0.attn.in_proj_weight"
LDM_VAE = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "encoder.down.0.block.0.conv1.weight": (128, 128, 3, 3),
    "decoder.conv_in.weight": (512, 4, 3, 3),
    "decoder.up.0.block.0.conv1.weight": (128, 256, 3, 3),
    "quant_conv.weight": (8, 8, 1, 1),
    "post_quant_conv.weight": (4, 4, 1, 1),
}


def single_file(denoiser: Shapes, text: Shapes) -> Shapes:
    """All parts in one file: denoiser, VAE, text encoders."""
    parts = {f"model.diffusion_model.{k}": v for k, v in denoiser.items()}
    return {**parts, **{f"first_stage_model.{k}": v for k, v in LDM_VAE.items()}, **text}


HELPER = "our own helper; diffusers' conversion of it gives the UNet back"
SDXL_TEXT = {
    f"conditioner.embedders.0.transformer.{CLIP_KEYS}": (768, 768),
    f"conditioner.embedders.1.{OPEN_CLIP_KEYS}": (3840, 1280),
    "conditioner.embedders.1.model.text_projection": (1280, 1280),
}


@tried("full-sd1", HELPER, "full", "sd1", "ldm", "")
def _() -> Shapes:
    return single_file(ldm_unet(unet(768)), {f"cond_stage_model.transformer.{CLIP_KEYS}": (768, 768)})


@tried("full-sd1-inpainting", HELPER, "full", "sd1", "ldm", "inpainting")
def _() -> Shapes:
    text = {f"cond_stage_model.transformer.{CLIP_KEYS}": (768, 768)}
    return single_file(ldm_unet(unet(768, in_channels=9)), text)


@tried("full-sd1-controlnet", HELPER, "full", "sd1", "ldm", "with a ControlNet")
def _() -> Shapes:
    keys = single_file(ldm_unet(unet(768)), {f"cond_stage_model.transformer.{CLIP_KEYS}": (768, 768)})
    control = {"input_hint_block.0.weight": (16, 3, 3, 3), "zero_convs.0.0.weight": (320, 320, 1, 1)}
    return keys | {f"control_model.{k}": v for k, v in control.items()}


@tried("full-sd2", HELPER, "full", "sd2", "ldm", "")
def _() -> Shapes:
    text = {f"cond_stage_model.{OPEN_CLIP_KEYS}": (3072, 1024)}
    return single_file(ldm_unet(unet(1024, use_linear_projection=True)), text)


@tried("full-sdxl", HELPER, "full", "sdxl", "ldm", "")
def _() -> Shapes:
    return single_file(ldm_unet(unet(2048, use_linear_projection=True, **added(2816))), SDXL_TEXT)


@tried("full-sdxl-refiner", HELPER, "full", "sdxl", "ldm", "refiner")
def _() -> Shapes:
    text = {f"conditioner.embedders.0.{OPEN_CLIP_KEYS}": (3840, 1280)}
    return single_file(ldm_unet(unet(1280, use_linear_projection=True, **added(2560))), text)


def with_biases(layers: dict[str, tuple[int, ...]]) -> Shapes:
    """The weight and the bias of each layer, from the weight's shape."""
    return {
        f"{k}.{end}": v if end == "weight" else v[:1] for k, v in layers.items() for end in ("weight", "bias")
    }


def mmdit(name: str) -> Shapes:
    """SD3's transformer under Stability's own names."""
    config = TRANSFORMERS[name]
    w, blocks = config["caption_projection_dim"], config["num_layers"]
    keys: Shapes = {"pos_embed": (1, config["pos_embed_max_size"] ** 2, w)}
    keys |= with_biases(
        {
            "x_embedder.proj": (w, 16, 2, 2), "t_embedder.mlp.0": (w, 256), "t_embedder.mlp.2": (w, w),
            "y_embedder.mlp.0": (w, 2048), "y_embedder.mlp.2": (w, w), "context_embedder": (w, 4096),
            "final_layer.linear": (64, w), "final_layer.adaLN_modulation.1": (2 * w, w),
        }
    )  # fmt: skip
    for i in range(blocks):
        second = i in config.get("dual_attention_layers", ())
        for side in ("x_block", "context_block"):
            one = f"joint_blocks.{i}.{side}"
            cut = side == "context_block" and i == blocks - 1  # its output is not used
            rows = 2 if cut else 9 if second and side == "x_block" else 6
            layers = {f"{one}.attn.qkv": (3 * w, w), f"{one}.adaLN_modulation.1": (rows * w, w)}
            attentions = ["attn"]
            if not cut:
                layers |= {
                    f"{one}.attn.proj": (w, w), f"{one}.mlp.fc1": (4 * w, w), f"{one}.mlp.fc2": (w, 4 * w),
                }  # fmt: skip
            if second and side == "x_block":
                layers |= {f"{one}.attn2.qkv": (3 * w, w), f"{one}.attn2.proj": (w, w)}
                attentions.append("attn2")
            keys |= with_biases(layers)
            if config.get("qk_norm"):
                keys |= {f"{one}.{attn}.ln_{part}.weight": (64,) for attn in attentions for part in "qk"}
    return keys


def bfl(
    guidance: bool,
    w: int = 3072,
    doubles: int = 19,
    singles: int = 38,
    text: int = 4096,
    pooled: int = 768,
    head: int = 128,
) -> Shapes:
    """FLUX.1's transformer under Black Forest Labs' own names, in its full size or a smaller one."""
    layers: dict[str, tuple[int, ...]] = {
        "img_in": (w, 64), "txt_in": (w, text), "time_in.in_layer": (w, 256), "time_in.out_layer": (w, w),
        "vector_in.in_layer": (w, pooled), "vector_in.out_layer": (w, w),
        "final_layer.linear": (64, w), "final_layer.adaLN_modulation.1": (2 * w, w),
    }  # fmt: skip
    if guidance:
        layers |= {"guidance_in.in_layer": (w, 256), "guidance_in.out_layer": (w, w)}
    norms: Shapes = {}
    for i in range(doubles):
        for side in ("img", "txt"):
            one = f"double_blocks.{i}.{side}"
            layers |= {
                f"{one}_mod.lin": (6 * w, w), f"{one}_attn.qkv": (3 * w, w), f"{one}_attn.proj": (w, w),
                f"{one}_mlp.0": (4 * w, w), f"{one}_mlp.2": (w, 4 * w),
            }  # fmt: skip
            norms |= {f"{one}_attn.norm.{part}_norm.scale": (head,) for part in ("query", "key")}
    for i in range(singles):
        one = f"single_blocks.{i}"
        layers |= {
            f"{one}.linear1": (7 * w, w),
            f"{one}.linear2": (w, 5 * w),
            f"{one}.modulation.lin": (3 * w, w),
        }
        norms |= {f"{one}.norm.{part}_norm.scale": (head,) for part in ("query", "key")}
    return with_biases(layers) | norms


@cache
def transformer_names(name: str) -> Shapes:
    """The original names of one of TRANSFORMERS. Diffusers' conversion has to give its own keys back."""
    import torch
    from diffusers.loaders import single_file_utils

    family = "sd3" if name.startswith("sd3") else "flux"
    keys = mmdit(name) if family == "sd3" else bfl(TRANSFORMERS[name]["guidance_embeds"])
    convert = getattr(single_file_utils, f"convert_{family}_transformer_checkpoint_to_diffusers")
    back = convert({key: torch.empty(shape, device="meta") for key, shape in keys.items()})
    assert shapes_of(back) == shapes_of(full_transformer(name).state_dict())
    return keys


def full_transformer(name: str) -> Any:
    """One of TRANSFORMERS in its full size, without memory for its weights."""
    return on_meta(**{"cls" if k == "_class_name" else k: v for k, v in TRANSFORMERS[name].items()})


TRANSFORMER_HELPER = "our own helper; diffusers' conversion of it gives the transformer back"
for _name, _detail in (
    ("sd3-medium", "3 medium"),
    ("sd35-medium", "3.5 medium"),
    ("sd35-large", "3.5 large"),
):
    tried(f"full-{_name}", TRANSFORMER_HELPER, "full", "sd3", "ldm", _detail)(
        lambda n=_name: {  # type: ignore[misc]
            f"model.diffusion_model.{k}": v for k, v in transformer_names(n).items()
        }
    )
tried("full-flux-dev", TRANSFORMER_HELPER, "full", "flux", "ldm", "dev")(
    lambda: transformer_names("flux-dev")
)
tried("full-flux-schnell", TRANSFORMER_HELPER, "full", "flux", "ldm", "schnell")(
    lambda: {f"model.diffusion_model.{k}": v for k, v in transformer_names("flux-schnell").items()}
)
tried("full-z-image", OURS, "full", "z_image", "ldm", "")(z_image.original_names)


# --- parts as diffusers stores them -----------------------------------------------------------------------

D = "diffusers"
for _name, _context, _options, _says in (
    ("sd1", 768, {}, ("sd1", "diffusers", "")),
    ("sd1-inpainting", 768, {"in_channels": 9}, ("sd1", "diffusers", "inpainting")),
    ("sd1-lcm", 768, {"time_cond_proj_dim": 256}, ("sd1", "diffusers", "latent consistency")),
    ("sd2", 1024, {"use_linear_projection": True}, ("sd2", "diffusers", "")),
    ("sdxl", 2048, added(2816), ("sdxl", "diffusers", "")),
    ("sdxl-refiner", 1280, added(2560), ("sdxl", "diffusers", "refiner")),
    ("kolors", 2048, {**added(5632), **CHATGLM}, ("unknown", "diffusers", "Kolors")),
):
    tried(f"unet-{_name}", D, "unet", *_says)(
        lambda c=_context, o=_options: saved(unet(c, **o).save_pretrained)  # type: ignore[misc]
    )
tried("unet-without-text", D, "unet", "unknown", D, "")(
    lambda: saved(
        __import__("diffusers")
        .UNet2DModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
        .save_pretrained
    )
)
for _name, _family, _detail in (
    ("flux-dev", "flux", "dev"), ("flux-schnell", "flux", "schnell"), ("sd3-medium", "sd3", "3 medium"),
    ("sd35-medium", "sd3", "3.5 medium"), ("sd35-large", "sd3", "3.5 large"),
):  # fmt: skip
    tried(f"transformer-{_name}", D, "unet", _family, D, _detail)(
        lambda n=_name: shapes_of(full_transformer(n).state_dict())  # type: ignore[misc]
    )
FLUX = {"num_layers": 1, "num_single_layers": 1}
KLEIN = {"num_attention_heads": 24, "joint_attention_dim": 7680}
SD3 = {"num_layers": 2, "caption_projection_dim": 1536, "num_attention_heads": 24}
SD3_LARGE = {**SD3, "caption_projection_dim": 2432, "num_attention_heads": 38}
for _name, _cls, _options, _says in (
    ("flux2-klein", "Flux2Transformer2DModel", {**FLUX, **KLEIN}, ("unet", "unknown", D, "FLUX.2")),
    ("bria", "BriaTransformer2DModel", FLUX, ("unet", "unknown", D, "Bria")),
    ("fibo", "BriaFiboTransformer2DModel", FLUX, ("unet", "unknown", D, "FIBO")),
    ("ovis", "OvisImageTransformer2DModel", FLUX, ("unet", "unknown", D, "Ovis")),
    ("longcat", "LongCatImageTransformer2DModel", FLUX, ("unet", "unknown", D, "LongCat")),
    ("chroma", "ChromaTransformer2DModel", FLUX, ("unet", "chroma", D, "")),
    ("mochi", "MochiTransformer3DModel", {"num_layers": 2}, ("unet", "unknown", D, "Mochi")),
    ("stable-audio", "StableAudioDiTModel", {"num_layers": 1}, ("unet", "unknown", D, "Stable Audio")),
    ("flux-controlnet", "FluxControlNetModel", FLUX, ("controlnet", "unknown", "unknown", "")),
    ("sd3-controlnet", "SD3ControlNetModel", SD3, ("controlnet", "unknown", "unknown", "")),
    (
        "auraflow",
        "AuraFlowTransformer2DModel",
        {"num_mmdit_layers": 1, "num_single_dit_layers": 1},
        ("unknown",),
    ),
    (
        "qwen-image",
        "QwenImageTransformer2DModel",
        {"num_layers": 1},
        ("unet", "unknown", "diffusers", "Qwen-Image"),
    ),
    (
        "z-image",
        "ZImageTransformer2DModel",
        {"n_layers": 1, "n_refiner_layers": 1},
        ("unet", "z_image", D, ""),
    ),
    ("ltx-video", "LTXVideoTransformer3DModel", {"num_layers": 1}, ("unknown",)),
    ("pixart", "PixArtTransformer2DModel", {"num_layers": 1, "norm_type": "ada_norm_single"}, ("unknown",)),
):
    tried(f"transformer-{_name}", D, *_says)(
        lambda c=_cls, o=_options: shapes_of(on_meta(c, **o).state_dict())  # type: ignore[misc]
    )
tried("vae", D, "vae")(
    lambda: saved(
        __import__("diffusers").AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).save_pretrained
    )
)
tried("vae-tiny", D, "vae")(
    lambda: saved(
        __import__("diffusers")
        .AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
        .save_pretrained
    )
)
tried("vae-original", OURS, "vae")(lambda: {f"first_stage_model.{k}": v for k, v in LDM_VAE.items()})
tried("controlnet", D, "controlnet", "unknown", "unknown", "")(
    lambda: saved(
        __import__("diffusers")
        .ControlNetModel(
            cross_attention_dim=768,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            conditioning_embedding_out_channels=(8, 16),
            **SMALL,
        )
        .save_pretrained
    )
)
tried("motion-adapter", D, "unknown")(
    lambda: saved(
        __import__("diffusers")
        .MotionAdapter(
            block_out_channels=(32, 64),
            motion_layers_per_block=1,
            motion_norm_num_groups=8,
            motion_num_attention_heads=2,
        )
        .save_pretrained
    )
)


@tried("text-encoder-clip", "transformers", "text_encoder", "unknown", "unknown", "CLIP")
def _() -> Any:
    return saved(text_model().save_pretrained)


@tried("text-encoder-t5", "transformers", "text_encoder", "unknown", "unknown", "T5")
def _() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2, vocab_size=99)
    return saved(T5EncoderModel(config).save_pretrained)


# --- LoRA by diffusers and PEFT ---------------------------------------------------------------------------


def lora_config(**options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "target_modules": ATTENTION} | options)


def diffusers_lora(pipeline: str, model: Any, part: str = "unet", text: bool = False, **options: Any) -> Any:
    """An adapter as `save_lora_weights` writes it, of a pipeline's UNet and its text encoder."""
    import diffusers
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    model.add_adapter(lora_config(**options))
    layers = {f"{part}_lora_layers": get_peft_model_state_dict(model)}
    modules = {part: model}
    if text:
        encoder = text_model()
        encoder.add_adapter(lora_config(target_modules=["q_proj", "k_proj"]))
        layers["text_encoder_lora_layers"] = get_peft_model_state_dict(encoder)
        modules["text_encoder"] = encoder
    save = getattr(diffusers, pipeline).save_lora_weights
    return saved(lambda folder: save(folder, **layers, **_collate_lora_metadata(modules)))


def transformer_lora(cls: str, options: dict[str, Any], targets: list[str]) -> Shapes:
    """The same of a transformer with its true widths, whose weights have no memory."""
    import diffusers
    from peft import inject_adapter_in_model
    from peft.utils import get_peft_model_state_dict

    model = inject_adapter_in_model(lora_config(target_modules=targets), on_meta(cls, **options))
    layers = get_peft_model_state_dict(model)
    return shapes_of(diffusers.FluxPipeline.pack_weights(layers, "transformer"))


DP = "diffusers and PEFT"
SD = "StableDiffusionPipeline"
tried("lora-sd1-diffusers", DP, "lora", "sd1", D, "")(lambda: diffusers_lora(SD, unet(768), text=True))
tried("lora-sd2-diffusers", DP, "lora", "sd2", D, "")(lambda: diffusers_lora(SD, unet(1024)))
tried("lora-sdxl-diffusers", DP, "lora", "sdxl", D, "")(
    lambda: diffusers_lora("StableDiffusionXLPipeline", unet(2048, **added(2816)))
)
tried("locon-sd1-diffusers", DP, "lora", "sd1", D, "LoCon")(
    lambda: diffusers_lora(SD, unet(768), target_modules=[*ATTENTION, "conv1", "conv2"])
)
tried("dora-sd1-diffusers", DP, "dora", "sd1", D, "")(lambda: diffusers_lora(SD, unet(768), use_dora=True))
TARGETS = ["to_q", "to_k", "to_v"]
ALL_TARGETS = [*TARGETS, "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff.net.0.proj",
               "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"]  # fmt: skip
NORMS = ["norm1.linear", "norm1_context.linear", "norm.linear"]
SEVERAL = "FLUX.1, Chroma or Bria/FIBO"


def blocks(double: int, single: int) -> dict[str, int]:
    return {"num_layers": double, "num_single_layers": single}


for _name, _cls, _options, _targets, _says in (
    ("flux", "FluxTransformer2DModel", blocks(19, 38), [*ALL_TARGETS, *NORMS], ("lora", "flux", D, "")),
    ("flux-attention", "FluxTransformer2DModel", blocks(19, 38), TARGETS,
     ("lora", "unknown", D, "FLUX.1 or Chroma")),
    ("flux2-klein", "Flux2Transformer2DModel", {**blocks(5, 20), **KLEIN},
     [*TARGETS, "to_qkv_mlp_proj"], ("lora", "unknown", D, "FLUX.2")),
    ("bria", "BriaTransformer2DModel", blocks(8, 28), ALL_TARGETS, ("lora", "unknown", D, SEVERAL)),
    ("fibo", "BriaFiboTransformer2DModel", blocks(8, 38), ALL_TARGETS, ("lora", "unknown", D, SEVERAL)),
    ("ovis", "OvisImageTransformer2DModel", blocks(6, 27), ALL_TARGETS, ("lora", "unknown", D, "Ovis")),
    ("longcat", "LongCatImageTransformer2DModel", blocks(10, 20), ALL_TARGETS,
     ("lora", "unknown", D, "FLUX.1, Chroma or LongCat")),
    ("chroma", "ChromaTransformer2DModel", blocks(19, 38), ALL_TARGETS,
     ("lora", "unknown", D, "FLUX.1 or Chroma")),
    ("sd3", "SD3Transformer2DModel", SD3, TARGETS, ("lora", "sd3", D, "")),
    ("sd35-large", "SD3Transformer2DModel", SD3_LARGE, TARGETS, ("lora", "sd3", D, "")),
    ("mochi", "MochiTransformer3DModel", {"num_layers": 2}, ALL_TARGETS, ("lora", "unknown", D, "Mochi")),
    ("stable-audio", "StableAudioDiTModel", {"num_layers": 1}, TARGETS,
     ("lora", "unknown", D, "Stable Audio")),
    ("auraflow", "AuraFlowTransformer2DModel", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}, TARGETS,
     ("lora", "unknown", D, "")),
    ("qwen-image", "QwenImageTransformer2DModel", {"num_layers": 60}, TARGETS,
     ("lora", "unknown", D, "Qwen-Image")),
    ("z-image", "ZImageTransformer2DModel", {"n_layers": 2},
     [*ATTENTION, "w1", "w2", "w3"], ("lora", "z_image", D, "")),
    ("ltx-video", "LTXVideoTransformer3DModel", {"num_layers": 1}, TARGETS, ("lora", "unknown", D, "")),
    ("pixart", "PixArtTransformer2DModel", {"num_layers": 1, "norm_type": "ada_norm_single"}, TARGETS,
     ("lora", "unknown", D, "")),
):  # fmt: skip
    tried(f"lora-{_name}-diffusers", DP, *_says)(
        lambda c=_cls, o=_options, t=_targets: transformer_lora(c, o, t)  # type: ignore[misc]
    )
tried("lora-kolors-diffusers", DP, "lora", "unknown", D, "Kolors")(
    lambda: diffusers_lora(
        "StableDiffusionXLPipeline",
        unet(2048, **added(5632), **CHATGLM),
        target_modules=[*ATTENTION, "encoder_hid_proj"],
    )
)


def peft(kind: str, **options: Any) -> Any:
    """An adapter as PEFT itself saves it."""
    import peft

    config = getattr(peft, f"{kind}Config")(**{"target_modules": ATTENTION} | options)
    return saved(peft.get_peft_model(unet(768), config).save_pretrained)


P = "PEFT"
tried("lora-sd1-peft", P, "lora", "sd1", "peft", "")(lambda: peft("Lora", r=4))
tried("dora-sd1-peft", P, "dora", "sd1", "peft", "")(lambda: peft("Lora", r=4, use_dora=True))
tried("loha-sd1-peft", P, "lycoris", "sd1", "peft", "LoHa")(lambda: peft("LoHa", r=4))
tried("lokr-sd1-peft", P, "lycoris", "sd1", "peft", "LoKr")(lambda: peft("LoKr", r=4))
tried("oft-sd1-peft", P, "lycoris", "unknown", "peft", "OFT")(
    lambda: peft("OFT", oft_block_size=8, r=0, target_modules=["to_q", "to_out.0"])
)
tried("boft-sd1-peft", P, "lycoris", "unknown", "peft", "BOFT")(
    lambda: peft("BOFT", boft_block_size=8, target_modules=["to_q", "to_out.0"])
)
tried("ia3-sd1-peft", P, "lycoris", "unknown", "peft", "IA3")(
    lambda: peft("IA3", target_modules=["to_k", "to_v"], feedforward_modules=[])
)


# --- kohya's keys, by LyCORIS -----------------------------------------------------------------------------


def lycoris(algorithm: str, context: int = 768, **options: Any) -> Any:
    """An adapter as LyCORIS' module for kohya's sd-scripts saves it. Its preset "full" without the time
    embedding, which LyCORIS 4.1.3 names twice."""
    import torch
    from lycoris.kohya import create_network

    options |= added(2816) if context == 2048 else {}
    model = unet(context, **{k: options.pop(k) for k in list(options) if k in added(0)})
    text = text_model()
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as preset:
        preset.write(
            'enable_conv = true\nunet_target_module = ["Transformer2DModel", "ResnetBlock2D"]\n'
            'unet_target_name = ["conv_in"]\ntext_encoder_target_module = ["CLIPAttention", "CLIPMLP"]\n'
        )
        preset.flush()
        network = create_network(
            1.0, 4, 1.0, None, text, model, algo=algorithm, preset=preset.name, **options
        )
    network.apply_to(text, model, True, True)
    return saved(
        lambda folder: network.save_weights(str(folder / "a.safetensors"), torch.float16, {"ss_v2": "False"})
    )


L = "LyCORIS"
for _name, _algorithm, _options, _detail in (
    ("loha", "loha", {}, "LoHa"),
    ("loha-tucker", "loha", {"use_tucker": True}, "LoHa"),
    ("lokr", "lokr", {"factor": 4}, "LoKr"),
    ("glora", "glora", {}, "GLoRA"),
    ("locon-tucker", "lora", {"use_tucker": True}, "LoCon with Tucker decomposition"),
    ("loha-dora", "loha", {"dora_wd": True}, "DoRA and LoHa"),
    ("full-difference", "full", {}, "full difference"),
    ("locon-norms", "lora", {"train_norm": True}, "LoRA and norm layers"),
):
    tried(f"{_name}-sd1-lycoris", L, "lycoris", "sd1", "kohya", _detail)(
        lambda a=_algorithm, o=_options: lycoris(a, **o)  # type: ignore[misc]
    )
tried("ia3-sd1-lycoris", L, "lycoris", "sd1", "kohya", "IA3")(lambda: lycoris("ia3"))
tried("oft-sd1-lycoris", L, "lycoris", "sd1", "kohya", "OFT")(lambda: lycoris("diag-oft"))
tried("boft-sd1-lycoris", L, "lycoris", "sd1", "kohya", "BOFT")(lambda: lycoris("boft"))
tried("locon-sd1-lycoris", L, "lora", "sd1", "kohya", "LoCon")(lambda: lycoris("lora"))
tried("dora-sd1-lycoris", L, "dora", "sd1", "kohya", "")(lambda: lycoris("lora", dora_wd=True))
tried("locon-sdxl-lycoris", L, "lora", "sdxl", "kohya", "LoCon")(lambda: lycoris("lora", 2048))


# --- keys of tools that are on no registry ----------------------------------------------------------------


def pairs(down: str, up: str, layers: dict[str, tuple[int, int]], alpha: str = "") -> Shapes:
    """Rank 4 pairs for layers of those widths, (in, out)."""
    shapes: Shapes = {}
    for layer, (wide, out) in layers.items():
        shapes |= {f"{layer}{down}": (4, wide), f"{layer}{up}": (out, 4)}
        if alpha:
            shapes[f"{layer}{alpha}"] = ()
    return shapes


KOHYA = (".lora_down.weight", ".lora_up.weight")
ATTN2 = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
tried("lora-sd1-kohya", OURS, "lora", "sd1", "kohya", "")(
    lambda: pairs(
        *KOHYA,
        {f"lora_unet_{ATTN2}": (768, 320), "lora_te_text_model_encoder_layers_0_mlp_fc1": (768, 3072)},
        ".alpha",
    )
)
tried("lora-sdxl-kohya", OURS, "lora", "sdxl", "kohya", "")(
    lambda: pairs(
        *KOHYA,
        {
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (2048, 640),
            "lora_te1_text_model_encoder_layers_0_mlp_fc1": (768, 3072),
            "lora_te2_text_model_encoder_layers_0_mlp_fc1": (1280, 5120),
        },
        ".alpha",
    )
)
FLUX_DOUBLE = {"mod_lin": (3072, 18432), "attn_qkv": (3072, 9216), "attn_proj": (3072, 3072),
               "mlp_0": (3072, 12288), "mlp_2": (12288, 3072)}  # fmt: skip
FLUX_SINGLE = {"linear1": (3072, 21504), "linear2": (15360, 3072), "modulation_lin": (3072, 9216)}


def flux_kohya(blocks: int, singles: int, lacks: str = " ") -> dict[str, tuple[int, int]]:
    """The layers that kohya's sd-scripts adapt in a transformer built like FLUX.1, of the outer blocks."""
    double = {f"{side}_{k}": v for side in ("img", "txt") for k, v in FLUX_DOUBLE.items() if lacks not in k}
    single = {k: v for k, v in FLUX_SINGLE.items() if lacks not in k}
    return {
        f"lora_unet_{name}_{i}_{k}": v
        for name, last, layers in (("double_blocks", blocks, double), ("single_blocks", singles, single))
        for i in sorted({0, last - 1})
        for k, v in layers.items()
    }


CLIP_L_KOHYA = {
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (768, 768),
    "lora_te1_text_model_encoder_layers_11_mlp_fc1": (768, 3072),
}
T5_KOHYA = {
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": (4096, 4096),
    "lora_te3_encoder_block_23_layer_1_DenseReluDense_wo": (10240, 4096),
}
tried("lora-flux-kohya", OURS, "lora", "flux", "kohya", "")(
    lambda: pairs(*KOHYA, {**flux_kohya(19, 38), **CLIP_L_KOHYA, **T5_KOHYA}, ".alpha")
)
tried("lora-chroma-kohya-unnamed", OURS, "lora", "unknown", "kohya", "FLUX.1 or Chroma")(
    lambda: pairs(*KOHYA, flux_kohya(19, 38, "mod"), ".alpha")
)


def kohya_oft(layers: Mapping[str, int], blocks: int = 4) -> Shapes:
    """kohya's OFT of layers with so many rows; "NAME.oft_blocks" or "NAME.oft_blocks.0" -> rows."""
    shapes: Shapes = {key: (blocks, rows // blocks, rows // blocks) for key, rows in layers.items()}
    return shapes | {f"{key.partition('.')[0]}.alpha": () for key in layers}


tried("oft-sd1-kohya", OURS, "lycoris", "unknown", "kohya", "OFT")(
    lambda: kohya_oft({f"oft_unet_{ATTN2}.oft_blocks": 320})
)
tried("oft-sdxl-kohya", OURS, "lycoris", "sdxl", "kohya", "OFT")(
    lambda: kohya_oft({"oft_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_k.oft_blocks": 1280})
)
tried("oft-flux-kohya", OURS, "lycoris", "flux", "kohya", "OFT")(
    lambda: kohya_oft(
        {
            **{f"oft_unet_double_blocks_18_img_attn_qkv.oft_blocks.{i}": 3072 for i in range(3)},
            "oft_unet_double_blocks_18_img_attn_proj.oft_blocks.0": 3072,
            **{f"oft_unet_single_blocks_37_linear1.oft_blocks.{i}": 3072 for i in range(3)},
            "oft_unet_single_blocks_37_linear1.oft_blocks.3": 12288,
            "oft_unet_single_blocks_37_modulation_lin.oft_blocks.0": 9216,
        }
    )
)
tried("oft-sd1-onetrainer", OURS, "lycoris", "sd1", "kohya", "OFT of OneTrainer")(
    lambda: {f"lora_unet_{ATTN2}.oft_R.weight": (24, 496), f"lora_unet_{ATTN2}.alpha": ()}
)
CLIP_G_KOHYA = {"lora_te2_text_model_encoder_layers_31_mlp_fc2": (5120, 1280)}


def sd3_kohya(name: str) -> dict[str, tuple[int, int]]:
    """The layers that kohya's sd-scripts adapt in a transformer of SD3: all linear ones of its blocks."""
    return {
        f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}": (shape[1], shape[0])
        for key, shape in mmdit(name).items()
        if key.startswith("joint_blocks.") and len(shape) == 2
    }


tried("lora-sd3-kohya", OURS, "lora", "sd3", "kohya", "")(
    lambda: pairs(*KOHYA, {**sd3_kohya("sd3-medium"), **CLIP_L_KOHYA, **CLIP_G_KOHYA, **T5_KOHYA}, ".alpha")
)
tried("lora-hunyuan-video-kohya", OURS, "lora", "unknown", "kohya", "")(
    lambda: pairs(
        *KOHYA,
        {
            "lora_unet_double_blocks_19_img_attn_qkv": (3072, 9216),
            "lora_unet_single_blocks_39_linear1": (3072, 21504),
        },
        ".alpha",
    )
)
tried("lora-chroma-kohya", OURS, "lora", "chroma", "kohya", "")(
    lambda: (
        pairs(*KOHYA, {"lora_unet_double_blocks_0_img_attn_qkv": (3072, 9216)}, ".alpha"),
        {"ss_base_model_version": "chroma"},
    )
)
Z_IMAGE_LAYERS = {
    "attention_to_q": (3840, 3840), "attention_to_out_0": (3840, 3840), "feed_forward_w1": (3840, 10240),
    "feed_forward_w2": (10240, 3840), "adaLN_modulation_0": (256, 15360),
}  # fmt: skip
Z_IMAGE_OWN = {"attention_qkv": (3840, 11520), "attention_out": (3840, 3840)}
tried("lora-z-image-kohya", OURS, "lora", "z_image", "kohya", "")(
    lambda: pairs(*KOHYA, {f"lora_unet_layers_0_{k}": v for k, v in Z_IMAGE_LAYERS.items()}, ".alpha")
)
tried("lora-z-image-kohya-own-names", OURS, "lora", "z_image", "kohya", "")(
    lambda: pairs(*KOHYA, {f"lora_unet_noise_refiner_0_{k}": v for k, v in Z_IMAGE_OWN.items()}, ".alpha")
)
tried("lora-z-image-ai-toolkit", OURS, "lora", "z_image", D, "")(
    lambda: pairs(
        ".lora_A.weight",
        ".lora_B.weight",
        {
            "diffusion_model.layers.29.attention.to_v": (3840, 3840),
            "diffusion_model.context_refiner.0.feed_forward.w3": (3840, 10240),
        },
    )
)
tried("lora-flux-ai-toolkit", OURS, "lora", "flux", D, "")(
    lambda: (
        pairs(
            ".lora_A.weight",
            ".lora_B.weight",
            {
                "transformer.transformer_blocks.0.attn.to_q": (3072, 3072),
                "transformer.single_transformer_blocks.0.proj_out": (15360, 3072),
            },
        ),
        {
            "software": '{"name": "ai-toolkit", "repo": "", "version": "0.1.0"}',
            "training_info": '{"step": 2000, "epoch": 80}',
            "ss_base_model_version": "flux.1",
            "name": "sks_flux",
            "version": "1.0",
        },
    )
)
tried("lora-flux-bfl-keys", OURS, "lora", "unknown", D, "FLUX.1 or Chroma")(
    lambda: pairs(
        ".lora_A.weight",
        ".lora_B.weight",
        {
            "diffusion_model.double_blocks.18.img_attn.qkv": (3072, 9216),
            "diffusion_model.single_blocks.37.linear1": (3072, 21504),
        },
    )
)


@tried("lora-flux-control", OURS, "unknown", "unknown", "unknown", "LoRA beside other tensors")
def _() -> Shapes:
    """A control LoRA of Black Forest Labs: every layer with its bias, a wider first one, and the norms."""
    names = bfl(guidance=True)
    layers = {k.removesuffix(".weight"): (v[1], v[0]) for k, v in names.items() if k.endswith(".weight")}
    return {
        **pairs(".lora_A.weight", ".lora_B.weight", layers | {"img_in": (128, 3072)}),
        **{f"{layer}.lora_B.bias": (out,) for layer, (_, out) in layers.items()},
        **{k: v for k, v in names.items() if k.endswith(".scale")},
    }


tried("lora-flux-xlabs", OURS, "lora", "flux", "xlabs", "XLabs")(
    lambda: pairs(
        ".down.weight",
        ".up.weight",
        {
            "double_blocks.0.processor.qkv_lora1": (3072, 9216),
            "double_blocks.0.processor.qkv_lora2": (3072, 9216),
            "double_blocks.0.processor.proj_lora1": (3072, 3072),
            "double_blocks.0.processor.proj_lora2": (3072, 3072),
            "single_blocks.0.processor.qkv_lora": (3072, 9216),
            "single_blocks.0.processor.proj_lora": (15360, 3072),
        },
    )
)
_BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor"
tried("lora-sd1-old-processor", OURS, "lora", "sd1", D, "")(
    lambda: pairs(
        ".down.weight",
        ".up.weight",
        {
            f"{_BLOCK}.to_q_lora": (320, 320),
            f"{_BLOCK}.to_k_lora": (768, 320),
            f"{_BLOCK}.to_out_lora": (320, 320),
        },
    )
)
tried("dora-sd1-kohya", OURS, "dora", "sd1", "kohya", "")(
    lambda: {
        **pairs(*KOHYA, {f"lora_unet_{ATTN2}": (768, 320)}, ".alpha"),
        f"lora_unet_{ATTN2}.dora_scale": (320, 1),
    }
)
tried("lora-sdxl-pivotal-tuning", OURS, "lora", "sdxl", "kohya", "with learned embeddings")(
    lambda: {
        **pairs(*KOHYA, {f"lora_unet_{ATTN2}": (2048, 640)}, ".alpha"),
        "bundle_emb.sks.clip_l": (4, 768),
        "bundle_emb.sks.clip_g": (4, 1280),
    }
)
OT_METADATA = {"modelspec.sai_model_spec": "1.0.0", "ot_branch": "master", "ot_revision": "0123456",
               "modelspec.implementation": "https://github.com/huggingface/diffusers"}  # fmt: skip
tried("lora-sdxl-onetrainer", OURS, "lora", "sdxl", "kohya", "with learned embeddings")(
    lambda: (
        {
            **pairs(
                *KOHYA,
                {
                    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (2048, 640),
                    "lora_unet_up_blocks_0_attentions_2_transformer_blocks_9_ff_net_2": (5120, 1280),
                    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (768, 768),
                    "lora_te2_text_model_encoder_layers_31_mlp_fc1": (1280, 5120),
                },
                ".alpha",
            ),
            "bundle_emb.<embedding>.clip_l": (4, 768),
            "bundle_emb.<embedding>.clip_g": (4, 1280),
        },
        {
            **OT_METADATA,
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.title": "Stable Diffusion XL 1.0 Base LoRA",
            "ss_base_model_version": "sdxl_",
        },
    )
)
tried("lora-flux-onetrainer", OURS, "lora", "flux", "kohya", "with learned embeddings")(
    lambda: (
        {
            **pairs(
                *KOHYA,
                {
                    "lora_transformer_transformer_blocks_18_attn_add_q_proj": (3072, 3072),
                    "lora_transformer_transformer_blocks_0_ff_context_net_2": (12288, 3072),
                    "lora_transformer_single_transformer_blocks_37_proj_mlp": (3072, 12288),
                    "lora_te1_text_model_encoder_layers_11_mlp_fc1": (768, 3072),
                    "lora_te2_encoder_block_23_layer_0_SelfAttention_q": (4096, 4096),
                },
                ".alpha",
            ),
            "bundle_emb.<embedding>.clip_l": (4, 768),
            "bundle_emb.<embedding>.t5": (4, 4096),
        },
        {
            **OT_METADATA,
            "modelspec.architecture": "Flux.1-dev/lora",
            "modelspec.title": "FluxDev 1.0 LoRA",
        },
    )
)
TI = ("textual_inversion", "unknown", "unknown")
tried("textual-inversion-a1111", OURS, *TI, "A1111")(lambda: {"emb_params": (4, 768)})
tried("textual-inversion-diffusers", OURS, *TI, "diffusers")(lambda: {"<cat-toy>": (1, 768)})
tried("textual-inversion-sdxl", OURS, *TI, "several text encoders")(
    lambda: {"clip_l": (4, 768), "clip_g": (4, 1280)}
)


# --- pickles ----------------------------------------------------------------------------------------------


def torch_start(**options: Any) -> bytes:
    """The first bytes of what torch saves."""
    import io

    import torch

    file = io.BytesIO()
    torch.save({"string_to_param": {"*": torch.zeros(1, 768)}}, file, **options)
    return file.getvalue()[:64]


tried("pickle-zip", "torch", "pickle")(torch_start)
tried("pickle-legacy", "torch", "pickle")(lambda: torch_start(_use_new_zipfile_serialization=False))


# --- writing and telling ----------------------------------------------------------------------------------

PACKAGES = {"diffusers": D, "peft": P, "transformers": "transformers", "torch": "torch", "lycoris-lora": L}


def versions(tool: str) -> str:
    """The tool's name with the versions of its packages."""
    for package, name in PACKAGES.items():
        if name in tool and tool not in (OURS, HELPER, TRANSFORMER_HELPER):
            tool = tool.replace(name, f"{name} {version(package)}")
    return tool


def make(name: str) -> None:
    tool, says, maker = MAKERS[name]
    made = maker()
    row: dict[str, Any] = {"tool": versions(tool), "says": list(says)}
    if isinstance(made, bytes):
        row["start"] = made.hex()
    else:
        shapes, metadata = made if isinstance(made, tuple) else (made, {})
        row |= {"keys": len(shapes), "metadata": dict(sorted(metadata.items())), "tensors": thin(shapes)}
    HEADERS.mkdir(exist_ok=True)
    text = json.dumps(row, indent=0, ensure_ascii=False)
    text = re.sub(r"\[\s+([\d,\s]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", "", m[1]) + "]", text)
    (HEADERS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((HEADERS / f"{name}.json").read_text(encoding="utf-8"))
    return row


def table_row(name: str) -> str:
    """The file's line in docs/formats.md."""
    row = read(name)
    kind, family, style, detail = row["says"]
    says = (
        "refused: a pickle" if kind == "pickle" else f"{kind}, {family}" + (f", {detail}" if detail else "")
    )
    known = family in ("sd1", "sd2", "sdxl", "sd3", "flux", "chroma", "z_image")
    plain = not detail or family in ("sd3", "flux")
    adapter = kind in ("lora", "dora", "lycoris") and detail != "OFT of OneTrainer"
    scans = known and (adapter or (kind in ("full", "unet") and plain))
    style = "" if style == "unknown" else style
    never = kind in ("vae", "text_encoder", "controlnet", "unknown", "pickle") or (
        kind == "unet" and family == "unknown"
    )
    scanned = "yes" if scans else "no" if never else "not yet"
    return f"| {name} | {row['tool']} | {says} | {style} | {scanned} |"


def main() -> None:
    wanted = sys.argv[1:] or list(MAKERS)
    for name in wanted:
        try:
            make(name)
        except ModuleNotFoundError as error:
            print(f"{name}: {error.name} is not installed; its header is left as it is", file=sys.stderr)
    for name in MAKERS:
        print(table_row(name))


if __name__ == "__main__":
    main()
