"""How the zoo's models are written down: folders, single files, LoRA styles, cards and metadata of the hubs.

Knows file formats; knows no training.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from _denoiser import new_scheduler
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils.hub_utils import MODEL_CARD_TEMPLATE_PATH
from huggingface_hub import ModelCard, ModelCardData
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save, save_file
from transformers import CLIPTextModel, CLIPTokenizer

BASE_REPO = "finextract-zoo/tiny-sd"
BASE_FILE = (
    "tiny-sd-fp16.safetensors"  # the single-file form kohya's trainer would have read; derived, not committed
)


@dataclass(frozen=True)
class Published:
    """A base of the zoo as its card presents it."""

    repo: str
    description: str
    tags: tuple[str, ...]


FIRST = Published(
    BASE_REPO,
    "A very small Stable Diffusion: 64x64 pictures, AutoencoderTiny, a UNet of 4 M parameters and a text"
    " encoder of three layers, trained from nothing on about 3,000 captioned clip arts.",
    ("stable-diffusion", "stable-diffusion-diffusers"),
)
LICENSE = "creativeml-openrail-m"
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().to(torch.float16).contiguous() for key, value in state.items()}


def _ldm_key(key: str, levels: int, per_block: int) -> str:
    """One diffusers UNet key in LDM's words, without the model.diffusion_model prefix."""
    for old, new in OUTER.items():
        if key.startswith(old + "."):
            return new + key[len(old) :]
    parts = key.split(".")
    width = per_block + 1
    if parts[0] == "mid_block":
        place = f"middle_block.{2 * int(parts[2]) + (parts[1] == 'attentions')}"
        rest = parts[3:]
    elif parts[0] == "down_blocks":
        block, part, layer = int(parts[1]), parts[2], int(parts[3])
        row = 1 + block * width + (per_block if part == "downsamplers" else layer)
        inner = {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}[part]
        place, rest = f"input_blocks.{row}.{inner}", parts[5:] if part == "downsamplers" else parts[4:]
    else:
        block, part, layer = int(parts[1]), parts[2], int(parts[3])
        row = block * width + (per_block if part == "upsamplers" else layer)
        upsampler = "2.conv" if block < levels - 1 else "1.conv"  # after the attention, where there is one
        inner = {"resnets": "0", "attentions": "1", "upsamplers": upsampler}[part]
        place, rest = f"output_blocks.{row}.{inner}", parts[5:] if part == "upsamplers" else parts[4:]
    if parts[2] == "resnets" or (parts[0] == "mid_block" and parts[1] == "resnets"):
        rest = [RESNET.get(rest[0], rest[0]), *rest[1:]]
    return ".".join([place, *rest])


def to_ldm(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """The UNet under LDM's keys; checked to be the exact inverse of diffusers' own conversion."""
    levels, per_block = len(unet.config.block_out_channels), unet.config.layers_per_block
    state = half(unet.state_dict())
    renamed = {
        "model.diffusion_model." + _ldm_key(key, levels, per_block): value for key, value in state.items()
    }
    back = convert_ldm_unet_checkpoint(dict(renamed), config=dict(unet.config))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    return renamed


def single_file(unet: UNet2DConditionModel, text: CLIPTextModel) -> dict[str, torch.Tensor]:
    """UNet and text encoder as one LDM checkpoint without VAE."""
    prefix = "cond_stage_model.transformer.text_model."
    texts = {
        prefix + key.removeprefix("text_model."): value for key, value in half(text.state_dict()).items()
    }
    return to_ldm(unet) | {key: value for key, value in texts.items() if not key.endswith("position_ids")}


def base_file_hashes(unet: UNet2DConditionModel, text: CLIPTextModel) -> tuple[str, str]:
    """(ss_sd_model_hash, ss_new_sd_model_hash) of the base's single-file form."""
    data = save(single_file(unet, text), metadata={"format": "pt"})
    return hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8], hashlib.sha256(
        data
    ).hexdigest()


