"""What a report is about: checkpoints and rows of evidence, named as people name them."""

from __future__ import annotations

from typing import NamedTuple

from scanner.errors import ConfigError
from scanner.store.decisions import STANDING_DECISIONS
from scanner.store.queries import STANDING_RANK
from scanner.store.store import Store
from scanner.text import for_terminal

SHORTEST = 8  # characters of an id that name it
STANDING_SCANS = f"""
    SELECT checkpoint_id, scan_id, verdict FROM scans
    QUALIFY row_number() OVER (PARTITION BY checkpoint_id ORDER BY {STANDING_RANK} DESC) = 1"""
NAMED = f"""
WITH standing AS ({STANDING_SCANS})
SELECT checkpoint_id, scan_id, repo, file, NULL AS subject_id
FROM checkpoints LEFT JOIN standing USING (checkpoint_id)
WHERE repo = $name OR (length($name) >= {SHORTEST} AND starts_with(checkpoint_id, $name))
ORDER BY repo, file, checkpoint_id"""
SUBJECTS = f"""
WITH found AS (
    SELECT match_id AS subject_id, scan_id FROM matches
    UNION ALL SELECT membership_id, scan_id FROM memberships
)
SELECT scans.checkpoint_id, found.scan_id, repo, file, subject_id
FROM found JOIN scans USING (scan_id) JOIN checkpoints USING (checkpoint_id)
WHERE length($name) >= {SHORTEST} AND starts_with(subject_id, $name) ORDER BY subject_id"""
FLAGGED = f"""
WITH standing AS ({STANDING_SCANS})
SELECT checkpoint_id, scan_id, repo, file, NULL AS subject_id
FROM standing JOIN checkpoints USING (checkpoint_id)
WHERE verdict = 'flagged' ORDER BY repo, file, checkpoint_id"""
CONFIRMED = f"""
WITH standing AS ({STANDING_SCANS}),
decided AS (SELECT subject_id FROM ({STANDING_DECISIONS}) WHERE decision = 'confirm'),
subjects AS (
    SELECT scan_id AS subject_id, scan_id FROM standing
    UNION ALL SELECT match_id, scan_id FROM matches
    UNION ALL SELECT membership_id, scan_id FROM memberships
)
SELECT checkpoint_id, scan_id, repo, file, NULL AS subject_id
FROM standing JOIN checkpoints USING (checkpoint_id)
WHERE scan_id IN (SELECT scan_id FROM subjects SEMI JOIN decided USING (subject_id))
ORDER BY repo, file, checkpoint_id"""


class Target(NamedTuple):
    """What one report is about: the scan of a checkpoint, or one row of its evidence."""

    checkpoint_id: str
    scan_id: str | None  # None where it has not been scanned
    repo: str
    file: str
    subject_id: str | None  # a match or a membership, where the report is about it alone


def named_target(store: Store, name: str) -> Target:
    """The checkpoint that a repository's name or the beginning of an id names, or the match or membership.

    Raises ConfigError where there is none, or several.
    """
    found = [Target(**row) for row in store.query(NAMED, {"name": name})]
    found = found or [Target(**row) for row in store.query(SUBJECTS, {"name": name})]
    if not found:
        raise ConfigError(
            f"the store knows no checkpoint or match {for_terminal(name)}. Name a repository as `scanner "
            "status` shows it, or the id of a checkpoint, a match or a membership."
        )
    if len(found) > 1:
        listed = ", ".join(for_terminal(t.subject_id or f"{t.checkpoint_id} ({t.file})") for t in found[:5])
        raise ConfigError(f"{for_terminal(name)} names {len(found)}: {listed}. Give one of these ids.")
    return found[0]


def flagged_targets(store: Store) -> list[Target]:
    """Every checkpoint whose standing scan is flagged, by repository."""
    return [Target(**row) for row in store.query(FLAGGED)]


def confirmed_targets(store: Store) -> list[Target]:
    """Every checkpoint of which a reviewer confirmed its standing scan or a row of it, by repository."""
    return [Target(**row) for row in store.query(CONFIRMED)]
