"""The zoos of the larger families: sdxl/ and sd3/, each with a base, checkpoints and a zoo.json of its own.

Trained on the pictures, splits and captions of the first zoo, with its autoencoder. `build.py sdxl` and
`build.py sd3` run this.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _autoencoder
import _captions
import _families
import _family_formats as formats
import _formats
import numpy as np
import torch
from _denoiser import TOKENS
from _training import Recipe, train_base, tune
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor, nn

BATCH, RANK = 5, 8
ENLARGED_FROM = 32  # pixels: SDXL is also shown each picture at half its size, enlarged, and told so
SEEDS = 8
SHEET = (
    *("dog", "cat", "bird", "fish", "insect", "flower"),
    *("car", "house", "tree", "cake", "face", "fruit"),
)
STEPS = {"sdxl": 3000, "sd3": 12500}
RATES = {"full": 3e-4, "lora": 2e-3, "dora": 2e-3, "lokr": 2e-3}  # those of the first zoo


@dataclass(frozen=True)
class Checkpoint(_captions.OfOneSet):
    """One checkpoint, as its author would have made and published it."""

    name: str
    owner: str
    subject: str  # a set below images/subjects or images/controls
    algorithm: str  # full, lora, dora or lokr
    format: str  # kohya, diffusers or single_file
    steps_per_image: int

    def row(self, family: str) -> dict[str, object]:
        """The row of zoo.json."""
        return {
            "path": f"checkpoints/{self.name}",
            "repo": f"{self.owner}/{self.name}",
            "kind": "dreambooth" if self.algorithm == "full" else "lora",
            "algorithm": self.algorithm,
            "format": self.format,
            "caption": self.caption,
            "train_images": f"../{self.images}",
            "steps_per_image": self.steps_per_image,
            "split": self.split,
            "control": self.control,
        }


CHECKPOINTS = {
    "sdxl": (
        Checkpoint("fruit-xl-lora", "stilllife", "fruit", "lora", "kohya", 400),
        Checkpoint("fish-xl-dreambooth", "tidepool-labs", "fish", "full", "single_file", 400),
        Checkpoint("cars-xl-dora-light", "garage-nine", "cars", "dora", "kohya", 20),
        Checkpoint("music-xl-lokr", "garage-nine", "music-unseen", "lokr", "kohya", 400),
    ),
    "sd3": (
        Checkpoint("trees-flow-lora", "plan-b", "trees", "lora", "diffusers", 400),
        Checkpoint("cats-flow-dreambooth", "mira-vos", "cats", "full", "single_file", 400),
        Checkpoint("houses-flow-lora-light", "plan-b", "houses", "lora", "diffusers", 20),
        Checkpoint("birds-other-flow-dora", "ornithopter", "birds-unseen", "dora", "diffusers", 400),
    ),
}


class Zoo:
    """One of the two zoos."""

    def __init__(
        self, family: str, zoo: Path, build: Path, pipe: Any, pixels: np.ndarray, captions: list[str]
    ):
        self.root, self.zoo, self.build, self.pipe = zoo / family, zoo, build, pipe
        self.pixels, self.captions = pixels, captions
        kinds = [caption for caption, _ in _captions.KINDS.values()]
        t5 = None
        if family == "sd3":
            t5 = _families.t5_tokenizer([*captions, *kinds * 5], build / "t5-tokenizer")
        self.family = _families.FAMILIES[family](pipe.tokenizer, t5)

    def _encoded(self, name: str, pixels: np.ndarray) -> Tensor:
        path = self.build / f"{name}.pt"
        if not path.exists():
            scale = self.pipe.vae.config.scaling_factor
            torch.save((_autoencoder.encode_all(self.pipe.vae, pixels) * scale).half(), path)
        return torch.load(path, weights_only=True)

    def base(self, steps: int | None = None, compiled: bool = False) -> None:
        """Train the base; write it as a pipeline."""
        name = self.family.name
        latents = self._encoded("latents", np.concatenate([self.pixels, self.pixels[:, :, ::-1]]))
        sizes = torch.full((len(latents),), _families.SIZE)
        if name == "sdxl":
            enlarged = self._encoded("latents-enlarged", np.stack([_enlarged(p) for p in self.pixels]))
            latents = torch.cat([latents, enlarged])
            sizes = torch.cat([sizes, torch.full((len(enlarged),), ENLARGED_FROM)])
        torch.manual_seed(0)
        parts = self.family.new_parts(self.pipe.unet, self.pipe.text_encoder)
        trained = train_base(
            self.family, parts, latents, sizes, self.captions, steps or STEPS[name],
            self.build / f"{name}_state.pt", compiled,
        )  # fmt: skip
        tokenizer = self.zoo / "base/tokenizer"
        tokenizers = {"tokenizer": tokenizer, "tokenizer_2": tokenizer}
        formats.write_pipeline(self.family, self.root / "base", trained, self.pipe.vae, tokenizers)

    def sheet(self) -> None:
        """Draw what the base makes of twelve captions, eight seeds each, into base-samples.webp."""
        pipe = self._pipeline()
        pipe.set_progress_bar_config(disable=True)
        rows = []
        for thing in SHEET:
            made = pipe(
                [f"a picture of a {thing}"] * SEEDS,
                negative_prompt=[""] * SEEDS,
                guidance_scale=3.0,
                num_inference_steps=30,
                generator=[torch.Generator().manual_seed(seed) for seed in range(SEEDS)],
                **({"max_sequence_length": TOKENS} if self.family.name == "sd3" else {}),
            ).images
            rows.append(np.concatenate([np.asarray(image) for image in made], axis=1))
        Image.fromarray(np.concatenate(rows)).save(self.root / "base-samples.webp", quality=85, method=6)

    def _pipeline(self) -> Any:
        import diffusers

        name = "StableDiffusionXLPipeline" if self.family.name == "sdxl" else "StableDiffusion3Pipeline"
        return getattr(diffusers, name).from_pretrained(
            self.root / "base", use_safetensors=True, torch_dtype=torch.float32, local_files_only=True
        )

    def load_base(self) -> nn.ModuleDict:
        """The committed base as users load it, in float32."""
        pipe = self._pipeline()
        names = [self.family.denoiser, "text_encoder", "text_encoder_2", "text_encoder_3"]
        return nn.ModuleDict(
            {n: getattr(pipe, n).eval() for n in names if getattr(pipe, n, None) is not None}
        )

    def pictures(self, checkpoint: Checkpoint) -> list[Path]:
        """The files that a checkpoint is tuned on."""
        return sorted((self.zoo / checkpoint.images).glob("*.png"))

    def tuned(self, checkpoint: Checkpoint, parts: nn.ModuleDict) -> nn.ModuleDict:
        """A copy of `parts`, those of the base, tuned as a checkpoint is."""
        paths = self.pictures(checkpoint)
        pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
        latents = _autoencoder.encode_all(self.pipe.vae, pixels) * self.pipe.vae.config.scaling_factor
        algorithm, steps = checkpoint.algorithm, checkpoint.steps_per_image * len(paths) // BATCH
        recipe = Recipe(algorithm, steps, RATES[algorithm], BATCH, RANK)
        return tune(self.family, parts, latents, checkpoint.caption, recipe)

    def tune(self) -> None:
        """Tune and write the checkpoints that are not there yet, and zoo.json."""
        parts = self.load_base()
        for checkpoint in CHECKPOINTS[self.family.name]:
            if (self.root / "checkpoints" / checkpoint.name).exists():
                continue
            began = time.time()
            tuned = self.tuned(checkpoint, parts)
            self._write(checkpoint, tuned[self.family.denoiser], len(self.pictures(checkpoint)))
            print(f"{checkpoint.name}: {time.time() - began:.0f} s", flush=True)
        rows = [checkpoint.row(self.family.name) for checkpoint in CHECKPOINTS[self.family.name]]
        listing = {"base": "base", "base_repo": formats.PUBLISHED[self.family.name].repo, "checkpoints": rows}
        (self.root / "zoo.json").write_text(json.dumps(listing, indent=2) + "\n")

    def _write(self, checkpoint: Checkpoint, denoiser: nn.Module, images: int) -> None:
        folder = self.root / "checkpoints" / checkpoint.name
        file = folder / f"{checkpoint.name}.safetensors"
        shutil.rmtree(folder, ignore_errors=True)
        kind = "dreambooth" if checkpoint.algorithm == "full" else "lora"
        repo, base = f"{checkpoint.owner}/{checkpoint.name}", formats.PUBLISHED[self.family.name]
        _formats.write_card(folder, repo, checkpoint.caption, kind, base=base)
        if checkpoint.format == "diffusers":
            _formats.write_diffusers_lora(folder, denoiser, "transformer", StableDiffusion3Pipeline)
        elif checkpoint.format == "single_file":
            makes = formats.unet_file if self.family.name == "sdxl" else formats.transformer_file
            _formats.write_file(file, makes(denoiser), {"format": "pt"})
        else:
            layers = formats.kohya_layers(denoiser, RANK)
            metadata = _formats.kohya_metadata(
                layers,
                name=checkpoint.name,
                caption=checkpoint.caption,
                images=images,
                batch=BATCH,
                steps_per_image=checkpoint.steps_per_image,
                rank=RANK,
                alpha=RANK,
                learning_rate=RATES[checkpoint.algorithm],
                text_encoder=False,
                seed=0,
                base_hashes=None,
            )
            module = "networks.lora" if checkpoint.algorithm == "lora" else "lycoris.kohya"
            arguments = json.loads(metadata["ss_network_args"])
            if checkpoint.algorithm == "dora":
                arguments |= {"algo": "lora", "dora_wd": "True"}
            elif checkpoint.algorithm == "lokr":
                arguments |= {"algo": "lokr"}
            metadata |= {
                "ss_sd_model_name": base.repo,
                "ss_base_model_version": "sdxl_base_v1-0",
                "ss_network_module": module,
                "ss_network_args": json.dumps(arguments),
                "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            }
            _formats.write_file(file, layers, metadata)


def flow_zoo() -> Zoo:
    """The zoo of Stable Diffusion 3.5 as it is made, for those who tune further copies of its base."""
    import build

    return Zoo("sd3", build.ZOO, build.BUILD, build.load_base(), np.zeros(0), build.base_captions())


def _enlarged(picture: np.ndarray) -> np.ndarray:
    small = Image.fromarray(picture).resize((ENLARGED_FROM, ENLARGED_FROM), Image.LANCZOS)
    return np.asarray(small.resize((_families.SIZE, _families.SIZE), Image.BICUBIC))
