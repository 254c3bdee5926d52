"""`scanner`: each verb is a module of scanner/commands, imported when it is called.

stdout is data, stderr is messages. Exit codes: 0 every planned checkpoint has a verdict and none failed; 1
the same, and something was flagged and --fail-on-flag was given; 2 usage or configuration, or a source that
could not be listed to its end; 3 finished, some failed; 4 an error of this program; 130 interrupted.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from importlib import import_module
from typing import Any

import click

from finextract import __version__
from finextract.errors import FinextractError
from scanner import settings
from scanner.errors import ScannerError
from scanner.text import first_line, for_terminal_lines

VERBS = {
    "corpus": "Add, list and remove corpora: references, backgrounds and unseen works.",
    "crawl": "List fine-tuned checkpoints, and scan those that have no verdict yet.",
    "nightly": "Crawl all sources since the last complete night.",
    "status": "Show the verdicts of the listed checkpoints.",
    "sql": "Query the store in SQL.",
    "show": "Show what was found in a checkpoint, or which checkpoints contain a picture.",
    "decide": "Record decisions and notes about what was found.",
    "report": "Write what was found as a page that can be sent, with its evidence.",
    "reproduce": "Draw a recovered image again, and say how it differs.",
    "purge": "Remove a checkpoint, a corpus or old recovered images for good.",
    "export": "Write the store's tables as Parquet, CSV, JSON or one DuckDB file.",
    "compact": "Merge the store's small files, and remove what killed crawls left; safe at any time.",
    "migrate": "Convert a store that an older version wrote.",
    "notify": "Tell a command or a webhook of new flags; send a test message.",
    "config": "Show the effective settings, and where each comes from.",
    "doctor": "Check torch, GPU, SSCD, Ray, disk, hubs and tokens.",
    "completion": "Print the script that completes `scanner` in a shell.",
    "train-images": "Download the training images that an author published with a checkpoint.",
}


class _Verbs(click.Group):
    """Shows the line of each verb without importing the verb."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"scanner.commands.{cmd_name.replace('-', '_')}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click exits with 1 for one that has an errno, and 1 would say: flagged
            raise BrokenPipeError from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(error.command_name, possibilities=VERBS, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Find which published diffusion checkpoints were trained on your images, or give them back."""
    file = settings.find()
    if file is not None:
        ctx.default_map = settings.default_map(cli, settings.read(file), file)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return for_terminal_lines(super().format(record))


def main() -> None:
    """The console script. Prints an error that a user can fix on one or two lines, without a traceback."""
    if logging.lastResort is not None:  # prints the warnings of this program and of libraries
        logging.lastResort.setFormatter(_Printable())
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except (ScannerError, FinextractError) as error:
        if "--debug" in sys.argv:
            _say(traceback.format_exc())
        _say(f"scanner: error: {error}")
        sys.exit(2)
    except BrokenPipeError:  # of `scanner ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show(shown := io.StringIO())
        _say(shown.getvalue().rstrip())
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("scanner: interrupted", err=True)
        sys.exit(130)
    except Exception as error:  # 1, the exit code of Python for these, would say that something was flagged
        _say(traceback.format_exc())
        _say(
            f"scanner: error of this program: {first_line(error)}.\nAll recorded rows are kept. Report the "
            "error with the lines above."
        )
        sys.exit(4)


def _say(text: str) -> None:
    """Prints to stderr, without the control characters that untrusted text may have brought into it."""
    click.echo(for_terminal_lines(text), err=True)
