"""A base model and a model tuned from it, loaded side by side. Safetensors only; nothing is unpickled.

`load_pair(base, tuned)` reads the base from a diffusers folder or a single file, and the tuned weights as
full weights (a diffusers folder, one file with the original key names, a UNet or transformer file) or as an
adapter, and returns both models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finextract.adapters.merge import merge
from finextract.adapters.parsing import parse_adapter
from finextract.errors import BaseMismatch, CorruptWeights, UnsupportedWeights
from finextract.gpu_needs import need_of
from finextract.metadata.local_files import read_object
from finextract.models import (
    chroma,
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    z_image,
)
from finextract.models.base import CopiedPair, Pair, TunableModel
from finextract.models.component_loaders import ComponentLoader, FileLoader, FolderLoader
from finextract.models.learned_words import LearnedWord, parse_words
from finextract.models.offloading import Offloading
from finextract.models.scaled_weights import multiplied_out
from finextract.pipeline_folder import family_of_folder, why_unsupported_folder, why_unsupported_parts
from finextract.reasons import ReasonCode
from finextract.single_files import (
    TEXT_ENCODER_PREFIXES,
    SingleFile,
    lacks,
    single_file,
    states_velocity,
    supplies,
    why_no_base,
)
from finextract.support import describe, why_unsupported
from finextract.text import first_line
from finextract.weights.embedding_keys import embeddings_beside
from finextract.weights.files import component_paths, find_weights
from finextract.weights.formats import Family, classify, read_header, settled

type LoadFamily = Callable[[ComponentLoader, torch.dtype], TunableModel]
# The loader of each family in finextract.supported_families.SUPPORTED_FAMILIES.
FAMILIES: Mapping[Family, LoadFamily] = {
    "sd1": stable_diffusion.load,
    "sd2": stable_diffusion.load,
    "sdxl": stable_diffusion_xl.load,
    "sd3": stable_diffusion_3.load,
    "flux": flux.load,
    "chroma": chroma.load,
    "z_image": z_image.load,
}


# Families whose activations are beyond the range of float16.
_NEED_BFLOAT16: frozenset[Family] = frozenset({"sd3", "flux", "chroma", "z_image"})


def gpu_precision(base: Path) -> torch.dtype:
    """The half precision in which a GPU computes with a base model: bfloat16 or float16.

    Raises CorruptWeights or PickledWeights where its configuration, or its header, cannot be read.
    """
    family = classify(read_header(base)).family if base.is_file() else family_of_folder(base)
    return torch.bfloat16 if family in _NEED_BFLOAT16 else torch.float16


def offloading_for(device: torch.device, family: Family) -> Offloading:
    """What stays on the CPU between its uses, so that a GPU has enough memory for the scans of a family.

    What is computed does not change.
    """
    if device.type != "cuda":
        return "nothing"
    free, _ = torch.cuda.mem_get_info(device)
    need = need_of(family)
    if free >= need.gib * 1024**3:
        return "nothing"
    return "encoders and VAE" if free >= need.denoisers_gib * 1024**3 else "denoiser"


def load_pair(
    base: Path,
    tuned: Path,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    parts: Path | None = None,
) -> Pair:
    """Loads a base model and weights tuned from it, by default onto the GPU if there is one.

    `base` and `parts` are those of `load_base`. Raises a CheckpointError (finextract.errors) that says what
    is wrong with either.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return tune(load_base(base, device, dtype, parts), tuned)


def load_base(
    base: Path, device: torch.device, dtype: torch.dtype, parts: Path | None = None
) -> TunableModel:
    """Loads a diffusers pipeline folder, or a single file, with the loader of its model family.

    `parts` is a folder of the same family with what a single file lacks, as `SingleFile.lacking` names it.
    Raises UnsupportedWeights where no supported family fits or something is lacking, CorruptWeights for a
    missing or damaged file, PickledWeights for weights without safetensors, BaseMismatch where a single file
    has other layers than the pipeline whose configuration it gets.
    """
    if base.is_file():
        return _load_file(base, parts, device, dtype)
    if (why := why_unsupported_folder(base)) is not None:
        raise UnsupportedWeights(why.sentence, why.reason_code)
    family = family_of_folder(base)
    if family not in FAMILIES:
        raise UnsupportedWeights(
            f"{base.name} is a pipeline of the family {family}, which has no loader.",
            ReasonCode.UNSUPPORTED_FAMILY,
        )
    return FAMILIES[family](FolderLoader(base, device, offloading=offloading_for(device, family)), dtype)


