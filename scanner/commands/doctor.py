"""`scanner doctor`: checks whether a crawl can work on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from scanner.commands.options import notify_setting, store_option
from scanner.commands.output import marked, say
from scanner.text import for_terminal


@click.command("doctor")
@store_option
@click.option("--ray-address", metavar="ADDRESS", help="The address of the Ray cluster that crawls will use.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(store: str, ray_address: str | None, as_json: bool) -> int:
    """Check torch, GPU, SSCD, Ray, disk, hubs and tokens, and say how to fix what is wrong.

    Exits with 2 if a crawl cannot work.
    """
    from scanner.doctor import State, examine

    done = []
    for check in examine(store, ray_address, notify_setting):
        done.append(check)
        if not as_json:
            say(marked(for_terminal(f"{check.state.value:6} {check.name:14} {check.finding}"), check.state))
            if check.remedy:
                say(for_terminal(f"{'':22}{check.remedy}"))
    if as_json:
        click.echo(json.dumps([asdict(check) for check in done], indent=2))
    return 2 if any(check.state is State.BAD for check in done) else 0
