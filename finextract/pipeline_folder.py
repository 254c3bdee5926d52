"""A diffusers pipeline folder: its configuration files, and why it is not loaded. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finextract.errors import CorruptWeights, PickledWeights
from finextract.reasons import Reason
from finextract.support import (
    family_of_pipeline,
    why_unsupported_configs,
    why_unsupported_pipeline,
)
from finextract.supported_families import SUPPORTED_FAMILIES
from finextract.text import first_line
from finextract.weights.formats import Family
from finextract.weights.headers import PICKLE_SUFFIXES


def read_config(folder: Path, path: str) -> dict[str, Any]:
    """The JSON object in a configuration file of the folder; untrusted. Raises CorruptWeights."""
    where = f"{folder.name}/{path}"
    try:
        value = json.loads((folder / path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorruptWeights(
            f"{where} is missing: this is not a complete diffusers pipeline folder."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptWeights(f"{where} cannot be read: {first_line(error)}.") from error
    if not isinstance(value, dict):
        raise CorruptWeights(f"{where} holds no JSON object.")
    return value


def why_unsupported_folder(folder: Path) -> Reason | None:
    """Why a diffusers pipeline folder cannot be loaded, from its configuration files; None where it can.

    Raises CorruptWeights for a file that is missing or cannot be read.
    """
    index = read_config(folder, "model_index.json")
    scheduler = read_config(folder, "scheduler/scheduler_config.json")
    denoiser = _denoiser(folder, index)
    family = family_of_pipeline(index, denoiser)
    supported = SUPPORTED_FAMILIES.get(family)
    why = why_unsupported_pipeline(index, scheduler, denoiser, folder.name)
    if why is not None or supported is None:
        return why
    configs = {file: read_config(folder, file) for file in supported.bounds if (folder / file).is_file()}
    return why_unsupported_configs(family, configs, folder.name)


def why_unsupported_parts(folder: Path, family: Family) -> Reason | None:
    """Why the components in a folder do not serve a single file of a family; None where they do.

    The folder may lack any component. Raises CorruptWeights for a configuration file that cannot be read.
    """
    bounds = SUPPORTED_FAMILIES[family].bounds
    there = {file: read_config(folder, file) for file in bounds if (folder / file).is_file()}
    return why_unsupported_configs(family, there, folder.name, partial=True)


def family_of_folder(folder: Path) -> Family:
    """The supported family of a diffusers pipeline folder, or "unknown". Raises CorruptWeights."""
    index = read_config(folder, "model_index.json")
    return family_of_pipeline(index, _denoiser(folder, index))


def _denoiser(folder: Path, model_index: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the component that predicts; empty where no supported family fits.

    Raises CorruptWeights.
    """
    supported = SUPPORTED_FAMILIES.get(family_of_pipeline(model_index))
    return read_config(folder, f"{supported.denoiser}/config.json") if supported else {}


def refuse_pickles(folder: Path, components: Iterable[str]) -> None:
    """Raises PickledWeights where a component has weights, but none as safetensors."""
    for component in components:
        files = list((folder / component).glob("*")) if (folder / component).is_dir() else []
        if any(f.suffix == ".safetensors" for f in files):
            continue
        for pickle in (f for f in files if f.suffix in PICKLE_SUFFIXES):
            raise PickledWeights(
                f"{folder.name}/{component}/{pickle.name} is a pickle, which can run code when it is opened; "
                "it was not opened. Ask its author for safetensors."
            )
