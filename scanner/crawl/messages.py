"""Verdicts and flags as plain values for other programs: the lines of --jsonl, and what [notify] sends.

The names are those of the store's columns. What is sent to others has no picture, and no path
of this machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from finextract import __version__
from scanner.records import Checkpoint, Scan, now
from scanner.store.flag_queries import NewFlag
from scanner.store.grounds import grounds_of_scan

FORMAT = 1  # of lines and messages: a higher one means that a name has gone or changed its meaning
PROGRAM = f"finextract-scanner {__version__}"
MOST_ROWS = 100  # of evidence in one message


def verdict_of(checkpoint: Checkpoint, scan: Scan) -> dict[str, Any]:
    """A checkpoint and its verdict."""
    return {
        "checkpoint_id": checkpoint.checkpoint_id,
        "source": checkpoint.source,
        "repo": checkpoint.repo,
        "revision": checkpoint.revision,
        "file": checkpoint.file,
        "url": checkpoint.url,
        "scan_id": scan.scan_id,
        "config_id": scan.config_id,
        "run_id": scan.run_id,
        "verdict": scan.verdict,
        "grounds": [ground.value for ground in grounds_of_scan(scan)],
        "examined": scan.examined,
        "reason": scan.reason,
        "reason_code": scan.reason_code,
        "best_similarity": scan.best_similarity,
        "q_value": scan.q_value,
        "membership_q": scan.membership_q,
        "tau": scan.tau,
        "alpha": scan.alpha,
        "finished_at": scan.finished_at.isoformat(),
    }


def id_of(flag: NewFlag) -> str:
    """The id of the message about a flag: the same whenever, and by whichever crawl, it is made."""
    named = f"{flag.checkpoint.checkpoint_id} {'+'.join(flag.new_grounds)}"
    return hashlib.sha256(named.encode()).hexdigest()[:32]


def flag_message(flag: NewFlag, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What [notify] sends about a flag."""
    values = verdict_of(flag.checkpoint, flag.scan)
    is_web = urlsplit(flag.checkpoint.url).scheme in ("http", "https")
    return {
        **_head("flag", id_of(flag)),
        **values,
        "source": flag.checkpoint.source.partition(":")[0],  # without the path of a folder
        "url": flag.checkpoint.url if is_web else None,
        "new_grounds": [ground.value for ground in flag.new_grounds],
        "found": list(found[:MOST_ROWS]),
        "found_left_out": max(0, len(found) - MOST_ROWS),
    }


def test_message() -> dict[str, Any]:
    """What `scanner notify --test` sends: as empty as a message can be."""
    at = now().isoformat()
    return {**_head("test", hashlib.sha256(at.encode()).hexdigest()[:32]), "finished_at": at}


def _head(event: str, id_: str) -> dict[str, Any]:
    return {"event": event, "id": id_, "format": FORMAT, "program": PROGRAM}
