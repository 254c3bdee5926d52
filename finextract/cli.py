"""The command `finextract`: the method, for one checkpoint on this machine.

Results go to stdout, messages to stderr. Exit codes: 0 done, 2 usage or input error, 130 interrupted.
"""

from __future__ import annotations

import io
import sys
import traceback

import click

from finextract import __version__
from finextract.commands.audit import audit
from finextract.commands.bench import bench
from finextract.commands.extract import extract
from finextract.commands.membership import membership
from finextract.errors import FinextractError
from finextract.text import for_terminal_lines


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """What a personalised diffusion checkpoint was trained on, and what it gives back.

    Training images are extracted by model guidance (FineXtract, ICML 2025).
    """


cli.add_command(audit)
cli.add_command(bench)
cli.add_command(extract)
cli.add_command(membership)


def main() -> None:
    """The console script: prints our own errors without a traceback, unless --debug is given."""
    try:
        cli(standalone_mode=False)
    except FinextractError as error:
        if "--debug" in sys.argv:
            click.echo(for_terminal_lines(traceback.format_exc()), err=True)
        click.echo(for_terminal_lines(f"finextract: error: {error}"), err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show(shown := io.StringIO())
        click.echo(for_terminal_lines(shown.getvalue().rstrip()), err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("finextract: interrupted", err=True)
        sys.exit(130)
