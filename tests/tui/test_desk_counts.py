"""The desk, `scanner status` and a crawl print one sum, in the same words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from commands import scanner
from filled_store import BEGAN, Crawl, Opener
from servers.trouble import write_pickle

from scanner.cli import cli
from scanner.config import DESCRIPTOR, ScanConfig
from scanner.records import Reference, Role, Verdict
from scanner.store.store import Store


def add_corpora(store: Store) -> None:
    """A reference and a background, by their embeddings alone."""
    rng = np.random.default_rng(0)
    for corpus, role, count in (("mine", Role.REFERENCE, 1), ("background", Role.BACKGROUND, 30)):
        vectors = rng.standard_normal((count, 512))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        store.append([
            Reference(f"{corpus}{n}", corpus, role, f"{n}.png", "0", 64, 64, DESCRIPTOR, tuple(vector), BEGAN)
            for n, vector in enumerate(vectors.tolist())
        ])  # fmt: skip


async def test_the_desk_the_status_and_the_last_line_of_a_crawl_print_the_same_sum(
    filled: Crawl, desk: Opener, tmp_path: Path
) -> None:
    store = filled.store
    flagged = filled.scans["ben/strong-shoe"]  # found nothing under a newer configuration; the flag stands
    newer = {"scan_id": "newer", "config_id": "another", "verdict": Verdict.NOTHING_FOUND}
    store.append([replace(flagged, **newer)])
    store.append([ScanConfig().row()])
    add_corpora(store)
    (tmp_path / "models").mkdir()
    write_pickle(tmp_path / "models/loose.ckpt")
    words = ["--source", f"folder:{tmp_path / 'models'}", "--corpus", "mine", "--corpus", "background"]
    crawl = scanner("crawl", *words, "--store", store.uri)
    assert crawl.returncode == 0, crawl.stderr
    of_crawl, of_store = crawl.stderr.splitlines()[-3:-1]  # the last line names the desk
    nothing = "0 flagged + 0 nothing found"
    assert of_crawl == f"This crawl: 1 planned = {nothing} + 1 skipped + 0 failed + 0 to do"
    sums = "9 planned = 3 flagged + 1 nothing found + 2 skipped + 1 failed + 2 to do"
    assert of_store == f"Store, 3 configurations: {sums}"
    status = CliRunner().invoke(cli, ["status", "--store", store.uri])
    assert status.stdout.splitlines()[-1] == of_store
    async with desk() as seen:
        assert seen.part("#counts") == of_store
    as_json = json.loads(CliRunner().invoke(cli, ["status", "--json", "--store", store.uri]).stdout)
    assert (as_json["planned"], as_json["flagged"]) == (9, 3)
    verdicts = [row["verdict"] for row in as_json["checkpoints"]]
    assert (len(verdicts), verdicts.count("flagged")) == (9, 3), "the rows are those that are counted"


def test_the_status_of_one_configuration_says_so(filled: Crawl) -> None:
    filled.store.append([replace(ScanConfig().row(), config_id=filled.scans["ben/strong-shoe"].config_id)])
    config = filled.scans["ben/strong-shoe"].config_id
    status = CliRunner().invoke(cli, ["status", "--config", config, "--store", filled.store.uri])
    assert status.stdout.splitlines()[-1].startswith(f"Configuration {config[:12]}: 8 planned = 3 flagged + ")


def two_revisions(crawl: Crawl) -> None:
    """Two revisions of a repo with a long name, two files of another repo, and a third repo."""
    company, shoe = "some-company-name/shoes-in-the-style-of-an-owner", "anna/shoe"
    found: list[tuple[str, float, dict[str, object]]] = [
        (company, 0.94, {"revision": "4f1c9a2e" * 5}),
        (company, 0.93, {"revision": "77d01b35" * 5}),
        (shoe, 0.84, {"file": "step-500.safetensors"}),
        (shoe, 0.83, {"file": "step-900.safetensors"}),
        ("ben/alone", 0.7, {}),
    ]
    for number, (repo, similarity, changes) in enumerate(found):
        changes["checkpoint_id"] = f"checkpoint-{number}"
        crawl.scan(
            repo, Verdict.FLAGGED, checkpoint=changes, scan_id=f"scan-{number}",
            best_similarity=similarity, q_value=0.01,
        )  # fmt: skip


async def test_two_revisions_and_two_files_of_one_repo_are_told_apart_at_the_desk(
    crawl: Crawl, desk: Opener
) -> None:
    two_revisions(crawl)
    async with desk(size=(80, 24)) as seen:
        rows = [line.split()[0:2] for line in seen.part_lines("#checkpoints")[1:6]]
        assert len({tuple(row) for row in rows}) == 5
        assert any(row[0].endswith("@4f1c9a2e") for row in rows)
        assert any(row[0].endswith("@77d01b35") for row in rows)
        assert "…" in rows[0][0]
        assert "ben/alone" in seen.text
        assert "ben/alone@" not in seen.part("#checkpoints")
        assert "@4f1c9a2e" in seen.part("#detail")
        assert "pytorch_lora_weights.safetensors" in seen.part("#detail")


def test_two_revisions_and_two_files_of_one_repo_are_told_apart_in_the_status(crawl: Crawl) -> None:
    two_revisions(crawl)
    lines = CliRunner().invoke(cli, ["status", "--store", crawl.store.uri]).stdout.splitlines()
    names = [line.partition("  FLAGGED")[0].strip() for line in lines if "FLAGGED" in line]
    assert names == [
        "some-company-name/shoes-in-the-style-of-an-owner@4f1c9a2e",
        "some-company-name/shoes-in-the-style-of-an-owner@77d01b35",
        "anna/shoe step-500.safetensors",
        "anna/shoe step-900.safetensors",
        "ben/alone",
    ]
