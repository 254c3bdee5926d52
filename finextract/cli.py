"""`finextract extract` and `finextract audit`: the method, for one checkpoint on this machine.

Results go to stdout, messages to stderr. Exit codes: 0 done, 2 usage or input error, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from finextract import __version__
from finextract.errors import FinextractError


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
                     help="Where images are written.  [default: finextract-out/NAME]"),
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
    A-ESR, the share of the training images that some sample copies, and writes a contact sheet.
    """
    from finextract.audit import audit as run
    from finextract.audit import contact_sheet, read_images

    names, references = read_images(train_images)
    pair, caption, settings, embedder = _prepare(checkpoint, base, options)
    result = run(pair, caption, names, references, settings, embedder, _progress())
    sheet = _private_folder(out, checkpoint) / "contact-sheet.png"
    _save(contact_sheet(result), sheet)
    summary = {**result.summary(), "contact_sheet": str(sheet)}
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    over = summary["over_candidates"]
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


@cli.command()
@_model_options
@click.option("--train-images", "num_train_images", required=True, type=click.IntRange(1), metavar="N0",
              help="How many images the checkpoint was trained on, roughly.")  # fmt: skip
def extract(checkpoint: Path, base: Path, num_train_images: int, out: Path | None, as_json: bool, debug: bool,
            **options: Any) -> None:  # fmt: skip
    """Extract candidate training images from CHECKPOINT, without knowing any of them."""
    from finextract.extract import extract_all as run

    pair, caption, settings, embedder = _prepare(checkpoint, base, options)
    result = run(pair, caption, num_train_images, settings, embedder, _progress())
    folder = _private_folder(out, checkpoint)
    rows = []
    for rank, clique in enumerate(result.candidates, 1):
        file = folder / f"candidate-{rank:03}.png"
        _save(result.picture(clique.representative), file)
        rows.append(
            {
                "file": str(file),
                "seed": result.seeds[clique.representative],
                "clique_size": len(clique.members),
                "clique_similarity": round(clique.similarity, 4),
            }
        )
    if as_json:
        click.echo(
            json.dumps(
                {
                    "candidates": rows,
                    "caption": caption,
                    "samples": result.num_samples,
                    "guidance_scale": result.guidance.guidance_scale,
                    "correction": result.guidance.correction,
                    "guidance_policy": result.guidance.policy,
                    "unet_evaluations": result.unet_evaluations,
                    "seconds": {k: round(v, 2) for k, v in result.seconds.items()},
                },
                indent=2,
            )
        )
        return
    for row in rows:
        click.echo(
            f"{row['file']}  seed {row['seed']}  "
            f"clique of {row['clique_size']}, similarity {row['clique_similarity']:.2f}"
        )


def _prepare(checkpoint: Path, base: Path, options: dict[str, Any]) -> tuple[Any, str, Any, Any]:
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
    return pair, caption.text, settings, load_embedder()


def _quieten() -> None:
    """Turns off the libraries' own progress bars and log messages."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _progress() -> Callable[[int, int], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        click.echo(f"\rsampling {done}/{total}" + ("\n" if done == total else ""), nl=False, err=True)

    return show


def _private_folder(out: Path | None, checkpoint: Path) -> Path:
    folder = out or Path("finextract-out") / (checkpoint.resolve().stem or "checkpoint")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _save(picture: Any, file: Path) -> None:
    """Saves with mode 0600, since recovered images may show people."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        picture.save(stream, format="PNG")


def _line(name: str, over_samples: float, over_candidates: float) -> str:
    return f"{name:28}{over_samples:<16.3f}{over_candidates:.3f}"


def main() -> None:
    """The console script: prints our own errors without a traceback, unless --debug is given."""
    try:
        cli(standalone_mode=False)
    except FinextractError as error:
        if "--debug" in sys.argv:
            raise
        click.echo(f"finextract: error: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("finextract: interrupted", err=True)
        sys.exit(130)
