"""The candidates of a scan as rows: from its extraction, or from an earlier scan that sampled alike."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from finextract.metadata.captions import CaptionOrigin
from scanner.config import ScanConfig, sampling_id_of
from scanner.crawl.logs import LOGGER
from scanner.match.matching import Candidates
from scanner.records import Candidate, Checkpoint, ConfigRow, Scan, new_id
from scanner.store.store import Store
from scanner.store.tables import arrow_schema

FACTS = (
    "guidance_scale", "correction", "num_samples", "num_candidates", "sample_evaluations", "sampled_for",
    "sampled_for_stated", "rounds", "caption", "caption_origin", "caption_score", "caption_evaluations",
)  # fmt: skip


class Sampled(NamedTuple):
    """The scan that has the samples of a checkpoint."""

    scan_id: str
    num_candidates: int


def sampled(store: Store, config: ScanConfig, checkpoint_id: str | None = None) -> dict[str, Sampled]:
    """By checkpoint: its newest scan under another configuration that samples alike; of one, or of all."""
    alike = [
        row.config_id
        for row in store.select(ConfigRow, "WHERE config_id <> ?", [config.config_id])
        if sampling_id_of(row.toml) == config.sampling_id
    ]
    if not alike:
        return {}
    found = store.stream(
        "SELECT checkpoint_id, arg_max(scan_id, finished_at) AS scan_id, "
        "arg_max(num_candidates, finished_at) AS num_candidates FROM scans "
        "WHERE verdict IN ('flagged', 'nothing_found') AND num_samples > 0 "
        "AND list_contains(?, config_id) AND checkpoint_id = coalesce(?, checkpoint_id) "
        "GROUP BY checkpoint_id",
        [alike, checkpoint_id],
    )
    return {
        checkpoint_id: Sampled(scan_id, count)
        for table in found
        for checkpoint_id, scan_id, count in zip(*(c.to_pylist() for c in table.columns), strict=True)
    }


def samples_alike(scan: Scan, checkpoint: Checkpoint, config: ScanConfig) -> bool:
    """Whether an earlier scan has the samples that a scan of the checkpoint would draw now.

    A recovered caption follows from the checkpoint and the configuration, so where still none is stated, a
    new scan would recover the same one.
    """
    caption = "" if scan.caption_origin == CaptionOrigin.RECOVERED else scan.caption
    images = config.num_samples_images(checkpoint.num_train_images)
    sampled_for = scan.sampled_for or scan.num_samples // config.samples_per_image  # older rows: all of them
    return (scan.base, caption, sampled_for) == (checkpoint.base, checkpoint.caption, images)


def earlier_candidates(
    store: Store, config: ScanConfig, checkpoint: Checkpoint, scan_id: str
) -> tuple[list[Candidate], dict[str, Any]]:
    """The candidates of an earlier scan whose samples a new one would draw again, as rows of the new one.

    With the facts of these samples, for the row of the new scan. Both are empty where there is no such scan,
    or its candidates are not whole.
    """
    for found in sampled(store, config, checkpoint.checkpoint_id).values():
        (scan,) = store.scans_with_ids([found.scan_id])
        rows = store.select(Candidate, "WHERE scan_id = ?", [found.scan_id])
        if samples_alike(scan, checkpoint, config) and len(rows) == found.num_candidates:
            LOGGER.info("the %d samples of the scan %s are compared again", scan.num_samples, scan.scan_id)
            own = [replace(row, candidate_id=new_id(), scan_id=scan_id) for row in rows]
            return own, {name: getattr(scan, name) for name in FACTS}
    return [], {}


def rows_of(extraction: Any, scan_id: str, descriptor: str, store: Store) -> list[Candidate]:
    """The rows of the candidates of a finextract.extract.Extraction, whose images the store gets."""
    rows = []
    for clique in extraction.candidates:
        sample = clique.representative
        guidance = extraction.arm(sample).guidance
        extraction.picture(sample).save(stream := io.BytesIO(), format="PNG")
        rows.append(
            Candidate(
                candidate_id=new_id(),
                scan_id=scan_id,
                seed=extraction.seeds[sample],
                clique_size=len(clique.members),
                clique_similarity=clique.similarity,
                image_sha256=store.put_image(stream.getvalue()),
                descriptor=descriptor,
                embedding=tuple(extraction.embeddings[sample].tolist()),
                guidance_scale=guidance.guidance_scale,
                correction=guidance.correction,
                log_ratio=clique.log_ratio,
            )
        )
    return rows


def of_each_scan(table: pa.Table, scan_ids: Sequence[str], counts: Sequence[int]) -> list[Candidates]:
    """The candidates of each scan; `counts` are their rows, in order. Copies no embedding."""
    embeddings = np.empty((0, 0), np.float32)
    if table.num_rows:
        values = table["embedding"].combine_chunks().flatten()
        embeddings = values.to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
    ids = table["candidate_id"].to_pylist()
    ends = np.cumsum(counts).tolist()
    return [
        Candidates(scan_id, ids[end - count : end], embeddings[end - count : end])
        for scan_id, count, end in zip(scan_ids, counts, ends, strict=True)
    ]


def batches(
    items: Iterable[tuple[str, pa.Table]], size: int
) -> Iterator[list[tuple[str, pa.Table]]]:  # fmt: skip
    """The items, `size` of them at a time."""
    batch: list[tuple[str, pa.Table]] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def candidate_rows(store: Store, scans: Mapping[str, Sampled]) -> Iterator[tuple[str, pa.Table]]:
    """Each checkpoint id with the rows of its candidates, in the order in which the store holds them.

    One pass over the table. A checkpoint whose rows are not whole is left out.
    """
    missing = {}
    for checkpoint_id, scan in scans.items():
        if scan.num_candidates:
            missing[scan.scan_id] = (checkpoint_id, scan.num_candidates)
        else:
            yield checkpoint_id, arrow_schema(Candidate).empty_table()
    if not missing:
        return
    columns = ", ".join(arrow_schema(Candidate).names)
    sql = f"SELECT {columns} FROM candidates WHERE scan_id IN (SELECT unnest(string_split(?, ' ')))"
    parts: dict[str, list[pa.Table]] = {}
    for table in store.stream(sql, [" ".join(missing)]):
        start = 0
        for scan_id, rows in groupby(table["scan_id"].to_pylist()):
            count = sum(1 for _ in rows)
            parts.setdefault(scan_id, []).append(table.slice(start, count))
            start += count
            checkpoint_id, expected = missing[scan_id]
            if sum(part.num_rows for part in parts[scan_id]) == expected:
                yield checkpoint_id, pa.concat_tables(parts.pop(scan_id))
