"""A million checkpoints: is the store quick enough for planning, dispatch, `scanner status` and the desk?

Fills a store with listing rows, scans and matches of the sizes that real ones have, compacts it, and
measures, each in a process of its own:

- planning: from the store's rows to what is to be done, in order; time and peak memory
- resuming: from an interrupted listing to the plan of its rows; time and peak memory
- rematching: a crawl of 300,000 scans with ten candidates each, whose samples are compared with 10,000 new
  references and 1,000 background images; CPU minutes of the whole driver, peak memory (20 GB of disk)
- dispatch: a crawl on a real Ray whose workers scan nothing; time and the driver's CPU time per checkpoint
- `scanner status --quiet`, the real command
- the desk's first page: the rows of the flagged listing, and the sum above it
- the desk's actions: sorting by each column, each filter, the next undecided row, many decisions at once
- what a scan costs wherever it runs: operations and bytes, for the arithmetic in docs/scale.md

    python tests/scale.py [--checkpoints 1000000] [--store DIR]      # a store that is there is used again
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT / "scanner" / "crawl")]  # `finextract` is a folder of tests too

SOURCE = "hf"
BASES = 40
AT_ONCE = 20_000  # rows of a commit
FLAGGED, NOTHING, SKIPPED = 0.02, 0.58, 0.40
MATCHES = 10
REFERENCES, BACKGROUND, CANDIDATES, DIMENSIONS = 10_000, 1_000, 10, 512  # of what is compared again
RAW = json.dumps({  # an entry as the hub lists it: platform.md 1.1
    "_id": "6" * 24, "id": "somebody/some-model-lora", "author": "somebody", "gated": False, "private": False,
    "lastModified": "2025-03-02T18:11:09.000Z", "createdAt": "2025-03-02T17:51:09.000Z", "downloads": 12,
    "likes": 1, "library_name": "diffusers", "pipeline_tag": "text-to-image", "sha": "0" * 40,
    "tags": ["diffusers", "text-to-image", "diffusers-training", "stable-diffusion", "lora", "region:us",
             "base_model:runwayml/stable-diffusion-v1-5", "license:creativeml-openrail-m",
             "base_model:adapter:runwayml/stable-diffusion-v1-5", "template:sd-lora"],
    "cardData": {"license": "creativeml-openrail-m", "base_model": "runwayml/stable-diffusion-v1-5",
                 "instance_prompt": "a photo of sks dog", "inference": True,
                 "tags": ["stable-diffusion", "text-to-image", "diffusers", "lora"]},
    "siblings": [{"rfilename": name} for name in (".gitattributes", "README.md", "image_0.png", "image_1.png",
                                                  "pytorch_lora_weights.safetensors")],
})  # fmt: skip


def ids(rng: np.random.Generator, count: int, size: int) -> pa.Array:
    """Random hex names of `size` digits."""
    digits = rng.bytes(count * size // 2).hex().encode()
    return pa.array(np.frombuffer(digits, f"S{size}").astype(object), pa.binary()).cast(pa.string())


def write(store: Any, record_type: type[Any], columns: dict[str, Any], count: int, at_once: int) -> None:
    """Appends columns to a table; one value stands for all rows, and a missing column is null."""
    from scanner.store.tables import TABLES, arrow_schema

    arrays = []
    for field in arrow_schema(record_type):
        value = columns.get(field.name)
        if isinstance(value, pa.Array):
            arrays.append(value.cast(field.type))
        elif isinstance(value, np.ndarray):
            arrays.append(pa.array(value.tolist(), field.type))
        else:
            arrays.append(pa.repeat(pa.scalar(value, field.type), count))
    table = pa.Table.from_arrays(arrays, schema=arrow_schema(record_type))
    for start in range(0, count, at_once):
        store.append_arrow(TABLES[record_type], table.slice(start, at_once))


def fill(folder: Path, count: int, seed: int = 0) -> None:
    """A store of `count` checkpoints; nine in ten have a scan."""
    from scanner.config import ScanConfig
    from scanner.records import Checkpoint, ConfigRow, Match, Scan
    from scanner.store.store import Store

    rng = np.random.default_rng(seed)
    store, config = Store(folder, create=True), ScanConfig()
    at = datetime(2026, 11, 24, tzinfo=UTC)
    store.append([ConfigRow(config.config_id, config.toml(), at)])
    checkpoint_ids = ids(rng, count, 64)
    repos = [f"{author}/model-{n}" for n, author in enumerate(ids(rng, count, 12).to_pylist())]
    popular = rng.zipf(1.3, count) % BASES
    scanned = rng.random(count) < 0.9
    verdict = rng.choice(["flagged", "nothing_found", "skipped"], count, p=[FLAGGED, NOTHING, SKIPPED])
    seconds = rng.integers(0, 3 * 365 * 86400, count)
    listed_at = np.array([at] * count)
    common = {"source": SOURCE, "revision": "0" * 40, "file": "pytorch_lora_weights.safetensors",
              "size_bytes": 3_240_000, "kind": "lora", "family": "sd1", "caption": "a photo of sks dog",
              "num_train_images": 5, "license": "creativeml-openrail-m", "base_origin": "card",
              "training": json.dumps({"resolution": 512, "max_train_steps": 500, "rank": 4})}  # fmt: skip
    write(store, Checkpoint, {
        **common, "checkpoint_id": checkpoint_ids, "sha256": checkpoint_ids, "listed_at": listed_at,
        "repo": pa.array(repos), "url": pa.array([f"https://huggingface.co/{repo}" for repo in repos]),
        "base": pa.array([f"bases/base-{n}" for n in popular]),
        "inspection_status": np.where(verdict == "skipped", "skipped", "ready").astype(object),
        "raw": pa.array([RAW.replace("somebody/some-model-lora", repo) for repo in repos]),
    }, count, AT_ONCE)  # fmt: skip
    which = np.flatnonzero(scanned)
    n = len(which)
    scan_ids, found = ids(rng, n, 32), verdict[which]
    when = [datetime.fromtimestamp(at.timestamp() + s, UTC) for s in seconds[which] / 1000]
    similarity = np.where(found == "flagged", rng.uniform(0.6, 0.95, n), rng.uniform(0.2, 0.55, n))
    compared = found != "skipped"
    write(store, Scan, {
        "scan_id": scan_ids, "checkpoint_id": checkpoint_ids.take(pa.array(which)),
        "config_id": config.config_id, "run_id": "r", "verdict": found.astype(object),
        "reason": np.where(compared, "", "its base is unknown: nothing tells it").astype(object),
        "stage": np.where(compared, "match", "inspect").astype(object), "started_at": pa.array(when),
        "finished_at": pa.array(when), "caption": "a photo of sks dog", "base": "bases/base-0",
        "guidance_scale": 2.5, "correction": 0.0, "num_samples": 250, "num_candidates": 5,
        "num_references": 500, "num_background": 10000, "device": "cpu", "precision": "float32", "seed": 0,
        "tau": 0.6, "alpha": 0.05, "best_similarity": pa.array(similarity, mask=~compared),
        "q_value": pa.array(np.where(found == "flagged", 0.004, 0.9), mask=~compared),
        "seconds": [("sample", 40.0)], "versions": [("torch", "2.15.0")],
    }, n, 20_000)  # fmt: skip
    compared_ids = scan_ids.take(pa.array(np.flatnonzero(compared)))
    for start in range(0, len(compared_ids), 100_000):
        block = np.arange(start, min(start + 100_000, len(compared_ids)))
        many = np.repeat(block, MATCHES)
        score = rng.uniform(0.1, 0.9, len(many))
        flags = np.repeat((found == "flagged")[compared][block], MATCHES) & (rng.random(len(many)) < 0.3)
        write(store, Match, {
            "match_id": ids(rng, len(many), 32), "scan_id": compared_ids.take(pa.array(many)),
            "candidate_id": ids(rng, len(many), 32), "corpus": "mine", "similarity": pa.array(score),
            "reference_id": pa.array([f"{v:064x}" for v in rng.integers(0, 500, len(many))]),
            "null_similarity": 0.5, "p_value": 0.01, "q_value": 0.02, "flagged": pa.array(flags),
        }, len(many), 50_000)  # fmt: skip


def planning(folder: Path) -> dict[str, Any]:
    """From the store's rows to an ordered plan."""
    from scanner.config import ScanConfig
    from scanner.crawl.backlog import Schedule
    from scanner.crawl.planning import Plan
    from scanner.store.store import Store

    start, start_cpu = time.perf_counter(), time.process_time()
    plan = Plan.of_store(SOURCE, Store(folder), ScanConfig().config_id)
    left = len(Schedule(plan.todo))
    everything = Plan.of_store(SOURCE, Store(folder), "another configuration: nothing is finished")
    both = time.perf_counter() - start
    left_then = len(Schedule(everything.todo))
    return {"planned": len(plan), "left": left, "left_of_another_config": left_then,
            "seconds": both, "cpu_s": time.process_time() - start_cpu, "peak_gb": _peak_gb()}  # fmt: skip


