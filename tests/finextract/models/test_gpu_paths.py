"""What runs on a GPU, without one: every family is tuned, sampled and examined on fake tensors on `cuda`.

The models have the published widths and picture sizes, and few blocks of each kind. An operation that mixes
devices or precisions is an error there as it is on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import full_size
from tiny.no_numbers import moved, on_any_device
from torch import Tensor, nn

from finextract.adapters.merge import merge
from finextract.adapters.parsing import parse_adapter
from finextract.guidance import Guidance
from finextract.guided import guided_predictor, sample
from finextract.images import Picture
from finextract.losses import HEAT_SIDE, BaseCache, Losses, Query
from finextract.models.base import CopiedPair
from finextract.models.loading import FAMILIES

BF16, FP16 = torch.bfloat16, torch.float16
PIPELINES = {
    "sd1": "sd1", "sd2-v": "sd2", "sdxl": "sdxl", "sd3-medium": "sd3", "sd35-medium": "sd3",
    "flux-dev": "flux", "chroma": "chroma", "z-image": "z_image",
}  # fmt: skip
CASES = [(name, BF16) for name in PIPELINES] + [
    (name, FP16) for name in ("sd1", "sdxl", "sd3-medium", "flux-dev")
]
PICTURE = Picture("a picture", lambda: Image.new("RGB", (90, 60), "red"))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def pair(request: pytest.FixtureRequest) -> Iterator[CopiedPair[Any]]:
    """A base on the GPU, as its loader makes it, with a LoRA of one layer of each component."""
    name, dtype = request.param
    base: Any = FAMILIES[PIPELINES[name]](full_size.Shortened(name), dtype)
    adapters = parse_adapter(adapter(base), {}, {})
    with on_any_device():
        for component in (*base.components, "vae"):
            moved(getattr(base, component), "cuda")
        tuned = base.copy_for_tuning()
        merge(tuned.layers(), adapters)
        yield CopiedPair(base, tuned, "lora")


def adapter(model: Any) -> dict[str, Tensor]:
    """A LoRA of one attention layer of each component that fine-tuning changes."""
    state = {}
    for component in model.components:
        name, layer = next(
            (name, layer)
            for name, layer in model.layers().items()
            if name.startswith(f"{component}.")
            and isinstance(layer, nn.Linear)
            and name.rpartition(".")[2] in ("to_q", "q_proj", "q")
        )
        out, into = layer.weight.shape
        state[f"{name}.lora_A.weight"] = torch.ones(4, into)
        state[f"{name}.lora_B.weight"] = torch.ones(out, 4)
    return state


def assert_on_gpu(tensor: Tensor, dtype: torch.dtype) -> None:
    assert (tensor.device.type, tensor.dtype) == ("cuda", dtype)


def test_an_adapter_is_merged_into_weights_on_the_gpu(pair: CopiedPair[Any]) -> None:
    layers = pair.base.layers()
    changed = {name for name, layer in pair.tuned.layers().items() if layer.weight is not layers[name].weight}
    assert {name.partition(".")[0] for name in changed} == set(pair.base.components)
    assert len(changed) == len(pair.base.components)
    for name in changed:
        assert_on_gpu(pair.tuned.layers()[name].weight, pair.base.dtype)


def test_pictures_are_sampled_and_decoded_on_the_gpu(pair: CopiedPair[Any]) -> None:
    guided = guided_predictor(pair, "a cat", "finextract", Guidance(3.0, -0.02, "given"))
    times = []

    def predict(x: Tensor, t: float) -> Tensor:
        prediction = guided(x, t)
        for tensor in (x, prediction):
            assert_on_gpu(tensor, pair.base.dtype)
            assert tensor.shape == (1, *pair.base.latent_shape)
        times.append(t)
        return prediction

    images = sample(pair.tuned, predict, (0,), 2)
    assert len(times) == 2
    wide = pair.base.solver.is_flow or (pair.base.family, pair.base.dtype) == ("sdxl", FP16)
    assert pair.base.vae.dtype == (torch.float32 if wide else pair.base.dtype)
    assert (images.shape, images.dtype) == ((1, 3, *pair.base.image_size), "uint8")


def test_references_are_examined_on_the_gpu(pair: CopiedPair[Any]) -> None:
    losses = Losses(pair, 0, "a cat", 1, BaseCache())
    queries = [Query(PICTURE, t=pair.base.solver.membership_times[0])]
    assert losses.log_ratios(queries).tolist() == [0]
    assert losses.heat_maps(queries).shape == (1, HEAT_SIDE, HEAT_SIDE)
    latents = losses.latents(queries)
    for tensor in (latents, losses.difference("noise", latents, 981.0)):
        assert_on_gpu(tensor, pair.base.dtype)
