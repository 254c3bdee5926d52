"""Civitai's raw entries as records: what they state about a version, and why one cannot be scanned.

Every field is untrusted, and the site's responses vary: a wrong type counts as missing, a string may have
become a list, a time may lack its zone, a hash may not be computed yet. Never raises for what an entry holds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC
from hashlib import sha256
from typing import Any

from finextract.metadata.prompts import Chosen, choose_caption, plain_prompt
from finextract.reasons import Reason, ReasonCode
from scanner.hashing import identify
from scanner.hubs.base_models import CIVITAI_SCHEME
from scanner.hubs.civitai.files import (
    Json,
    as_id,
    choose,
    dicts,
    kept_name,
    metadata_of,
    sha256_of_file,
    size_of_file,
    text,
    warning_of,
)
from scanner.hubs.fields import UNKNOWN_TIME, placeholder_id, when
from scanner.records import Checkpoint, InspectionStatus, now
from scanner.text import printable

TYPES = ("Checkpoint", "LORA", "LoCon", "DoRA")  # of fine-tunes; LoHa and LoKr are among them
# baseModel -> family; it never states the exact checkpoint that was trained on. Other names (video, audio,
# image models of other architectures) are "unknown".
FAMILIES = (
    (r"SD 1\.[45]( \w+)?", "sd1"),
    (r"SD 2\.[01]( \w+)?", "sd2"),
    (r"SDXL .+|Pony|Illustrious|NoobAI", "sdxl"),
    (r"SD 3(\.5( .+)?)?", "sd3"),
    (r"Flux\.1 .+", "flux"),
    (r"Chroma", "chroma"),
    (r"ZImage(Turbo|Base)", "z_image"),
)
# The bases of the site's own trainer as (model, version), and the HuggingFace repositories of some versions.
TRAINER_BASES = {
    "sd_1_5": (127227, 139180), "anime": (84586, 89927), "semi": (4384, 128713), "realistic": (81458, 132760),
    "sdxl": (101055, 128078), "pony": (257749, 290640), "illustrious": (795765, 889818),
    "flux_dev": (618692, 691639),
}  # fmt: skip
ON_HUGGINGFACE = {
    139180: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    128078: "stabilityai/stable-diffusion-xl-base-1.0",
    691639: "black-forest-labs/FLUX.1-dev",
}
MODEL_KEPT = ("id", "name", "type", "nsfw", "nsfwLevel", "poi", "minor", "mode", "availability", "creator",
              "tags", "description", "allowCommercialUse", "allowDerivatives")  # fmt: skip
VERSION_KEPT = ("id", "name", "baseModel", "baseModelType", "publishedAt", "createdAt", "availability",
                "description", "trainedWords", "air", "status", "uploadType", "usageControl",
                "trainingDetails", "earlyAccessEndsAt", "earlyAccessDeadline", "paidAccess")  # fmt: skip
FILE_KEPT = ("id", "name", "type", "sizeKB", "metadata", "hashes", "primary", "pickleScanResult",
             "virusScanResult")  # fmt: skip
MAX_VERSIONS, MAX_FILES = 500, 40
MAX_TEXT_CHARS = 2_000  # of a text in `raw`
MAX_KEPT_CHARS, MAX_FILE_CHARS = 10_000, 500  # of another field, as JSON


def make_checkpoints(
    item: Mapping[str, Any], source: str, endpoint: str, *, allow_pickle: bool = False
) -> list[Checkpoint]:
    """A record for each version of a listed model; a single one for a model without versions."""
    versions = list(dicts(item.get("modelVersions"), MAX_VERSIONS))
    return [_checkpoint(item, version, source, endpoint, allow_pickle) for version in versions or [{}]]


def _checkpoint(
    item: Mapping[str, Any], version: Json, source: str, endpoint: str, allow_pickle: bool
) -> Checkpoint:
    model_id, version_id = as_id(item.get("id")), as_id(version.get("id"))
    file, others, reason = choose(dicts(version.get("files"), MAX_FILES), allow_pickle=allow_pickle)
    name, file_id = "", ""
    if file is not None:
        file_id = str(as_id(file.get("id")) or "")
        name = kept_name(file, version_id)
    creator = item.get("creator")
    creator = text(creator.get("username"), 100) if isinstance(creator, dict) else None
    called = text(item.get("name"), 150) or str(model_id or "(a model without a name)")
    if version_id is None:  # distinguishes two such entries
        digest = sha256(json.dumps(_kept(item, MODEL_KEPT)).encode()).hexdigest()
        called = f"{called} ({model_id or digest[:12]})"
    repo, revision = f"{creator or 'civitai'}/{called}", str(version_id or "")
    page = f"/models/{model_id}" + (f"?modelVersionId={version_id}" if version_id else "")
    created = when(version.get("publishedAt"))
    created = when(version.get("createdAt")) if created == UNKNOWN_TIME else created
    return Checkpoint(
        source=source,
        repo=repo,
        revision=revision,
        file=name,
        url=f"{endpoint}{page if model_id else ''}",
        kind={"Checkpoint": "full", None: "unknown"}.get(text(item.get("type")), "lora"),
        base=None,
        created_at=None if created == UNKNOWN_TIME else created,
        listed_at=now(),
        **_facts(
            repo,
            _kept(item, MODEL_KEPT),
            _kept(version, VERSION_KEPT),
            [_kept(f, FILE_KEPT, MAX_FILE_CHARS) for f in ([file] if file else []) + others],
            # the names of models change, the numbers do not
            placeholder_id(source, "" if version_id else repo, revision, file_id),
            bool(file),
            reason,
        ),
    )


def with_detail(checkpoint: Checkpoint, detail: Mapping[str, Any]) -> Checkpoint:
    """The record, completed by the version's own entry: its training, its use, its hashes."""
    raw = json.loads(checkpoint.raw)
    model, files = raw["model"], raw["files"]
    detail_model = detail.get("model")
    model |= _kept(detail_model, ("type", "poi", "mode")) if isinstance(detail_model, dict) else {}
    by_id = {as_id(f.get("id")): f for f in dicts(detail.get("files"), MAX_FILES) if as_id(f.get("id"))}
    files = [{**f, **_kept(by_id.get(as_id(f.get("id")), {}), FILE_KEPT, MAX_FILE_CHARS)} for f in files]
    version = {**raw["version"], **_kept(detail, VERSION_KEPT)}
    warning = warning_of(files[0]) if files else None
    return dataclasses.replace(
        checkpoint, **_facts(checkpoint.repo, model, version, files, checkpoint.checkpoint_id, True, warning)
    )