def resuming(folder: Path) -> dict[str, Any]:
    """A listing of all of the store's rows that was interrupted at its end, up to its whole plan."""
    from scanner.config import ScanConfig
    from scanner.crawl.listing import _listing_id, list_batches
    from scanner.crawl.planning import Plan
    from scanner.hubs.base import Query
    from scanner.hubs.huggingface.source import HuggingFaceSource
    from scanner.records import Listing, now
    from scanner.store.store import Store

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        store = Store(shutil.copytree(folder, Path(scratch) / "store", copy_function=os.link))
        (count,) = store.query("SELECT count(*) AS n, min(listed_at) AS began FROM checkpoints")
        source, query = HuggingFaceSource(), Query(count["n"])
        store.append([
            Listing(_listing_id(source, query), SOURCE, count["began"], now(), count["n"], {}, False)
        ])  # fmt: skip
        start, start_cpu = time.perf_counter(), time.process_time()
        plan = Plan.begin(store, ScanConfig().config_id, list_batches(source, store, query))
        left = sum(len(batch) for batch in plan.grow())
        return {"planned": len(plan), "left": left, "seconds": time.perf_counter() - start,
                "cpu_s": time.process_time() - start_cpu, "peak_gb": _peak_gb()}  # fmt: skip


def fill_candidates(folder: Path, count: int) -> None:
    """A compacted store of `count` scans with ten candidates each, made under another configuration."""
    from scanner.config import ScanConfig
    from scanner.records import Candidate, Checkpoint, ConfigRow, Reference, Scan
    from scanner.store.compaction import compact
    from scanner.store.store import Store

    rng = np.random.default_rng(0)
    store, config = Store(folder, create=True), ScanConfig(alpha=0.04)
    at = datetime(2026, 11, 24, tzinfo=UTC)
    store.append([ConfigRow(config.config_id, config.toml(), at)])
    for corpus, role, n in (("mine", "reference", REFERENCES), ("other", "background", BACKGROUND)):
        write(store, Reference, {
            "reference_id": ids(rng, n, 64), "corpus": corpus, "role": role, "path": "", "sha256": "",
            "width": 512, "height": 512, "descriptor": config.descriptor, "added_at": at,
            "embedding": embeddings(rng, n),
        }, n, AT_ONCE)  # fmt: skip
    checkpoint_ids, scan_ids = ids(rng, count, 64), ids(rng, count, 32)
    repos = [f"somebody/model-{n}" for n in range(count)]
    write(store, Checkpoint, {
        "source": SOURCE, "revision": "0" * 40, "file": "pytorch_lora_weights.safetensors", "kind": "lora",
        "size_bytes": 3_240_000, "family": "sd1", "caption": "a photo of sks dog", "num_train_images": 5,
        "checkpoint_id": checkpoint_ids, "sha256": checkpoint_ids, "listed_at": at, "repo": pa.array(repos),
        "url": pa.array([f"https://huggingface.co/{repo}" for repo in repos]), "base": "bases/base-0",
        "inspection_status": "ready", "raw": RAW, "reason": "",
    }, count, AT_ONCE)  # fmt: skip
    write(store, Scan, {
        "scan_id": scan_ids, "checkpoint_id": checkpoint_ids, "config_id": config.config_id, "run_id": "r",
        "verdict": "nothing_found", "reason": "", "stage": "match", "started_at": at, "finished_at": at,
        "caption": "a photo of sks dog", "base": "bases/base-0", "guidance_scale": 2.5, "correction": 0.0,
        "num_samples": 250, "num_candidates": CANDIDATES, "num_references": 500, "num_background": 1000,
        "device": "cpu", "precision": "float32", "seed": 0, "seconds": [("sample", 40.0)],
        "versions": [("torch", "2.15.0")],
    }, count, AT_ONCE)  # fmt: skip
    for start in range(0, count, 2000):
        which = np.repeat(np.arange(start, min(start + 2000, count)), CANDIDATES)
        n = len(which)
        write(store, Candidate, {
            "candidate_id": ids(rng, n, 32), "scan_id": scan_ids.take(pa.array(which)), "clique_size": 5,
            "seed": pa.array(rng.integers(0, 250, n)), "clique_similarity": 0.8,
            "image_sha256": ids(rng, n, 64), "descriptor": config.descriptor, "embedding": embeddings(rng, n),
        }, n, n)  # fmt: skip
    for _ in compact(store, retention_hours=0):
        pass


