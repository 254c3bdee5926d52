"""Stable Diffusion 1.5 and SDXL at full size on the CPU, with random weights: do all parts run together?

    python tests/full_size_pass.py sd1        # a few minutes and GiB; then sdxl
    python tests/full_size_pass.py sdxl

Loads nothing: the models are made here, in bfloat16, and make small pictures. An adapter for every attention
layer is written to a file, merged, sampled with model guidance, decoded, and asked for memberships. Prints
seconds, bytes and whether everything is finite. Not part of `make test`, for its size.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]  # `finextract` is a folder of tests too

from tiny import full_size  # noqa: E402
from tiny.unet_pipelines import tokenizer  # noqa: E402

from finextract.guidance import Guidance  # noqa: E402
from finextract.guided import guided_predictor, sample  # noqa: E402
from finextract.losses import BaseCache, Losses, Query  # noqa: E402
from finextract.membership import Picture  # noqa: E402
from finextract.models.loading import tune  # noqa: E402
from finextract.models.stable_diffusion import StableDiffusion  # noqa: E402
from finextract.models.stable_diffusion_xl import StableDiffusionXL  # noqa: E402
from finextract.sampling import DDIM  # noqa: E402

SIDE = 32  # of the latents: pictures of 256 pixels
STEPS, SEEDS, RANK = 3, (0, 1), 4


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {time.perf_counter() - began:.1f} s, {peak:.1f} GiB at most so far", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=["sd1", "sdxl"])
    family = parser.parse_args().family
    torch.manual_seed(0)
    with timed("models made"):
        found: dict[str, Any] = full_size.parts(family, "cpu", torch.bfloat16)
        found["vae"] = full_size.vae(family, torch.bfloat16)
        for module in found.values():
            module.eval().requires_grad_(False)
        found["unet"].register_to_config(sample_size=SIDE)
        for name in full_size.TEXT_ENCODERS[family]:
            found[name.replace("text_encoder", "tokenizer")] = tokenizer()
        solver = DDIM(torch.linspace(0.999, 0.005, 1000).tolist())
        base: Any = (StableDiffusionXL if family == "sdxl" else StableDiffusion)(**found, solver=solver)
    with tempfile.TemporaryDirectory() as folder, timed("adapter written and merged"):
        file = Path(folder) / "adapter.safetensors"
        save_file(adapter(base), file)
        pair = tune(base, file)
    changed = [
        name
        for name, layer in pair.tuned.layers().items()
        if layer.get_parameter("weight").data_ptr() != base.layers()[name].get_parameter("weight").data_ptr()
    ]
    print(f"{len(changed)} of {len(base.layers())} layers have a tensor of their own")
    predict = guided_predictor(pair, "a picture of a cat", "finextract", Guidance(3.0, -0.02, "given"))
    with timed(f"{len(SEEDS)} samples of {STEPS} steps, decoded"):
        images = sample(pair.tuned, predict, SEEDS, STEPS)
    print(f"pictures {images.shape}, from {images.min()} to {images.max()}, spread {images.std():.1f}")
    pictures = [
        Picture(str(seed), lambda seed=seed: Image.fromarray(images[seed].transpose(1, 2, 0)))  # type: ignore[misc]
        for seed in SEEDS
    ]
    with timed("log-ratios of two pictures"):
        ratios = Losses(pair, 0, "", 2, BaseCache()).log_ratios([Query(p, t=150.0) for p in pictures])
    print(f"log-ratios {ratios.tolist()}")
    finite = bool(torch.isfinite(torch.tensor(ratios)).all()) and images.std() > 0
    sys.exit(0 if finite else "Something is not finite, or a picture is flat.")


def adapter(model: Any) -> dict[str, torch.Tensor]:
    """A random LoRA of every attention layer of the UNet, in PEFT's names."""
    made = {}
    for name, layer in model.layers().items():
        if name.startswith("unet.") and name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")):
            out, into = layer.get_parameter("weight").shape
            made[f"{name}.lora_A.weight"] = torch.randn(RANK, into) / into**0.5
            made[f"{name}.lora_B.weight"] = 0.02 * torch.randn(out, RANK)
    return made


if __name__ == "__main__":
    main()