def _facts(
    repo: str,
    model: Json,
    version: Json,
    files: list[Json],
    placeholder: str,
    chosen: bool,
    reason: Reason | None,
) -> Json:
    """The fields of a record that a version's own entry may change.

    With `chosen` the first of `files` is the checkpoint. `reason` is why the files cannot be scanned.
    """
    file = files[0] if chosen else {}
    digest = sha256_of_file(file)
    reason = _why_skipped(model, version) or reason
    training, num_images, public = _training(version, files)
    return {
        "checkpoint_id": identify([("", digest)]) if digest else placeholder,
        "sha256": digest,
        "size_bytes": size_of_file(file),
        "family": family_of(version.get("baseModel")),
        "caption": trigger(version).caption,
        "num_train_images": num_images,
        "license": _license(model),
        "raw": json.dumps({"model": model, "version": version, "files": files}),
        "inspection_status": InspectionStatus.SKIPPED if reason else InspectionStatus.UNKNOWN,
        "reason": f"{repo}: {reason}" if reason else "",
        "reason_code": reason.reason_code if reason else None,
        "training": json.dumps(training),
        "public_images": public,
    }


def _why_skipped(model: Json, version: Json) -> Reason | None:
    """Why an entry cannot be scanned, as far as model and version state it; None where it may be."""
    kind, mode = text(model.get("type")), text(model.get("mode"))
    use, ends = text(version.get("usageControl")), _early_until(version)
    if mode == "TakenDown":
        return Reason(ReasonCode.REMOVED, "it was taken down by Civitai.")
    if mode == "Archived":
        return Reason(ReasonCode.REMOVED, "it was archived by its author, so its files cannot be downloaded.")
    if model.get("poi") is True:
        return Reason(
            ReasonCode.REAL_PERSON, "it is marked as showing a real person; such models are not scanned."
        )
    if kind not in TYPES:
        return Reason(
            ReasonCode.UNSUPPORTED_KIND,
            f"it is of the type {kind or '(none)'}: only {', '.join(TYPES)} are scanned.",
        )
    if as_id(version.get("id")) is None:
        return Reason(ReasonCode.REMOVED, "it has no published version.")
    if text(version.get("status")) not in (None, "Published"):
        return Reason(ReasonCode.REMOVED, "its version is not published.")
    if use not in (None, "Download"):
        return Reason(
            ReasonCode.NOT_OFFERED,
            "it can be used on the site only (generation); its author does not offer it for download.",
        )
    if ends is not None or text(version.get("availability")) == "EarlyAccess":
        until = f" until {ends}" if ends else ""
        return Reason(
            ReasonCode.EARLY_ACCESS,
            f"it is in early access{until}: only those who paid for it can download it.",
        )
    if _is_paid(version.get("paidAccess")):
        return Reason(
            ReasonCode.EARLY_ACCESS, "it is paid: only those who bought access to it can download it."
        )
    return None