def embeddings(rng: np.random.Generator, count: int) -> pa.Array:
    """Random L2-normalised descriptors."""
    values = rng.standard_normal((count, DIMENSIONS), dtype=np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * DIMENSIONS)
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))


def rematching(folder: Path, count: int) -> dict[str, Any]:
    """A crawl of checkpoints whose samples the store holds, after new references: all is compared again."""
    import stub_worker

    from scanner.crawl.engine import crawl
    from scanner.crawl.planning import Plan
    from scanner.crawl.progress import Observer, Progress
    from scanner.match.matching import with_corpora
    from scanner.store.store import Store

    kept = folder.parent / f"{folder.name}-candidates-{count}"
    if not kept.exists():
        subprocess.run([sys.executable, __file__, "--only", "fill_candidates", "--store", str(kept),
                        "--rematched", str(count)], check=True)  # fmt: skip
    ticks = [time.perf_counter()]

    class Watcher(Observer):
        def tick(self, progress: Progress) -> None:
            ticks.append(time.perf_counter())

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        store = Store(shutil.copytree(kept, Path(scratch) / "store", copy_function=os.link))
        start, start_cpu = time.perf_counter(), time.process_time()
        task = stub_worker.task(store, Path(scratch) / "cache", SOURCE)
        task = replace(task, config=with_corpora(store, task.config, []))
        plan = Plan.of_store(SOURCE, store, task.config.config_id)
        verdicts = crawl(task, plan, store, observer=Watcher())
        return {"compared": sum(verdicts.values()), "cpu_minutes": (time.process_time() - start_cpu) / 60,
                "minutes": (time.perf_counter() - start) / 60, "peak_gb": _peak_gb(),
                "longest_turn_of_the_loop_s": max(b - a for a, b in pairwise(ticks))}  # fmt: skip


