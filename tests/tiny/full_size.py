"""The real configurations of the published pipelines, as models that take no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tiny import chroma, flow_pipelines, z_image
from tiny.no_numbers import moved, on_meta

from finextract.models.offloading import Offloading
from finextract.single_files import published_config

UNPUBLISHED = {  # pipelines whose configuration files do not come with the program
    "chroma": {"model_index.json": chroma.INDEX, **chroma.configs()},
    "z-image": {"model_index.json": z_image.INDEX, **z_image.configs()},
}
# Fields that count the blocks or layers of a module -> few of them.
FEW: dict[str, Any] = {
    "num_layers": 2, "num_single_layers": 2, "n_layers": 2, "num_hidden_layers": 3, "layers_per_block": 1,
    "transformer_layers_per_block": 1,
}  # fmt: skip
FOLDERS = {"sd1": "sd1", "sd2": "sd2-v", "sdxl": "sdxl"}  # of finextract/published


def config_of(pipeline: str, path: str) -> dict[str, Any]:
    """A configuration file of a published pipeline, such as "vae/config.json"."""
    known = UNPUBLISHED.get(pipeline)
    return dict(known[path]) if known else published_config(pipeline, path)


def _config(family: str, component: str) -> dict[str, Any]:
    return published_config(FOLDERS[family], f"{component}/config.json")


UNETS = {family: _config(family, "unet") for family in FOLDERS}
TEXT_ENCODERS = {
    family: {
        name: _config(family, name)
        for name in (("text_encoder", "text_encoder_2") if family == "sdxl" else ("text_encoder",))
    }
    for family in FOLDERS
}


@contextmanager
def made_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """What is made within has its weights there, in that precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with on_meta() if device == "meta" else torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def parts(family: str, device: str = "meta", dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The UNet and the text encoders; by default on the meta device."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with made_on(device, dtype):
        found = {"unet": UNet2DConditionModel.from_config(UNETS[family])}
        for name, config in TEXT_ENCODERS[family].items():
            cls = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
            found[name] = cls(CLIPTextConfig(**config))
    return found


def open_clip_text(name: str, prefix: str) -> dict[str, torch.Tensor]:
    """The text tower of an OpenCLIP model under its own names, as files of Stability AI hold it."""
    import open_clip

    with on_meta():
        model = open_clip.CLIP(**open_clip.get_model_config(name))
    return {prefix + key: t for key, t in model.state_dict().items() if not key.startswith("visual.")}


def vae(family: str, dtype: torch.dtype) -> Any:
    """The VAE of the family, of its published configuration, with random weights on the CPU."""
    from diffusers import AutoencoderKL

    with made_on("cpu", dtype):
        return AutoencoderKL.from_config(_config(family, "vae"))


class Shortened:
    """The components of a published pipeline with few blocks of each kind, on the meta device.

    A finextract.models.component_loaders.ComponentLoader. The widths, and what a block has, are the published
    ones.
    """

    offloading: Offloading = "nothing"

    def __init__(self, name: str) -> None:
        self.name = name

    def config(self, path: str) -> dict[str, Any]:
        """A configuration file of the pipeline."""
        config = config_of(self.name, path)
        return {**config, **{field: few for field, few in FEW.items() if field in config}}

    def has(self, component: str) -> bool:
        """Whether the pipeline has an optional component."""
        return component in config_of(self.name, "model_index.json")

    def module(self, component: str, cls: Any, dtype: torch.dtype, **options: Any) -> Any:
        """A component in a precision."""
        config = self.config(f"{component}/config.json")
        with on_meta():
            made = (
                cls.from_config(config, **options)
                if cls.__module__.startswith("diffusers.")
                else cls(cls.config_class(**config, **options))
            )
        return moved(made.eval(), "meta", dtype)

    def tokenizer(self, component: str, cls: Any) -> Any:
        """A small tokenizer."""
        if cls.__name__ == "CLIPTokenizer":
            return flow_pipelines.clip_tokenizer()
        return z_image.tokenizer() if cls.__name__.startswith("Qwen2") else flow_pipelines.t5_tokenizer()

    def scheduler(self, cls: Any) -> Any:
        """A scheduler of the pipeline's configuration."""
        return cls.from_config(self.config("scheduler/scheduler_config.json"))
