"""What a checkpoint is, and whether it can be scanned: from its header, its card and its metadata.

Pure functions over what the sources have read; no network, no torch. Everything told comes from strangers: a
wrong type or nonsense counts as not told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from finextract.cards import Card, parse_training
from finextract.formats import Header, WeightsKind, classify
from scanner.errors import Skipped
from scanner.records import Checkpoint
from scanner.sources.base import is_repo

FAMILIES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2",
    "sdxl": "SDXL",
    "sd3": "Stable Diffusion 3",
    "flux": "FLUX",
}
KINDS = {
    "full": "weights",
    "unet": "UNet weights",
    "lora": "LoRA weights",
    "lycoris": "LyCORIS weights",
    "dora": "DoRA weights",
    "textual_inversion": "a textual inversion",
    "vae": "a VAE",
    "text_encoder": "a text encoder",
    "unknown": "weights of a kind that is not known",
}
SUPPORTED = {"full", "unet", "lora"}
# Deleted by its owner in August 2024; the same files, SHA256 for SHA256, stand under the second name.
MOVED = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}


def refine(
    checkpoint: Checkpoint,
    header: Header,
    card: Card,
    *,
    hint: str | None = None,
    default_base: str | None = None,
    base: str | None = None,
) -> Checkpoint:
    """The record with all that header, card and metadata tell. Raises Skipped where it cannot be scanned.

    `hint` is the base as a configuration file tells it, `default_base` the base of a checkpoint that tells
    none, `base` the one that overrules every other.
    """
    where = f"{checkpoint.repo}/{checkpoint.file}".rstrip("/")
    kind = classify(header)
    check_supported(kind, where)
    training = parse_training(header.metadata)
    told = (card.base_model, training.base_name, hint)
    base = base or next((MOVED.get(t, t) for t in told if t is not None and is_repo(t)), default_base)
    if base is None:
        raise Skipped(_no_base(kind, where, next((t for t in told if t), None)))
    if base == checkpoint.repo:
        raise Skipped(f"{where} is its own base, {base}: there is nothing to compare it with.")
    caption = card.instance_prompt or training.caption
    if caption is None:
        raise Skipped(
            f"{where} does not tell its training caption, and sampling needs one. "
            "Its card would tell it as instance_prompt, a kohya header as ss_tag_frequency."
        )
    return dataclasses.replace(
        checkpoint,
        kind="lora" if kind.kind == "lora" else "full",
        family=kind.family,
        base=base,
        caption=caption,
        num_train_images=training.num_train_images,
        license=card.license or checkpoint.license,
    )


def check_supported(kind: WeightsKind, where: str) -> None:
    """Raises Skipped, in a sentence that a person understands, for what cannot be scanned yet."""
    what = KINDS[kind.kind]
    if kind.kind in ("full", "unet", "lora", "lycoris", "dora") and kind.family != "unknown":
        what = f"{FAMILIES[kind.family]} {what}"
    if kind.kind not in SUPPORTED:
        raise Skipped(
            f"{where} holds {what}: only full checkpoints, UNets and LoRA weights can be scanned so far."
        )
    if kind.family == "unknown":
        raise Skipped(
            f"{where} holds {what}, and neither its keys nor its shapes tell of which model family."
        )
    if kind.family != "sd1":
        raise Skipped(f"{where} holds {what}: only Stable Diffusion 1.x checkpoints can be scanned so far.")


def _no_base(kind: WeightsKind, where: str, told: str | None) -> str:
    help_ = "Pass --base OWNER/NAME, or put base_model in the model card."
    if told is not None:
        return (
            f'{where} holds {KINDS[kind.kind]}, and calls its base "{told}", which is no OWNER/NAME. {help_}'
        )
    if kind.kind == "lora":
        return f"{where} holds LoRA weights, but its base model is not known. {help_}"
    return (
        f"{where} does not tell which base model it was fine-tuned from, or is itself a base model. {help_}"
    )


def base_hint(config: Mapping[str, Any]) -> str | None:
    """The base in a PEFT adapter_config.json or a diffusers unet/config.json."""
    for key in ("base_model_name_or_path", "_name_or_path"):
        value = config.get(key)
        if isinstance(value, str) and value:
            return "".join(c for c in value if c.isprintable())[:200] or None
    return None
