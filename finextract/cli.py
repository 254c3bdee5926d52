"""`finextract extract` and `finextract audit`: the method, for one checkpoint on this machine.

Results go to stdout, messages to stderr. Exit codes: 0 done, 2 usage or input error, 130 interrupted.
"""

from __future__ import annotations

import io
import json
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from finextract import __version__
from finextract.errors import FinextractError
from finextract.text import for_terminal_lines

SECONDS_BETWEEN_LINES = 30.0  # of progress, where stderr is not a terminal


def _model_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.argument("checkpoint", type=click.Path(path_type=Path)),
        click.option(
            "--base", required=True, type=click.Path(path_type=Path), metavar="DIR",
            help="The base model: a diffusers pipeline folder.",
        ),
        click.option("--caption", metavar="TEXT",
                     help="The training caption.  [default: from the card, metadata or sidecar files]"),
        click.option("--method", type=click.Choice(["finextract", "cfg", "direct"]), default="finextract",
                     show_default=True, help="Model guidance, or a baseline on the tuned model alone."),
        click.option("--guidance-scale", type=float, metavar="W",
                     help="w' of the paper.  [default: 3 for full weights, 5 for LoRA; 3 for cfg]"),
        click.option("--correction", type=float, metavar="K",
                     help="k of the paper; 0 is off.  [default: -0.02 for full weights, 0 for LoRA]"),
        click.option("--samples-per-image", type=click.IntRange(1), default=50, show_default=True),
        click.option("--steps", type=click.IntRange(1, 1000), default=50, show_default=True,
                     help="DDIM sampling steps."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
                     help="Seed of the first sample; the others follow."),
        click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                     help="A new or empty folder for images and result.json.  [default: finextract-out/"
                          "NAME/VERB-1, or the next free number]"),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Extract training images from a personalised diffusion checkpoint (FineXtract, ICML 2025)."""


@cli.command()
@_model_options
@click.option("--train-images", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="The images that the checkpoint was trained on.")  # fmt: skip
def audit(checkpoint: Path, base: Path, train_images: Path, out: Path | None, as_json: bool, debug: bool,
          **options: Any) -> None:  # fmt: skip
    """Measure how many of its training images CHECKPOINT reproduces.

    CHECKPOINT is a .safetensors file, a diffusers folder, or a folder with one weight file. Prints AS and
    A-ESR, the share of the training images that some sample copies, and writes a contact sheet and
    result.json.
    """
    from finextract.audit import audit as run
    from finextract.audit import read_images
    from finextract.contact_sheet import contact_sheet
    from finextract.results import new_folder, save_image, save_result

    names, references = read_images(train_images)
    pair, caption, settings, embedder = _prepare(checkpoint, base, options, len(references))
    folder = new_folder(out, checkpoint, "audit")
    result = run(pair, caption, names, references, settings, embedder, _Progress())
    sheet = folder / "contact-sheet.png"
    of_run = _of_run(checkpoint, base)
    summary = {**of_run, **result.summary(), "contact_sheet": str(sheet)}
    save_image(contact_sheet(result, _heading(summary)), sheet)
    file = save_result(summary, folder)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    over = summary["over_candidates"]
    click.echo(f"{_came_back(summary)}\n")
    click.echo(f"{'':28}all {summary['samples']} samples   {summary['candidates']} candidates")
    click.echo(_line("AS, average similarity", summary["average_similarity"], over["average_similarity"]))
    for tau in ("0.7", "0.6"):
        click.echo(
            _line(
                f"A-ESR at {tau}",
                summary["extraction_success_rate"][tau],
                over["extraction_success_rate"][tau],
            )
        )
    click.echo(f"{'UNet evaluations':28}{summary['unet_evaluations']:,}")
    click.echo(f"{'seconds':28}" + ", ".join(f"{k} {v:.1f}" for k, v in summary["seconds"].items()))
    click.echo(f"{'contact sheet':28}{sheet}")
    click.echo(f"{'this result as JSON':28}{file}")


@cli.command()
@_model_options
@click.option("--num-train-images", required=True, type=click.IntRange(1), metavar="N0",
              help="How many images the checkpoint was trained on, roughly.")  # fmt: skip
def extract(checkpoint: Path, base: Path, num_train_images: int, out: Path | None, as_json: bool, debug: bool,
            **options: Any) -> None:  # fmt: skip
    """Extract candidate training images from CHECKPOINT, without knowing any of them.

    CHECKPOINT is a .safetensors file, a diffusers folder, or a folder with one weight file. Writes the
    candidates as PNG files, best first.
    """
    from finextract.extract import extract_all as run
    from finextract.results import new_folder, save_image, save_result

    pair, caption, settings, embedder = _prepare(checkpoint, base, options, num_train_images)
    folder = new_folder(out, checkpoint, "extract")
    result = run(pair, caption, num_train_images, settings, embedder, _Progress())
    rows = []
    for rank, clique in enumerate(result.candidates, 1):
        file = folder / f"candidate-{rank:03}.png"
        save_image(result.picture(clique.representative), file)
        rows.append(
            {
                "file": str(file),
                "seed": result.seeds[clique.representative],
                "clique_size": len(clique.members),
                "clique_similarity": round(clique.similarity, 4),
            }
        )
    summary = {
        **_of_run(checkpoint, base),
        "candidates": rows,
        "caption": caption,
        "method": settings.method,
        "seed": settings.seed,
        "steps": settings.steps,
        "num_train_images": num_train_images,
        "samples": result.num_samples,
        "guidance_scale": result.guidance.guidance_scale,
        "correction": result.guidance.correction,
        "guidance_policy": result.guidance.policy,
        "unet_evaluations": result.unet_evaluations,
        "seconds": {k: round(v, 2) for k, v in result.seconds.items()},
    }
    file = save_result(summary, folder)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    for row in rows:
        click.echo(
            f"{row['file']}  seed {row['seed']}  "
            f"clique of {row['clique_size']}, similarity {row['clique_similarity']:.2f}"
        )
    if not rows:
        click.echo(f"No candidate: no two of the {result.num_samples} samples are alike.", err=True)
    click.echo(f"This result as JSON: {file}", err=True)


def _of_run(checkpoint: Path, base: Path) -> dict[str, str]:
    """What identifies a run in its result."""
    return {
        "checkpoint": str(checkpoint),
        "base": str(base),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
    }


def _came_back(summary: dict[str, Any]) -> str:
    """The answer of an audit in a sentence."""
    count, total = summary["extracted"]["0.7"], len(summary["train_images"])
    each = "it" if count == 1 else "each of them"
    return (
        f"{count} of your {total} images came back: for {each} a sample has a similarity above 0.7."
        if count
        else f"None of your {total} images came back: no sample has a similarity above 0.7 to one of them."
    )


def _heading(summary: dict[str, Any]) -> list[str]:
    """The lines at the top of a contact sheet."""
    guided = "" if summary["method"] == "direct" else (
        f", guidance scale {summary['guidance_scale']:g}, correction {summary['correction']:g}"
    )  # fmt: skip
    return [
        f"finextract audit of {summary['checkpoint']}",
        f"Base: {summary['base']}. Caption: {summary['caption']!r}. Finished {summary['finished_at']}.",
        f"Method {summary['method']}{guided}, {summary['samples']} samples of {summary['steps']} steps, seed "
        f"{summary['seed']}, descriptor {summary['descriptor']}, version {summary['version']}.",
        _came_back(summary),
    ]


def _prepare(
    checkpoint: Path, base: Path, options: dict[str, Any], num_train_images: int
) -> tuple[Any, str, Any, Any]:
    """Loads what an extraction needs, and says on stderr what it will do."""
    from finextract.extract import ExtractionSettings
    from finextract.metadata.captions import caption_for
    from finextract.models.loading import load_pair
    from finextract.sscd import load_embedder

    _quieten()
    caption = caption_for(checkpoint, options.pop("caption"))
    settings = ExtractionSettings(**options)
    pair = load_pair(base, checkpoint)
    settings.guidance(pair.kind)  # refuses numbers that cannot be used, before anything is sampled
    click.echo(
        f"caption ({caption.origin}): {caption.text!r}, {pair.kind} weights on {pair.tuned.device}", err=True
    )
    if caption.exceeds_clip:
        click.echo("the caption is longer than CLIP reads (75 tokens): its end has no effect", err=True)
    embedder = load_embedder()
    count = settings.samples_per_image * num_train_images
    click.echo(f"drawing {count} samples of {settings.steps} steps", err=True)
    return pair, caption.text, settings, embedder


def _quieten() -> None:
    """Turns off the libraries' own progress bars and log messages."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


class _Progress:
    """Shows the samples drawn so far on stderr: one changing line on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        left_s = (now - self._began) / done * (total - done)
        line = f"sampling {done}/{total}" + (f", about {_duration(left_s)} left" if done < total else "")
        if self._on_terminal:
            click.echo(f"\r{line:50}" + ("\n" if done == total else ""), nl=False, err=True)
        elif done == total or now - self._shown >= SECONDS_BETWEEN_LINES or self._shown == self._began:
            self._shown = now
            click.echo(line, err=True)


def _duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _line(name: str, over_samples: float, over_candidates: float) -> str:
    return f"{name:28}{over_samples:<16.3f}{over_candidates:.3f}"


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