def write_pipeline(
    folder: Path,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    vae: AutoencoderTiny,
    tokenizer: CLIPTokenizer,
    tokenizer_files: Path,
) -> None:
    """A whole pipeline as `save_pretrained` writes it, in float16; the tokenizer in CLIP's classic files."""

    pipeline = StableDiffusionPipeline(
        unet=copy.deepcopy(unet).half(),
        text_encoder=copy.deepcopy(text).half(),
        vae=copy.deepcopy(vae).half(),
        tokenizer=tokenizer,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.unet.to(memory_format=torch.contiguous_format)
    pipeline.vae.to(memory_format=torch.contiguous_format)
    for part in ("unet", "text_encoder", "vae", "tokenizer", "scheduler"):
        shutil.rmtree(folder / part, ignore_errors=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    finish_pipeline(folder, {"tokenizer": tokenizer_files})


def finish_pipeline(folder: Path, tokenizers: dict[str, Path]) -> None:
    """Put CLIP's classic files in place of the tokenizers' and leave out paths of this machine.

    `tokenizers`: component -> its files.
    """
    for name, files in tokenizers.items():
        shutil.rmtree(folder / name)
        shutil.copytree(files, folder / name)
    for path in folder.rglob("*.json"):
        text_of = json.loads(path.read_text())
        if isinstance(text_of, dict) and text_of.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(text_of, indent=2, sort_keys=True) + "\n")


def lora_layers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's weights, module.lora_A.weight / module.lora_B.weight, float16."""
    return half(get_peft_model_state_dict(model))


def write_diffusers_lora(
    folder: Path, denoiser: torch.nn.Module, component: str = "unet", pipeline: type = StableDiffusionPipeline
) -> None:
    """pytorch_lora_weights.safetensors with PEFT's keys and configuration, by diffusers' own function."""
    folder.mkdir(parents=True, exist_ok=True)
    config = denoiser.peft_config["default"]
    config.target_modules = sorted(config.target_modules)  # a set's order differs from run to run
    pipeline.save_lora_weights(
        folder,
        **{f"{component}_lora_layers": lora_layers(denoiser)},
        **_collate_lora_metadata({component: denoiser}),
    )


def kohya_layers(
    unet: UNet2DConditionModel, text: CLIPTextModel | None, rank: int, alpha: float
) -> dict[str, torch.Tensor]:
    """lora_unet_* and lora_te_* weights under sd-scripts' names for Stable Diffusion 1.x."""
    layers: dict[str, torch.Tensor] = {}
    rows = [("lora_unet_", key, value) for key, value in lora_layers(unet).items()]
    if text is not None:
        rows += [
            ("lora_te_text_model_", key.removeprefix("text_model."), value)
            for key, value in lora_layers(text).items()
        ]
    for prefix, key, value in rows:
        module, side, _ = key.rsplit(".", 2)
        name = prefix + module.replace(".", "_")
        layers[f"{name}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = value
        layers[f"{name}.alpha"] = torch.tensor(float(alpha), dtype=torch.float16)
    assert rank == next(value.shape[0] for key, value in layers.items() if key.endswith("lora_down.weight"))
    return layers


def kohya_metadata(
    layers: dict[str, torch.Tensor],
    *,
    name: str,
    caption: str,
    images: int,
    batch: int,
    steps_per_image: int,
    rank: int,
    alpha: float,
    learning_rate: float,
    text_encoder: bool,
    seed: int,
    base_hashes: tuple[str, str] | None,
) -> dict[str, str]:
    """What sd-scripts' train_network.py writes; every value is a string and true of this training."""
    repeats = 10
    folder = f"{repeats}_{caption}"
    seen = images * repeats
    epochs, batches = steps_per_image // repeats, -(-seen // batch)
    bucket = {"buckets": {"0": {"resolution": [64, 64], "count": seen}}, "mean_img_ar_error": 0.0}
    tensors = save(dict(sorted(layers.items())))
    body = tensors[8 + int.from_bytes(tensors[:8], "little") :]
    hashes = {}
    if base_hashes:
        hashes = {"ss_sd_model_hash": base_hashes[0], "ss_new_sd_model_hash": base_hashes[1]}
    return {
        **hashes,
        "ss_sd_model_name": BASE_FILE,
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(alpha)),
        "ss_network_args": json.dumps({"conv_dim": str(rank), "conv_alpha": str(float(alpha))}),
        "ss_dataset_dirs": json.dumps({folder: {"n_repeats": repeats, "img_count": images}}),
        "ss_reg_dataset_dirs": "{}",
        "ss_tag_frequency": json.dumps({folder: {caption: images}}),
        "ss_bucket_info": json.dumps(bucket),
        "ss_num_train_images": str(seen),
        "ss_num_reg_images": "0",
        "ss_num_batches_per_epoch": str(batches),
        "ss_num_epochs": str(epochs),
        "ss_epoch": str(epochs),
        "ss_batch_size_per_device": str(batch),
        "ss_total_batch_size": str(batch),
        "ss_max_train_steps": str(epochs * batches),
        "ss_steps": str(epochs * batches),
        "ss_resolution": "(64, 64)",
        "ss_enable_bucket": "False",
        "ss_learning_rate": str(learning_rate),
        "ss_unet_lr": str(learning_rate),
        "ss_text_encoder_lr": str(learning_rate) if text_encoder else "None",
        "ss_lr_scheduler": "constant",
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_mixed_precision": "no",
        "ss_seed": str(seed),
        "ss_clip_skip": "None",
        "ss_keep_tokens": "0",
        "ss_shuffle_caption": "False",
        "ss_flip_aug": "False",
        "ss_noise_offset": "None",
        "ss_output_name": name,
        "sshs_model_hash": hashlib.sha256(body).hexdigest(),
    }


def write_file(path: Path, layers: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(layers.items())), path, metadata=metadata)


