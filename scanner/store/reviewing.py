"""Recording what people decide: the events of one reviewer, about what a store knows.

The review desk and `scanner decide` write the same log; scanner.store.decisions explains which events stand.
A subject is a match, a membership, or a scan, which stands for its checkpoint as a whole.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from scanner.errors import ConfigError
from scanner.records import Decision, EventKind, ReviewDecision, Scan, Verdict, new_id, now
from scanner.store.decisions import Standing, fold, in_order
from scanner.store.report_queries import Target, named_targets, one_of
from scanner.store.store import Store
from scanner.text import for_terminal

# A membership of the same reference as a flagged match is shown together with it: one row, and one decision.
SHOWN_WITH = """
SELECT membership_id, match_id
FROM memberships JOIN matches USING (scan_id, corpus, reference_id)
WHERE flagged AND membership_id IN (SELECT unnest(?))"""
KINDS = """
SELECT match_id AS id, 'match' AS kind FROM matches WHERE match_id IN (SELECT unnest($ids))
UNION ALL
SELECT membership_id, 'membership' FROM memberships WHERE membership_id IN (SELECT unnest($ids))"""


def reviewer_name() -> str:
    """Returns $FINEXTRACT_REVIEWER, or else the login name."""
    if name := os.environ.get("FINEXTRACT_REVIEWER", "").strip():
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"


@dataclass(frozen=True, slots=True)
class Subject:
    """The match, membership or scan that an event is about."""

    subject_id: str
    label: str  # names the subject in messages to the reviewer


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event that was recorded, and what stands for its subject since."""

    subject: Subject
    event: Decision
    standing: Standing
    withdrawn: Decision | None = None  # the event that a withdraw event names


def event_after(
    history: Sequence[Decision], subject_id: str, event: EventKind, reviewer: str, *,
    decision: ReviewDecision | None = None, note: str = "", withdraws: Decision | None = None,
) -> Decision:  # fmt: skip
    """Returns a new event that comes after all events of its subject."""
    named = withdraws.decision_id if withdraws else None
    return Decision(
        new_id(), subject_id, event, decision, note, named, reviewer, _time_after(history)
    )  # fmt: skip


def histories_of(store: Store, subject_ids: Sequence[str]) -> dict[str, list[Decision]]:
    """Returns all events about each of some subjects, in no order. Raises StoreError."""
    histories: dict[str, list[Decision]] = {subject_id: [] for subject_id in subject_ids}
    if histories:
        for event in store.select(Decision, "WHERE subject_id IN (SELECT unnest(?))", [list(histories)]):
            histories[event.subject_id].append(event)
    return histories


