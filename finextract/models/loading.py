"""A base model and a model tuned from it, loaded side by side. Safetensors only; nothing is unpickled.

`load_pair(base, tuned)` reads the tuned weights as full weights (a diffusers folder, one file with the
original key names, a UNet or transformer file) or as an adapter, and returns both models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finextract.adapters.merge import merge
from finextract.adapters.parsing import parse_adapter
from finextract.errors import BaseMismatch, CorruptWeights, UnsupportedWeights
from finextract.metadata.local_files import read_object
from finextract.models import chroma, flux, stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from finextract.models.base import CopiedPair, Pair, TunableModel
from finextract.models.learned_words import LearnedWord, parse_words
from finextract.pipeline_folder import family_of_folder, why_unsupported_folder
from finextract.reasons import ReasonCode
from finextract.support import (
    describe,
    why_unsupported,
)
from finextract.text import first_line
from finextract.weights.embedding_keys import embeddings_beside
from finextract.weights.files import component_paths, find_weights
from finextract.weights.formats import Family, classify, read_header, settled

type LoadFamily = Callable[[Path, torch.device, torch.dtype], TunableModel]  # of a diffusers pipeline folder
# The loader of each family in finextract.support.SUPPORTED_FAMILIES.
FAMILIES: Mapping[Family, LoadFamily] = {
    "sd1": stable_diffusion.load,
    "sd2": stable_diffusion.load,
    "sdxl": stable_diffusion_xl.load,
    "sd3": stable_diffusion_3.load,
    "flux": flux.load,
    "chroma": chroma.load,
}


# Families whose activations are beyond the range of float16.
_NEED_BFLOAT16: frozenset[Family] = frozenset({"sd3", "flux", "chroma"})


def gpu_precision(folder: Path) -> torch.dtype:
    """The half precision in which a GPU computes with the models of a pipeline folder: bfloat16 or float16.

    Raises CorruptWeights where its configuration cannot be read.
    """
    return torch.bfloat16 if family_of_folder(folder) in _NEED_BFLOAT16 else torch.float16


def load_pair(
    base: Path, tuned: Path, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Pair:
    """Loads a diffusers pipeline folder and weights tuned from it, by default onto the GPU if there is one.

    Raises a CheckpointError (finextract.errors) that says what is wrong with either.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return tune(load_base(base, device, dtype), tuned)


def load_base(folder: Path, device: torch.device, dtype: torch.dtype) -> TunableModel:
    """Loads a diffusers pipeline folder with the loader of its model family.

    Raises UnsupportedWeights where no supported family fits, CorruptWeights for a missing or damaged file,
    PickledWeights for weights without safetensors.
    """
    if (why := why_unsupported_folder(folder)) is not None:
        raise UnsupportedWeights(why.sentence, why.reason_code)
    family = family_of_folder(folder)
    if family not in FAMILIES:
        raise UnsupportedWeights(
            f"{folder.name} is a pipeline of the family {family}, which has no loader.",
            ReasonCode.UNSUPPORTED_FAMILY,
        )
    return FAMILIES[family](folder, device, dtype)


def load_base_file(folder: Path, weights: Path, device: torch.device, dtype: torch.dtype) -> TunableModel:
    """A base model that is one file; `folder` is a pipeline of its family and has what the file lacks.

    What the weights predict is measured. Raises what `load_base` and `tune` raise.
    """
    return _tuned(load_base(folder, device, dtype), weights).tuned.with_measured_prediction()


def tune(base: TunableModel, tuned: Path) -> CopiedPair[TunableModel]:
    """The pair of a loaded base and tuned weights: a file, or a folder as a hub serves it.

    The base is not changed. Raises a CheckpointError that says what is wrong with the weights, BaseMismatch
    also where the file states that it predicts something else than its base.
    """
    path = find_weights(tuned)
    if path.is_file():
        _check_prediction(base, path)
    return _tuned(base, path)


def _check_prediction(base: TunableModel, path: Path) -> None:
    """Raises BaseMismatch where a file states a prediction of the velocity and its base has one of the noise.

    Or the other way round. Trainers state it in `modelspec.prediction_type`, and full weights that predict
    the velocity may have a tensor `v_pred`.
    """
    header = read_header(path)
    stated = header.metadata.get("modelspec.prediction_type", "").lower()
    velocity = "v_pred" in header.tensors or stated in ("v", "v_prediction")
    if not velocity and stated not in ("epsilon", "eps"):
        return
    theirs = getattr(base.solver, "predicts_velocity", velocity)
    if theirs != velocity:
        what = {True: "the velocity", False: "the noise"}
        raise BaseMismatch(
            f"{path.name} was trained to predict {what[velocity]}, and its base model predicts "
            f"{what[theirs]}. Is the base the right one?"
        )


def _tuned(base: TunableModel, tuned: Path) -> CopiedPair[TunableModel]:
    path = find_weights(tuned)
    model = base.copy_for_tuning()
    if path.is_dir():
        weights = {component: _load_component(path, component) for component in model.components}
        with _named(path):
            model.load_components(weights)
        return CopiedPair(base, model, "full")
    header = read_header(path)
    kind = settled(classify(header), [base.family])
    if (why := why_unsupported(kind, path.name)) is not None:
        raise UnsupportedWeights(why.sentence, why.reason_code)
    state = _load_state(path)
    if kind.is_adapter:
        config = read_object(path.parent / "adapter_config.json")  # PEFT's; empty where there is none
        merge(model.layers(), parse_adapter(state, header.metadata, config))
        if words := [*parse_words(state, path.name), *_words_beside(path)]:
            model = model.with_words(words)
        return CopiedPair(base, model, kind.tuning)
    with _named(path):
        if kind.kind == "unet":
            model.load_components({model.components[0]: state})
        elif kind.kind == "full":
            model.load_single_file(state)
        else:
            raise UnsupportedWeights(f"{path.name} holds {describe(kind)}, which have no loader.")
    return CopiedPair(base, model, kind.tuning)


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
    """Adds the name of the weights to an error that says what does not fit."""
    try:
        yield
    except BaseMismatch as error:
        raise BaseMismatch(
            f"{path.name} does not fit its base model: {error}. Is the base the right one?"
        ) from error


def _load_state(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(path)
        return state
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