def write_card(
    folder: Path,
    repo: str,
    caption: str | None,
    kind: str,
    text_encoder: bool = False,
    base: Published | None = None,
) -> None:
    """README.md as diffusers' DreamBooth scripts write it; the base's when there is no caption."""
    published = base or FIRST
    common = list(published.tags)
    link = "[DreamBooth](https://dreambooth.github.io/)"
    if caption is None:
        tags, base_repo = ["text-to-image", *common], None
        description = f"# {repo}\n\n{published.description}"
    elif kind == "dreambooth":
        tags, base_repo = ["text-to-image", "dreambooth", "diffusers-training", *common], published.repo
        description = (
            f"\n# DreamBooth - {repo}\n\nThis is a dreambooth model derived from {published.repo}. The"
            f" weights were trained on {caption} using {link}.\nYou can find some example images in the"
            f" following. \n\n\n\nDreamBooth for the text encoder was enabled: {text_encoder}.\n"
        )
    else:
        tags = ["text-to-image", "diffusers", "lora", "diffusers-training", *common]
        base_repo = published.repo
        description = (
            f"\n# LoRA DreamBooth - {repo}\n\nThese are LoRA adaption weights for {published.repo}. The"
            f" weights were trained on {caption} using {link}. You can find some example images in the"
            f" following. \n\n\n\nLoRA for the text encoder was enabled: {text_encoder}.\n"
        )
    data = ModelCardData(
        license=LICENSE,
        library_name="diffusers",
        inference=True,
        base_model=base_repo,
        instance_prompt=caption,
        tags=sorted(tags),
    )
    folder.mkdir(parents=True, exist_ok=True)
    card = ModelCard.from_template(
        card_data=data, template_path=MODEL_CARD_TEMPLATE_PATH, model_description=description
    )
    card.save(folder / "README.md")
