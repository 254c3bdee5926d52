"""A hub's raw entries as records.

Every field is untrusted: a wrong type counts as missing, text loses its control characters, and numbers are
limited. Never raises for what an entry holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finextract.metadata.cards import card_from
from finextract.reasons import Reason, ReasonCode
from finextract.weights.embedding_keys import embeddings_beside
from scanner.hashing import identify
from scanner.hubs.base_models import is_repo
from scanner.hubs.fields import MAX_SIZE, UNKNOWN_TIME, placeholder_id, visible, when
from scanner.hubs.layout import (
    SIDECAR_FILES,
    Layout,
    is_safe,
    layouts,
    named_unusably,
    pipeline_configs,
    unusable,
)
from scanner.records import Checkpoint, InspectionStatus, now

MAX_FILES = 20_000  # of one repository; the rest is ignored
CONCEPT_IMAGES = re.compile(r"concept_images/[^/]+\.(?:png|jpe?g|webp)", re.IGNORECASE)
KEPT = ("id", "sha", "author", "gated", "disabled", "createdAt", "lastModified", "library_name",
        "pipeline_tag", "tags", "cardData", "config")  # fmt: skip
README = "README.md"
MAX_KEPT_CHARS = 100_000  # of one field in `raw`


@dataclass(frozen=True, slots=True)
class Remote:
    """What a hub states about one file."""

    size: int | None = None  # bytes
    sha256: str | None = None  # 64 hex digits; files stored in git itself have none


def remote_files(entry: Mapping[str, Any]) -> dict[str, Remote]:
    """The files of an entry whose names are safe, by name."""
    siblings = entry.get("siblings")
    files: dict[str, Remote] = {}
    for sibling in siblings[:MAX_FILES] if isinstance(siblings, list) else ():
        if isinstance(sibling, dict) and is_safe(path := sibling.get("rfilename")):
            lfs = sibling.get("lfs")
            lfs = lfs if isinstance(lfs, dict) else {}
            files[path] = Remote(_size(sibling.get("size", lfs.get("size"))), _sha256(lfs.get("sha256")))
    return files


def with_files(entry: Mapping[str, Any], known: Mapping[str, Remote]) -> dict[str, Any]:
    """The entry with the sizes and hashes of the known files, in the hub's own form."""
    siblings = entry.get("siblings")
    completed = []
    for sibling in siblings if isinstance(siblings, list) else ():
        remote = known.get(str(sibling.get("rfilename"))) if isinstance(sibling, dict) else None
        if remote is not None:
            lfs = {} if remote.sha256 is None else {"lfs": {"sha256": remote.sha256, "size": remote.size}}
            sibling = {"rfilename": sibling["rfilename"], "size": remote.size, **lfs}
        completed.append(sibling)
    return {**entry, "siblings": completed}


def make_checkpoints(
    entry: Mapping[str, Any], source: str, endpoint: str, *, allow_pickle: bool = False
) -> list[Checkpoint]:
    """A record for each checkpoint of a repository; a single one for a repository without any.

    Weight files whose names cannot be used have one record together, which names the first.
    """
    files = remote_files(entry)
    found: list[Layout | None] = [*layouts(files)] if is_repo(_string(entry.get("id"))) else []
    found += [unusable(name) for name in _named_unusably(entry, found)[:1]]
    return [_checkpoint(entry, files, layout, source, endpoint, allow_pickle) for layout in found or [None]]


def _named_unusably(entry: Mapping[str, Any], found: list[Layout | None]) -> list[str]:
    """The weight files that would be checkpoints if their names could be used."""
    if any(layout is not None and not layout.file for layout in found):
        return []  # beside a pipeline no other file is one
    siblings = entry.get("siblings")
    siblings = siblings[:MAX_FILES] if isinstance(siblings, list) else []
    names = named_unusably(s.get("rfilename") for s in siblings if isinstance(s, dict))
    return [name for name in names if not found or "/" not in name]


