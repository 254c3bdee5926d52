"""Where a family's loader gets the components of a pipeline from: a diffusers folder, or a single file.

Safetensors only, from local files only; nothing is unpickled and no code of others is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from finextract.errors import CheckpointError, CorruptWeights
from finextract.models.clip_vocabulary import clip_tokenizer
from finextract.models.offloading import Offloading, stream_blocks
from finextract.pipeline_folder import read_config, refuse_pickles
from finextract.single_files import PUBLISHED, SingleFile, supplies
from finextract.support import component_class
from finextract.text import first_line
from finextract.weights.files import component_variant

_DENOISERS = ("unet", "transformer")
_ZERO_TERMINAL = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}  # Lin et al., WACV 2024


class ComponentLoader(Protocol):
    """Gives the components of one pipeline. `component` is a name of model_index.json, such as "unet"."""

    @property
    def name(self) -> str:
        """What messages call the pipeline."""
        ...

    @property
    def offloading(self) -> Offloading:
        """What is on the CPU between its uses."""
        ...

    def config(self, path: str) -> dict[str, Any]:
        """A configuration file, such as "vae/config.json"; untrusted. Raises CorruptWeights."""
        ...

    def has(self, component: str) -> bool:
        """Whether the pipeline has an optional component. Raises CorruptWeights."""
        ...

    def module(self, component: str, cls: Any, dtype: torch.dtype, **options: Any) -> Any:
        """A component on its device, in evaluation mode, without gradients; `options` go to its class.

        Raises PickledWeights where its weights are pickles, CorruptWeights where it is missing or damaged.
        """
        ...

    def tokenizer(self, component: str, cls: Any) -> Any:
        """A tokenizer. Raises CorruptWeights."""
        ...

    def scheduler(self, cls: Any) -> Any:
        """A scheduler of diffusers of a class, from the configuration. Raises CorruptWeights."""
        ...


class FolderLoader:
    """The components of a diffusers pipeline folder. A ComponentLoader."""

    def __init__(self, folder: Path, device: torch.device, *, offloading: Offloading = "nothing") -> None:
        self._folder, self._device = folder, device
        self.name, self.offloading = folder.name, offloading

    def config(self, path: str) -> dict[str, Any]:
        """A configuration file of the folder."""
        return read_config(self._folder, path)

    def has(self, component: str) -> bool:
        """Whether model_index.json names a class for a component."""
        return bool(component_class(self.config("model_index.json"), component))

    def module(self, component: str, cls: Any, dtype: torch.dtype, **options: Any) -> Any:
        """A component with the weights of its subfolder, in the variant that it has."""
        refuse_pickles(self._folder, (component,))
        precision = "torch_dtype" if cls.__module__.startswith("diffusers.") else "dtype"
        with _damage_named(self.name):
            module = cls.from_pretrained(
                self._folder, subfolder=component, use_safetensors=True, local_files_only=True,
                variant=component_variant(self._folder, component), **{precision: dtype}, **options,
            )  # fmt: skip
            place = _place(component, self._device, self.offloading)
            module = module.to(place).eval().requires_grad_(False)
        return _streamed(component, module, self._device, self.offloading)

    def tokenizer(self, component: str, cls: Any) -> Any:
        """A tokenizer with the vocabulary of its subfolder."""
        with _damage_named(self.name):
            return cls.from_pretrained(self._folder, subfolder=component, local_files_only=True)

    def scheduler(self, cls: Any) -> Any:
        """A scheduler of the folder's configuration."""
        return _scheduler(self.name, self.config("scheduler/scheduler_config.json"), cls)


