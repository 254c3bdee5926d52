"""Bytes and operations of each model family at full size, counted on models that take no memory.

    python tests/family_costs.py          # prints both tables of docs/scale.md

Operations are those of one evaluation of the denoiser for one picture of the model's own size, 2 for a
multiply-add, as torch's own counter has them. The memory of activations is that of the tensors which exist at
the same time, at most, while a model of fake tensors runs; a GPU needs a little more, for what its kernels
and its allocator take.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny.full_size import config_of, made_on  # noqa: E402

from finextract.gpu_needs import GPU_NEEDS  # noqa: E402
from finextract.models.offloading import blocks_of  # noqa: E402
from finextract.models.parts import PIXELS_AT_ONCE  # noqa: E402

NAMES = {
    "sd1": "Stable Diffusion 1.5, 512 x 512", "sd2-v": "Stable Diffusion 2.1, 768 x 768",
    "sdxl": "SDXL, 1024 x 1024", "sd3-medium": "Stable Diffusion 3 medium, 1024 x 1024",
    "sd35-medium": "Stable Diffusion 3.5 medium, 1024 x 1024",
    "sd35-large": "Stable Diffusion 3.5 large, 1024 x 1024", "flux-dev": "FLUX.1 dev, 1024 x 1024",
    "flux-schnell": "FLUX.1 schnell, 1024 x 1024", "chroma": "Chroma, 1024 x 1024",
    "z-image": "Z-Image, 1024 x 1024",
}  # fmt: skip
# The largest model of each family, which its worker's share is told by.
LARGEST = {
    "sd1": "sd1", "sd2": "sd2-v", "sdxl": "sdxl", "sd3": "sd35-large", "flux": "flux-dev",
    "chroma": "chroma", "z_image": "z-image",
}  # fmt: skip
CONTEXT_GIB = 1.0  # of CUDA, its libraries, and what the allocator leaves unused; assumed
GIB = 1024**3


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within take at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def modules_of(name: str, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """The modules of a published pipeline, without values."""
    import diffusers
    import transformers

    with made_on(device, dtype):
        found: dict[str, Any] = {}
        for component, entry in config_of(name, "model_index.json").items():
            if component.startswith(("unet", "transformer", "vae")):
                config = config_of(name, f"{component}/config.json")
                upcast = component == "vae" and config.get("force_upcast")
                with made_on(device, torch.float32 if upcast else dtype):
                    found[component] = getattr(diffusers, entry[1]).from_config(config)
            elif component.startswith("text_encoder"):
                cls = getattr(transformers, entry[1])
                config = config_of(name, f"{component}/config.json")
                found[component] = cls(cls.config_class(**config))
                found[component].tie_weights()  # T5 has its embedding twice
    return found


def evaluation(name: str, denoiser: Any, count: int, device: str, dtype: torch.dtype) -> Callable[[], Any]:
    """One evaluation of the denoiser for `count` pictures of its own size."""

    def new(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=device, dtype=dtype)

    config = denoiser.config
    if name == "z-image":
        return lambda: denoiser([*new(count, 16, 1, 128, 128)], new(count), [new(512, 2560)] * count)
    if name == "chroma":
        return lambda: denoiser(
            hidden_states=new(count, 64 * 64, 64), timestep=new(count), txt_ids=new(512, 3),
            img_ids=new(64 * 64, 3), encoder_hidden_states=new(count, 512, 4096),
            attention_mask=new(count, 512 + 64 * 64),
        )  # fmt: skip
    if name.startswith("flux"):
        return lambda: denoiser(
            hidden_states=new(count, 64 * 64, 64), timestep=new(count), txt_ids=new(512, 3),
            guidance=new(count) if config.guidance_embeds else None, img_ids=new(64 * 64, 3),
            encoder_hidden_states=new(count, 512, 4096), pooled_projections=new(count, 768),
        )  # fmt: skip
    if name.startswith("sd3"):
        return lambda: denoiser(
            hidden_states=new(count, 16, 128, 128), timestep=new(count), pooled_projections=new(count, 2048),
            encoder_hidden_states=new(count, 333, 4096),
        )  # fmt: skip
    side, width = config.sample_size, config.cross_attention_dim
    added = {"text_embeds": new(count, 1280), "time_ids": new(count, 6)} if name == "sdxl" else None
    return lambda: denoiser(
        new(count, 4, side, side),
        new(1),
        encoder_hidden_states=new(count, 77, width),
        added_cond_kwargs=added,
    )


def decoding(vae: Any) -> Callable[[], Any]:
    """The decoding of as many pictures of the model's own size as the VAE takes at once."""
    side, channels = vae.config.sample_size, vae.config.latent_channels
    shape = (max(1, PIXELS_AT_ONCE // side**2), channels, side // 8, side // 8)
    return lambda: vae.decode(torch.zeros(shape, device="cuda", dtype=vae.dtype))


def denoiser_of(modules: dict[str, Any]) -> Any:
    return modules.get("transformer") or modules["unet"]


def gibibytes(module: nn.Module) -> float:
    """In the precision that it has."""
    return sum(p.numel() * p.element_size() for p in module.parameters()) / GIB


def gigabytes(*modules: nn.Module) -> float:
    """In half precision."""
    return 2 * sum(p.numel() for module in modules for p in module.parameters()) / 1e9


def peak_gib(run: Callable[[], object]) -> float:
    """The most GiB of new tensors that exist at the same time."""
    with torch.inference_mode(), Peak() as peak:
        run()
    return peak.most / GIB


def costs() -> None:
    """Bytes of the components, and operations."""
    print("| model | denoiser | text encoders | VAE | one evaluation |\n|---|---|---|---|---|")
    for name, title in NAMES.items():
        modules = modules_of(name, "meta", torch.float32)
        denoiser = denoiser_of(modules)
        texts = [m for key, m in modules.items() if key.startswith("text_encoder")]
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            evaluation(name, denoiser, 1, "meta", torch.float32)()
        print(
            f"| {title} | {gigabytes(denoiser):.2f} GB | {gigabytes(*texts):.2f} GB | "
            f"{gigabytes(modules['vae']):.2f} GB | {counter.get_total_flops() / 1e12:.2f} TFLOP |"
        )


def needs() -> None:
    """GiB that a worker needs of a GPU."""
    print("\n| family | both models | batch | evaluating it | decoding | needed | denoisers | least |")
    print("|---|---|---|---|---|---|---|---|")
    for family, name in LARGEST.items():
        dtype = torch.bfloat16 if family in ("sd3", "flux", "chroma", "z_image") else torch.float16
        batch = 2 * GPU_NEEDS[family].batch_size  # that of the screen, the larger one
        with FakeTensorMode(allow_non_fake_inputs=True):
            modules = modules_of(name, "cuda", dtype)
            denoiser = denoiser_of(modules)
            others = max(
                [gibibytes(m) for key, m in modules.items() if key.startswith("text_encoder")]
                + [gibibytes(modules["vae"]) + peak_gib(decoding(modules["vae"]))]
            )
            denoisers = 2 * gibibytes(denoiser) + others
            block = max(map(gibibytes, blocks_of(denoiser)))
            one = peak_gib(evaluation(name, denoiser, 1, "cuda", dtype))
            least, vae = max(block + one, others), modules["vae"]
            weights = 2 * sum(map(gibibytes, modules.values())) - gibibytes(vae)
            run, decoded = peak_gib(evaluation(name, denoiser, batch, "cuda", dtype)), peak_gib(decoding(vae))
        numbers = (
            weights,
            batch,
            run,
            decoded,
            weights + max(run, decoded) + CONTEXT_GIB,
            denoisers + CONTEXT_GIB,
            least + CONTEXT_GIB,
        )
        print(f"| {family}, as {name} | " + " | ".join(f"{n:.1f}" for n in numbers) + " |", flush=True)


if __name__ == "__main__":
    costs()
    needs()