def _load_file(file: Path, parts: Path | None, device: torch.device, dtype: torch.dtype) -> TunableModel:
    """A base model that is one file. What its weights predict is measured where it does not state it."""
    header = read_header(file)
    if (why := why_no_base(header, file.name)) is not None:
        raise UnsupportedWeights(why.sentence, why.reason_code)
    found = single_file(header)
    _check_parts(file, found, parts)
    model = fill_base(file.name, found, _load_state(file), parts, device, dtype)
    if found.velocity is None:
        model = model.with_measured_prediction()
        measured: bool | None = getattr(model.solver, "predicts_velocity", None)
        if found.published == "sd2" and measured:  # its pictures are larger
            found = replace(found, published="sd2-v", velocity=True)
            return fill_base(file.name, found, _load_state(file), parts, device, dtype)
    return model


def _check_parts(file: Path, found: SingleFile, parts: Path | None) -> None:
    """Raises UnsupportedWeights where `parts` does not supply what a single file lacks, or is refused."""
    missing = tuple(c for c in found.lacking if parts is None or not supplies(parts, c))
    if not found.published and parts is None:
        raise UnsupportedWeights(
            f"{file.name} has the layers of no published model of its family, so its configuration is not "
            "known. Pass --base-parts with a pipeline folder that has it.",
            ReasonCode.BASE_UNAVAILABLE,
        )
    if missing:
        raise UnsupportedWeights(lacks(file.name, found, missing), ReasonCode.BASE_UNAVAILABLE)
    if parts is None:
        return
    why = why_unsupported_parts(parts, found.family) if found.published else why_unsupported_folder(parts)
    if why is not None:
        raise UnsupportedWeights(why.sentence, why.reason_code)


def fill_base(
    name: str,
    found: SingleFile,
    weights: dict[str, Tensor],
    parts: Path | None,
    device: torch.device,
    dtype: torch.dtype,
) -> TunableModel:
    """The base model of the tensors of a single file, which `found` describes and `name` names.

    Raises what `load_base` raises.
    """
    loader = FileLoader(name, found, parts, device, offloading=offloading_for(device, found.family))
    model = FAMILIES[found.family](loader, dtype)
    try:
        if "vae" in found.holds:
            model.load_vae(weights)
        model.load_single_file(weights)
    except BaseMismatch as error:
        whose = found.pipeline if found.published or parts is None else parts.name
        raise BaseMismatch(
            f"{name} does not fit the configuration of {whose}, which its layers resemble: {error}."
        ) from error
    except CorruptWeights as error:
        raise _damaged(name, error) from error
    return model


def tune(base: TunableModel, tuned: Path) -> CopiedPair[TunableModel]:
    """The pair of a loaded base and tuned weights: a file, or a folder as a hub serves it.

    The base is not changed. Raises a CheckpointError that says what is wrong with the weights, BaseMismatch
    also where they state that they predict something else than their base.
    """
    path = find_weights(tuned)
    _check_prediction(base, path)
    return _tuned(base, path)


def _check_prediction(base: TunableModel, path: Path) -> None:
    """Raises BaseMismatch where weights state another prediction than that of their base."""
    theirs, stated = getattr(base.solver, "predicts_velocity", None), _stated_prediction(path)
    if theirs is None or stated is None:  # a flow model, or nothing to compare
        return
    predicted = "v_prediction" if theirs else "epsilon"
    if stated != predicted:
        what = {"v_prediction": "the velocity", "epsilon": "the noise"}
        raise BaseMismatch(
            f"{path.name} was trained to predict {what.get(stated, stated[:40])}, and its base model "
            f"predicts {what[predicted]}. Is the base the right one?"
        )


def _stated_prediction(path: Path) -> str | None:
    """What weights say that they predict, as a scheduler of diffusers names it; None where they do not.

    A folder says it in its scheduler's configuration, which leaves out the noise.
    """
    if path.is_dir():
        scheduler = read_object(path / "scheduler/scheduler_config.json")
        return str(scheduler.get("prediction_type", "epsilon")) if scheduler else None
    velocity = states_velocity(read_header(path))
    return None if velocity is None else "v_prediction" if velocity else "epsilon"


