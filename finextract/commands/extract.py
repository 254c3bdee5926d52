"""`finextract extract`: candidates from a checkpoint, without knowing any of its training images."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from finextract.commands.common import (
    OUTPUT,
    PAIR,
    SAMPLING,
    Progress,
    of_run,
    prepare_extraction,
    with_options,
)


@click.command()
@with_options(*PAIR, *SAMPLING)
@click.option("--num-train-images", required=True, type=click.IntRange(1), metavar="N0",
              help="How many images the checkpoint was trained on, roughly.")  # fmt: skip
@with_options(*OUTPUT)
def extract(checkpoint: Path, base: Path, base_parts: Path | None, num_train_images: int,
            out: Path | None, as_json: bool, debug: bool, **options: Any) -> None:  # fmt: skip
    """Extract candidate training images from CHECKPOINT, without knowing any of them.

    CHECKPOINT is a .safetensors file, a diffusers folder, or a folder with one weight file. Writes the
    candidates as PNG files, best first.
    """
    from finextract.extract import extract_all as run
    from finextract.results import new_folder, save_image, save_result

    pair, captions, settings, embedder, told = prepare_extraction(
        checkpoint, base, base_parts, options, num_train_images
    )
    folder = new_folder(out, checkpoint, "extract")
    result = run(pair, captions, num_train_images, settings, embedder, partial(Progress(), "sampling"))
    rows = []
    for rank, clique in enumerate(result.candidates, 1):
        file = folder / f"candidate-{rank:03}.png"
        save_image(result.picture(clique.representative), file)
        rows.append(
            {
                "file": str(file),
                "seed": result.seeds[clique.representative],
                "caption": result.arm(clique.representative).caption,
                "guidance_scale": result.arm(clique.representative).guidance.guidance_scale,
                "clique_size": len(clique.members),
                "clique_similarity": round(clique.similarity, 4),
                "log_ratio": None if clique.log_ratio is None else round(clique.log_ratio, 4),
            }
        )
    summary = {
        **of_run(checkpoint, base),
        "candidates": rows,
        **told,
        "method": settings.method,
        "seed": settings.seed,
        "steps": result.settings.steps,
        "num_train_images": num_train_images,
        "samples": result.num_samples,
        "preset": settings.preset,
        "strengths": result.strengths(),
        "rounds": result.rounds,
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