def _is_paid(access: object) -> bool:
    """Whether the `paidAccess` of a version is in force: permanent, without an end, or until a later time."""
    if not isinstance(access, dict):
        return False
    if access.get("permanent") is True or when(access.get("endsAt")) > now():
        return True
    return access.get("permanent") is False and access.get("endsAt") is None


def _early_until(version: Json) -> str | None:
    """The day on which early access ends; None where it is over, or not stated."""
    ends = max(when(version.get("earlyAccessEndsAt")), when(version.get("earlyAccessDeadline")))
    return f"{ends.astimezone(UTC):%Y-%m-%d}" if ends > now() else None


def family_of(base_model: object) -> str:
    """The family of a baseModel, or "unknown"."""
    name = base_model if isinstance(base_model, str) else ""
    return next((family for pattern, family in FAMILIES if re.fullmatch(pattern, name)), "unknown")


def trigger(version: Json) -> Chosen:
    """The caption in the author's trigger words, and the other prompts among them."""
    return choose_caption(version.get("trainedWords"))


def sample_prompt(version: Json) -> str | None:
    """The first sample prompt of a training on the site; None where none is stated."""
    prompts = _details(version).get("samplePrompts")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    return next((p for p in map(plain_prompt, prompts) if p), None) if isinstance(prompts, list) else None


def trainer_base(version: Json) -> tuple[int, int] | None:
    """The (model, version) that a training on the site started from; None where it is not stated."""
    stated = _details(version).get("baseModel")
    if not isinstance(stated, str):
        return None
    match = re.fullmatch(r"(?:urn:air:\w+:\w+:)?civitai:(\d{1,15})@(\d{1,15})", stated)
    return (int(match[1]), int(match[2])) if match else TRAINER_BASES.get(stated)


def base_id(model_id: int, version_id: int) -> str:
    """A version of Civitai as a base: OWNER/NAME where it is known on HuggingFace, civitai:MODEL@VERSION."""
    return ON_HUGGINGFACE.get(version_id, f"{CIVITAI_SCHEME}{model_id}@{version_id}")


def _details(version: Json) -> Json:
    details = version.get("trainingDetails")
    return details if isinstance(details, dict) else {}


def _training(version: Json, files: list[Json]) -> tuple[Json, int | None, int]:
    """The settings of a training on the site, its number of images, and how many of them are published."""
    details = _details(version)
    params = details.get("params")
    settings: Json = {k: text(details.get(k)) for k in ("type", "baseModel") if text(details.get(k))}
    settings |= {
        printable(k, 50): v if not isinstance(v, str) else printable(v, 200)
        for k, v in (list(params.items())[:60] if isinstance(params, dict) else ())
        if isinstance(v, str | int | float | bool)
    }
    counts = [n for f in files if type(n := metadata_of(f).get("numImages")) is int and 0 < n < 1_000_000]
    shared = [
        f for f in files if f.get("type") == "Training Data" and metadata_of(f).get("shareDataset") is True
    ]
    public = sum(max(1, n) if type(n := metadata_of(f).get("numImages")) is int else 1 for f in shared)
    return ({"civitai": settings} if settings else {}), counts[0] if counts else None, min(public, 1_000_000)


def _license(model: Json) -> str | None:
    """What the author allows. The entry has a list, or a string such as "{Image,RentCivit}"."""
    stated = model.get("allowCommercialUse")
    uses = re.findall(r"\w+", stated) if isinstance(stated, str) else stated
    uses = uses if isinstance(uses, list) else None
    if uses is None:
        return None
    named = ", ".join(printable(u, 30) for u in uses[:10] if isinstance(u, str) and u != "None")
    derivatives = "" if model.get("allowDerivatives") is not False else "; no derivatives"
    return f"Civitai permissions: commercial use {named or 'none'}{derivatives}"


def _kept(value: Mapping[str, Any], names: tuple[str, ...], limit: int = MAX_KEPT_CHARS) -> Json:
    """Those fields of an entry: long text is cut, other long values are omitted."""
    kept: Json = {}
    for name in names:
        field = value.get(name)
        if isinstance(field, str):
            kept[name] = field[:MAX_TEXT_CHARS]
        elif field is not None and _length(field) <= limit:
            kept[name] = field
    return kept


def _length(field: object) -> float:
    """Characters of a field as JSON; infinite for one that is nested too deep."""
    try:
        return len(json.dumps(field))
    except (ValueError, RecursionError):
        return math.inf
