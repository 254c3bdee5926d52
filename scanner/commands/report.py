"""`scanner report`: what was found, as a page that can be sent."""

from __future__ import annotations

import os
from pathlib import Path

import click

from scanner.commands.options import store_option
from scanner.errors import ConfigError
from scanner.text import first_line


@click.command("report")
@click.argument("names", metavar="[CHECKPOINT|MATCH]...", nargs=-1)
@click.option("--flagged", is_flag=True, help="Every checkpoint that is flagged.")
@click.option("--confirmed", is_flag=True, help="Every checkpoint of which a reviewer confirmed something.")
@click.option(
    "-o", "--out", required=True, metavar="FILE.html", type=click.Path(path_type=Path, dir_okay=False),
    help="The page; its data go into FILE.json beside it.",
)  # fmt: skip
@store_option
def command(names: tuple[str, ...], flagged: bool, confirmed: bool, out: Path, store: str) -> None:
    """Write what was found in checkpoints as one HTML page, in plain words and with the evidence.

    A CHECKPOINT is a repository, or the beginning of an id; a MATCH is the beginning of the id of one row of
    evidence, about which the page then is. The page holds its pictures, blurred until they are clicked on,
    and fetches nothing. It and FILE.json are readable by you alone.
    """
    from scanner.report.contents import as_json, contents_of
    from scanner.report.page import page_of
    from scanner.store.report_queries import confirmed_targets, flagged_targets, named_target
    from scanner.store.store import Store

    _refuse_others(out)
    opened = Store(store)
    targets = [named_target(opened, name) for name in names]
    targets += flagged_targets(opened) if flagged else []
    targets += confirmed_targets(opened) if confirmed else []
    targets = list(dict.fromkeys(targets))
    if not targets and (flagged or confirmed):
        raise ConfigError(f"nothing in the store is {'flagged' if flagged else 'confirmed'} yet.")
    if not targets:
        raise ConfigError("no checkpoint is named. Name a repository or an id, or use --flagged.")
    contents = [contents_of(opened, target) for target in targets]
    data = contents[0] if len(contents) == 1 else {
        "format": contents[0]["format"], "program": contents[0]["program"],
        "written_at": contents[0]["written_at"], "reports": contents,
    }  # fmt: skip
    twin = out.with_suffix(".json")
    _write(out, page_of(opened, contents, data))
    _write(twin, as_json(data))
    click.echo(f"{out}: {len(contents):,} of the store's checkpoints; data: {twin}", err=True)


def _refuse_others(out: Path) -> None:
    """Raises ConfigError where the page or its twin would replace what is no report."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{out} is no name of a page. Name it FILE.html.")
    marks = ((out, b'content="finextract-scanner"'), (out.with_suffix(".json"), b'"finextract-scanner '))
    for file, mark in marks:
        try:
            is_other = file.exists() and mark not in file.read_bytes()
        except OSError:  # a folder, or a file of somebody else
            is_other = True
        if is_other:
            raise ConfigError(f"{file} exists and is no report, so it is kept. Name another file with -o.")


def _write(file: Path, text: str) -> None:
    """A file that its owner alone may read; an existing one is replaced. Raises ConfigError."""
    part = file.with_name(f".{file.name}.part")
    try:
        part.unlink(missing_ok=True)
        with os.fdopen(
            os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
        ) as stream:
            stream.write(text)
        part.replace(file)
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written: {first_line(error)}. Name another file with -o."
        ) from error
