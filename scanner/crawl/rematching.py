"""What was sampled before, compared anew: a corpus that grew asks for no new samples. Numpy only.

Samples and candidates depend on the checkpoint, its caption and base, on N0, and on what a configuration says
of sampling; what they are compared with comes after. The candidates of such a scan stand in the store with
their embeddings, so a scan under the new configuration is made of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scanner.config import ScanConfig, sampling_id
from scanner.match.corpus import load_corpora
from scanner.match.matching import compare, split
from scanner.records import Candidate, Checkpoint, ConfigRow, Match, Scan, new_id, now
from scanner.store.store import Store


class Rematching:
    """Scans of a store under configurations that sample as this one does."""

    def __init__(self, store: Store, config: ScanConfig, run_id: str) -> None:
        self._store, self._config, self._run_id = store, config, run_id
        alike = [
            row.config_id
            for row in store.select(ConfigRow, "WHERE config_id <> ?", [config.config_id])
            if sampling_id(row.toml) == config.sampling_id
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
        """Whether it was sampled before."""
        return checkpoint_id in self._sampled

    def __len__(self) -> int:
        return len(self._sampled)

    def scans(self, checkpoints: Sequence[Checkpoint]) -> list[tuple[Checkpoint, Scan]]:
        """Compares and writes; leaves out what must be sampled anew after all.

        Other base, other caption, other number of samples. Raises StoreError.
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
            if scan is None or not self._samples_alike(scan, checkpoint):
                continue
            candidates = found.get(scan.scan_id, [])
            if len(candidates) == scan.num_candidates:
                done.append((checkpoint, *self._anew(scan, candidates)))
        self._store.append([candidate for _, _, own, _ in done for candidate in own])
        self._store.append([match for *_, matches in done for match in matches])
        self._store.append([scan for _, scan, *_ in done])
        return [(checkpoint, scan) for checkpoint, scan, *_ in done]

    def _samples_alike(self, scan: Scan, checkpoint: Checkpoint) -> bool:
        config = self._config
        count = config.samples_per_image * config.num_samples_images(checkpoint.num_train_images)
        told = (checkpoint.base, checkpoint.caption, count)
        return (scan.base, scan.caption, scan.num_samples) == told

    def _anew(
        self, earlier: Scan, candidates: list[Candidate]
    ) -> tuple[Scan, list[Candidate], tuple[Match, ...]]:
        """The scan of an earlier one's candidates, and its own rows of candidates and matches."""
        assert self._corpora is not None, "what was sampled is there"
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
