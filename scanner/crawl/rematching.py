"""Compares the candidates of earlier scans again: a corpus that grew needs no new samples. Numpy only.

Samples and candidates depend on the checkpoint, its caption and base, on N0, and on those keys of a
configuration that concern sampling, not on the references. The store holds the candidates of a scan with
their embeddings, so the scan under another set of references is computed from them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scanner.config import ScanConfig, sampling_id_of
from scanner.match.corpus import load_corpora
from scanner.match.matching import compare, split
from scanner.records import Candidate, Checkpoint, ConfigRow, Match, Scan, new_id, now
from scanner.store.store import Store


class Rematching:
    """The newest scans of a store under other configurations with the same sampling."""

    def __init__(self, store: Store, config: ScanConfig, run_id: str) -> None:
        self._store, self._config, self._run_id = store, config, run_id
        alike = [
            row.config_id
            for row in store.select(ConfigRow, "WHERE config_id <> ?", [config.config_id])
            if sampling_id_of(row.toml) == config.sampling_id
        ]
        rows = store.query(
            "SELECT checkpoint_id, arg_max(scan_id, finished_at) AS scan_id FROM scans "
            "WHERE verdict IN ('flagged', 'nothing_found') AND num_samples > 0 "
            "AND list_contains(?, config_id) GROUP BY checkpoint_id",
            [alike],
        )
        self._corpora = split(load_corpora(store, list(config.corpora), config.descriptor)) if rows else None
        self._sampled: dict[str, str] = {row["checkpoint_id"]: row["scan_id"] for row in rows}

    def __contains__(self, checkpoint_id: str) -> bool:
        """Whether the store holds samples of a checkpoint."""
        return checkpoint_id in self._sampled

    def __len__(self) -> int:
        return len(self._sampled)

    def scans(self, checkpoints: Sequence[Checkpoint]) -> list[tuple[Checkpoint, Scan]]:
        """Compares and writes; returns each checkpoint with its new scan.

        Leaves out a checkpoint with another base, caption or number of samples than before: it needs new
        samples. Raises StoreError.
        """
        wanted = " ".join(self._sampled[c.checkpoint_id] for c in checkpoints)
        among = "WHERE scan_id IN (SELECT unnest(string_split(?, ' ')))"
        earlier = {scan.checkpoint_id: scan for scan in self._store.select(Scan, among, [wanted])}
        found: dict[str, list[Candidate]] = {}
        for candidate in self._store.select(Candidate, f"{among} ORDER BY candidate_id", [wanted]):
            found.setdefault(candidate.scan_id, []).append(candidate)
        done: list[tuple[Checkpoint, Scan, list[Candidate], tuple[Match, ...]]] = []
        for checkpoint in checkpoints:
            scan = earlier.get(checkpoint.checkpoint_id)
            if scan is None or not self._same_samples(scan, checkpoint):
                continue
            candidates = found.get(scan.scan_id, [])
            if len(candidates) == scan.num_candidates:
                done.append((checkpoint, *self._compared(scan, candidates)))
        self._store.append([candidate for _, _, own, _ in done for candidate in own])
        self._store.append([match for *_, matches in done for match in matches])
        self._store.append([scan for _, scan, *_ in done])
        return [(checkpoint, scan) for checkpoint, scan, *_ in done]

    def _same_samples(self, scan: Scan, checkpoint: Checkpoint) -> bool:
        config = self._config
        count = config.samples_per_image * config.num_samples_images(checkpoint.num_train_images)
        return (scan.base, scan.caption, scan.num_samples) == (checkpoint.base, checkpoint.caption, count)

    def _compared(
        self, earlier: Scan, candidates: list[Candidate]
    ) -> tuple[Scan, list[Candidate], tuple[Match, ...]]:
        """The new scan of an earlier scan's candidates, with its own rows of candidates and matches."""
        assert self._corpora is not None, "corpora are loaded where there are samples"
        references, background = self._corpora
        started_at, began, config = now(), time.perf_counter(), self._config
        scan_id = new_id()
        own = [replace(c, candidate_id=new_id(), scan_id=scan_id) for c in candidates]
        embeddings = np.array([c.embedding for c in own], np.float32).reshape(len(own), -1)
        evidence = compare(
            scan_id, [c.candidate_id for c in own], embeddings, references, background, config.tau,
            config.alpha,
        )  # fmt: skip
        scan = replace(
            earlier,
            scan_id=scan_id,
            config_id=config.config_id,
            run_id=self._run_id,
            verdict=evidence.verdict,
            started_at=started_at,
            finished_at=now(),
            num_references=evidence.num_references,
            num_background=evidence.num_background,
            best_similarity=evidence.best_similarity,
            q_value=evidence.q_value,
            tau=config.tau,
            alpha=config.alpha,
            seconds={"match": round(time.perf_counter() - began, 3)},
        )
        return scan, own, evidence.matches
