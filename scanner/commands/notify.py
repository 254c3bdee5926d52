"""`scanner notify`: who is told of new flags, a test message, and what could not be delivered."""

from __future__ import annotations

import click
from click.core import ParameterSource

from scanner.commands.options import store_option
from scanner.crawl.delivery import TIMEOUT_S, DeliveryFailed, Notify, deliver, shown_address
from scanner.errors import ConfigError
from scanner.settings import PrivateOption
from scanner.text import for_terminal_lines
from scanner.wording import count

WAIT_S = 600.0  # for all deliveries of one call


@click.command("notify")
@click.option(
    "--command", "command_", metavar="COMMAND",
    help="Run this program for each new flag, which it reads as JSON from stdin; no shell.",
)  # fmt: skip
@click.option(
    "--webhook", cls=PrivateOption, shown=shown_address, metavar="URL",
    help="Send each new flag as JSON to this address, by POST.",
)  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), metavar="SECONDS", default=TIMEOUT_S,
    show_default=True, help="The time that one delivery may take.",
)  # fmt: skip
@click.option("--test", is_flag=True, help="Send a message that says it is a test, and nothing else.")
@store_option
@click.pass_context
def command(
    ctx: click.Context, command_: str | None, webhook: str | None, timeout_s: float, test: bool, store: str
) -> int:
    """Tell of the flags that are not told yet, as `scanner crawl` and `scanner nightly` do while they run.

    They use what is set under [notify] in scanner.toml: `command = "..."` or `webhook = "https://..."`, and
    `timeout`. This command sends what they could not deliver, or a test message.

    Exit codes: 0 all was delivered; 2 nothing is set, or a setting cannot be used; 3 something could not be
    delivered, and is tried again.
    """
    named = {
        name
        for name in ("command_", "webhook")
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if len(named) == 1:  # it goes before the other one in scanner.toml
        command_, webhook = (command_, None) if "command_" in named else (None, webhook)
    notify = Notify.given(command_, webhook, timeout_s)
    if notify is None:
        raise ConfigError(
            "nobody is told of new flags. Write `command` or `webhook` under [notify] in scanner.toml, or "
            "pass one of them."
        )
    return _test(notify) if test else _deliver(notify, store)


def _test(notify: Notify) -> int:
    from scanner.crawl.messages import test_message

    try:
        printed = deliver(notify, test_message())
    except DeliveryFailed as error:
        click.echo(f"The test message was not delivered: {error}.", err=True)
        return 3
    if printed:
        click.echo(for_terminal_lines(printed.rstrip()), err=True)
    click.echo(f"The test message was delivered to {notify}.", err=True)
    return 0


def _deliver(notify: Notify, store: str) -> int:
    from scanner.crawl.notifying import Notifier
    from scanner.records import new_id
    from scanner.store.store import Store

    def say(text: str) -> None:
        click.echo(for_terminal_lines(text), err=True)

    with Notifier(notify, Store(store), new_id(), say) as notifier:
        told = notifier.end(WAIT_S)
    click.echo(f"{count(told.delivered, 'message')} delivered to {notify}.", err=True)
    return 3 if told.waiting else 0
