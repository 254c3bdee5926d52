"""`scanner purge`: removal for good, with every byte in the store."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from scanner.commands.options import store_option
from scanner.errors import ConfigError
from scanner.text import for_terminal
from scanner.wording import count

if TYPE_CHECKING:
    from scanner.store.removal import Plan
    from scanner.store.store import Store

# What is counted, as people name it.
NOUNS = {
    "checkpoints": ("listed row of the checkpoint", "listed rows of the checkpoint"),
    "scans": ("scan", "scans"),
    "candidates": ("candidate", "candidates"),
    "matches": ("match", "matches"),
    "memberships": ("membership", "memberships"),
    "references": ("reference", "references"),
    "decisions": ("event of the decision log", "events of the decision log"),
    "images": ("image", "images"),
    "files": ("further file", "further files"),
}
yes_option = click.option("--yes", is_flag=True, help="Do not ask before anything is removed.")


@click.command("purge")
@click.option("--checkpoint", "checkpoints", multiple=True, metavar="CHECKPOINT",
              help="A repository, or the beginning of an id: its listing, scans, evidence, decisions and "
              "images.")  # fmt: skip
@click.option("--corpus", "corpora", multiple=True, metavar="NAME",
              help="A corpus: its references and all that was found about them, as `scanner corpus remove` "
              "does.")  # fmt: skip
@click.option("--older-than", metavar="AGE",
              help="What was recovered so long ago (36h, 90d, 12w): the candidates with their images. "
              "Verdicts, similarities and decisions stay.")  # fmt: skip
@click.option("--with-confirmed", is_flag=True,
              help="With --older-than: also what a reviewer confirmed.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Remove nothing; tell what would be removed.")
@yes_option
@store_option
def command(
    checkpoints: tuple[str, ...], corpora: tuple[str, ...], older_than: str | None, with_confirmed: bool,
    dry_run: bool, yes: bool, store: str,
) -> None:  # fmt: skip
    """Remove a checkpoint, a corpus, or old recovered images from the store for good.

    Nothing of it stays in the store's files but a row of `removals`: when, by whom and how much. It cannot be
    undone. Reports that you have written elsewhere, and exports, are yours to delete.
    """
    from scanner.records import now
    from scanner.store.removal import plan_checkpoint, plan_recovered
    from scanner.store.report_queries import named_target
    from scanner.store.store import Store
    from scanner.units import parse_age

    if not checkpoints and not corpora and older_than is None:
        raise ConfigError("name what to remove: --checkpoint, --corpus or --older-than.")
    if with_confirmed and older_than is None:
        raise ConfigError("--with-confirmed belongs to --older-than.")
    before = None if older_than is None else now() - parse_age(older_than)
    opened = Store(store)
    targets = [named_target(opened, name) for name in checkpoints]
    for target in dict.fromkeys((target.checkpoint_id, target.repo) for target in targets):
        settle(opened, plan_checkpoint(opened, target[0]), target[1], yes=yes, dry_run=dry_run)
    for corpus in dict.fromkeys(corpora):
        remove_corpus(opened, corpus, yes=yes, dry_run=dry_run)
    if before is not None:
        plan = plan_recovered(opened, before, with_confirmed=with_confirmed)
        said = f"what was recovered before {before:%Y-%m-%d %H:%M} UTC"
        settle(opened, plan, said, yes=yes, dry_run=dry_run)


def remove_corpus(store: Store, name: str, *, yes: bool, dry_run: bool = False) -> None:
    """Removes a corpus from a store, and its embeddings from this machine's cache."""
    from scanner.config import default_cache
    from scanner.match.mapped import forget
    from scanner.store.removal import plan_corpus, reference_ids

    ids = reference_ids(store, name)
    if settle(store, plan_corpus(store, name), f"the corpus {name}", yes=yes, dry_run=dry_run):
        forget(default_cache(), ids)


def settle(store: Store, plan: Plan, what: str, *, yes: bool, dry_run: bool) -> bool:
    """Tells what goes, asks, and removes it; returns whether it did.

    Raises ConfigError where nobody can be asked.
    """
    from scanner.store.removal import not_searched, remove
    from scanner.store.reviewing import reviewer_name

    what = for_terminal(what)
    if not plan:
        click.echo(f"{what}: nothing to remove.", err=True)
        return False
    counts = [count(n, *NOUNS[name]) for name, n in plan.counts.items() if n and name in NOUNS]
    click.echo(f"{what}: {', '.join(counts)}.", err=True)
    if unflagged := plan.counts.get("unflagged"):
        verb = "is" if unflagged == 1 else "are"
        click.echo(f"{count(unflagged, 'scan')} {verb} no longer flagged without it.", err=True)
    if dry_run:
        click.echo("Nothing was removed.", err=True)
        return False
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody can be asked whether to remove this for good. Pass --yes.")
        click.confirm("Remove this for good?", abort=True, err=True)
    remove(store, plan, reviewer_name())
    click.echo("Removed.", err=True)
    if further := not_searched(store):
        click.echo(further, err=True)
    return True