def _checkpoint(
    entry: Mapping[str, Any],
    files: dict[str, Remote],
    layout: Layout | None,
    source: str,
    endpoint: str,
    allow_pickle: bool,
) -> Checkpoint:
    repo = visible(_string(entry.get("id")) or "(an entry without a name)")
    revision = commit_of(entry) or ""
    file = layout.file if layout else ""
    weights = [(path, files[path]) for path in layout.weights] if layout else []
    hashes = [(path, remote.sha256) for path, remote in weights if remote.sha256 is not None]
    identified = bool(hashes) and len(hashes) == len(weights)
    card = card_from(entry["cardData"] if isinstance(entry.get("cardData"), dict) else {})
    page = f"/blob/{revision}/{file}" if file else f"/tree/{revision}"
    created = when(entry.get("createdAt"))
    reason = _why_skipped(entry, repo, revision, layout, allow_pickle)
    return Checkpoint(
        checkpoint_id=identify(hashes) if identified else placeholder_id(source, repo, revision, file),
        source=source,
        repo=repo,
        revision=revision,
        file=file,
        url=f"{endpoint}/{repo}{page if revision else ''}",
        sha256=hashes[0][1] if identified and file else None,
        size_bytes=min(sum(remote.size or 0 for _, remote in weights), MAX_SIZE),
        kind="unknown",
        family="unknown",
        base=card.base_model,
        caption=card.instance_prompt,
        num_train_images=None,
        license=card.license,
        created_at=None if created == UNKNOWN_TIME else created,
        listed_at=now(),
        raw=_raw(entry, layout),
        inspection_status=InspectionStatus.SKIPPED if reason else InspectionStatus.UNKNOWN,
        reason=reason.sentence if reason else "",
        reason_code=reason.reason_code if reason else None,
        public_images=sum(1 for path in files if CONCEPT_IMAGES.fullmatch(path)),
    )


def _why_skipped(
    entry: Mapping[str, Any], repo: str, revision: str, layout: Layout | None, allow_pickle: bool
) -> Reason | None:
    """Why an entry cannot be scanned, as far as its listing shows; None where it may be."""
    if entry.get("disabled") is True:
        return Reason(ReasonCode.REMOVED, f"{repo} was disabled by its hub.")
    if not is_repo(repo) or not revision:
        return Reason(
            ReasonCode.INVALID_ENTRY, f"{repo} has no valid name, or no commit that could be downloaded."
        )
    if layout is None:
        return Reason(
            ReasonCode.NO_WEIGHTS, f"{repo} holds no weights: no safetensors, and no pickle either."
        )
    if layout.reason is not None:
        return Reason(layout.reason.reason_code, f"{repo}: {layout.reason}")
    if layout.pickled and not allow_pickle:
        return Reason(
            ReasonCode.PICKLE,
            f"{repo} holds its weights as a pickle ({layout.file}), which can run code when "
            "it is opened; it was not opened. Ask its author for safetensors, or see --allow-pickle.",
        )
    return None


def commit_of(entry: Mapping[str, Any]) -> str | None:
    """The commit that an entry states, 40 or 64 hex digits."""
    sha = entry.get("sha")
    return sha if isinstance(sha, str) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", sha) else None


def _raw(entry: Mapping[str, Any], layout: Layout | None) -> str:
    """The entry as JSON: the fields that describe the model, and the files that a scan could use."""
    kept = {k: entry[k] for k in KEPT if k in entry and len(json.dumps(entry[k])) <= MAX_KEPT_CHARS}
    siblings = entry.get("siblings")
    siblings = [s for s in siblings if isinstance(s, dict)] if isinstance(siblings, list) else []
    weights = layout.weights if layout else {}
    names = [str(s.get("rfilename")) for s in siblings]
    useful = {
        *weights,
        *pipeline_configs(names),
        "adapter_config.json",
        README,
        layout.file if layout else "",
    }
    useful |= {name for name in names if SIDECAR_FILES.fullmatch(name)}
    if layout and layout.file and (beside := embeddings_beside(layout.file, names)):
        useful.add(beside)
    return json.dumps(
        kept | {"siblings": [s for s, name in zip(siblings, names, strict=True) if name in useful]}
    )


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _size(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_SIZE else None


def _sha256(value: object) -> str | None:
    return value if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else None
