"""The screen of one checkpoint: which references was it trained on? It decides what is worth sampling.

Runs in the worker, and like it imports the part of the method that needs torch inside its functions. The
losses of a base model belong to no checkpoint: the workers of all machines share them through the store.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finextract.framing import framings_for, variants_for
from finextract.gpu_needs import need_of
from finextract.metadata.training import pictures_of_json
from scanner.config import ScanConfig
from scanner.crawl.logs import LOGGER
from scanner.match.matching import Corpora
from scanner.match.pictures import StoredPicture, UnreadablePicture, pictures_of
from scanner.records import Checkpoint, Membership, new_id
from scanner.store.orphans import BASE_LOSSES
from scanner.store.store import Store

if TYPE_CHECKING:
    from finextract.membership import Membership as Answer
    from finextract.membership import ReferenceEvidence, SetEvidence

KEPT = 10  # references that stood out, of which a scan stores rows, in addition to those that were trained on
ENOUGH_UNSEEN = 19  # unseen works, with which a p-value of 5 % can be reached; the background joins fewer
CLAIM_S = 120.0  # after a worker's claim, for which others wait for the losses
SHARED_AT = 50  # new losses that are worth a file
_COLUMNS = ("picture", "framing", "variant", "t", "seed")


@dataclass(frozen=True, slots=True)
class Screened:
    """What a screen found."""

    rows: tuple[Membership, ...]
    named: bool  # whether the checkpoint is worth sampling
    facts: dict[str, Any]  # for the scan's row


class Screen:
    """Screens one checkpoint after another; keeps the pictures, and the losses of the last base."""

    def __init__(self, store: Store, config: ScanConfig, corpora: Corpora) -> None:
        self._store, self._config = store, config
        self._references = pictures_of(store, corpora.references)
        unseen = sum(len(corpus.embeddings) for corpus in corpora.unseen)
        null = corpora.unseen if unseen >= ENOUGH_UNSEEN else (*corpora.unseen, *corpora.background)
        self._background = pictures_of(store, null)
        self._shared: _SharedLosses | None = None

    def run(self, pair: Any, checkpoint: Checkpoint, scan_id: str) -> Screened:
        """Screens one pair. What the checkpoint's metadata tell of mirrored and cut pictures is used."""
        from finextract.losses import fingerprint
        from finextract.membership import MembershipSettings, membership

        base = fingerprint(pair.base)
        if self._shared is None or self._shared.base != base:
            self._shared = _SharedLosses(self._store, base)
        training = pictures_of_json(checkpoint.training)
        settings = MembershipSettings(
            budget=self._config.screen_budget,
            batch_size=2 * need_of(checkpoint.family).batch_size,
            alpha=self._config.alpha,
            noise_seed=self._config.seed,
            framings=framings_for(training, pair.base.image_size),
            variants=variants_for(training),
        )
        with self._shared as cache:
            answer = self._readable(
                lambda: membership(
                    pair, [_picture(p) for p in self._references], settings,
                    background=[_picture(p) for p in self._background], sets=self._sets(), cache=cache,
                )
            )  # fmt: skip
        LOGGER.info(
            "screen: %d of %d references trained on; %d evaluations of the tuned model, %d of the base",
            len(answer.trained_on), len(self._references), answer.tuned_evaluations, answer.base_evaluations,
        )  # fmt: skip
        return Screened(self._rows(answer, scan_id), answer.named, _facts(answer))

    def _readable(self, examine: Callable[[], Answer]) -> Answer:
        """Examines without the pictures that cannot be read: one lost copy is no reason to end a crawl.

        Raises CorpusError where no picture is left.
        """
        while True:
            try:
                return examine()
            except UnreadablePicture as error:
                LOGGER.warning("a picture is left out: %s", error)
                self._references = [p for p in self._references if p is not error.picture]
                self._background = [p for p in self._background if p is not error.picture]
                if not self._references:
                    raise

    def _sets(self) -> dict[str, list[int]]:
        """The references of each corpus, by their place."""
        sets: dict[str, list[int]] = {}
        for place, picture in enumerate(self._references):
            sets.setdefault(picture.corpus, []).append(place)
        return sets

    def _rows(self, answer: Answer, scan_id: str) -> tuple[Membership, ...]:
        """Rows of the references that stood out, strongest first, and of each corpus as a whole."""
        examined = [i for i, e in enumerate(answer.references) if e.margin is not None]
        examined.sort(key=lambda i: (answer.references[i].p_value, i))
        kept = [i for n, i in enumerate(examined) if n < KEPT or answer.references[i].trained_on]
        rows = [
            *(_row(answer.references[i], self._references[i], scan_id) for i in kept),
            *(_row_of_corpus(whole, scan_id) for whole in answer.sets),
        ]
        null = answer.background_log_ratios
        highest = float(null.max()) if len(null) else None
        return tuple(replace(row, num_background=len(null), background_highest=highest) for row in rows)


