"""`scanner completion`: the script with which a shell completes the verbs and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes `scanner` in SHELL.

    bash: `scanner completion bash >> ~/.bashrc`. zsh: the same with ~/.zshrc. fish: write it to
    ~/.config/fish/completions/scanner.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell
    root = ctx.find_root().command
    click.echo(kind(root, {}, "scanner", "_SCANNER_COMPLETE").source())
