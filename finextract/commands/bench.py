"""`finextract bench`: how well and how fast the method does on checkpoints that are known."""

from __future__ import annotations

from pathlib import Path

import click

from finextract.commands.common import Progress

# Evaluations of either denoiser for each training image; the paper's own preset takes 5,000.
EVALUATIONS = {"cpu": 600, "gpu": 5000}
BATCH = {"cpu": 25, "gpu": 64}


@click.group()
def bench() -> None:
    """Measure the method on checkpoints whose training images are known."""


@bench.command()
@click.option("--zoo", "manifests", multiple=True, required=True, metavar="FILE",
              type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="A manifest of checkpoints with their training images, such as tests/zoo/zoo.json. May be "
                   "given several times.")  # fmt: skip
@click.option("--split", type=click.Choice(["dev", "test"]), default="test", show_default=True,
              help="The half of the subjects: choices are made on dev, and told of test.")  # fmt: skip
@click.option("--only", multiple=True, metavar="WORD",
              help="Checkpoints whose name has it; may be given several times.  [default: all]")  # fmt: skip
@click.option("--preset", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True,
              help="What each arm may take: 600 or 5,000 evaluations for each training image.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="The folder of the results. What it holds already is not measured again.")  # fmt: skip
def quality(manifests: tuple[Path, ...], split: str, only: tuple[str, ...], preset: str, out: Path) -> None:
    """Compare what the arms give back at equal cost, net of chance.

    The arms are direct sampling, classifier-free guidance, the published preset and the default. Writes a row
    for each checkpoint, arm and cost, a table, a plot, and what membership says of the same pictures.
    """
    from finextract.bench.runs import run_quality

    run_quality(
        list(manifests), split, list(only), EVALUATIONS[preset], BATCH[preset], out, click.echo, Progress()
    )
