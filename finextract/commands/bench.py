"""`finextract bench`: how well and how fast the method does on checkpoints that are known."""

from __future__ import annotations

from pathlib import Path

import click

from finextract.commands.common import Option, Progress, with_options

# Evaluations of either denoiser for each training image; the paper's own preset takes 5,000.
EVALUATIONS = {"cpu": 600, "gpu": 5000}
BATCH = {"cpu": 25, "gpu": 64}
STEPS = 50  # of the published pipeline


CASES: tuple[Option, ...] = (
    click.option("--zoo", "manifests", multiple=True, required=True, metavar="FILE",
                 type=click.Path(path_type=Path, exists=True, dir_okay=False),
                 help="A manifest of checkpoints with their training images, such as tests/zoo/zoo.json. May "
                      "be given several times."),
    click.option("--split", type=click.Choice(["dev", "test"]), default="test", show_default=True,
                 help="The half of the subjects: choices are made on dev, and told of test."),
)  # fmt: skip


@click.group()
def bench() -> None:
    """Measure the method on checkpoints whose training images are known."""


@bench.command()
@with_options(*CASES)
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


@bench.command()
@with_options(*CASES)
@click.option("--only", multiple=True, metavar="WORD",
              help="Checkpoints whose name has it; may be given several times.  "
                   "[default: the first]")  # fmt: skip
@click.option("--samples-per-image", type=click.IntRange(1), default=50, show_default=True,
              help="Samples for each training image; the default goes on to four times as many until its "
                   "result is as good.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="The folder of the results; one that holds no run.")  # fmt: skip
def speed(
    manifests: tuple[Path, ...], split: str, only: tuple[str, ...], samples_per_image: int, out: Path
) -> None:
    """Time the published pipeline, the paper preset and the default on the same checkpoint.

    The published pipeline is a plain transcription: two float32 networks in turn, batches of five, PNG files,
    SSCD on one picture at a time, and all maximal cliques. Tells the seconds by stage, the ratio at the same
    samples and at an equally good result, and the floor: what this device computes in a second, and the share
    of it that sampling reaches. On a GPU also what precision, torch.compile, attention, batch size and a
    second network cost.
    """
    from finextract.bench.speed_runs import run_speed
    from finextract.models.loading import quieten_libraries

    quieten_libraries()
    run_speed(list(manifests), split, list(only), samples_per_image, STEPS, out, click.echo, Progress())
