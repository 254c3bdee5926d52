"""Corpora as they are stored: what there is, and their embeddings, ready to be searched.

`add` (scanner.match.adding) fills them. The store keeps a copy of each picture, so that a worker on another
machine can read it (`scanner.match.pictures`).

N = references, D = embedding size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scanner.config import ScanConfig, default_cache
from scanner.errors import CorpusError
from scanner.match import mapped
from scanner.match.adding import Added, ImageEmbedder, add
from scanner.records import Role
from scanner.store.store import Store

__all__ = ["Added", "Corpus", "ImageEmbedder", "add", "corpora_of", "load_corpora", "summaries"]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A named set of references, ready to be searched."""

    name: str
    role: Role
    reference_ids: npt.NDArray[np.bytes_]  # [N], sorted
    embeddings: npt.NDArray[np.float32]  # [N, D], L2-normalised; may be a mapped file
    digest: str  # of the reference ids; part of the configuration's id


def summaries(store: Store) -> list[dict[str, object]]:
    """One row per corpus: name, role, images, descriptors, and when the newest image was added."""
    return store.query(
        "SELECT corpus AS name, role, count(DISTINCT reference_id) AS images, "
        "list(DISTINCT descriptor ORDER BY descriptor) AS descriptors, max(added_at) AS added_at "
        'FROM "references" GROUP BY corpus, role ORDER BY corpus'
    )


def load_corpora(
    store: Store, names: Iterable[str] | None, descriptor: str, *, cache: Path | None = None
) -> list[Corpus]:
    """The named corpora, or all, with their embeddings under one descriptor.

    The embeddings are files of `cache` (by default that of this machine), which all processes share. Raises
    CorpusError for an unknown name, or a corpus that was never embedded with that descriptor.
    """
    known = [str(row["name"]) for row in summaries(store)]
    wanted = list(dict.fromkeys(names)) if names else known
    for name in wanted:
        if name not in known:
            existing = f"Existing corpora: {', '.join(known)}." if known else "The store has no corpus yet."
            raise CorpusError(
                f"there is no corpus {name}. {existing} Make one with `scanner corpus add NAME SOURCE`."
            )
    return [_load(store, name, descriptor, cache or default_cache()) for name in wanted]


def corpora_of(store: Store, config: ScanConfig, cache: Path) -> list[Corpus]:
    """The corpora that a configuration states. Asks the store only for what `cache` does not hold yet.

    Raises CorpusError where a corpus has other references by now than the configuration states.
    """
    corpora = []
    for name, stated in config.corpora.items():
        role, _, digest = stated.rpartition(":")
        if (found := mapped.find(cache, digest, config.descriptor)) is not None and role:
            corpora.append(Corpus(name, Role(role), found.ids, found.embeddings, digest))
            continue
        (corpus,) = load_corpora(store, [name], config.descriptor, cache=cache)
        if corpus.digest != digest:
            raise CorpusError(f"the corpus {name} was changed after the crawl began. Run the crawl again.")
        corpora.append(corpus)
    return corpora


def _load(store: Store, name: str, descriptor: str, cache: Path) -> Corpus:
    of = "WHERE corpus = ? AND descriptor = ?"
    table = store.query_arrow(
        f'SELECT reference_id, role FROM "references" {of} ORDER BY reference_id', [name, descriptor]
    )
    if not table.num_rows:
        raise CorpusError(
            f"the corpus {name} was embedded with another descriptor than {descriptor}. "
            f"Run `scanner corpus add {name} DIR` again."
        )
    ids = table["reference_id"].to_pylist()
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    found = mapped.find(cache, digest, descriptor)
    if found is None:
        rows = store.stream(
            f"SELECT reference_id, embedding, added_at FROM all_references {of}", [name, descriptor]
        )
        encoded = np.array([i.encode() for i in ids])
        found = mapped.build(cache, digest, descriptor, encoded, rows)
    return Corpus(name, Role(table["role"][0].as_py()), found.ids, found.embeddings, digest)
