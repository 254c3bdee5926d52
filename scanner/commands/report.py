"""`scanner report`: what was found, as a page that can be sent."""

from __future__ import annotations

from pathlib import Path

import click

from scanner.commands.options import store_option
from scanner.errors import ConfigError
from scanner.wording import count


@click.command("report")
@click.argument("names", metavar="[CHECKPOINT|MATCH]...", nargs=-1)
@click.option("--flagged", is_flag=True, help="Every checkpoint that is flagged.")
@click.option("--confirmed", is_flag=True, help="Every checkpoint of which a reviewer confirmed something.")
@click.option(
    "-o", "--out", metavar="FILE.html", type=click.Path(path_type=Path, dir_okay=False),
    help="The page; its data go into FILE.json beside it.",
)  # fmt: skip
@click.option(
    "--bundle", metavar="FILE.zip", type=click.Path(path_type=Path, dir_okay=False),
    help="One archive with the page, its data, the pictures and the hashes of all files.",
)  # fmt: skip
@click.option(
    "--sign-with", metavar="KEY", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="With --bundle: an SSH key that signs the hashes, such as ~/.ssh/id_ed25519. Needs ssh-keygen.",
)  # fmt: skip
@store_option
def command(
    names: tuple[str, ...], flagged: bool, confirmed: bool, out: Path | None, bundle: Path | None,
    sign_with: Path | None, store: str,
) -> None:  # fmt: skip
    """Write what was found in checkpoints as one HTML page, in plain words and with the evidence.

    A CHECKPOINT is a repository, or the beginning of an id; a MATCH is the beginning of the id of one row of
    evidence, about which the page then is. The page holds its pictures, blurred until they are clicked on,
    and fetches nothing. It and FILE.json are readable by you alone.
    """
    from scanner.report.bundle import refuse_other, write_bundle
    from scanner.report.writing import refuse_others, write_report
    from scanner.store.report_queries import confirmed_targets, flagged_targets, named_target
    from scanner.store.store import Store

    if out is None and bundle is None:
        raise ConfigError(
            "name what to write: the page with -o FILE.html, an archive with --bundle FILE.zip."
        )
    if sign_with is not None and bundle is None:
        raise ConfigError("--sign-with belongs to --bundle.")
    if out is not None:
        refuse_others(out)  # before anything is read
    if bundle is not None:
        refuse_other(bundle)
    opened = Store(store)
    targets = [named_target(opened, name) for name in names]
    targets += flagged_targets(opened) if flagged else []
    targets += confirmed_targets(opened) if confirmed else []
    targets = list(dict.fromkeys(targets))
    if not targets and (flagged or confirmed):
        raise ConfigError(f"nothing in the store is {'flagged' if flagged else 'confirmed'} yet.")
    if not targets:
        raise ConfigError("no checkpoint is named. Name a repository or an id, or use --flagged.")
    about = f"{len(targets):,} of the store's checkpoints"
    if out is not None:
        twin = write_report(opened, targets, out)
        click.echo(f"{out}: {about}; data: {twin}", err=True)
    if bundle is not None:
        pictures = write_bundle(opened, targets, bundle, sign_with)
        signed = "signed" if sign_with else "not signed"
        click.echo(f"{bundle}: {about}, {count(pictures, 'picture')}, {signed}", err=True)
