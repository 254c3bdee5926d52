"""What a checkpoint is, and whether it can be scanned: from its header, its card and its metadata.

Pure functions over what the sources have read; no network of its own, no torch. Everything told comes from
strangers: a wrong type or nonsense counts as not told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from finextract.metadata.captions import find_caption
from finextract.metadata.cards import Card, Training, parse_training
from finextract.metadata.sidecar_files import parse_sidecar_files
from finextract.support import (
    FAMILY_NAMES,
    KIND_NAMES,
    describe,
    why_unsupported,
    why_unsupported_base,
)
from finextract.weights.adapter_keys import context_width
from finextract.weights.formats import Header, WeightsKind, classify
from scanner.errors import Skipped
from scanner.hubs.base_models import (
    FAMILY_DEFAULTS,
    base_of_file,
    base_of_hash,
    family_of_base,
    gate,
    is_repo,
    stands_now,
)
from scanner.records import BaseOrigin, Checkpoint, InspectionStatus

Told = tuple[BaseOrigin, str]


def refine(
    checkpoint: Checkpoint,
    header: Header,
    card: Card,
    *,
    hint: str | None = None,
    default_base: str | None = None,
    base: str | None = None,
    base_by_hash: Callable[[str], str | None] | None = None,
    side: Mapping[str, str] | None = None,
    family_default: bool = False,
) -> Checkpoint:
    """The record with all that header, card and metadata tell, and `inspection_status` READY.

    `hint` is the base as a configuration file tells it, `default_base` the base of a checkpoint that tells
    none, `base` the one that overrules every other. `base_by_hash` finds the repository of a base file by its
    SHA256. `side` are small files beside the weights, name -> text. With `family_default` a LoRA that tells
    no base at all gets its family's usual one, and says so (BaseOrigin.FAMILY).
    Raises Skipped where it cannot be scanned, and whatever `base_by_hash` raises.
    """
    where = f"{checkpoint.repo}/{checkpoint.file}".rstrip("/")
    kind = classify(header)
    training = parse_training(header.metadata)
    beside = parse_sidecar_files(side or {})
    told = _told(card, training, hint, beside)
    check_supported(kind, where, next((stands_now(t) for _, t in told if is_repo(t)), None))
    found = (BaseOrigin.GIVEN, base) if base else _resolve(kind, training, told, base_by_hash)
    if found is None and default_base is not None:
        found = (BaseOrigin.GIVEN, default_base)
    silent = not (told or training.base_sha256 or training.base_autov1)
    if found is None and family_default and silent:
        usual = FAMILY_DEFAULTS.get((kind.kind, kind.family, context_width(header)))
        found = (BaseOrigin.FAMILY, usual) if usual else None
    if found is None:
        raise Skipped(_no_base(kind, where, told, training))
    if found[1] in (checkpoint.repo, stands_now(checkpoint.repo)):
        raise Skipped(f"{where} is its own base, {found[1]}: there is nothing to compare it with.")
    caption = find_caption(card, training, beside)
    training = training.or_else(beside)
    if caption is None:
        raise Skipped(
            f"{where} does not tell its training caption, and sampling needs one. "
            "Its card would tell it as instance_prompt, a kohya header as ss_tag_frequency."
        )
    seen = dataclasses.replace(checkpoint, kind="lora" if kind.kind == "lora" else "full", family=kind.family)
    return _ready(seen, found, caption.text, training, card)


def refine_unread(
    checkpoint: Checkpoint,
    card: Card,
    *,
    hint: str | None = None,
    default_base: str | None = None,
    base: str | None = None,
    side: Mapping[str, str] | None = None,
) -> Checkpoint:
    """The record of weights whose header cannot be read before they are converted: what stands beside them.

    Raises Skipped where that does not tell base and caption. Kind and family stay unknown.
    """
    where = f"{checkpoint.repo}/{checkpoint.file}".rstrip("/")
    beside = parse_sidecar_files(side or {})
    told = _told(card, Training(), hint, beside)
    named = next(((e, stands_now(t)) for e, t in told if is_repo(t)), None)
    found = (BaseOrigin.GIVEN, base) if base else named or (default_base and (BaseOrigin.GIVEN, default_base))
    caption = find_caption(card, sidecar=beside)
    if not found or caption is None:
        missing = "training caption" if found else "base"
        raise Skipped(
            f"{where} is a pickle, and nothing beside it tells its {missing}. "
            "Its card would tell them as instance_prompt and base_model."
        )
    return _ready(checkpoint, found, caption.text, beside, card)


def _ready(checkpoint: Checkpoint, base: Told, caption: str, training: Training, card: Card) -> Checkpoint:
    """The record of a checkpoint that can be scanned, with all that is told of it."""
    return dataclasses.replace(
        checkpoint,
        base=base[1],
        base_origin=base[0],
        caption=caption,
        num_train_images=training.num_train_images,
        license=card.license or checkpoint.license,
        training=training.to_json(),
        inspection_status=InspectionStatus.READY,
        reason="",
    )


def _told(card: Card, training: Training, hint: str | None, beside: Training) -> list[Told]:
    """What is told of the base in so many words, the surest first."""
    told = (
        (BaseOrigin.CARD, card.base_model),
        (BaseOrigin.CONFIG, hint),
        (BaseOrigin.CONFIG, beside.base_name),
        (BaseOrigin.METADATA, base_of_file(training.base_name) or training.base_name),
    )
    return [(evidence, name) for evidence, name in told if name]


def _resolve(
    kind: WeightsKind,
    training: Training,
    told: list[Told],
    base_by_hash: Callable[[str], str | None] | None,
) -> Told | None:
    """The surest evidence that names a repository, under the name where it stands today.

    A base that is known to be of another family than the weights is no evidence.
    """
    by_hash = base_of_hash(training.base_sha256)
    if by_hash is None and training.base_sha256 is not None and base_by_hash is not None:
        by_hash = base_by_hash(training.base_sha256)
    for evidence, name in [(BaseOrigin.HASH, by_hash), *told]:
        if name is None or not (is_repo(name) or (evidence is BaseOrigin.HASH and name.startswith("/"))):
            continue
        if family_of_base(name) in (None, kind.family):
            return evidence, stands_now(name)
    return None


def check_supported(kind: WeightsKind, where: str, base: str | None = None) -> None:
    """Raises Skipped, in a sentence that a person understands, for what cannot be scanned yet.

    `base` is the base that it tells, for a word on its gate.
    """
    if (found := why_unsupported(kind, where)) is not None:
        raise Skipped(" ".join(filter(None, (found.sentence, gate(base or "")))), found.reason_code)


def check_base(header: Header, where: str) -> None:
    """Raises Skipped for a base in one file that adapters of what can be scanned do not fit."""
    if (found := why_unsupported_base(classify(header), where)) is not None:
        raise Skipped(found.sentence, found.reason_code)


def _no_base(kind: WeightsKind, where: str, told: list[Told], training: Training) -> str:
    help_ = "Pass --base OWNER/NAME, or put base_model in the model card."
    other = next((name for _, name in told if is_repo(name)), None)
    if other is not None:
        family = FAMILY_NAMES[family_of_base(other) or ""]
        return (
            f"{where} holds {describe(kind)}, but calls {other} its base, which is of {family}: "
            f"one of the two is wrong. {help_}"
        )
    if told:
        hashed = (
            " Its SHA256 is told, but no hub that was asked has the file." if training.base_sha256 else ""
        )
        return (
            f'{where} holds {KIND_NAMES[kind.kind]}, and calls its base "{told[0][1]}", '
            f"which is no OWNER/NAME.{hashed} {help_}"
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
            return "".join(c for c in value[:1_000] if c.isprintable())[:200] or None
    return None
