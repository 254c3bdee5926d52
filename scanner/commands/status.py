"""`scanner status`: the sum of the verdicts, and each checkpoint's."""

from __future__ import annotations

import json
import shutil
import sys
import time

import click

from scanner.commands.options import store_option
from scanner.commands.output import SHOWN_ROWS, outcome_table, told
from scanner.errors import ConfigError
from scanner.store.queries import count_verdicts, latest_config, newest, outcomes
from scanner.store.store import Store

LOOK_S = 2.0  # between two looks at the store


@click.command("status")
@store_option
@click.option("--config", "config_id", metavar="ID", help="A configuration.  [default: the last one used]")
@click.option(
    "--limit", type=click.IntRange(1), default=SHOWN_ROWS, show_default=True,
    help="Checkpoints to show, the strongest evidence first.",
)  # fmt: skip
@click.option("--watch", is_flag=True, help="Stay, and show the sum and the newest verdicts as they come.")
@click.option("--json", "as_json", is_flag=True, help="Print all rows as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the sum alone.")
def command(
    store: str, config_id: str | None, limit: int, watch: bool, as_json: bool, quiet: bool
) -> None:  # fmt: skip
    """Show how many checkpoints have which verdict."""
    opened = Store(store)
    known = [c["config_id"] for c in opened.query("SELECT config_id FROM configs ORDER BY created_at DESC")]
    if config_id is not None and config_id not in known:
        others = ", ".join(known[:10]) or "none yet"
        raise ConfigError(f"--config {config_id} is no configuration of this store. It has: {others}.")
    if watch:
        if as_json:
            raise ConfigError("--watch is for people; ask for --json again and again instead.")
        _watch(opened, config_id, quiet)
        return
    config_id = config_id or latest_config(opened)
    total = count_verdicts(opened, config_id)
    if as_json:
        rows = [] if quiet else outcomes(opened, config_id)
        click.echo(json.dumps({"config_id": config_id, **total.as_dict(), "checkpoints": rows}, indent=2))
        return
    if total.planned and not quiet:
        outcome_table(outcomes(opened, config_id, limit=limit), total.planned)
    click.echo(str(total))


def _watch(store: Store, config_id: str | None, quiet: bool) -> None:
    """Draws the screen anew when the store has news; elsewhere than on a terminal, prints the sum."""
    seen: object = None
    drawn = sys.stdout.isatty()
    try:
        while True:
            stamp = store.stamp()
            if stamp != seen:
                seen = stamp
                current = config_id or latest_config(store)
                lines = [f"{time.strftime('%H:%M:%S')}  {count_verdicts(store, current)}"]
                if drawn:
                    click.clear()
                    width, height = shutil.get_terminal_size()
                    lines += [""] + ([] if quiet else _newest(store, current, height - 4))
                    lines = [line[: width - 1] for line in lines] + ["Ctrl-C ends the watch, not the crawl."]
                click.echo("\n".join(lines))
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        click.echo()


def _newest(store: Store, config_id: str | None, count: int) -> list[str]:
    """The newest verdicts, a line each."""
    return [
        f"{row['finished_at'].astimezone():%H:%M:%S}  "
        + told(row["repo"], row["verdict"], row["best_similarity"], row["q_value"], row["reason"])
        for row in newest(store, config_id, max(1, count))
    ]
