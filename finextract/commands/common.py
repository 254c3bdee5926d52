"""What the verbs share: their options, progress on stderr, and what identifies a run."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from finextract import __version__

if TYPE_CHECKING:
    from finextract.extract import ExtractionSettings
    from finextract.models.base import Pair
    from finextract.sscd import Embedder

SHOWN_CAPTION = 200  # characters of a caption; the result has all of it
SECONDS_BETWEEN_LINES = 30.0  # of progress, where stderr is not a terminal

type Command = Callable[..., None]
type Option = Callable[[Command], Command]

PAIR: tuple[Option, ...] = (
    click.argument("checkpoint", type=click.Path(path_type=Path)),
    click.option("--base", required=True, type=click.Path(path_type=Path, exists=True), metavar="DIR|FILE",
                 help="The base model: a diffusers pipeline folder, or one .safetensors file."),
    click.option("--base-parts", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="A pipeline folder of the base's family with what a base of one file lacks: VAE, text "
                      "encoders, T5's tokenizer.  [default: none]"),
)  # fmt: skip
SAMPLING: tuple[Option, ...] = (
    click.option("--caption", metavar="TEXT",
                 help="The training caption; an empty one samples without a prompt.  [default: from the "
                      "card, metadata or sidecar files; else a guess that the models bear out; else none]"),
    click.option("--caption-model", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="A CLIP model of open_clip that helps to guess a caption that nothing states: a folder "
                      "with open_clip_config.json and the weights as safetensors.  [default: none]"),
    click.option("--method", type=click.Choice(["finextract", "cfg", "direct"]), default="finextract",
                 show_default=True, help="Model guidance, or a baseline on the tuned model alone."),
    click.option("--guidance-scale", type=float, metavar="W",
                 help="w' of the paper, as the only strength.  [default: 1, 2, 3 and the preset; 3 for cfg]"),
    click.option("--correction", type=float, metavar="K",
                 help="k of the paper; 0 is off.  [default: -0.02 at the preset of full weights, else 0]"),
    click.option("--preset", type=click.Choice(["portfolio", "paper"]), default="portfolio",
                 show_default=True,
                 help="Rounds over several strengths, as long as they pay; or the published settings: 50 "
                      "samples per image, of 50 steps, at one strength."),
    click.option("--samples-per-image", type=click.IntRange(1), default=50, show_default=True,
                 help="At most; drawn ten per image at a time, as long as these pay."),
    click.option("--steps", type=click.IntRange(1, 1000),
                 help="Sampling steps.  [default: 12; 50 with --preset paper]"),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
                 help="Seed of the first sample; the others follow."),
    click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="A new or empty folder for images and result.json.  [default: finextract-out/"
                      "NAME/VERB-1, or the next free number]"),
)  # fmt: skip
BACKGROUND: Option = click.option(
    "--background", type=click.Path(path_type=Path), metavar="DIR",
    help="Pictures of the same kind that nothing was trained on; 99 of them are used, 19 or more are needed "
         "for a p of 5 %.  [default: each picture's own variants alone]",
)  # fmt: skip
OUTPUT: tuple[Option, ...] = (
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)


def with_options(*options: Option) -> Option:
    """Several options as one decorator; --help lists them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def of_run(checkpoint: Path, base: Path) -> dict[str, str]:
    """What identifies a run in its result."""
    return {
        "checkpoint": str(checkpoint),
        "base": str(base),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
    }


class Prepared(NamedTuple):
    """What an extraction needs."""

    pair: Pair
    captions: tuple[str, ...]  # that share the samples
    settings: ExtractionSettings
    embedder: Embedder
    told: dict[str, Any]  # of the caption, for result.json


def prepare_extraction(
    checkpoint: Path, base: Path, base_parts: Path | None, options: dict[str, Any], num_train_images: int
) -> Prepared:
    """Loads what an extraction needs, and says on stderr what it will do."""
    from finextract.caption_model import CaptionModel
    from finextract.caption_recovery import budget_for, recover
    from finextract.extract import ExtractionSettings, refuse_too_many
    from finextract.metadata.captions import CaptionOrigin, caption_for
    from finextract.metadata.phrases import local_subjects
    from finextract.sscd import load_embedder

    caption = caption_for(checkpoint, options.pop("caption"))
    folder = options.pop("caption_model")
    settings = ExtractionSettings(**options)
    refuse_too_many(settings, num_train_images)
    is_stated = caption.origin is not CaptionOrigin.NONE
    ranker = CaptionModel(folder) if folder is not None and not is_stated else None
    pair = load(base, checkpoint, base_parts)
    settings.guidances(pair)  # refuses numbers that cannot be used, before anything is sampled
    captions: tuple[str, ...] = (caption.text,)
    evaluations = 0
    if is_stated:
        shown = textwrap.shorten(caption.text, SHOWN_CAPTION, placeholder=" ...")
        click.echo(f"caption ({caption.origin}): {shown!r}", err=True)
    else:
        budget = budget_for(settings, pair, num_train_images)
        recovery = recover(pair, local_subjects(checkpoint), budget, ranker, settings.batch_size)
        caption, captions, evaluations = recovery.caption, recovery.captions, recovery.evaluations
        click.echo(f"no file states the training caption: {recovery.sentence}", err=True)
    if caption.exceeds_clip:
        click.echo("the caption is longer than CLIP reads (75 tokens): its end has no effect", err=True)
    embedder = load_embedder()
    count = settings.samples_per_image * num_train_images
    at_most = "" if settings.preset == "paper" else "at most "
    click.echo(f"drawing {at_most}{count} samples of {settings.steps_for(pair.tuned.solver)} steps", err=True)
    told = {
        "caption": caption.text,
        "caption_origin": caption.origin.value,
        "caption_score": caption.score,
        "caption_evaluations": evaluations,
    }
    return Prepared(pair, captions, settings, embedder, told)


def load(base: Path, checkpoint: Path, base_parts: Path | None = None) -> Pair:
    """Loads a pair without the libraries' own progress bars and messages, and says on stderr where it is."""
    from finextract.models.loading import load_pair, quieten_libraries

    quieten_libraries()
    pair = load_pair(base, checkpoint, parts=base_parts)
    click.echo(f"{pair.kind} weights on {pair.tuned.device}", err=True)
    return pair


class Progress:
    """Shows how far a stage is on stderr: one changing line on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._stage = ""
        self._called = self._began = self._shown = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._shown = stage, self._called, self._called
        self._called = now
        left_s = (now - self._began) / done * (total - done)
        line = f"{stage} {done}/{total}" + (f", about {_duration(left_s)} left" if done < total else "")
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
