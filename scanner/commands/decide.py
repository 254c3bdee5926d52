"""`scanner decide`: decisions and notes from the command line, one or thousands at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches
from typing import IO, TYPE_CHECKING, Any

import click

from scanner.commands.options import store_option
from scanner.errors import ConfigError
from scanner.records import ReviewDecision
from scanner.text import for_terminal
from scanner.wording import count

if TYPE_CHECKING:
    from scanner.store.reviewing import Fulfilled, Wish

DECISIONS = tuple(decision.value for decision in ReviewDecision)
SHOWN = 20  # subjects that are named, one on each line
KEYS = {"subject": str, "decision": str, "note": str, "withdraw": bool}  # of a line of --from
MAX_LINES = 1_000_000


@click.command("decide")
@click.argument("words", metavar="SUBJECT... [confirm|dismiss|unsure]", nargs=-1)
@click.option("--note", metavar="TEXT", help="Write a note; an empty one removes the note that stands.")
@click.option("--withdraw", is_flag=True, help="Withdraw the decision that stands, of whichever reviewer.")
@click.option(
    "--from", "source", type=click.File("r", encoding="utf-8"), metavar="FILE",
    help="Read the subjects from JSON lines, - for stdin: "
    '{"subject": ..., "decision": ..., "note": ..., "withdraw": true}, all but the subject optional.',
)  # fmt: skip
@click.option(
    "--reviewer", metavar="NAME", envvar="FINEXTRACT_REVIEWER",
    help="Who decides.  [default: $FINEXTRACT_REVIEWER, or the name of the user account]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the recorded events as JSON.")
@store_option
def command(
    words: tuple[str, ...], note: str | None, withdraw: bool, source: IO[str] | None, reviewer: str | None,
    as_json: bool, store: str,
) -> None:  # fmt: skip
    """Record a decision or a note about matches, memberships, or checkpoints as a whole.

    A SUBJECT is a repository, or the beginning of the id of a checkpoint, a match, a membership or a scan.
    The review desk shows the same log. Of several subjects all are recorded, or none.

    The desk lets a reviewer confirm only what it has shown; this command does not know what was seen.
    """
    from scanner.store.reviewing import fulfil, reviewer_name
    from scanner.store.store import Store

    if source is None:
        wishes = list(_given(words, note, withdraw))
    elif words or note is not None or withdraw:
        raise ConfigError("--from reads subjects and decisions from the file alone. Name none beside it.")
    else:
        wishes = list(_read(source))
    if not wishes:
        raise ConfigError("no subject is named. Name a repository or the beginning of an id.")
    done = fulfil(Store(store), wishes, (reviewer or "").strip() or reviewer_name())
    if as_json:
        click.echo(json.dumps([event for each in done for event in events_of(each)], indent=2))
    for each in done[:SHOWN]:
        click.echo(f"Recorded: {_in_words(each)}.", err=True)
    if len(done) > SHOWN:
        events = sum(len(each.recorded) for each in done)
        click.echo(f"... {count(events, 'event')} about {count(len(done), 'subject')} in all.", err=True)


def _given(words: tuple[str, ...], note: str | None, withdraw: bool) -> Iterator[Wish]:
    """The wishes of the command line. Raises ConfigError where it says nothing to record."""
    from scanner.store.reviewing import Wish

    decided = words[-1] if words and words[-1] in DECISIONS else None
    names = words[:-1] if decided else words
    if not decided and len(words) > 1 and (meant := get_close_matches(words[-1], DECISIONS, 1)):
        raise ConfigError(f"{for_terminal(words[-1])} is no decision. Did you mean {meant[0]}?")
    _check(decided, note, withdraw, "")
    for name in names:
        yield Wish(name, ReviewDecision(decided) if decided else None, note, withdraw)


def _read(source: IO[str]) -> Iterator[Wish]:
    """The wishes of JSON lines. Raises ConfigError, with the line, for what is not one."""
    from scanner.store.reviewing import Wish

    file = for_terminal(getattr(source, "name", "the input"))
    try:
        for number, line in enumerate(source, 1):
            where = f"{file}, line {number}"
            if number > MAX_LINES:
                raise ConfigError(f"{file} has more than {MAX_LINES:,} lines. Split it.")
            if not line.strip():
                continue
            row = _row(line, where)
            decided = row.get("decision")
            _check(decided, row.get("note"), row.get("withdraw", False), where)
            yield Wish(
                row["subject"], ReviewDecision(decided) if decided else None, row.get("note"),
                row.get("withdraw", False), where,
            )  # fmt: skip
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: {error}.") from error


def _row(line: str, where: str) -> dict[str, Any]:
    """One line, with the keys that have a value."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: this is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise ConfigError(f'{where}: this is not a JSON object. Write {{"subject": ..., ...}}.')
    row = {key: value for key, value in row.items() if value is not None}
    for key, value in row.items():
        if key not in KEYS:
            raise ConfigError(f"{where}: {for_terminal(key)} is no key. The keys are {', '.join(KEYS)}.")
        if not isinstance(value, KEYS[key]):
            expected = "true or false" if KEYS[key] is bool else "a text"
            raise ConfigError(f"{where}: {key} takes {expected}.")
    if not row.get("subject"):
        raise ConfigError(f"{where}: no subject is named.")
    return row


def _check(decided: str | None, note: str | None, withdraw: bool, where: str) -> None:
    """Raises ConfigError where nothing, or two things that exclude each other, would be recorded."""
    prefix = f"{where}: " if where else ""
    if decided is not None and decided not in DECISIONS:
        raise ConfigError(f"{prefix}{for_terminal(decided)} is no decision. Use {', '.join(DECISIONS)}.")
    if withdraw and decided is not None:
        raise ConfigError(f"{prefix}a decision and its withdrawal exclude each other. Use one of them.")
    if decided is None and note is None and not withdraw:
        raise ConfigError(
            f"{prefix}nothing is to be recorded. Add {', '.join(DECISIONS)}, a note, or a withdrawal."
        )


def events_of(each: Fulfilled) -> Iterator[dict[str, Any]]:
    """The events about one subject, as --json prints them; the names are those of the view decision_log."""
    for recorded in each.recorded:
        event, standing = recorded.event, recorded.standing
        yield {
            "named": each.wish.name,
            "subject": each.kind,
            "subject_id": event.subject_id,
            "repo": each.target.repo,
            "checkpoint_id": each.target.checkpoint_id,
            "scan_id": each.target.scan_id,
            "decision_id": event.decision_id,
            "event": event.event,
            "decision": event.decision,
            "note": event.note,
            "withdraws": event.withdraws,
            "reviewer": event.reviewer,
            "decided_at": event.decided_at.isoformat(),
            "standing_decision": standing.decision,
            "standing_note": standing.note,
        }


def _in_words(each: Fulfilled) -> str:
    from scanner.report.words import DECIDED

    subject, standing = each.recorded[-1].subject, each.recorded[-1].standing
    stands = DECIDED.get(standing.decision or "", "undecided")
    again = " again" if each.wish.withdraw else ""
    noted = "" if each.wish.note is None else ", with a note" if each.wish.note else ", without a note"
    return f"{subject.label} is {stands}{again}{noted}"
