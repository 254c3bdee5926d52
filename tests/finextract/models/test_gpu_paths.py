"""What runs on a GPU, without one: full-size models of fake tensors on the device `cuda`.

An operation that mixes devices or precisions is an error there as it is on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import full_size
from tiny.unet_pipelines import tokenizer
from torch._subclasses.fake_tensor import FakeTensorMode

from finextract.extract import guided_predictor
from finextract.guidance import Guidance
from finextract.models.base import CopiedPair
from finextract.models.stable_diffusion import StableDiffusion
from finextract.models.stable_diffusion_xl import StableDiffusionXL
from finextract.models.unet import UNetModel
from finextract.sampling import DDIM, initial_noise, sample_latents

ALPHAS = torch.linspace(0.999, 0.005, 1000).tolist()
FAMILIES = [("sd1", torch.float16), ("sd2", torch.bfloat16), ("sdxl", torch.float16)]


@pytest.fixture(autouse=True)
def fake() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def model_of(family: str, dtype: torch.dtype) -> UNetModel:
    upcast = family == "sdxl" and dtype == torch.float16  # as `load_parts` reads from the VAE's configuration
    found: dict[str, Any] = full_size.parts(family, "cuda", dtype)
    found |= {"solver": DDIM(ALPHAS, predicts_velocity=family == "sd2")}
    found["vae"] = full_size.vae(family, "cuda", torch.float32 if upcast else dtype)
    for name in full_size.TEXT_ENCODERS[family]:
        found[name.replace("text_encoder", "tokenizer")] = tokenizer()
    return (StableDiffusionXL if family == "sdxl" else StableDiffusion)(**found)


@pytest.mark.parametrize(("family", "dtype"), FAMILIES, ids=str)
def test_sampling_decoding_and_losses_stay_on_the_gpu_in_one_precision(
    family: str, dtype: torch.dtype
) -> None:
    model = model_of(family, dtype)
    pair = CopiedPair(model, model, "full")
    with torch.inference_mode():
        predict = guided_predictor(pair, "a cat", "finextract", Guidance(3.0, -0.02, "given"))
        noise = initial_noise((0, 1), model.latent_shape).to(model.device).to(model.dtype)
        latents = sample_latents(predict, noise, model.solver, 2)
        assert (latents.device.type, latents.dtype, latents.shape) == ("cuda", dtype, noise.shape)
        images = model.decode(latents)
        assert (images.device.type, images.dtype, images.shape) == (
            "cpu", torch.uint8, (2, 3, *model.image_size),
        )  # fmt: skip
        encoded = model.encode(images)
        x = model.solver.add_noise(encoded, noise, 150)
        target = model.solver.target(encoded, noise, 150)
        assert x.device == target.device == model.predict(x, 150, model.condition("")).device
        assert x.dtype == target.dtype == dtype
