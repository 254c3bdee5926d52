"""What a checkpoint is, and whether it can be scanned, as its header, its card and its metadata state it.

Pure functions of what the sources have read; they make no requests and import no torch. All of it is
untrusted: a value of a wrong type, or one that makes no sense, counts as missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finextract.errors import CheckpointError
from finextract.metadata.captions import NO_CAPTION, find_caption
from finextract.metadata.cards import Card, Training
from finextract.metadata.header_training import header_training
from finextract.metadata.prompts import exceeds_clip
from finextract.metadata.sidecar_files import parse_sidecar_files
from finextract.pipeline_folder import family_of_folder
from finextract.reasons import Reason, ReasonCode
from finextract.single_files import states_velocity, why_no_base
from finextract.support import (
    KIND_NAMES,
    describe,
    why_unsupported,
)
from finextract.supported_families import FAMILY_NAMES
from finextract.weights.adapter_keys import context_width
from finextract.weights.formats import Header, WeightsKind, classify, settled
from scanner.errors import Skipped
from scanner.hubs.base_models import (
    FAMILY_DEFAULTS,
    base_of_file,
    base_of_hash,
    current_name,
    family_of_base,
    family_of_tag,
    gate,
    is_repo,
)
from scanner.records import BaseOrigin, Checkpoint, InspectionStatus
from scanner.text import printable

StatedBase = tuple[BaseOrigin, str]
# The configuration files that may state a base.
BASE_HINTS = ("adapter_config.json", "unet/config.json", "transformer/config.json")


def refine(
    checkpoint: Checkpoint,
    header: Header,
    card: Card,
    *,
    hint: str | None = None,
    default_base: str | None = None,
    base: str | None = None,
    base_by_hash: Callable[[str], str | None] | None = None,
    sidecar_files: Mapping[str, str] | None = None,
    family_default: bool = False,
) -> Checkpoint:
    """The record with all that header, card and metadata state, and `inspection_status` READY.

    `hint` is the base that a configuration file states, `default_base` the base of a checkpoint that states
    none, `base` the one that overrules every other. `base_by_hash` finds the repository of a base file by its
    SHA256. `sidecar_files` are small files beside the weights, name -> text. With `family_default` a LoRA
    that states no base at all gets the usual one of its family, with the origin BaseOrigin.FAMILY; none that
    predicts the velocity, because the usual ones predict the noise.
    Raises Skipped where the checkpoint cannot be scanned, and whatever `base_by_hash` raises.
    """
    where = f"{checkpoint.repo}/{checkpoint.file}".rstrip("/")
    training = header_training(header)
    sidecar = parse_sidecar_files(sidecar_files or {})
    stated = _stated_bases(card, training, hint, sidecar)
    named = [base_of_hash(training.base_sha256) or "", *(name for _, name in stated)]
    families = [
        *(_family_of(base), *map(family_of_base, named), checkpoint.family, _family_of(default_base)),
        *map(family_of_tag, card.tags),
    ]
    kind = settled(classify(header), families)
    check_supported(kind, where, next((current_name(t) for _, t in stated if is_repo(t)), None))
    found = (BaseOrigin.GIVEN, base) if base else _resolve(kind, training, stated, base_by_hash)
    if found is None and default_base is not None:
        found = (BaseOrigin.GIVEN, default_base)
    nothing_stated = not (stated or training.base_sha256 or training.base_autov1)
    if found is None and family_default and nothing_stated and not states_velocity(header):
        usual = FAMILY_DEFAULTS.get((kind.tuning, kind.family, context_width(header)))
        found = (BaseOrigin.FAMILY, usual) if usual else None
    if found is None:
        reason = _why_no_base(kind, where, stated, training)
        raise Skipped(reason.sentence, reason.reason_code)
    if found[1] in (checkpoint.repo, current_name(checkpoint.repo)):
        raise Skipped(
            f"{where} is its own base, {found[1]}: there is nothing to compare it with.", ReasonCode.IS_A_BASE
        )
    caption = find_caption(card, training, sidecar) or NO_CAPTION
    training = training.or_else(sidecar)
    checkpoint = dataclasses.replace(checkpoint, kind=kind.tuning, family=kind.family)
    return _ready(checkpoint, found, caption.text, training, card)


def refine_unread(
    checkpoint: Checkpoint,
    card: Card,
    *,
    hint: str | None = None,
    default_base: str | None = None,
    base: str | None = None,
    sidecar_files: Mapping[str, str] | None = None,
) -> Checkpoint:
    """The record of a pickle, whose header cannot be read before it is converted, from the files beside it.

    Raises Skipped where those do not state its base. Kind and family stay unknown.
    """
    where = f"{checkpoint.repo}/{checkpoint.file}".rstrip("/")
    sidecar = parse_sidecar_files(sidecar_files or {})
    stated = _stated_bases(card, Training(), hint, sidecar)
    named = next(((e, current_name(t)) for e, t in stated if is_repo(t)), None)
    found = (BaseOrigin.GIVEN, base) if base else named or (default_base and (BaseOrigin.GIVEN, default_base))
    caption = find_caption(card, sidecar=sidecar) or NO_CAPTION
    if not found:
        raise Skipped(
            f"{where} is a pickle, and no file beside it states its base. A card states it as base_model.",
            ReasonCode.BASE_UNKNOWN,
        )
    return _ready(checkpoint, found, caption.text, sidecar, card)


def _family_of(base: str | None) -> str | None:
    """The family of a base that a person named: one that is known, or a pipeline folder."""
    if base is None or not (path := Path(base)).is_absolute():
        return family_of_base(base or "")
    try:
        return family_of_folder(path) if path.is_dir() else None
    except CheckpointError:  # reported where the base is loaded
        return None


def _ready(
    checkpoint: Checkpoint, base: StatedBase, caption: str, training: Training, card: Card
) -> Checkpoint:
    """The record of a checkpoint that can be scanned, with all that is known about it."""
    training = dataclasses.replace(
        training, alternatives=card.alternatives, exceeds_clip=exceeds_clip(caption) or None
    )
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
        reason_code=None,
    )


def _stated_bases(card: Card, training: Training, hint: str | None, sidecar: Training) -> list[StatedBase]:
    """The names that are stated for the base, the most reliable first."""
    stated = (
        (BaseOrigin.CARD, card.base_model),
        (BaseOrigin.CONFIG, hint),
        (BaseOrigin.CONFIG, sidecar.base_name),
        (BaseOrigin.METADATA, base_of_file(training.base_name) or training.base_name),
    )
    return [(origin, name) for origin, name in stated if name]


def _resolve(
    kind: WeightsKind,
    training: Training,
    stated: list[StatedBase],
    base_by_hash: Callable[[str], str | None] | None,
) -> StatedBase | None:
    """The most reliable statement that names a repository, with the name under which it exists today.

    A base that is known to be of another family than the weights is ignored.
    """
    by_hash = base_of_hash(training.base_sha256)
    if by_hash is None and training.base_sha256 is not None and base_by_hash is not None:
        by_hash = base_by_hash(training.base_sha256)
    for origin, name in [(BaseOrigin.HASH, by_hash), *stated]:
        if name is None or not (is_repo(name) or (origin is BaseOrigin.HASH and name.startswith("/"))):
            continue
        if family_of_base(name) in (None, kind.family):
            return origin, current_name(name)
    return None


def check_supported(kind: WeightsKind, where: str, base: str | None = None) -> None:
    """Raises Skipped for what cannot be scanned yet, with the reason.

    `base` is the stated base: where it is known to be gated, the message says what to do about that.
    """
    if (found := why_unsupported(kind, where)) is not None:
        raise Skipped(" ".join(filter(None, (found.sentence, gate(base or "")))), found.reason_code)


def check_base(header: Header, where: str) -> None:
    """Raises Skipped for a single file that cannot be the base of what can be scanned."""
    if (found := why_no_base(header, where)) is not None:
        raise Skipped(found.sentence, found.reason_code)


def _why_no_base(kind: WeightsKind, where: str, stated: list[StatedBase], training: Training) -> Reason:
    help_ = "Pass --base OWNER/NAME, or put base_model in the model card."
    other = next((name for _, name in stated if is_repo(name)), None)
    if other is not None:
        family = FAMILY_NAMES[family_of_base(other) or ""]
        return Reason(
            ReasonCode.BASE_MISMATCH,
            f"{where} holds {describe(kind)}, but states {other} as its base, which is of {family}: "
            f"one of the two is wrong. {help_}",
        )
    if stated:
        sentence = f'{where} holds {KIND_NAMES[kind.kind]}, and its base "{stated[0][1]}" is not OWNER/NAME.'
        if training.base_sha256:
            sentence += " The SHA256 of the base is stated, but no source has that file."
    elif kind.is_adapter:
        sentence = f"{where} holds {KIND_NAMES[kind.kind]}, but its base model is not known."
    else:
        sentence = f"{where} does not state its base model, or is itself a base model."
    return Reason(ReasonCode.BASE_UNKNOWN, f"{sentence} {help_}")


def base_hint(config: Mapping[str, Any]) -> str | None:
    """The base in one of BASE_HINTS: a PEFT configuration, or that of a denoiser of diffusers."""
    for key in ("base_model_name_or_path", "_name_or_path"):
        value = config.get(key)
        if isinstance(value, str) and value:
            return printable(value[:1_000], 200) or None
    return None
