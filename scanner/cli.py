"""`scanner`: one verb, one file in scanner/commands, loaded when it is asked for.

stdout is data, stderr is words. Exit codes: 0 every planned checkpoint has a verdict and none failed; 1 the
same, and something was flagged and --fail-on-flag was given; 2 usage or configuration, or a source that
could not be listed to its end; 3 finished, some failed; 130 interrupted.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from finextract import __version__
from scanner import settings
from scanner.errors import ScannerError

VERBS = {
    "corpus": "Keep the images that are looked for, and the background they are judged against.",
    "crawl": "List fine-tuned checkpoints, and scan those that have no verdict yet.",
    "nightly": "Crawl every source since the last complete night, once a date.",
    "status": "Show how many checkpoints have which verdict.",
    "sql": "Ask the store in SQL.",
    "export": "Write the store's tables as Parquet, CSV, JSON or one DuckDB file.",
    "compact": "Make the store's many small files into few; safe at any time.",
    "config": "Show the settings that hold, and where each comes from.",
    "doctor": "Check what a crawl needs: torch, GPU, SSCD, Ray, disk, hubs, tokens.",
    "completion": "Print what makes a shell complete `scanner`.",
    "train-images": "Fetch the training images that an author published beside a checkpoint.",
}


class _Verbs(click.Group):
    """Shows every verb's line without importing any verb."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"scanner.commands.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Find which shared diffusion checkpoints give back images of your collection."""
    file = settings.find()
    if file is not None:
        ctx.default_map = settings.default_map(cli, settings.read(file), file)


def main() -> None:
    """The console script: prints our own errors on one or two lines."""
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except ScannerError as error:
        if "--debug" in sys.argv:
            raise
        click.echo(f"scanner: error: {error}", err=True)
        sys.exit(2)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("scanner: interrupted", err=True)
        sys.exit(130)
