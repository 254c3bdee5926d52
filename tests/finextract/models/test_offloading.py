"""Modules that are on the GPU only while they compute: the results stay the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import z_image
from tiny.flow_pipelines import flux_components, sd3_components
from tiny.no_numbers import moved, on_any_device
from tiny.unet_pipelines import stable_diffusion_xl
from torch import nn

from finextract.adapters.lora import LoraLayer
from finextract.adapters.on_use import merge_on_use
from finextract.gpu_needs import GPU_NEEDS
from finextract.models import loading
from finextract.models.component_loaders import FolderLoader
from finextract.models.flux import Flux
from finextract.models.loading import offloading_for
from finextract.models.offloading import Offloading, blocks_of, device_of, stream_blocks
from finextract.models.stable_diffusion import load as load_stable_diffusion
from finextract.models.stable_diffusion_3 import StableDiffusion3
from finextract.models.stable_diffusion_xl import StableDiffusionXL
from finextract.models.z_image import ZImage
from finextract.sampling import DDIM, FlowEuler
from finextract.weights.original_names import FileLayer

ZOO = Path(__file__).resolve().parents[2] / "zoo"
CPU = torch.device("cpu")


def sdxl() -> Any:
    parts = {k: v for k, v in stable_diffusion_xl(False).components.items() if v is not None}
    named = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return StableDiffusionXL(**{k: parts[k] for k in named}, solver=DDIM([0.9, 0.1]))


MAKERS: dict[str, Callable[[], Any]] = {
    "sdxl": sdxl,
    "sd3": lambda: StableDiffusion3(**sd3_components(), solver=FlowEuler()),
    "flux": lambda: Flux(**flux_components(), solver=FlowEuler()),
    "z_image": lambda: ZImage(**z_image.components(), solver=FlowEuler()),
}


def adapt(model: Any) -> None:
    """Gives a linear layer of the denoiser an adapter, which stays on the CPU and is merged on use."""
    layers = model.layers()
    name = next(n for n in layers if n.startswith(model.components[0]) and isinstance(layers[n], nn.Linear))
    out, into = layers[name].weight.shape
    lora = LoraLayer(name, torch.ones(2, into), torch.ones(out, 2), 0.5)
    merge_on_use(layers, FileLayer((name,)), [lora])


def place_of(module: nn.Module) -> str:
    return next(module.parameters()).device.type


@pytest.mark.parametrize("offloading", ["encoders and VAE", "denoiser"])
@pytest.mark.parametrize("family", MAKERS)
@torch.inference_mode()
def test_what_is_offloaded_is_on_the_gpu_for_its_use_alone(family: str, offloading: Offloading) -> None:
    """An operation that mixes devices is an error for fake tensors, as it is on a GPU."""
    with on_any_device():
        model = replace(MAKERS[family](), offloading=offloading)
        denoiser = getattr(model, model.components[0])
        stays = "cuda" if offloading == "encoders and VAE" else "cpu"
        for name in (*model.components, "vae"):
            moved(getattr(model, name), stays if name == model.components[0] else "cpu")
        on_gpu: list[int] = []
        if offloading == "denoiser":
            stream_blocks(denoiser, torch.device("cuda"))
            adapt(model)
            blocks = [block for block in blocks_of(denoiser) if list(block.parameters())]
            for block in blocks:
                block.register_forward_hook(
                    lambda *_, blocks=blocks: on_gpu.append(sum(place_of(b) == "cuda" for b in blocks)),
                    prepend=True,
                )
        words = model.condition("a red house")
        states = [words] if isinstance(words, torch.Tensor) else vars(words).values()
        assert {tensor.device.type for tensor in states} == {"cuda"}
        latents = model.encode(torch.empty(2, 3, *model.image_size, dtype=torch.uint8))
        assert latents.device.type == "cuda"
        assert model.predict(latents, 0.0, words).device.type == "cuda"
        assert model.decode(latents).device.type == "cpu"
        assert place_of(denoiser) == stays
        assert set(on_gpu) == ({1} if offloading == "denoiser" else set())
        rest = [getattr(model, name) for name in (*model.components[1:], "vae")]
        assert {place_of(module) for module in rest} == {"cpu"}


@pytest.mark.parametrize("offloading", ["encoders and VAE", "denoiser"])
def test_offloading_changes_no_result(offloading: Offloading) -> None:
    folder = ZOO / "base"
    kept, offloaded = (
        load_stable_diffusion(FolderLoader(folder, CPU, offloading=some), torch.float32)
        for some in ("nothing", offloading)
    )
    assert (kept.offloading, offloaded.offloading) == ("nothing", offloading)
    pictures = torch.arange(3 * 64 * 64).remainder(251).to(torch.uint8).reshape(1, 3, 64, 64)
    for made in (lambda m: m.condition("fruit"), lambda m: m.encode(pictures)):
        assert torch.equal(made(kept), made(offloaded))
    latents = kept.encode(pictures)
    assert torch.equal(kept.decode(latents), offloaded.decode(latents))
    tuned = offloaded.copy_for_tuning()
    assert tuned.offloading == offloading
    words = kept.condition("fruit")
    assert torch.equal(tuned.condition("fruit"), words)
    with torch.inference_mode():
        assert torch.equal(tuned.predict(latents, 500.0, words), kept.predict(latents, 500.0, words))


def test_a_block_that_fails_leaves_the_module_with_its_own_tensors() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    module[1].register_buffer("table", torch.zeros(2))
    module[1].weight_again = module[1].weight
    before = [*module.parameters(), *module.buffers()]
    stream_blocks(module, torch.device("meta"))  # a device whose tensors do not mix with those of the CPU
    assert device_of(module).type == "meta"
    with pytest.raises(RuntimeError):
        module(torch.ones(1, 2))
    assert module(torch.ones(1, 2, device="meta")).device.type == "meta"
    after = [*module.parameters(), *module.buffers()]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_the_less_free_memory_a_gpu_has_the_more_is_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    gib, gpu = 1024**3, torch.device("cuda")
    monkeypatch.setattr(loading.torch.cuda, "mem_get_info", lambda _: (16 * gib, 80 * gib))
    assert GPU_NEEDS["sd1"].gib <= 16 < GPU_NEEDS["sdxl"].gib
    assert GPU_NEEDS["sdxl"].denoisers_gib <= 16 < GPU_NEEDS["flux"].denoisers_gib
    assert offloading_for(gpu, "sd1") == "nothing"
    assert offloading_for(gpu, "sdxl") == "encoders and VAE"
    assert offloading_for(gpu, "flux") == "denoiser"
    assert offloading_for(CPU, "flux") == "nothing"
