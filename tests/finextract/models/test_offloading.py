"""Text encoders and VAE that are on the GPU only while they are used: the results stay the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.flow_pipelines import flux_components, sd3_components
from tiny.unet_pipelines import stable_diffusion_xl
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from finextract.gpu_needs import GPU_NEEDS
from finextract.models import loading
from finextract.models.component_loaders import FolderLoader
from finextract.models.flux import Flux
from finextract.models.loading import is_tight
from finextract.models.stable_diffusion import load as load_stable_diffusion
from finextract.models.stable_diffusion_3 import StableDiffusion3
from finextract.models.stable_diffusion_xl import StableDiffusionXL
from finextract.sampling import DDIM, FlowEuler

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
}


def moved(module: nn.Module, place: Any) -> nn.Module:
    """What `module.to(place)` does, for tensors without contents, which torch cannot exchange."""
    for part in module.modules():
        for named in (part._parameters, part._buffers):
            for name, tensor in named.items():
                if tensor is not None:
                    new = torch.empty(tensor.shape, dtype=tensor.dtype, device=place)
                    is_weight = isinstance(tensor, nn.Parameter)
                    named[name] = nn.Parameter(new, requires_grad=False) if is_weight else new
    return module


def place_of(module: nn.Module) -> str:
    return next(module.parameters()).device.type


@pytest.mark.parametrize("family", MAKERS)
@torch.inference_mode()
def test_what_is_offloaded_is_on_the_gpu_for_its_use_alone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation that mixes devices is an error for fake tensors, as it is on a GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = replace(MAKERS[family](), offloads=True)
        monkeypatch.setattr(nn.Module, "to", moved)
        for name in (*model.components, "vae"):
            moved(getattr(model, name), "cuda" if name == model.components[0] else "cpu")
        words = model.condition("a red house")
        assert {words.sequence.device.type, words.pooled.device.type} == {"cuda"}
        latents = model.encode(torch.empty(2, 3, *model.image_size, dtype=torch.uint8))
        assert latents.device.type == "cuda"
        assert model.predict(latents, 0.0, words).device.type == "cuda"
        assert model.decode(latents).device.type == "cpu"
        assert place_of(getattr(model, model.components[0])) == "cuda"
        rest = [getattr(model, name) for name in (*model.components[1:], "vae")]
        assert {place_of(module) for module in rest} == {"cpu"}


def test_offloading_changes_no_result() -> None:
    folder = ZOO / "base"
    kept, offloaded = (
        load_stable_diffusion(FolderLoader(folder, CPU, offloads=offloads), torch.float32)
        for offloads in (False, True)
    )
    assert (kept.offloads, offloaded.offloads) == (False, True)
    pictures = torch.arange(3 * 64 * 64).remainder(251).to(torch.uint8).reshape(1, 3, 64, 64)
    for made in (lambda m: m.condition("fruit"), lambda m: m.encode(pictures)):
        assert torch.equal(made(kept), made(offloaded))
    latents = kept.encode(pictures)
    assert torch.equal(kept.decode(latents), offloaded.decode(latents))
    tuned = offloaded.copy_for_tuning()
    assert tuned.offloads
    assert torch.equal(tuned.condition("fruit"), kept.condition("fruit"))


def test_a_gpu_with_less_free_memory_than_a_family_needs_is_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    gib, gpu = 1024**3, torch.device("cuda")
    monkeypatch.setattr(loading.torch.cuda, "mem_get_info", lambda _: (16 * gib, 80 * gib))
    assert GPU_NEEDS["sd1"].gib <= 16 < GPU_NEEDS["flux"].gib
    assert not is_tight(gpu, "sd1")
    assert is_tight(gpu, "flux")
    assert not is_tight(CPU, "flux")