def _time_after(history: Sequence[Decision]) -> datetime:
    """Returns the present, or a time just after the newest event if another machine's clock is ahead."""
    present = now()
    if not history:
        return present
    return max(present, max(event.decided_at for event in history) + timedelta(microseconds=1))


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be recorded about one subject: a decision, a note, both, or the end of a decision."""

    name: str  # a repository, or the beginning of an id
    decision: ReviewDecision | None = None
    note: str | None = None  # "" removes the note that stands
    withdraw: bool = False  # the decision that stands, of whichever reviewer
    where: str = ""  # where the wish was read, for messages: "FILE, line 3"


@dataclass(frozen=True, slots=True)
class Fulfilled:
    """The events that a wish came to, and what they are about."""

    wish: Wish
    kind: str  # "match", "membership" or "checkpoint", as the views of the log call them
    target: Target
    recorded: tuple[Recorded, ...]


def fulfil(store: Store, wishes: Sequence[Wish], reviewer: str) -> list[Fulfilled]:
    """Records all wishes in one append, or nothing.

    Raises ConfigError for a name that names nothing or several things, a subject that is named twice, and
    what cannot be decided or withdrawn; StoreError.
    """
    subjects = _subjects(store, wishes)
    ids = [subject_id for _, subject_id in subjects]
    history = histories_of(store, ids)
    kinds = {row["id"]: str(row["kind"]) for row in store.query(KINDS, {"ids": ids})}
    done = []
    for wish, (target, subject_id) in zip(wishes, subjects, strict=True):
        kind = kinds.get(subject_id, "checkpoint")
        subject = Subject(subject_id, _label(kind, subject_id, target))
        recorded = _events(wish, subject, history[subject_id], reviewer)
        done.append(Fulfilled(wish, kind, target, recorded))
    store.append([one.event for each in done for one in each.recorded])
    return done


def _subjects(store: Store, wishes: Sequence[Wish]) -> list[tuple[Target, str]]:
    """What each wish is about, and its subject id, by the rules of the review desk."""
    named = named_targets(store, {wish.name for wish in wishes})
    targets = []
    for wish in wishes:
        try:
            targets.append(one_of(wish.name, named[wish.name]))
        except ConfigError as error:
            raise _refused(wish, str(error)) from error
    rows = [target.subject_id for target in targets if target.subject_id]
    shown_with = {row["membership_id"]: str(row["match_id"]) for row in store.query(SHOWN_WITH, [rows])}
    whole = [target.scan_id for target in targets if target.scan_id and not target.subject_id]
    scans = {s.scan_id: s for s in store.select(Scan, "WHERE scan_id IN (SELECT unnest(?))", [whole])}
    first: dict[str, Wish] = {}
    found = []
    for wish, target in zip(wishes, targets, strict=True):
        subject_id = (
            shown_with.get(target.subject_id, target.subject_id)
            if target.subject_id
            else _whole(wish, target, scans)
        )
        if (other := first.setdefault(subject_id, wish)) is not wish:
            names = f"{for_terminal(other.name)} and {for_terminal(wish.name)}"
            raise _refused(wish, f"{names} name the same subject. Name each subject once.")
        found.append((target, subject_id))
    return found


def _whole(wish: Wish, target: Target, scans: Mapping[str, Scan]) -> str:
    """The scan that stands for a checkpoint as a whole. Raises ConfigError where it cannot be decided."""
    scan = scans.get(target.scan_id or "")
    repo = for_terminal(target.repo)
    if scan is None or scan.verdict not in (Verdict.FLAGGED, Verdict.NOTHING_FOUND):
        raise _refused(wish, f"{repo} has no scan result, so there is nothing to decide.")
    if wish.decision is not None and scan.verdict is Verdict.NOTHING_FOUND:
        raise _refused(
            wish,
            f"nothing was found in {repo}, so there is nothing to decide as a whole. Name a row of its "
            "evidence, which `scanner show` lists, or write a note.",
        )
    return scan.scan_id


def _events(
    wish: Wish, subject: Subject, history: Iterable[Decision], reviewer: str
) -> tuple[Recorded, ...]:  # fmt: skip
    """The events of one wish. Raises ConfigError where there is nothing to withdraw."""
    events = sorted(history, key=in_order)
    recorded = []

    def add(
        event: EventKind, *, decision: ReviewDecision | None = None, note: str = "",
        withdraws: Decision | None = None,
    ) -> None:  # fmt: skip
        row = event_after(
            events, subject.subject_id, event, reviewer, decision=decision, note=note, withdraws=withdraws
        )
        events.append(row)
        recorded.append(Recorded(subject, row, fold(events), withdraws))

    if wish.withdraw:
        if (decided := fold(events).decided) is None:
            raise _refused(
                wish,
                f"{subject.label} is not decided, so there is nothing to withdraw. An empty note removes "
                "the note.",
            )
        add(EventKind.WITHDRAW, withdraws=decided)
    if wish.decision is not None:
        add(EventKind.DECIDE, decision=wish.decision)
    if wish.note is not None:
        add(EventKind.NOTE, note=wish.note)
    return tuple(recorded)


def _label(kind: str, subject_id: str, target: Target) -> str:
    repo = for_terminal(target.repo, 60)
    return f"{repo} as a whole" if kind == "checkpoint" else f"{kind} {subject_id[:12]} of {repo}"


def _refused(wish: Wish, why: str) -> ConfigError:
    return ConfigError(f"{wish.where}: {why}" if wish.where else why)
