"""Which file of a folder holds the weights. Works on names; opens nothing and imports no torch.

A checkpoint is one .safetensors file, or a diffusers folder with one subfolder for each component.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from finextract.errors import CorruptWeights, PickledWeights, UnsupportedWeights
from finextract.reasons import Reason, ReasonCode
from finextract.weights.embedding_keys import is_embeddings_file
from finextract.weights.headers import PICKLE_SUFFIXES

# Weights of a pipeline's component: NAME[.VARIANT][-SHARD].safetensors
_COMPONENT_FILE = re.compile(r"(diffusion_pytorch_model|model)(?:\.(\w+))?(-\d{5}-of-\d{5})?\.safetensors")
# What a training run leaves beside its weights.
NOT_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|random_states\w*|training_args|trainer_state|rng_state\w*)\.\w+"
)
# One of several files that hold the weights of one component together.
_SHARD = re.compile(r"(.+)-\d{5}-of-(?!00001\.)\d{5}\.safetensors")
_PREFERRED = "pytorch_lora_weights.safetensors"  # what the training scripts of diffusers write


def component_files(paths: Iterable[str], component: str) -> dict[str, str]:
    """The weight files of one component of a diffusers pipeline, from paths relative to its folder.

    Each path is mapped to its name without the variant's mark (".fp16"), but that of a shard to itself,
    because an index names it. One variant only, see `component_variant`; empty where the component has no
    such file.
    """
    return _variant_files(paths, component)[1]


def component_variant(folder: Path, component: str) -> str | None:
    """The variant in which a local pipeline folder has one component, such as "fp16"; None for none.

    Full precision comes before half, and files without a mark before all others.
    """
    return _variant_files(_relative(folder, component), component)[0] or None


def _variant_files(paths: Iterable[str], component: str) -> tuple[str, dict[str, str]]:
    variants: dict[str, dict[str, str]] = {}
    for path in sorted(paths):
        folder, _, name = path.rpartition("/")
        if folder == component and (match := _COMPONENT_FILE.fullmatch(name)):
            kept = path if match[3] else f"{component}/{match[1]}.safetensors"
            variants.setdefault(match[2] or "", {})[path] = kept
    return next(((v, variants[v]) for v in ("", "fp32", "fp16", "bf16") if v in variants), ("", {}))


def _relative(folder: Path, component: str) -> list[str]:
    return [f"{component}/{file.name}" for file in sorted((folder / component).glob("*.safetensors"))]


def component_paths(folder: Path, component: str) -> list[Path]:
    """The weight files of one component in a local pipeline folder, sorted; empty where there are none."""
    paths = _relative(folder, component)
    files = [folder / path for path in paths]
    chosen = component_files(paths, component)
    # Components saved under other names than those of diffusers are read too, but no EMA copies.
    other = [f for f in files if ".fp16" not in f.name and "non_ema" not in f.name] or files[:1]
    return [folder / path for path in chosen] or other


def shards_of(name: str) -> str | None:
    """What the names of all shards of one component begin with; None for a file that is no shard."""
    match = _SHARD.fullmatch(name)
    return match[1] if match else None


def why_no_shard(name: str) -> Reason:
    """Why a shard that is not in the folder of its component is not read."""
    return Reason(
        ReasonCode.UNSUPPORTED_LAYOUT,
        f"{name} is one of several shards, which are read only where they lie together in unet/ or "
        "transformer/. Move all of them there and name the folder that holds it, or ask their author to.",
    )


def find_weights(checkpoint: Path) -> Path:
    """The weight file, or the diffusers folder, that a path names.

    A folder is either a diffusers pipeline, or holds one weight file at its top, or a lone UNet in `unet/` or
    transformer in `transformer/`, which may be in shards.
    Raises PickledWeights where there are only pickles, UnsupportedWeights where there are several weight
    files, or shards elsewhere, CorruptWeights where there is none.
    """
    if checkpoint.is_file():
        if checkpoint.suffix in PICKLE_SUFFIXES:
            raise PickledWeights(
                f"{checkpoint.name} is a pickle, which can run code when it is opened; it was not opened. "
                "Ask its author for safetensors."
            )
        if checkpoint.suffix != ".safetensors":
            raise CorruptWeights(
                f"{checkpoint} is not a safetensors file. Name a .safetensors file, or a diffusers folder."
            )
        if shards_of(checkpoint.name):
            raise _unread_shard(checkpoint)
        return checkpoint
    denoiser = component_paths(checkpoint, "unet") or component_paths(checkpoint, "transformer")
    if denoiser and (checkpoint / "model_index.json").is_file():
        return checkpoint
    files = [f for f in sorted(checkpoint.glob("*.safetensors")) if not NOT_WEIGHTS.fullmatch(f.name)]
    if checkpoint / _PREFERRED in files:
        return checkpoint / _PREFERRED
    files = [f for f in files if not is_embeddings_file(f.name)] or files or denoiser
    if len(files) == 1:
        return files[0]
    if files and all(shards_of(f.name) for f in files):
        if files == denoiser:
            return checkpoint
        raise _unread_shard(files[0])
    if files:
        raise UnsupportedWeights(
            f"{checkpoint} holds {len(files)} weight files ({files[0].name}, ...). Name one of them."
        )
    pickles = [p for p in sorted(checkpoint.rglob("*")) if p.suffix in PICKLE_SUFFIXES]
    if pickles:
        raise PickledWeights(
            f"{checkpoint.name} holds only pickles ({pickles[0].name}), which can run code when they are "
            "opened; none was opened. Ask the author for safetensors."
        )
    if not checkpoint.exists():
        raise CorruptWeights(f"{checkpoint} does not exist. Name a .safetensors file or a diffusers folder.")
    raise CorruptWeights(
        f"{checkpoint} holds no weights: neither a .safetensors file nor a diffusers folder."
    )


def _unread_shard(file: Path) -> UnsupportedWeights:
    why = why_no_shard(str(file))
    return UnsupportedWeights(why.sentence, why.reason_code)
