"""`scanner show`: what was found in one checkpoint, or which checkpoints contain one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from scanner.commands.options import store_option
from scanner.commands.output import STYLES, marked, rows_or_records, say
from scanner.errors import ConfigError
from scanner.text import for_terminal
from scanner.wording import NONE, count, probability, similarity

if TYPE_CHECKING:
    from scanner.store.report_queries import PictureRow
    from scanner.store.store import Store


@click.command("show")
@click.argument("name", metavar="[CHECKPOINT|MATCH]", required=False)
@click.option("--image", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="A picture of yours: which checkpoints contain it?")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@store_option
def command(name: str | None, image: Path | None, as_json: bool, store: str) -> None:
    """Show what was found in a checkpoint, or which checkpoints contain a picture.

    A CHECKPOINT is a repository, or the beginning of an id. A picture is found as the same file, or as the
    same picture in another file, among the references of the store.
    """
    from scanner.store.store import Store

    if (name is None) == (image is None):
        raise ConfigError("name a checkpoint, or a picture with --image FILE: one of the two.")
    opened = Store(store)
    if image is not None:
        _show_picture(opened, image, as_json)
    else:
        assert name is not None, "one of the two is given"
        _show_checkpoint(opened, name, as_json)


def _show_checkpoint(store: Store, name: str, as_json: bool) -> None:
    from scanner.report.contents import as_json as to_json
    from scanner.report.contents import contents_of
    from scanner.report.words import in_short, meaning_of, standing_of, verdict_of
    from scanner.store.report_queries import named_target

    contents = contents_of(store, named_target(store, name))
    if as_json:
        click.echo(to_json(contents), nl=False)
        return
    scan, rows = contents["scan"], contents["evidence"]
    repo, verdict = for_terminal(contents["checkpoint"]["repo"]), scan and scan["verdict"]
    say(Text(f"{repo}: ").append_text(marked(for_terminal(verdict_of(scan)), *([verdict] if scan else []))))
    for sentence in (*in_short(scan, rows), *meaning_of(scan, rows)[2:]):
        click.echo(for_terminal(sentence))
    if rows:
        click.echo()
        columns = ("image", "found", "similarity", "q", "q of training", "id")
        rows_or_records(columns, [_row(row, standing_of(row)) for row in rows])


def _row(row: dict[str, Any], standing: str) -> list[str | Text]:
    reference, match, found = row["reference"], row["match"], row["membership"]
    name = reference["name"] or reference["sha256"] or f"corpus {row['corpus']}"
    values = [
        name, standing, similarity(match["similarity"] if match else None),
        probability(match["q"] if match else None), probability(found["q"] if found else None), row["id"],
    ]  # fmt: skip
    cells: list[str | Text] = [for_terminal(value) for value in values]
    cells[1] = Text(for_terminal(standing), style=STYLES["flagged"] if row["grounds"] else "")
    return cells


def _show_picture(store: Store, image: Path, as_json: bool) -> None:
    from scanner.store.report_queries import scanned, scans_of_pictures

    reference_id, how = _reference_of(store, image)
    found = scans_of_pictures(store, [reference_id])
    if as_json:
        rows = [row._asdict() for row in found]
        click.echo(json.dumps({"reference_id": reference_id, "found": rows}, indent=2))
        return
    click.echo(for_terminal(f"{image} is {how}."))
    flagged = [row for row in found if row.gives_back or row.trained_on]
    total = count(scanned(store), "checkpoint")
    if not flagged:
        click.echo(f"None of {total} that were scanned was shown to contain it.")
        return
    number = len({row.checkpoint_id for row in flagged})
    click.echo(f"{number} of {total} that were scanned {'contains' if number == 1 else 'contain'} it:\n")
    columns = ("checkpoint", "gives it back", "trained on it", "decision", "id")
    rows_or_records(columns, [_of_picture(row) for row in flagged])


def _of_picture(row: PictureRow) -> list[str]:
    from scanner.report.words import DECIDED

    given = f"similarity {similarity(row.similarity)}, q {probability(row.match_q)}"
    values = [
        row.repo, given if row.gives_back else NONE,
        f"q {probability(row.membership_q)}" if row.trained_on else NONE,
        DECIDED.get(row.decision or "", "undecided"), row.subject_id,
    ]  # fmt: skip
    return [for_terminal(value) for value in values]


def _reference_of(store: Store, image: Path) -> tuple[str, str]:
    """The reference that a picture is, and in words how that is known. Raises ConfigError if it is none."""
    from scanner.crawl.worker import SscdEmbedder
    from scanner.hashing import sha256_of
    from scanner.images import ImageError, open_image
    from scanner.match.duplicates import NEARLY_SAME
    from scanner.records import Role
    from scanner.store.report_queries import corpora_with, nearest_reference

    sha256 = sha256_of(image)
    corpora = corpora_with(store, sha256)
    if mine := [name for name, role in corpora.items() if role is Role.REFERENCE]:
        return sha256, f"an image of {' and '.join(mine)}"
    if corpora:
        name, role = next(iter(corpora.items()))
        raise ConfigError(
            f"{image} is an image of {name} ({role.value}), and such images are not looked for."
        )
    embedder = SscdEmbedder()
    try:
        (embedding,) = embedder.embed([open_image(image)])
    except ImageError as error:
        raise ConfigError(f"{image} {error}") from error
    nearest = nearest_reference(store, embedding.tolist(), embedder.descriptor)
    if nearest is not None and nearest.similarity >= NEARLY_SAME:
        likeness = f"similarity {nearest.similarity:.2f}"
        return (
            nearest.reference_id,
            f"by its looks the same picture as {nearest.path} of {nearest.corpus} ({likeness})",
        )
    next_best = (
        "the store has no references"
        if nearest is None
        else f"the nearest, {nearest.path} of {nearest.corpus}, has a similarity of "
        f"{nearest.similarity:.2f}, and {NEARLY_SAME:g} would make it the same picture"
    )
    raise ConfigError(
        f"{image} is no image of a corpus: {next_best}. If it is a small copy or a part of that one, name "
        "that file instead. Add a new picture with scanner corpus add, and crawl again: what was sampled "
        "before is compared with it."
    )
