"""Embeddings in files that the processes of a machine share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from scanner.config import ScanConfig
from scanner.errors import CorpusError
from scanner.match import mapped
from scanner.match.corpus import corpora_of, load_corpora
from scanner.match.matching import with_corpora
from scanner.records import Reference, Role, now
from scanner.store.store import Store
from scanner.store.tables import arrow_schema

COUNT, SIZE = 20_000, 512  # 41 MB
WORKER = """
import json, re, sys
from pathlib import Path
import numpy as np
from finextract.significance import Thresholds
from scanner.config import ScanConfig
from scanner.match.corpus import corpora_of
from scanner.match.matching import Candidates, compare, split
from scanner.store.store import Store

def own_bytes():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

config, cache = ScanConfig(**json.loads(sys.argv[1])), Path(sys.argv[2])
store = Store(sys.argv[3])
candidates = Candidates("s", ["c"], np.ones((1, 512), np.float32))
before = own_bytes()
corpora = split(corpora_of(store, config, cache))
(compared,) = compare([candidates], corpora, Thresholds(0.9, None), 0.05)
grown = own_bytes() - before
print("compared", flush=True)
sys.stdin.readline()  # the other process has compared too
maps = Path("/proc/self/smaps").read_text()
shares = re.findall(r"embeddings\\.npy\\n.*?Pss: +(\\d+) kB", maps, re.DOTALL)
pss = sum(map(int, shares)) * 1024
print(json.dumps({"grown": grown, "pss": pss, "references": compared.num_references}))
"""


def reference(name: str, corpus: str, value: float, role: Role = Role.REFERENCE) -> Reference:
    return Reference(name, corpus, role, "", "", 1, 1, "d", (value, 0.5), now())


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
def test_two_workers_share_the_references_and_neither_copies_them(store: Store, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for corpus, role, count in (("r", "reference", COUNT), ("b", "background", 100)):
        values = rng.standard_normal((count, SIZE), dtype=np.float32)
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * SIZE)
        columns = {
            "reference_id": pa.array([f"{corpus}{n:063x}" for n in range(count)]),
            "embedding": pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1))),
        }
        other = {"corpus": corpus, "role": role, "path": "", "sha256": "", "width": 1, "height": 1,
                 "descriptor": ScanConfig().descriptor, "added_at": now(), "image_sha256": None}  # fmt: skip
        schema = arrow_schema(Reference)
        arrays = [
            columns[f.name] if f.name in columns else pa.repeat(pa.scalar(other[f.name], f.type), count)
            for f in schema
        ]
        arrays = [a.cast(f.type) for a, f in zip(arrays, schema, strict=True)]
        store.append_arrow("references", pa.Table.from_arrays(arrays, schema=schema))
    config = with_corpora(store, ScanConfig(), [])
    cache = tmp_path / "downloads"
    words = [json.dumps({"corpora": config.corpora}), str(cache), store.uri]
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, *words], text=True, stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "compared\n"
    told = []
    for worker in workers:  # both are alive until the first has answered
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
        told.append(json.loads(worker.stdout.readline()))
        if worker is workers[0]:
            assert workers[1].poll() is None
    for worker in workers:
        worker.communicate()
    size = COUNT * SIZE * 4
    assert [t["references"] for t in told] == [COUNT, COUNT]
    assert 0.4 * size < told[0]["pss"] < 0.6 * size, "its share of the pages: half, with another process"
    assert max(t["grown"] for t in told) < 0.5 * size
    assert len(list((cache / "corpora").iterdir())) == 2


def test_the_newest_row_of_a_reference_counts_and_they_are_sorted(store: Store, tmp_path: Path) -> None:
    at = now()
    for name, value, age in (("b", 1.0, 3), ("a", 2.0, 2), ("b", 3.0, 1), ("b", 4.0, 2)):
        store.append([replace(reference(name, "r", value), added_at=at - timedelta(minutes=age))])
    (corpus,) = load_corpora(store, ["r"], "d", cache=tmp_path)
    assert corpus.reference_ids.tolist() == [b"a", b"b"]
    assert corpus.embeddings.tolist() == [[2.0, 0.5], [3.0, 0.5]]
    with pytest.raises(ValueError, match="read-only"):
        corpus.embeddings[0] = 0
    assert not [path for path in (tmp_path / mapped.FOLDER).iterdir() if path.name.startswith(".")]


def test_a_worker_compares_with_the_references_of_the_configuration_though_the_corpus_grew(
    store: Store, tmp_path: Path
) -> None:
    store.append([reference("a", "r", 1.0), reference("b", "r", 2.0)])
    (before,) = load_corpora(store, ["r"], "d", cache=tmp_path)
    config = ScanConfig(descriptor="d", corpora={"r": f"reference:{before.digest}"})
    store.append([reference("c", "r", 3.0)])
    (corpus,) = corpora_of(store, config, tmp_path)
    assert corpus.reference_ids.tolist() == [b"a", b"b"]
    with pytest.raises(CorpusError, match="the corpus r was changed after the crawl began"):
        corpora_of(store, config, tmp_path / "of another machine")


def test_embeddings_that_nobody_used_for_a_week_are_removed(store: Store, tmp_path: Path) -> None:
    store.append([reference("a", "r", 1.0), reference("a", "s", 2.0), reference("b", "s", 2.0)])
    load_corpora(store, ["r"], "d", cache=tmp_path)
    (old,) = (tmp_path / mapped.FOLDER).iterdir()
    os.utime(old, (0, time.time() - 8 * 86400))
    load_corpora(store, ["s"], "d", cache=tmp_path)
    (left,) = (tmp_path / mapped.FOLDER).iterdir()
    assert left != old
    load_corpora(store, ["r"], "d", cache=tmp_path)
    assert old.is_dir()


def test_a_cache_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    store.append([reference("a", "r", 1.0)])
    (tmp_path / "file").touch()
    with pytest.raises(CorpusError, match="Set FINEXTRACT_CACHE"):
        load_corpora(store, ["r"], "d", cache=tmp_path / "file")
