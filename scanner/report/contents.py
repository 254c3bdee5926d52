"""What a report says of one checkpoint, as plain values: the JSON twin of the page.

A value is a text, a number, a list or a mapping, so that the same data reads the same in ten years. Pictures
are named by their SHA256 and are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import PurePath
from typing import Any

from finextract import __version__
from scanner.config import scan_config_of
from scanner.records import ConfigRow, Decision, Match, Membership, Role, Scan, now
from scanner.store.decisions import fold
from scanner.store.desk_queries import EvidenceRow, OpenedCheckpoint, open_checkpoint
from scanner.store.report_queries import Target, names_of
from scanner.store.store import Store

ROWS = 1000  # rows of evidence in one report, the strongest
FORMAT = 1  # of the JSON twin


def contents_of(store: Store, target: Target) -> dict[str, Any]:
    """Everything that the store knows of a checkpoint's scan, or of the one row that the target names."""
    opened = open_checkpoint(store, target.checkpoint_id, target.scan_id, ROWS)
    rows = [row for row in opened.rows if target.subject_id in (None, row.subject_id)]
    config = _config(store, opened.scan)
    return {
        "format": FORMAT,
        "program": f"finextract-scanner {__version__}",
        "written_at": _time(now()),
        "checkpoint": _checkpoint(opened) | {"listed_as": names_of(store, target.checkpoint_id)},
        "scan": _scan(opened.scan, config),
        "configuration": config,
        "evidence": [_row(row) for row in rows],
        "about": target.subject_id,  # the one row that was asked for; null = all of them
        "rows_left_out": opened.total - len(rows),
        "decisions": [_event(event) for event in opened.history],
    }


def as_json(contents: dict[str, Any]) -> str:
    """The contents as JSON, keys sorted: the same data give the same text."""
    return json.dumps(contents, indent=2, sort_keys=True, ensure_ascii=True) + "\n"


def digest_of(contents: dict[str, Any]) -> str:
    """The SHA256 of `as_json`."""
    return hashlib.sha256(as_json(contents).encode()).hexdigest()


def _time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")


def _checkpoint(opened: OpenedCheckpoint) -> dict[str, Any]:
    checkpoint, scan = opened.checkpoint, opened.scan
    return {
        "id": checkpoint.checkpoint_id,
        "source": checkpoint.source,
        "repo": checkpoint.repo,
        "address": checkpoint.url,
        "revision": checkpoint.revision,
        "file": checkpoint.file,
        "sha256": checkpoint.sha256,
        "size_bytes": checkpoint.size_bytes,
        "kind": checkpoint.kind,
        "family": checkpoint.family,
        "base": (scan.base if scan else None) or checkpoint.base,
        "base_sha256": (scan.base_sha256 if scan else "") or None,
        "license": checkpoint.license,
        "published_at": _time(checkpoint.created_at),
        "listed_at": _time(checkpoint.listed_at),
        "stated_train_images": checkpoint.num_train_images,
    }


def _scan(scan: Scan | None, config: dict[str, Any] | None) -> dict[str, Any] | None:
    if scan is None:
        return None
    return {
        "id": scan.scan_id,
        "verdict": scan.verdict.value,
        "reason": scan.reason,
        "grounds": [ground.value for ground in scan.grounds_of_flag],
        "examined": None if scan.examined is None else scan.examined.value,
        "started_at": _time(scan.started_at),
        "finished_at": _time(scan.finished_at),
        "caption": scan.caption,
        "caption_origin": scan.caption_origin,
        "caption_evaluations": scan.caption_evaluations,
        "samples": scan.num_samples,
        "first_seed": scan.seed,
        "rounds": scan.rounds,
        "sampled_for": scan.sampled_for,
        "sampled_for_stated": scan.sampled_for_stated,
        "candidates": scan.num_candidates,
        "references": scan.num_references,
        "corpora": _corpora(config),
        "background_images": scan.num_background,
        "tau": scan.tau,
        "alpha": scan.alpha,
        "background_unlike": scan.background_unlike,
        "screen_evaluations": scan.screen_evaluations,
        "sample_evaluations": scan.sample_evaluations,
        "device": scan.device,
        "precision": scan.precision,
        "versions": dict(sorted(scan.versions.items())),
    }


def _corpora(config: dict[str, Any] | None) -> list[str]:
    """The names of the corpora of references that were looked for; none where the store has lost them."""
    stated = scan_config_of(config["toml"]).corpora if config and config["toml"] else {}
    return sorted(name for name, role in stated.items() if role.partition(":")[0] == Role.REFERENCE)


def _config(store: Store, scan: Scan | None) -> dict[str, Any] | None:
    if scan is None:
        return None
    rows = store.select(ConfigRow, "WHERE config_id = ?", [scan.config_id])
    return {"id": scan.config_id, "toml": rows[0].toml if rows else None}


def _row(row: EvidenceRow) -> dict[str, Any]:
    reference, candidate = row.reference, row.candidate
    return {
        "id": row.subject_id,
        "corpus": row.corpus,
        "grounds": [ground.value for ground in row.grounds],
        "reference": {
            "sha256": row.reference_id,  # of the original file; empty for a corpus as a whole
            "name": PurePath(reference.path).name if reference else None,
            "copy_sha256": reference.image_sha256 if reference else None,
        },
        "match": _match(row.match) if row.match else None,
        "candidate": None
        if candidate is None
        else {
            "seed": candidate.seed,
            "guidance_scale": candidate.guidance_scale,
            "correction": candidate.correction,
            "clique_size": candidate.clique_size,
            "clique_similarity": candidate.clique_similarity,
            "image_sha256": candidate.image_sha256,
            "descriptor": candidate.descriptor,
        },
        "membership": _membership(row.membership) if row.membership else None,
        "standing_decision": fold(row.history).decision,
        "decisions": [_event(event) for event in row.history],
    }


def _match(match: Match) -> dict[str, Any]:
    return {
        "similarity": match.similarity,
        "needed": match.needed,
        "background_similarity": match.null_similarity,
        "nearest_other": match.nearest_other,
        "p": match.p_value,
        "q": match.q_value,
        "flagged": match.flagged,
    }


def _membership(found: Membership) -> dict[str, Any]:
    return {
        "log_ratio": found.framed_log_ratio if found.framed_log_ratio is not None else found.log_ratio,
        "margin": found.margin,
        "variants": list(found.variant_log_ratios),
        "p": found.p_value,
        "q": found.q_value,
        "trained_on": found.trained_on,
        "pictures": found.num_pictures,
        "framing": found.framing,
        "background_images": found.num_background,
        "compared_with_background": found.background_p is not None,
    }


def _event(event: Decision) -> dict[str, Any]:
    return {
        "event": event.event.value,
        "decision": event.decision,
        "note": event.note,
        "withdraws": event.withdraws,
        "id": event.decision_id,
        "reviewer": event.reviewer,
        "at": _time(event.decided_at),
    }