def _tuned(base: TunableModel, tuned: Path) -> CopiedPair[TunableModel]:
    path = find_weights(tuned)
    model = base.copy_for_tuning()
    if path.is_dir():
        _check_components(model, path)
        weights = {component: _load_component(path, component) for component in model.components}
        with _named(path):
            model.load_components(weights)
        return CopiedPair(base, model, "full")
    header = read_header(path)
    kind = settled(classify(header), [base.family])
    if (why := why_unsupported(kind, path.name)) is not None:
        raise UnsupportedWeights(why.sentence, why.reason_code)
    state = _load_state(path)
    model = model.as_trained(header.metadata)
    if kind.is_adapter:
        config = read_object(path.parent / "adapter_config.json")  # PEFT's; empty where there is none
        adapters = parse_adapter(state, header.metadata, config)
        merge(model.layers(), adapters, on_use=model.offloading != "nothing")
        if words := [*parse_words(state, path.name), *_words_beside(path)]:
            model = model.with_words(words)
        return CopiedPair(base, model, kind.tuning)
    with _named(path):
        if kind.kind == "unet":
            model.load_components({model.components[0]: state})
        elif kind.kind == "full":
            _check_encoders(model, path.name, _encoders_in(state, kind.family))
            model.load_single_file(state)
        else:
            raise UnsupportedWeights(f"{path.name} holds {describe(kind)}, which have no loader.")
    return CopiedPair(base, model, kind.tuning)


def _check_components(model: TunableModel, folder: Path) -> None:
    """Raises BaseMismatch where a folder has a text encoder that its base does without."""
    _check_encoders(model, folder.name, (c for c in model.components if component_paths(folder, c)))


def _check_encoders(model: TunableModel, name: str, held: Iterable[str]) -> None:
    """Raises BaseMismatch where tuned weights have a component that their base does without."""
    for component in held:
        if getattr(model, component) is None:
            raise BaseMismatch(
                f"{name} has a {component}, and its base model has none: its prompts would be read "
                "without it. Pass a base that has one."
            )


def _encoders_in(state: Iterable[str], family: Family) -> list[str]:
    """The text encoders of a pipeline that a single file holds."""
    prefixes = TEXT_ENCODER_PREFIXES.get(family, {})
    keys = list(state)
    return [name for name, start in prefixes.items() if any(key.startswith(start) for key in keys)]


def _words_beside(adapter: Path) -> list[LearnedWord]:
    """The learned words in a file of their own beside an adapter; none where there is no such file."""
    name = embeddings_beside(adapter.name, (file.name for file in adapter.parent.iterdir()))
    if name is None:
        return []
    path = adapter.with_name(name)
    kind = classify(read_header(path))
    if kind.kind != "textual_inversion":
        raise UnsupportedWeights(f"{name} beside {adapter.name} holds {describe(kind)}, not embeddings.")
    return parse_words(_load_state(path), name)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Adds the name of the weights to an error that says what does not fit, or what is damaged."""
    try:
        yield
    except BaseMismatch as error:
        raise BaseMismatch(
            f"{path.name} does not fit its base model: {error}. Is the base the right one?"
        ) from error
    except CorruptWeights as error:
        raise _damaged(path.name, error) from error


def _damaged(name: str, error: CorruptWeights) -> CorruptWeights:
    return CorruptWeights(f"{name} is damaged: {error}. Fetch it again, or ask its author for whole weights.")


def _load_state(path: Path) -> dict[str, Tensor]:
    try:
        return multiplied_out(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptWeights(
            f"{path.name} cannot be read as safetensors: {first_line(error)}. Fetch it again."
        ) from error


def _load_component(folder: Path, component: str) -> dict[str, Tensor]:
    """The tensors of one component of a pipeline folder, from one file or from shards."""
    state: dict[str, Tensor] = {}
    for file in component_paths(folder, component):
        read_header(file)
        state.update(_load_state(file))
    return state


def quieten_libraries() -> None:
    """Keeps the libraries' own progress bars and messages off stderr."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
