"""What a report is about: checkpoints and rows of evidence, named as people name them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from scanner.errors import ConfigError
from scanner.records import Role
from scanner.store.decisions import STANDING_DECISIONS
from scanner.store.queries import STANDING_RANK
from scanner.store.store import Store
from scanner.text import for_terminal

SHORTEST = 8  # characters of an id that name it
STANDING_SCANS = f"""
    SELECT checkpoint_id, scan_id, verdict FROM scans
    QUALIFY row_number() OVER (PARTITION BY checkpoint_id ORDER BY {STANDING_RANK} DESC) = 1"""
# Names are joined by their first characters, because a comparison of each id with each name takes too long
# where thousands are named.
_ASKED = f"""
asked AS (SELECT unnest($names) AS name),
begun AS (SELECT name, left(name, {SHORTEST}) AS start FROM asked WHERE length(name) >= {SHORTEST})"""
NAMED = f"""
WITH {_ASKED}, standing AS ({STANDING_SCANS}),
known AS (SELECT checkpoint_id, repo, file FROM checkpoints),
named AS (
    SELECT name, known.* FROM asked JOIN known ON repo = name
    UNION SELECT name, known.* FROM begun JOIN known ON left(checkpoint_id, {SHORTEST}) = start
    WHERE starts_with(checkpoint_id, name)
)
SELECT name, checkpoint_id, scan_id, repo, file, NULL AS subject_id
FROM named LEFT JOIN standing USING (checkpoint_id) ORDER BY repo, file, checkpoint_id"""
# A repository whose weights another one publishes too is listed under the newest name alone.
ELSEWHERE = f"""
WITH {_ASKED}, standing AS ({STANDING_SCANS}),
named AS (SELECT DISTINCT name, checkpoint_id FROM all_checkpoints JOIN asked ON repo = name)
SELECT name, checkpoint_id, scan_id, repo, file, NULL AS subject_id
FROM named JOIN checkpoints USING (checkpoint_id) LEFT JOIN standing USING (checkpoint_id)
ORDER BY repo, file, checkpoint_id"""
SUBJECTS = f"""
WITH {_ASKED}, found AS (
    SELECT match_id AS subject_id, scan_id FROM matches
    UNION ALL SELECT membership_id, scan_id FROM memberships
)
SELECT name, scans.checkpoint_id, found.scan_id, repo, file, subject_id
FROM begun JOIN found ON left(subject_id, {SHORTEST}) = start
JOIN scans USING (scan_id) JOIN checkpoints USING (checkpoint_id)
WHERE starts_with(subject_id, name) ORDER BY subject_id"""
SCANS = f"""
WITH {_ASKED}
SELECT name, checkpoint_id, scan_id, repo, file, NULL AS subject_id
FROM begun JOIN scans ON left(scan_id, {SHORTEST}) = start JOIN checkpoints USING (checkpoint_id)
WHERE starts_with(scan_id, name) ORDER BY scan_id"""
NAMES = "SELECT DISTINCT repo FROM all_checkpoints WHERE checkpoint_id = ? ORDER BY repo"
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

# Scans that looked for a picture, with what they found about it; the strongest first.
OF_PICTURES = f"""
WITH standing AS ({STANDING_SCANS}),
decided AS ({STANDING_DECISIONS}),
found AS (
    SELECT
        coalesce(m.scan_id, t.scan_id) AS scan_id, coalesce(m.corpus, t.corpus) AS corpus,
        coalesce(m.reference_id, t.reference_id) AS reference_id,
        CASE WHEN m.flagged OR t.membership_id IS NULL THEN m.match_id ELSE t.membership_id END AS subject_id,
        coalesce(m.flagged, false) AS gives_back, coalesce(t.trained_on, false) AS trained_on,
        m.similarity, m.q_value AS match_q, t.q_value AS membership_q
    FROM (FROM matches WHERE reference_id IN (SELECT unnest($ids))) m
    FULL JOIN (FROM memberships WHERE reference_id IN (SELECT unnest($ids))) t
        ON t.scan_id = m.scan_id AND t.corpus = m.corpus AND t.reference_id = m.reference_id
)
SELECT checkpoint_id, repo, file, found.* EXCLUDE (scan_id), d.decision, scan_id
FROM found JOIN standing USING (scan_id) JOIN checkpoints USING (checkpoint_id)
LEFT JOIN decided d USING (subject_id)
ORDER BY gives_back AND trained_on DESC, gives_back DESC, trained_on DESC, similarity DESC NULLS LAST, repo"""
NEAREST = """
SELECT corpus, reference_id, path, list_dot_product(embedding, $embedding::FLOAT[]) AS similarity
FROM "references" WHERE role = 'reference' AND descriptor = $descriptor
ORDER BY similarity DESC, corpus, reference_id LIMIT 1"""
HOLDING = """
SELECT DISTINCT corpus, role FROM "references" WHERE reference_id = ? ORDER BY corpus"""
SCANNED = "SELECT count(DISTINCT checkpoint_id) AS n FROM scans WHERE verdict IN ('flagged', 'nothing_found')"


class PictureRow(NamedTuple):
    """What the standing scan of a checkpoint found about one reference."""

    checkpoint_id: str
    repo: str
    file: str
    corpus: str
    reference_id: str
    subject_id: str
    gives_back: bool
    trained_on: bool
    similarity: float | None
    match_q: float | None
    membership_q: float | None
    decision: str | None
    scan_id: str


class Nearest(NamedTuple):
    """The reference that is nearest to a picture."""

    corpus: str
    reference_id: str
    path: str
    similarity: float


class Target(NamedTuple):
    """What one report is about: the scan of a checkpoint, or one row of its evidence."""

    checkpoint_id: str
    scan_id: str | None  # None where it has not been scanned
    repo: str
    file: str
    subject_id: str | None  # a match or a membership, where the report is about it alone


# The repository whose name is most like a name; of a similar one alone.
ALIKE = """
SELECT repo FROM checkpoints WHERE jaro_winkler_similarity(repo, $name) >= 0.85
ORDER BY jaro_winkler_similarity(repo, $name) DESC, repo LIMIT 1"""


def named_target(store: Store, name: str) -> Target:
    """The checkpoint that a repository's name or the beginning of an id names, or the match or membership.

    The id of a scan names its checkpoint with that scan. Raises ConfigError where there is none, or several.
    """
    found = named_targets(store, [name])[name]
    if not found and (alike := store.query(ALIKE, {"name": name})):
        repo = for_terminal(alike[0]["repo"])
        raise ConfigError(f"the store knows no checkpoint {for_terminal(name)}. Did you mean {repo}?")
    return one_of(name, found)


def named_targets(store: Store, names: Collection[str]) -> dict[str, list[Target]]:
    """Everything that each of the names may mean; as many queries for thousands of names as for one."""
    found: dict[str, list[Target]] = {name: [] for name in names}
    for query in (NAMED, ELSEWHERE, SUBJECTS, SCANS):
        left = [name for name, targets in found.items() if not targets]
        for row in store.query(query, {"names": left}) if left else ():
            found[row.pop("name")].append(Target(**row))
    return found


def one_of(name: str, targets: Sequence[Target]) -> Target:
    """The one target that a name means; a whole name or id goes before the beginning of another one.

    Raises ConfigError where there is none, or several.
    """
    targets = [t for t in targets if name in (t.repo, t.checkpoint_id, t.subject_id)] or targets
    if not targets:
        raise ConfigError(
            f"the store knows no checkpoint or match {for_terminal(name)}. Name a repository as `scanner "
            f"status` shows it, or the first {SHORTEST} characters or more of the id of a checkpoint, a "
            "match, a membership or a scan."
        )
    if len(targets) > 1:
        listed = ", ".join(for_terminal(t.subject_id or f"{t.checkpoint_id} ({t.file})") for t in targets[:5])
        raise ConfigError(f"{for_terminal(name)} names {len(targets)}: {listed}. Give one of these ids.")
    return targets[0]


def flagged_targets(store: Store) -> list[Target]:
    """Every checkpoint whose standing scan is flagged, by repository."""
    return [Target(**row) for row in store.query(FLAGGED)]


def confirmed_targets(store: Store) -> list[Target]:
    """Every checkpoint of which a reviewer confirmed its standing scan or a row of it, by repository."""
    return [Target(**row) for row in store.query(CONFIRMED)]


def scans_of_pictures(store: Store, reference_ids: Sequence[str]) -> list[PictureRow]:
    """What the standing scans found about references, the strongest first."""
    return [PictureRow(**row) for row in store.query(OF_PICTURES, {"ids": list(reference_ids)})]


def names_of(store: Store, checkpoint_id: str) -> list[str]:
    """Every repository that was listed with the weights of a checkpoint."""
    return [row["repo"] for row in store.query(NAMES, [checkpoint_id])]


def corpora_with(store: Store, reference_id: str) -> dict[str, Role]:
    """The corpora that hold an image, by name, with their roles."""
    return {row["corpus"]: Role(row["role"]) for row in store.query(HOLDING, [reference_id])}


def path_of_reference(store: Store, reference_id: str, corpus: str) -> str:
    """Where the original file of a reference was when it was added; "" where the store has none."""
    asked = 'SELECT path FROM "references" WHERE reference_id = ? AND corpus = ? LIMIT 1'
    found = store.query(asked, [reference_id, corpus])
    return str(found[0]["path"]) if found else ""


def nearest_reference(store: Store, embedding: Sequence[float], descriptor: str) -> Nearest | None:
    """The reference nearest to an embedding; None where the store has none under the descriptor."""
    found = store.query(NEAREST, {"embedding": list(embedding), "descriptor": descriptor})
    return Nearest(**found[0]) if found else None


def scanned(store: Store) -> int:
    """How many checkpoints have been scanned."""
    (row,) = store.query(SCANNED)
    return int(row["n"])
