"""`scanner train-images`: pictures that an author published beside a checkpoint, for who asks."""

from __future__ import annotations

from pathlib import Path

import click

from scanner.errors import ConfigError
from scanner.units import parse_size


@click.command("train-images")
@click.argument("repo", metavar="OWNER/NAME")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--max-download", default="500MB", show_default=True, metavar="SIZE", help="Fetch nothing beyond that."
)
def command(repo: str, folder: Path, max_download: str) -> None:
    """Fetch the training images that a repository on HuggingFace publishes (concept_images/) into DIR.

    They are ground truth: `finextract audit --train-images DIR` measures what the checkpoint gives back of
    them. A crawl counts them, and never fetches them.
    """
    from scanner.hubs.base_models import is_repo
    from scanner.hubs.huggingface.source import HuggingFaceSource

    if not is_repo(repo):
        raise ConfigError(f"{repo} is no OWNER/NAME of a repository.")
    fetched = HuggingFaceSource().fetch_train_images(repo, folder, parse_size(max_download))
    click.echo(f"{len(fetched)} training images of {repo} in {folder}", err=True)