class FileLoader:
    """The components of a single file, without values: loading fills them. A ComponentLoader.

    Configurations are those of the published pipeline whose shapes the file has, or else those of `parts`, a
    folder of the same family, which supplies what the file lacks.
    """

    def __init__(
        self,
        name: str,
        found: SingleFile,
        parts: Path | None,
        device: torch.device,
        *,
        offloading: Offloading = "nothing",
    ) -> None:
        self.name, self._found, self._parts, self._device = name, found, parts, device
        self.offloading = offloading
        configurations = PUBLISHED / found.published if found.published else parts
        assert configurations is not None, "loading refuses a file of no published shape without parts"
        self._folder = configurations

    def config(self, path: str) -> dict[str, Any]:
        """A configuration file of the folder from which its component comes, with what the file states."""
        component = path.partition("/")[0]
        if component != "scheduler":
            own = component in self._found.holds or not self._is_supplied(component)
            return read_config(self._folder if own or self._parts is None else self._parts, path)
        config = read_config(self._folder, path)
        if self._found.velocity is not None:
            config["prediction_type"] = "v_prediction" if self._found.velocity else "epsilon"
        return {**config, **_ZERO_TERMINAL} if self._found.zero_terminal else config

    def has(self, component: str) -> bool:
        """Whether the file holds an optional text encoder, or `parts` supplies one, with its tokenizer."""
        held = component in self._found.holds or self._is_supplied(component)
        tokenizer = component.replace("text_encoder", "tokenizer")
        return held and (self._is_supplied(tokenizer) or tokenizer not in self._found.wanted)

    def module(self, component: str, cls: Any, dtype: torch.dtype, **options: Any) -> Any:
        """A component without values where the file holds its weights, else that of `parts`."""
        if component not in self._found.holds:
            return self._supplier().module(component, cls, dtype, **options)
        with _damage_named(self.name):
            config = self.config(f"{component}/config.json")
            place = _place(component, self._device, self.offloading)
            module = _without_values(cls, config, dtype, place, options)
        return _streamed(component, module, self._device, self.offloading)

    def tokenizer(self, component: str, cls: Any) -> Any:
        """A tokenizer of `parts`, or CLIP's with the vocabulary that comes with the program."""
        if self._found.published and cls.__name__ == "CLIPTokenizer":
            return clip_tokenizer(read_config(self._folder, f"{component}/tokenizer_config.json"))
        return self._supplier().tokenizer(component, cls)

    def scheduler(self, cls: Any) -> Any:
        """A scheduler of the configuration, with what the file states."""
        return _scheduler(self.name, self.config("scheduler/scheduler_config.json"), cls)

    def _is_supplied(self, component: str) -> bool:
        return self._parts is not None and supplies(self._parts, component)

    def _supplier(self) -> FolderLoader:
        assert self._parts is not None, "loading refuses a file that lacks something without parts"
        return FolderLoader(self._parts, self._device, offloading=self.offloading)


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Raises CorruptWeights for whatever diffusers and transformers raise for a damaged folder."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # they raise errors of any class
        raise CorruptWeights(f"{name} cannot be loaded as a pipeline: {first_line(error)}.") from error


def _place(component: str, device: torch.device, offloading: Offloading) -> torch.device:
    """Where a component is between its uses."""
    stays = offloading == "nothing" or (offloading != "denoiser" and component in _DENOISERS)
    return device if stays else torch.device("cpu")


def _streamed(component: str, module: Any, device: torch.device, offloading: Offloading) -> Any:
    """A component; the denoiser's blocks come to the device one at a time where it is offloaded."""
    if offloading == "denoiser" and component in _DENOISERS:
        stream_blocks(module, device)
    return module


def _scheduler(name: str, config: dict[str, Any], cls: Any) -> Any:
    with _damage_named(name):
        return cls.from_config(
            {k: v for k, v in config.items() if k not in ("_class_name", "_diffusers_version")}
        )


def _without_values(
    cls: Any, config: dict[str, Any], dtype: torch.dtype, device: torch.device, options: dict[str, Any]
) -> Any:
    """A module of diffusers or transformers with memory for its weights, and nothing in it."""
    with torch.device("meta"):
        if cls.__module__.startswith("diffusers."):
            module: Any = cls.from_config(config, **options)
        else:
            module = cls(cls.config_class(**config, **options))
    shared: dict[int, list[str]] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        shared.setdefault(id(tensor), []).append(name)
    module.to(dtype).to_empty(device=device)
    for first, *others in shared.values():  # each name got memory of its own
        for name in others:
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, module.get_parameter(first))
    for part in module.modules():
        assert part._non_persistent_buffers_set <= {"position_ids"}, "no file has their values"
        if "position_ids" in part._non_persistent_buffers_set:
            part.position_ids = torch.arange(part.position_ids.shape[-1], device=device)[None]
    return module.eval().requires_grad_(False)