def dispatch(folder: Path, count: int, scratch: Path) -> dict[str, Any]:
    """A crawl whose workers write a row and scan nothing, until `count` are done."""
    import stub_worker

    from scanner.crawl.engine import crawl
    from scanner.crawl.planning import Plan
    from scanner.crawl.progress import Budget, Observer
    from scanner.records import Checkpoint, Scan
    from scanner.store.store import Store

    store = Store(shutil.copytree(folder, scratch / "store", copy_function=os.link))
    plan = Plan.of_store(SOURCE, store, "none is finished")
    task = stub_worker.task(store, scratch / "cache", SOURCE)
    task = replace(task, config=replace(task.config, seed=task.run_id.__hash__() % 2**31))
    ended: list[tuple[float, float, float]] = []

    class Watcher(Observer):
        def outcome(self, checkpoint: Checkpoint, scan: Scan, progress: object) -> None:
            ended.append((time.perf_counter(), time.process_time(), time.thread_time()))

    plan = Plan(planned=[planned for planned in plan if planned.inspection_status == "ready"])
    budget = Budget(size_bytes=3_240_000 * count)
    crawl(task, plan, store, workers=2, observer=Watcher(), budget=budget, worker_class=stub_worker.Quick)
    wall, cpu, loop = (1000 * (b - a) / (len(ended) - 1) for a, b in zip(ended[0], ended[-1], strict=True))
    return {"dispatched": len(ended), "ms_each": wall, "loop_cpu_ms_each": loop, "driver_cpu_ms_each": cpu,
            "peak_gb": _peak_gb()}  # fmt: skip


def desk(folder: Path) -> dict[str, Any]:
    """The desk's first page and the sum above it, asked six times of an open store."""
    from scanner.store.desk_queries import list_flagged
    from scanner.store.queries import count_verdicts
    from scanner.store.store import Store

    store, pages, sums = Store(folder), [], []
    for _ in range(6):
        times = [(time.perf_counter(), time.process_time())]
        shown = list_flagged(store)
        assert shown is not None
        times.append((time.perf_counter(), time.process_time()))
        total = count_verdicts(store)
        times.append((time.perf_counter(), time.process_time()))
        (page, page_cpu), (total_, total_cpu) = (
            [1000 * (after - before) for before, after in zip(*pair, strict=True)] for pair in pairwise(times)
        )
        pages.append((page, page_cpu))
        sums.append((total_, total_cpu))
    found = {"rows": len(shown.rows), "of": shown.total, "planned": total.planned}
    for name, measured in (("page", pages), ("sum", sums)):
        found |= {f"{name}_first_ms": measured[0][0], f"{name}_first_cpu_ms": measured[0][1]}
        wall, cpu = (sorted(values)[2] for values in zip(*measured[1:], strict=True))
        found |= {f"{name}_ms": wall, f"{name}_cpu_ms": cpu}
    return found


