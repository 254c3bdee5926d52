"""`scanner train-images`: downloads the training images that an author published with a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from scanner.commands.options import SIZE
from scanner.errors import ConfigError


@click.command("train-images")
@click.argument("repo", metavar="OWNER/NAME")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--max-download",
    default="500MB",
    show_default=True,
    metavar="SIZE",
    type=SIZE,
    help="Download nothing if the images are larger.",
)
def command(repo: str, folder: Path, max_download: int) -> None:
    """Download the training images of a HuggingFace repository (its folder concept_images) into DIR.

    `finextract audit --train-images DIR` measures which of them the checkpoint reproduces. A crawl counts
    such images and does not download them.
    """
    from scanner.hubs.base_models import is_repo
    from scanner.hubs.huggingface.source import HuggingFaceSource

    if not is_repo(repo):
        raise ConfigError(f"{repo} is not a repository. Write it as OWNER/NAME.")
    fetched = HuggingFaceSource().fetch_train_images(repo, folder, max_download)
    click.echo(f"{len(fetched)} training images of {repo} in {folder}", err=True)
