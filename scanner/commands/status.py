"""`scanner status`: the verdicts of the checkpoints, and why some have none."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict

import click
from rich.text import Text

from scanner.commands.options import store_option
from scanner.commands.output import (
    SHOWN_ROWS,
    marked,
    marked_counts,
    outcome_table,
    reasons_table,
    say,
    verdict_line,
)
from scanner.errors import ConfigError
from scanner.store.queries import count_reasons, count_verdicts, newest, outcomes
from scanner.store.store import Store

POLL_S = 2.0  # between two checks of the store


@click.command("status")
@store_option
@click.option(
    "--config",
    "config_id",
    metavar="ID",
    help="Count the verdicts under this configuration alone, by its id.  [default: all configurations]",
)
@click.option(
    "--limit", type=click.IntRange(1), default=SHOWN_ROWS, show_default=True,
    help="The most checkpoints to show, those with the strongest evidence first.",
)  # fmt: skip
@click.option(
    "--watch", is_flag=True, help="Show the counts and the newest verdicts, and update them until Ctrl-C."
)
@click.option("--json", "as_json", is_flag=True, help="Print all rows as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the counts only.")
def command(
    store: str, config_id: str | None, limit: int, watch: bool, as_json: bool, quiet: bool
) -> None:  # fmt: skip
    """Show the verdicts of the listed checkpoints, and how many were skipped or failed for which reason.

    The last line counts them: planned = flagged + nothing found + skipped + failed + to do. Each checkpoint
    is counted once. Of its verdicts under several configurations a flag stands before every other, a failure
    after every other, and the newest of equals. The review desk and a crawl print the same sum.

    A flag names its grounds: "trained on" is a claim about training, made from the models' losses, "gives
    back" is about what anybody can generate now.
    """
    opened = Store(store)
    known = [c["config_id"] for c in opened.query("SELECT config_id FROM configs ORDER BY created_at DESC")]
    if config_id is not None and config_id not in known:
        others = ", ".join(known[:10]) or "none yet"
        raise ConfigError(
            f"--config {config_id} is not a configuration of this store. Its configurations: {others}."
        )
    if watch:
        if as_json:
            raise ConfigError(
                "--watch cannot be combined with --json. Run the command with --json repeatedly instead."
            )
        _watch(opened, config_id, quiet)
        return
    total = count_verdicts(opened, config_id)
    if as_json:
        rows = [] if quiet else outcomes(opened, config_id)
        reasons = [] if quiet else [asdict(r) for r in count_reasons(opened, config_id)]
        shown = {"config_id": config_id, **total.as_dict(), "reasons": reasons, "checkpoints": rows}
        click.echo(json.dumps(shown, indent=2))
        return
    if total.planned and not quiet:
        outcome_table(outcomes(opened, config_id, limit=limit), total.planned)
        if counted := count_reasons(opened, config_id):
            click.echo()
            reasons_table(counted)
            click.echo()
    say(marked_counts(total))


def _watch(store: Store, config_id: str | None, quiet: bool) -> None:
    """Redraws the screen when the store has changed; without a terminal, prints the counts."""
    seen: object = None
    drawn = sys.stdout.isatty()
    try:
        while True:
            stamp = store.stamp()
            if stamp != seen:
                seen = stamp
                counts = marked_counts(count_verdicts(store, config_id))
                lines = [Text(f"{time.strftime('%H:%M:%S')}  ").append_text(counts)]
                if drawn:
                    click.clear()
                    width, height = shutil.get_terminal_size()
                    lines += [Text()] + ([] if quiet else _newest(store, config_id, height - 4))
                    for line in lines:
                        line.truncate(width - 1)
                    lines.append(Text("Ctrl-C ends this display and not the crawl."))
                say(Text("\n").join(lines))
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        click.echo()


def _newest(store: Store, config_id: str | None, count: int) -> list[Text]:
    """The newest verdicts, one on each line."""
    lines = []
    for row in newest(store, config_id, max(1, count)):
        line = verdict_line(
            row["repo"], row["verdict"], row["best_similarity"], row["q_value"], row["reason"],
            grounds=row["grounds"], examined=row["examined"], membership_q=row["membership_q"],
        )  # fmt: skip
        lines.append(marked(f"{row['finished_at'].astimezone():%H:%M:%S}  {line}", row["verdict"]))
    return lines