def reviewed(folder: Path, scratch: Path) -> tuple[Any, Any, list[Any]]:
    """A copy of the store with 500 references and decisions, its review, and the subjects left undecided.

    Decided are 5,000 flagged checkpoints, or half of all where there are fewer.
    """
    from scanner.records import Reference, ReviewDecision, Role, now
    from scanner.store.store import Store
    from tui.review import Review, Subject

    store = Store(shutil.copytree(folder, scratch / "store", copy_function=os.link))
    store.append([
        Reference(f"{n:064x}", "mine", Role.REFERENCE, f"/home/me/{n}.png", f"{n:064x}", 512, 512, "sscd",
                  (1.0,), now()) for n in range(500)
    ])  # fmt: skip
    flagged = store.query("SELECT scan_id FROM scans WHERE verdict = 'flagged' ORDER BY scan_id")
    subjects, review = [Subject(row["scan_id"], "") for row in flagged], Review(store, "vera")
    decided = min(5000, len(subjects) // 2)
    review.decide_all(subjects[:decided], ReviewDecision.DISMISS)
    return store, review, subjects[decided:]


def desk_actions(folder: Path, scratch: Path) -> dict[str, Any]:
    """What a reviewer does at the desk, in a copy of the store with references and 5,000 decisions.

    The milliseconds of each kind of action, and which was the slowest one; each is asked three times, and the
    median counts.
    """
    from scanner.records import ReviewDecision
    from scanner.store.desk_filter import DecisionState, Filter, Sort, View
    from scanner.store.desk_index import DeskIndex
    from scanner.store.desk_queries import ListFilter, list_flagged

    store, review, undecided = reviewed(folder, scratch)
    start = time.perf_counter()
    index = DeskIndex(store)
    index.refresh()
    found: dict[str, Any] = {"index_s": time.perf_counter() - start, "peak_gb": _peak_gb()}
    start = time.perf_counter()
    recorded = review.decide_all(undecided[:200], ReviewDecision.UNSURE)
    found["decide_200_ms"] = 1000 * (time.perf_counter() - start)
    start = time.perf_counter()
    index.page(View(), 0, 200)
    found["first_page_after_it_ms"] = 1000 * (time.perf_counter() - start)
    start = time.perf_counter()
    review.withdraw([(one.subject, one.event) for one in recorded])
    found["undo_200_ms"] = 1000 * (time.perf_counter() - start)
    lists = (ListFilter.FLAGGED, ListFilter.ALL, ListFilter.SKIPPED)
    orders = [
        View(shown, sort=sort, reverse=back) for shown in lists for sort in Sort for back in (False, True)
    ]
    day = datetime(2026, 11, 24, tzinfo=UTC)
    filters = [
        Filter(repo=("abc",)), Filter(corpus=("mine",)), Filter(image=("7.png",)), Filter(image=("0" * 60,)),
        Filter(base=("base-1",)), Filter(kind=("lora",)), Filter(source=("hf",)), Filter(since=day),
        Filter(grounds=("gives_back",)), *(Filter(states=(state,)) for state in DecisionState),
        Filter(repo=("a",), corpus=("mine",), kind=("lora",), states=(DecisionState.UNDECIDED,)),
    ]  # fmt: skip
    filtered = [View(shown, where) for shown in lists for where in filters]
    rows = {view: index.page(view, 0, 200).rows for view in orders + filtered}
    actions = {
        "first_list": [(view, lambda view: list_flagged(store)) for view in orders[:1]],
        "page_60_of_it": [(view, lambda view: list_flagged(store, 12_000)) for view in orders[:1]],
        "sorted": [(view, lambda view: index.page(view, 0, 200)) for view in orders],
        "filtered": [(view, lambda view: index.page(view, 0, 200)) for view in filtered],
        "page_60": [(view, lambda view: index.page(view, 12_000, 200)) for view in orders],
        "next_undecided": [
            (view, lambda view: index.next_undecided(view, rows[view][100].checkpoint_id))
            for view in orders + filtered if len(rows[view]) > 100
        ],
        "reasons": [(view, index.reasons) for view in filtered if view.shown is ListFilter.SKIPPED],
        "values": [(column, index.values) for column in ("kind", "base", "source", "corpus")],
    }  # fmt: skip
    for name, asked in actions.items():
        times = [(_median_ms(lambda: ask(what), 3), what) for what, ask in asked]  # type: ignore[operator]  # noqa: B023
        slowest, what = max(times, key=lambda pair: pair[0])
        found[f"{name}_slowest_of_{len(times)}_ms"] = slowest
        if slowest > 300:
            found[f"{name}_slowest"] = str(what)
    return found


def _median_ms(ask: Any, times: int) -> float:
    measured = []
    for _ in range(times):
        start = time.perf_counter()
        ask()
        measured.append(1000 * (time.perf_counter() - start))
    return sorted(measured)[times // 2]


def status(folder: Path) -> dict[str, Any]:
    """`scanner status --quiet`, as a person calls it."""
    command = [str(Path(sys.executable).parent / "scanner"), "status", "--quiet", "--store", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"seconds": time.perf_counter() - start, "said": done.stdout.strip()}


def costs(folder: Path) -> dict[str, Any]:
    """Counts of Stable Diffusion 1.x at 512x512, on tensors without content; bytes of rows that are new."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from scanner.records import Candidate, new_id
    from scanner.store.tables import arrow_schema

    widths, down, up = (128, 256, 512, 512), ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            latent_channels=4, block_out_channels=widths, layers_per_block=2, down_block_types=down,
            up_block_types=up,
        )  # fmt: skip
        latents, prompt = torch.empty(1, 4, 64, 64), torch.empty(1, 77, 768)
        with FlopCounterMode(display=False) as forward:
            unet(latents, torch.tensor(1), prompt)
        with FlopCounterMode(display=False) as decode:
            vae.decode(latents)
    rank_1 = sum(
        layer.in_features + layer.out_features
        for name, layer in unet.named_modules()
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    )
    embeddings = np.random.default_rng(0).standard_normal((1000, 512))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows = [
        Candidate(new_id(), new_id(), 1, 50, 0.8, new_id() * 2, "sscd", tuple(map(float, e)))
        for e in embeddings
    ]
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=arrow_schema(Candidate))
    return {
        "forward_tflop": forward.get_total_flops() / 1e12, "decode_tflop": decode.get_total_flops() / 1e12,
        "unet_parameters": sum(p.numel() for p in unet.parameters()),
        "lora_parameters_a_rank": rank_1, "candidate_bytes": _parquet_size(table) / len(rows),
    }  # fmt: skip


def _parquet_size(table: pa.Table) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return int(sink.getvalue().size)


def _peak_gb() -> float:
    """Of this process alone; `getrusage` would count what its parent held when it began."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) / 1e6


def _alone(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def made(folder: Path, checkpoints: int) -> None:
    """Fills and compacts a store, unless it is there already."""
    if folder.exists():
        return
    start = time.perf_counter()
    fill(folder, checkpoints)
    print(f"filled {folder} in {time.perf_counter() - start:.0f} s", flush=True)
    from scanner.store.compaction import compact
    from scanner.store.store import Store

    start = time.perf_counter()
    for done in compact(Store(folder), retention_hours=0):
        if done.files:
            print(f"  {done.table}: {done.files} files, {done.rows} rows", flush=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"compacted in {time.perf_counter() - start:.0f} s: {size / 1e9:.2f} GB", flush=True)


MEASURED = ("planning", "resuming", "status", "desk", "desk_actions", "dispatch", "rematching", "costs")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=int, default=1_000_000)
    parser.add_argument("--dispatched", type=int, default=5_000)
    parser.add_argument("--store", type=Path, default=ROOT.parent / "build/scale")
    parser.add_argument("--only", choices=(*MEASURED, "fill_candidates"))
    parser.add_argument("--rematched", type=int, default=300_000, help="scans with ten candidates each")
    options = parser.parse_args()
    if options.only:
        with tempfile.TemporaryDirectory(dir=options.store.parent) as scratch:  # links stay on a disk
            extra = {"dispatch": (options.dispatched, Path(scratch)), "desk_actions": (Path(scratch),),
                     "rematching": (options.rematched,),
                     "fill_candidates": (options.rematched,)}  # fmt: skip
            print(json.dumps(globals()[options.only](options.store, *extra.get(options.only, ()))))
        return
    made(options.store, options.checkpoints)
    for name in MEASURED:
        told = _alone("--only", name, "--store", str(options.store), "--dispatched", str(options.dispatched),
                      "--rematched", str(options.rematched))  # fmt: skip
        shown = (f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in told.items())
        print(f"{name:10} {'; '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
