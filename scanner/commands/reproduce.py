"""`scanner reproduce`: a recovered image drawn again, so that nobody has to take a report's word for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scanner.commands.options import store_option
from scanner.errors import ConfigError
from scanner.text import first_line, for_terminal

if TYPE_CHECKING:
    from scanner.crawl.reproducing import Drawn

DIFFERS = 3  # exit code, where what is drawn now is another picture


@click.command("reproduce")
@click.argument("name", metavar="MATCH|CHECKPOINT")
@click.option("-o", "--out", metavar="FILE.png", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the picture that is drawn now.")  # fmt: skip
@click.option("--base", metavar="OWNER/NAME",
              help="What a base in one file takes its missing parts from, as in the crawl.")  # fmt: skip
@click.option("--allow-pickle", is_flag=True, help="Convert a pickled checkpoint, as in a crawl.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@store_option
def command(
    name: str, out: Path | None, base: str | None, allow_pickle: bool, as_json: bool, store: str
) -> int:  # fmt: skip
    """Draw the image of a match again from its seed and settings, and compare it with the stored one.

    A MATCH is the beginning of its id, as `scanner show` lists it; of a CHECKPOINT its strongest match is
    drawn. The models are fetched as a crawl fetches them. The exit code is 0 where it is the same picture,
    and 3 where it is another one.
    """
    from finextract.errors import CheckpointError
    from scanner.crawl.reproducing import reproduce
    from scanner.errors import EntryError
    from scanner.store.report_queries import named_target
    from scanner.store.store import Store

    opened = Store(store)
    target = named_target(opened, name)

    def begin() -> None:
        click.echo(for_terminal(f"Fetching {target.repo} and its base, and drawing ..."), err=True)

    try:
        drawn = reproduce(opened, target, begin, base=base, allow_pickle=allow_pickle)
    except (EntryError, CheckpointError) as error:
        raise ConfigError(f"{for_terminal(target.repo)}: {error}") from error
    if out is not None:
        _write(out, drawn)
    if as_json:
        click.echo(json.dumps(_facts(drawn), indent=2))
    else:
        for sentence in _sentences(drawn):
            click.echo(for_terminal(sentence))
    return 0 if drawn.is_reproduced else DIFFERS


def _sentences(drawn: Drawn) -> list[str]:
    candidate, scan = drawn.candidate, drawn.scan
    caption = f"the caption “{drawn.caption}”" if drawn.caption else "no prompt"
    told = [
        f"{drawn.checkpoint.repo}: seed {candidate.seed}, w' {drawn.guidance_scale:g}, correction "
        f"{drawn.correction:g}, {drawn.steps} steps, {caption}, on {drawn.device} in {drawn.precision}."
    ]
    if drawn.is_exact:
        told.append("The picture is the same as the stored one in every pixel.")
    elif drawn.is_within_rounding:
        told.append(
            f"The picture is the stored one within rounding: no pixel differs by more than {drawn.largest} "
            f"of 255, and by {drawn.mean:.3f} on average."
        )
    else:
        what = "the same picture" if drawn.is_reproduced else "ANOTHER PICTURE"
        told.append(
            f"It is {what}: the similarity to the stored one is {drawn.similarity:.3f}. Pixels differ by "
            f"{drawn.mean:.1f} of 255 on average, more than rounding on one kind of device explains."
        )
        told.append(f"The scan ran on {scan.device or 'an unknown device'} in {scan.precision or '?'}.")
        told += [f"{name} was {old}, and is {new} now." for name, old, new in _changed(drawn)]
    told.append(
        f"Its similarity to the reference is {drawn.to_reference:.3f}; the scan recorded "
        f"{drawn.match.similarity:.3f}."
    )
    return told


def _changed(drawn: Drawn) -> list[tuple[str, str, str]]:
    """The libraries that have another version than in the scan."""
    from scanner.crawl.attempt import versions

    present = versions()
    return [
        (name, old, present[name])
        for name, old in sorted(drawn.scan.versions.items())
        if name in present and present[name] != old
    ]


def _facts(drawn: Drawn) -> dict[str, Any]:
    return {
        "match_id": drawn.match.match_id,
        "candidate_id": drawn.candidate.candidate_id,
        "checkpoint_id": drawn.checkpoint.checkpoint_id,
        "repo": drawn.checkpoint.repo,
        "seed": drawn.candidate.seed,
        "guidance_scale": drawn.guidance_scale,
        "correction": drawn.correction,
        "steps": drawn.steps,
        "caption": drawn.caption,
        "device": drawn.device,
        "precision": drawn.precision,
        "exact": drawn.is_exact,
        "within_rounding": drawn.is_within_rounding,
        "reproduced": drawn.is_reproduced,
        "largest_difference": drawn.largest,
        "mean_difference": drawn.mean,
        "similarity": drawn.similarity,
        "similarity_to_reference": drawn.to_reference,
        "recorded_similarity": drawn.match.similarity,
    }


def _write(out: Path, drawn: Drawn) -> None:
    """The picture, readable by its owner alone. Raises ConfigError, and replaces no file."""
    from finextract.results import save_image

    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out} is no name of a picture. Name it FILE.png.")
    try:
        save_image(drawn.image, out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {first_line(error)}. Name another file.") from error
