"""A first look at what the zoo's checkpoints give back: similarity of samples and training pictures, by arm.

The project's own measurement is `finextract audit`; this one needs nothing but the zoo and looks at dev rows
only unless told otherwise.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import _autoencoder
import _denoiser
import _images
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from PIL import Image
from safetensors.torch import load_file

ARMS = {
    "direct": (1.0, "none"),
    "cfg3": (3.0, "self"),
    "w1.5": (1.5, "base"),
    "w2": (2.0, "base"),
    "w3": (3.0, "base"),
}


def read_pictures(folder: Path) -> np.ndarray:
    """[P, 64, 64, 3] uint8, in the order of the names."""
    paths = sorted([*folder.glob("*.png"), *folder.glob("*.webp")])
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


def load(base: Path, row: dict, folder: Path) -> StableDiffusionPipeline:
    """The tuned pipeline, float32."""
    options = {"use_safetensors": True, "torch_dtype": torch.float32, "local_files_only": True}
    if row["format"] == "diffusers" and row["kind"] == "dreambooth":
        return StableDiffusionPipeline.from_pretrained(folder, **options)
    pipe = StableDiffusionPipeline.from_pretrained(base, **options)
    file = next(folder.glob("*.safetensors"))
    if row["format"] == "single_file":
        state = convert_ldm_unet_checkpoint(load_file(file), config=dict(pipe.unet.config))
        pipe.unet.load_state_dict({key: value.float() for key, value in state.items()})
    else:
        pipe.load_lora_weights(folder, weight_name=file.name)
        pipe.fuse_lora()
    return pipe


def check(zoo_json: Path, samples: int, only: str, arms: list[str], sheet_folder: Path) -> None:
    """Print AS over the training pictures, the autoencoder's ceiling and the nearest background, by arm."""
    root, zoo = zoo_json.parent, json.loads(zoo_json.read_text())
    base = StableDiffusionPipeline.from_pretrained(
        root / zoo["base"], use_safetensors=True, torch_dtype=torch.float32, local_files_only=True
    )
    background = _images.embed(read_pictures((root / zoo["base"]).parent / "images/background"))
    empty = _denoiser.prompt_embedding(base.tokenizer, base.text_encoder, "")
    scale = base.vae.config.scaling_factor
    for row in zoo["checkpoints"]:
        if (only == "dev" and row["split"] != "dev") or (
            only not in ("dev", "all") and only not in row["path"]
        ):
            continue
        began = time.time()
        pictures = read_pictures(root / row["train_images"])
        truth = _images.embed(pictures)
        rebuilt = _autoencoder.decode_all(base.vae, _autoencoder.encode_all(base.vae, pictures))
        ceiling = float((truth * _images.embed(rebuilt)).sum(1).mean())
        pipe = load(root / zoo["base"], row, root / row["path"])
        prompt = _denoiser.prompt_embedding(pipe.tokenizer, pipe.text_encoder, row["caption"])
        nothing = _denoiser.prompt_embedding(pipe.tokenizer, pipe.text_encoder, "")
        cells, shown = [], [pictures]
        for arm in arms:
            guidance, weak = ARMS[arm]
            other = _denoiser.Pair(base.unet, empty) if weak == "base" else _denoiser.Pair(pipe.unet, nothing)
            predict = _denoiser.guided(_denoiser.Pair(pipe.unet, prompt), other, guidance)
            made = _autoencoder.decode_all(base.vae, _denoiser.sample(predict, list(range(samples))) / scale)
            embedded = _images.embed(made)
            best = (truth @ embedded.T).max(1)  # [P]
            rest = float((background @ embedded.T).max())
            cells.append(f"{arm} {best.mean():.3f} (max {best.max():.2f}, background {rest:.2f})")
            shown.append(made[:14])
        print(
            f"{row['path']} [{row['split']}] ceiling {ceiling:.3f}: " + "; ".join(cells), end="", flush=True
        )
        print(f"  {time.time() - began:.0f} s", flush=True)
        sheet_folder.mkdir(parents=True, exist_ok=True)
        padded = [np.concatenate([s, np.full((14 - len(s), 64, 64, 3), 255, np.uint8)]) for s in shown]
        _images.sheet(
            np.concatenate(padded), sheet_folder / f"{Path(row['path']).name}.png", columns=14, scale=1
        )
