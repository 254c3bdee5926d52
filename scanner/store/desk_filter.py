"""What the list of the review desk shows and in which order, as records and as SQL over the tables of
scanner.store.desk_index. Values reach the SQL as parameters, never as text.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from scanner.store.desk_queries import ListFilter

HEX = "0123456789abcdef"
SHA256_DIGITS = 6  # of the beginning of a SHA256 that names a picture; fewer may be part of a file's name


class DecisionState(StrEnum):
    """How far the decisions on a flagged checkpoint are; a row may have several of these states."""

    UNDECIDED = "undecided"
    DECIDED = "decided"
    CONFIRMED = "confirmed"
    DISMISSED = "dismissed"
    UNSURE = "unsure"
    NOTED = "noted"


# A flagged checkpoint is decided as a whole, or by a decision on each of its flags.
_DECIDED = "coalesce(decision IS NOT NULL OR (flags > 0 AND confirmed + dismissed + unsure = flags), false)"
UNDECIDED = f"(verdict = 'flagged' AND NOT {_DECIDED})"
_STATES = {
    DecisionState.UNDECIDED: UNDECIDED,
    DecisionState.DECIDED: f"(verdict = 'flagged' AND {_DECIDED})",
    DecisionState.CONFIRMED: "coalesce(decision = 'confirm' OR confirmed > 0, false)",
    DecisionState.DISMISSED: "coalesce(decision = 'dismiss' OR dismissed > 0, false)",
    DecisionState.UNSURE: "coalesce(decision = 'unsure' OR unsure > 0, false)",
    DecisionState.NOTED: "coalesce(noted, false)",
}
# Undecided, partly decided, unsure, dismissed, confirmed; rows without a flag come last.
_DECISION = f"""
    CASE WHEN verdict <> 'flagged' THEN NULL WHEN decision IS NOT NULL
        THEN list_position(['unsure', 'dismiss', 'confirm'], decision) + 1
    WHEN NOT {_DECIDED} THEN CASE WHEN coalesce(confirmed + dismissed + unsure, 0) > 0 THEN 1 ELSE 0 END
    WHEN confirmed > 0 THEN 4 WHEN dismissed > 0 THEN 3 ELSE 2 END"""


class Sort(StrEnum):
    """What the list is sorted by; STRENGTH is the strongest evidence first, reasons by their number."""

    STRENGTH = "strength"
    REPO = "repo"
    SOURCE = "source"
    KIND = "kind"
    BASE = "base"
    VERDICT = "verdict"
    GROUNDS = "grounds"
    SIMILARITY = "similarity"
    Q_VALUE = "q_value"
    FLAGS = "flags"
    DECISION = "decision"
    REASON = "reason"
    EXPLANATION = "explanation"
    SCANNED = "scanned"


_KEYS = {  # the SQL of a sort, and whether it is in descending order unless it is reversed
    Sort.STRENGTH: ("place", False),
    Sort.REPO: ("lower(repo)", False),
    Sort.SOURCE: ("source", False),
    Sort.KIND: ("kind || ' ' || family", False),
    Sort.BASE: ("base_place", False),  # few and long names, which are slow to compare
    Sort.VERDICT: ("verdict", False),
    Sort.GROUNDS: ("grounds", False),
    Sort.SIMILARITY: ("best_similarity", True),
    Sort.Q_VALUE: ("coalesce(CASE WHEN grounds <> 'trained_on' THEN q_value END, membership_q)", False),
    Sort.FLAGS: ("coalesce(flags, 0)", True),
    Sort.DECISION: (_DECISION, False),
    Sort.REASON: ("reason_code", False),
    Sort.EXPLANATION: ("lower(reason)", False),
    Sort.SCANNED: ("finished_at", True),
}
_OF_DECISIONS = ("decision", "flags", "confirmed", "noted")  # columns that the table of decisions has


@dataclass(frozen=True, slots=True)
class Filter:
    """Which checkpoints are listed. Of several values of one field one has to fit; all fields have to fit.

    Texts fit in part, in upper or lower case, except `grounds`.
    """

    repo: tuple[str, ...] = ()  # parts of the name, all of which it has to contain
    corpus: tuple[str, ...] = ()  # of a flag
    image: tuple[str, ...] = ()  # of a flag: the reference's file name, or the beginning of its SHA256
    base: tuple[str, ...] = ()  # the base model's name, or its family
    kind: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    grounds: tuple[str, ...] = ()  # "gives_back" and "trained_on" include both; "both" is both
    since: datetime | None = None  # scanned then or later
    states: tuple[DecisionState, ...] = ()

    def __bool__(self) -> bool:
        """Whether it excludes anything."""
        return any(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True)
class View:
    """One list of the desk: whose rows, which of them, in which order."""

    shown: ListFilter = ListFilter.FLAGGED
    where: Filter = Filter()
    sort: Sort = Sort.STRENGTH
    reverse: bool = False

    @property
    def is_first(self) -> bool:
        """Whether it is the list that the desk opens with."""
        return self == View()


@dataclass(frozen=True, slots=True)
class ViewSql:
    """A view as SQL: its FROM and WHERE, its sort key, and the parameters of the WHERE."""

    source: str
    key: str
    descending: bool
    parameters: dict[str, Any]

    @property
    def direction(self) -> str:
        """What follows the key in ORDER BY; rows without a value come last, equal ones by their place."""
        return "DESC" if self.descending else "ASC"

    def before(self, first: str, second: str) -> str:
        """Whether the row of one table alias is before that of another; both have `key` and `place`."""
        a, b, than = first, second, ">" if self.descending else "<"
        return (
            f"({a}.key {than} {b}.key OR ({a}.key IS NOT NULL AND {b}.key IS NULL)"
            f" OR ({a}.key IS NOT DISTINCT FROM {b}.key AND {a}.place < {b}.place))"
        )


def view_sql(view: View, *, with_decisions: bool = False) -> ViewSql:
    """Returns a view as SQL over the tables `listed`, `decided` and `flags` of the index.

    Decisions are joined where the view needs them, or where the caller does.
    """
    parameters: dict[str, Any] = {}
    conditions = [*_verdict(view.shown, parameters), *_conditions(view.where, parameters)]
    key, descending = _KEYS[view.sort]
    used = " ".join([*conditions, key])
    needed = with_decisions or any(name in used for name in _OF_DECISIONS)
    joined = " LEFT JOIN decided USING (place)" if needed else ""
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return ViewSql(f"FROM listed{joined}{where}", key, descending is not view.reverse, parameters)


def _verdict(shown: ListFilter, parameters: dict[str, Any]) -> list[str]:
    if shown is ListFilter.ALL:
        return []
    if shown is ListFilter.TO_DO:
        return ["verdict IS NULL"]
    parameters["verdict"] = str(shown)
    return ["verdict = $verdict"]


def _conditions(where: Filter, parameters: dict[str, Any]) -> list[str]:
    def name(value: object) -> str:
        parameters[f"p{len(parameters)}"] = value
        return f"$p{len(parameters) - 1}"

    def contains(column: str, part: str) -> str:
        return f"contains(lower({column}), {name(part.lower())})"

    conditions = [contains("repo", part) for part in where.repo]
    for column in ("kind", "source"):
        if values := getattr(where, column):
            conditions.append(_any(contains(column, value) for value in values))
    if where.base:
        conditions.append(
            _any(f"({contains('base', v)} OR lower(family) = {name(v.lower())})" for v in where.base)
        )
    if where.grounds:
        conditions.append(_any(_grounds(ground, name) for ground in where.grounds))
    if where.since is not None:
        conditions.append(f"finished_at >= {name(where.since)}")
    if where.states:
        conditions.append(_any(_STATES[state] for state in where.states))
    of_flags = []
    if where.corpus:
        of_flags.append(_any(contains("corpus", value) for value in where.corpus))
    if where.image:
        of_flags.append(_any(_picture(value, contains, name) for value in where.image))
    if of_flags:
        conditions.append(f"scan_id IN (SELECT scan_id FROM flags WHERE {' AND '.join(of_flags)})")
    return conditions


def _any(alternatives: Any) -> str:
    return f"({' OR '.join(alternatives)})"


def _grounds(ground: str, name: Any) -> str:
    if ground == "both":
        return "grounds = 'trained_on+gives_back'"
    return f"contains(grounds, {name(ground)})"


def _picture(value: str, contains: Any, name: Any) -> str:
    by_name = contains("file_name", value)
    digits = value.lower()
    if len(digits) < SHA256_DIGITS or not set(digits) <= set(HEX):
        return str(by_name)
    return f"({by_name} OR starts_with(sha256, {name(digits)}))"
