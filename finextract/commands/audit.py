"""`finextract audit`: what a checkpoint gives back of its training images, and which its losses show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from finextract.commands.common import (
    BACKGROUND,
    OUTPUT,
    PAIR,
    SAMPLING,
    Progress,
    of_run,
    prepare_extraction,
    with_options,
)
from finextract.commands.words import UNSHOWN, background_lines, cost_line, table, trained_on_sentence
from finextract.text import for_terminal


@click.command()
@with_options(*PAIR)
@click.option("--train-images", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="The images that the checkpoint was trained on.")  # fmt: skip
@with_options(BACKGROUND, *SAMPLING, *OUTPUT)
def audit(checkpoint: Path, base: Path, base_parts: Path | None, train_images: Path,
          background: Path | None, out: Path | None, as_json: bool, debug: bool,
          **options: Any) -> None:  # fmt: skip
    """Tell what CHECKPOINT gives back of its training images, and what its losses show.

    CHECKPOINT is a .safetensors file, a diffusers folder, or a folder with one weight file. Two answers, side
    by side. "Gives back": the images that some sample copies as well as the model's autoencoder allows, and
    AS and A-ESR, the share of the images with a similarity above 0.7 and 0.6 to a sample. "Trained on":
    whether the models' losses show that an image was trained on, as `finextract membership` does. Writes a
    contact sheet and result.json.
    """
    from finextract.audit import audit as run
    from finextract.audit import read_images
    from finextract.contact_sheet import contact_sheet
    from finextract.framing import framings_for, variants_for
    from finextract.images import picture_files, picture_of
    from finextract.membership import MembershipSettings
    from finextract.metadata.captions import local_training
    from finextract.results import new_folder, save_image, save_result

    names, references = read_images(train_images)
    null = [picture_of(file) for file in picture_files(background)] if background else []
    pair, captions, settings, embedder, told = prepare_extraction(
        checkpoint, base, base_parts, options, len(references)
    )
    folder = new_folder(out, checkpoint, "audit")
    training = local_training(checkpoint)
    examination = MembershipSettings(
        noise_seed=settings.seed, framings=framings_for(training, pair.base.image_size),
        variants=variants_for(training),
    )  # fmt: skip
    result = run(
        pair, captions, names, references, settings, embedder, Progress(), examination=examination,
        background=null,
    )  # fmt: skip
    sheet = folder / "contact-sheet.png"
    summary = {**of_run(checkpoint, base), **result.summary(), **told, "contact_sheet": str(sheet)}
    trained = trained_on_sentence(result.membership, "image")
    save_image(contact_sheet(result, [*_heading(summary), trained]), sheet)
    file = save_result(summary, folder)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    over = summary["over_candidates"]
    click.echo(f"Gives back: {_came_back(summary)}")
    click.echo(f"Trained on: {trained}\n")
    click.echo(
        table(("image", "gives back", "trained on"), [_row(image) for image in summary["train_images"]])
    )
    click.echo(f"\n{'':28}all {summary['samples']} samples   {summary['candidates']} candidates")
    click.echo(_line("AS, average similarity", summary["average_similarity"], over["average_similarity"]))
    for tau in ("0.7", "0.6"):
        click.echo(
            _line(
                f"A-ESR at {tau}",
                summary["extraction_success_rate"][tau],
                over["extraction_success_rate"][tau],
            )
        )
    for_caption = summary["caption_evaluations"]
    further = f", and {for_caption:,} for the caption" if for_caption else ""
    click.echo(f"{'UNet evaluations':28}{summary['unet_evaluations']:,} for what it gives back{further}")
    click.echo(f"{'':28}{cost_line(result.membership)}, for what was trained on")
    click.echo(f"{'seconds':28}" + ", ".join(f"{k} {v:.1f}" for k, v in summary["seconds"].items()))
    click.echo(f"{'contact sheet':28}{sheet}")
    click.echo(f"{'this result as JSON':28}{file}\n")
    click.echo("\n".join([*background_lines(result.membership, "image"), UNSHOWN]))


def _row(image: dict[str, Any]) -> tuple[str, str, str]:
    """An image with both answers."""
    return (
        for_terminal(image["name"], 40),
        f"{'yes' if image['gives_back'] else 'no'}, similarity {image['similarity']:.2f} of "
        f"{image['ceiling']:.2f}",
        f"yes, q {image['membership_q']:.1g}" if image["trained_on"] else "not shown",
    )


def _came_back(summary: dict[str, Any]) -> str:
    """What an audit found back, in a sentence."""
    count, total = summary["given_back"], len(summary["train_images"])
    copy = "70 % of the similarity that a perfect copy would have after the model's autoencoder."
    if not count:
        return f"None of your {total} images came back: none of {summary['samples']:,} samples reaches {copy}"
    each = "it" if count == 1 else "each of them"
    return f"{count} of your {total} images came back: for {each} a sample reaches {copy}"


def _heading(summary: dict[str, Any]) -> list[str]:
    """The lines at the top of a contact sheet."""
    used = dict.fromkeys(f"{arm['guidance_scale']:g}" for arm in summary["strengths"])
    scales = ", ".join(used)
    shared = " (recovered, beside the empty one)" if summary["caption_origin"] == "recovered" else ""
    guided = "" if summary["method"] == "direct" else f", guidance scale {scales}"
    return [
        f"finextract audit of {summary['checkpoint']}",
        f"Base: {summary['base']}. Caption: {summary['caption']!r}{shared}. "
        f"Finished {summary['finished_at']}.",
        f"Method {summary['method']}{guided}, {summary['samples']} samples of {summary['steps']} steps, seed "
        f"{summary['seed']}, descriptor {summary['descriptor']}, version {summary['version']}.",
        _came_back(summary),
    ]


def _line(name: str, over_samples: float, over_candidates: float) -> str:
    return f"{name:28}{over_samples:<16.3f}{over_candidates:.3f}"