def _row(found: ReferenceEvidence, picture: StoredPicture, scan_id: str) -> Membership:
    assert found.log_ratio is not None, "what stood out was evaluated"
    return Membership(
        membership_id=new_id(),
        scan_id=scan_id,
        corpus=picture.corpus,
        reference_id=picture.reference_id,
        log_ratio=found.log_ratio,
        margin=found.margin,
        framed_log_ratio=found.framed_log_ratio,
        variant_log_ratios=found.variant_log_ratios,
        framing=found.framing,
        framings_tried=found.framings_tried,
        background_p=found.background_p,
        p_value=found.p_value,
        q_value=found.q_value,
        trained_on=found.trained_on,
        heat=found.heat,
    )


def _row_of_corpus(found: SetEvidence, scan_id: str) -> Membership:
    return Membership(
        membership_id=new_id(),
        scan_id=scan_id,
        corpus=found.name,
        reference_id="",
        log_ratio=found.log_ratio,
        margin=found.margin,
        framed_log_ratio=None,
        variant_log_ratios=(),
        framing="",
        framings_tried=0,
        background_p=None,
        p_value=found.p_value,
        q_value=found.q_value,
        trained_on=found.trained_on,
        num_pictures=found.num_pictures,
        margin_low=found.low,
        margin_high=found.high,
    )


def _picture(stored: StoredPicture) -> Any:
    from finextract.membership import Picture

    return Picture(stored.reference_id, stored.open)


def _facts(answer: Answer) -> dict[str, Any]:
    return {
        "trained_on": len(answer.trained_on),
        "membership_q": min([*(e.q_value for e in answer.references), *(s.q_value for s in answer.sets)]),
        "screen_evaluations": answer.tuned_evaluations,
        "screen_base_evaluations": answer.base_evaluations,
        "screened_references": answer.num_evaluated,
        "standing_references": answer.num_standing,
        "compared_references": sum(found.margin is not None for found in answer.references),
        "background_unlike": answer.background_is_unlike,
    }


class _SharedLosses:
    """The losses of one base, which all workers of a crawl read from the store and add to it.

    A file of the store holds what one worker computed at once. The first worker that needs a base's losses
    claims them; the others wait for its file, so that the pass over all references is computed once.
    """

    def __init__(self, store: Store, base: str) -> None:
        from finextract.losses import BaseCache

        self.base = base
        self._storage, self._folder = store.storage, f"{BASE_LOSSES}/{base}"
        self._cache = BaseCache()
        self._read: set[str] = set()
        self._known = 0

    def __enter__(self) -> Any:
        """The cache, with what the store has by now."""
        self._refresh()
        if not self._cache.losses and not self._claim():
            ends = self._claimed_at() + CLAIM_S
            while not self._cache.losses and time.time() < ends:
                time.sleep(0.5)
                self._refresh()
        self._known = len(self._cache.losses)
        return self._cache

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Writes what is new, where it is worth a file."""
        if kind is None and len(self._cache.losses) - self._known >= SHARED_AT:
            self._write(list(self._cache.losses.items())[self._known :])

    def _claim(self) -> bool:
        return self._storage.create(f"{self._folder}/claim", str(time.time()).encode())

    def _claimed_at(self) -> float:
        """When another worker claimed them, by its clock, but not later than now."""
        try:
            return min(time.time(), float(self._storage.read(f"{self._folder}/claim")))
        except (FileNotFoundError, ValueError):
            return 0.0

    def _refresh(self) -> None:
        for name in self._storage.names(self._folder):
            if name.endswith(".parquet") and name not in self._read:
                table = pq.read_table(io.BytesIO(self._storage.read(f"{self._folder}/{name}")))
                keys = zip(*(table[column].to_pylist() for column in _COLUMNS), strict=True)
                self._cache.losses.update(zip(keys, table["loss"].to_pylist(), strict=True))
                self._read.add(name)

    def _write(self, items: Sequence[tuple[tuple[str, str, str, float, int], float]]) -> None:
        columns = zip(*(key for key, _ in items), strict=True)
        table = pa.table({name: list(values) for name, values in zip(_COLUMNS, columns, strict=True)})
        table = table.append_column("loss", pa.array(np.array([loss for _, loss in items], np.float64)))
        stream = io.BytesIO()
        pq.write_table(table, stream)
        content = stream.getvalue()
        name = f"{hashlib.sha256(content).hexdigest()[:32]}.parquet"
        self._storage.create(f"{self._folder}/{name}", content)
        self._read.add(name)
