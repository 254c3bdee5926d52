"""`finextract membership`: which pictures of a folder was a checkpoint trained on?"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finextract.commands.common import BACKGROUND, OUTPUT, PAIR, Progress, load, of_run, with_options
from finextract.commands.words import (
    UNSHOWN,
    background_lines,
    cost_line,
    set_line,
    table,
    trained_on_sentence,
)
from finextract.text import for_terminal

if TYPE_CHECKING:
    from finextract.membership import Membership, ReferenceEvidence

MAX_ROWS = 40  # for people; those that stood out are always shown


@click.command()
@with_options(*PAIR)
@click.option("--images", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="The pictures to ask about, with those in subfolders.")  # fmt: skip
@with_options(BACKGROUND)
@click.option("--caption", default="", metavar="TEXT",
              help="Prompt of the tuned model.  [default: the empty prompt, which does as well]")  # fmt: skip
@click.option("--budget", type=click.IntRange(1), metavar="N",
              help="Evaluations of the tuned model, at most.  [default: no limit]")  # fmt: skip
@click.option("--alpha", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.05,
              show_default=True,
              help="Share of the marked pictures that may be marked falsely.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32), default=0, show_default=True,
              help="Seed of the noise.")  # fmt: skip
@with_options(*OUTPUT)
def membership(checkpoint: Path, base: Path, base_parts: Path | None, images: Path,
               background: Path | None, caption: str, budget: int | None, alpha: float,
               seed: int, as_json: bool, debug: bool) -> None:  # fmt: skip
    """Tell which pictures of a folder CHECKPOINT was trained on.

    CHECKPOINT is a .safetensors file, a diffusers folder, or a folder with one weight file. Compares how well
    it and its base model denoise each picture; nothing is sampled, and no caption is needed.
    """
    from finextract.framing import framings_for, variants_for
    from finextract.images import picture_files, picture_of
    from finextract.membership import MembershipSettings
    from finextract.membership import membership as run
    from finextract.metadata.captions import local_training

    files = picture_files(images)
    pictures = [picture_of(file) for file in files]
    null = [picture_of(file) for file in picture_files(background)] if background else []
    known = {picture.key for picture in pictures}
    if shared := sum(picture.key in known for picture in null):
        null = [picture for picture in null if picture.key not in known]
        click.echo(
            f"{shared:,} of the background are among the pictures to ask about, and left out", err=True
        )
    training = local_training(checkpoint)
    pair = load(base, checkpoint, base_parts)
    if training.mirrored:
        click.echo("the training mirrored images: mirror images are no part of the comparison", err=True)
    settings = MembershipSettings(
        noise_seed=seed, caption=caption, framings=framings_for(training, pair.base.image_size),
        variants=variants_for(training), budget=budget, alpha=alpha,
    )  # fmt: skip
    start = time.perf_counter()
    result = run(pair, pictures, settings, background=null, progress=Progress())
    seconds = time.perf_counter() - start
    names = [str(file.relative_to(images)) for file in files]
    if as_json:
        whole = {**of_run(checkpoint, base), **result.summary(names), "seconds": round(seconds, 2)}
        for row, picture in zip(whole["pictures"], pictures, strict=True):
            row["sha256"] = picture.key
        click.echo(json.dumps(whole, indent=2))
        return
    click.echo(f"{trained_on_sentence(result, 'picture')}\n")
    click.echo(_pictures(result, names))
    click.echo()
    for found in result.sets:
        click.echo(set_line(found, result))
    click.echo(f"Evaluations: {cost_line(result)}. {seconds:.1f} seconds.")
    for line in (*_left_out(result), *background_lines(result, "picture"), UNSHOWN):
        click.echo(line)


def _pictures(result: Membership, names: Sequence[str]) -> str:
    """The pictures as a table, strongest evidence first: all that stood out, and others up to `MAX_ROWS`."""
    order = sorted(range(len(names)), key=lambda i: _strength(result.references[i]))
    examined = sum(found.margin is not None for found in result.references)
    shown = order[: max(examined, MAX_ROWS)]
    heading = ("picture", "log-ratio", "margin", "p", "q", "framing", "")
    lines = [table(heading, [_row(names[i], result.references[i]) for i in shown])]
    if len(shown) < len(order):
        lines.append(f"... and {len(order) - len(shown):,} more that do not stand out (--json lists them)")
    if examined < len(shown):
        spent = ", or the budget was spent" if examined < result.num_standing else ""
        lines.append(f"-: the picture does not stand out{spent}, so it was not compared with its variants")
    return "\n".join(lines)


def _strength(found: ReferenceEvidence) -> tuple[bool, bool, float, float]:
    """Sorts what was trained on to the front, then what stood out, by p-value and log-ratio."""
    ratio = -math.inf if found.log_ratio is None else found.log_ratio
    return not found.trained_on, found.margin is None, found.p_value, -ratio


def _row(name: str, found: ReferenceEvidence) -> tuple[str, ...]:
    compared = ("-", "-", "-", "-") if found.margin is None else (
        f"{found.margin:.3f}", f"{found.p_value:.1e}", f"{found.q_value:.1e}", found.framing
    )  # fmt: skip
    ratio = "-" if found.log_ratio is None else f"{found.log_ratio:.3f}"
    return for_terminal(name, 40), ratio, *compared, "trained on" if found.trained_on else ""


def _left_out(result: Membership) -> list[str]:
    """What the budget left out, in sentences."""
    total, standing = len(result.references), result.num_standing
    compared = sum(found.margin is not None for found in result.references)
    lines = []
    if result.num_evaluated < total:
        lines.append(
            f"The budget allows for {result.num_evaluated:,} of the {total:,} pictures. A cheaper comparison "
            "chose them, and it may have left out some that were trained on."
        )
    if compared < standing:
        lines.append(
            f"{standing:,} pictures stand out, and the budget allowed for comparing {compared:,} of them "
            f"with their variants. Of the other {standing - compared:,} it is not known whether they were "
            "trained on: allow a larger --budget."
        )
    return lines
