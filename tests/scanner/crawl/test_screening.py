"""The screen in the worker: what it names is sampled, what it does not is not, and rows say which."""

from __future__ import annotations

import shutil
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from finextract.reasons import ReasonCode
from scanner.cli import cli
from scanner.commands.crawl import command as crawl_command
from scanner.config import ScanConfig
from scanner.crawl import screening
from scanner.crawl.service import CrawlOptions, list_and_inspect
from scanner.crawl.worker import Scanner, SscdEmbedder, Task
from scanner.match.corpus import add
from scanner.match.matching import with_corpora
from scanner.records import (
    Candidate,
    Checkpoint,
    Examination,
    Ground,
    Match,
    Membership,
    Role,
    Scan,
    Verdict,
    new_id,
)
from scanner.store.leases import Leases, lease_key
from scanner.store.orphans import BASE_LOSSES
from scanner.store.store import Store

ZOO = Path(__file__).resolve().parents[2] / "zoo"
BUDGET = 165
SUBJECTS = ("cats", "cars", "music")
QUICK = ScanConfig(samples_per_image=2, steps=6, assumed_train_images=5, screen_budget=BUDGET)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the pictures of all subjects, a background, and the zoo's checkpoints as rows."""
    made = tmp_path_factory.mktemp("filled")
    images = ZOO / "images"
    (made / "background").mkdir()
    for path in sorted((images / "background").iterdir())[:120]:
        shutil.copy(path, made / "background")
    store, embedder = Store(made / "store", create=True), SscdEmbedder()
    for name, folder, role in (
        ("subjects", images / "subjects", Role.REFERENCE),
        ("background", made / "background", Role.BACKGROUND),
    ):
        for _ in add(store, name, folder, embedder, role):
            pass
    list_and_inspect(
        CrawlOptions(source=f"folder:{ZOO / 'checkpoints'}", store=store.uri, base=str(ZOO / "base"))
    )
    return made / "store"


@pytest.fixture
def copied(filled: Path, tmp_path: Path) -> Store:
    """A store of its own for each test."""
    shutil.copytree(filled, tmp_path / "copied")
    return Store(tmp_path / "copied")


def scan_of(store: Store, tmp_path: Path, name: str, base: Path = ZOO / "base", **changes: object) -> Scan:
    """Scans a checkpoint in a worker that shares nothing with another one but the store."""
    config = with_corpora(store, replace(QUICK, **changes), [])
    store.append([config.row()])
    cache = tmp_path / f"cache-{new_id()}"
    cache.mkdir()
    task = Task(
        store=store.uri, source=f"folder:{ZOO / 'checkpoints'}", base=str(ZOO / "base"), config=config,
        run_id=new_id(), cache=str(cache), max_download=10**9, cache_bytes=10**10, keep_weights=False,
        allow_pickle=False, threads=1,
    )  # fmt: skip
    (checkpoint,) = store.select(Checkpoint, "WHERE repo = ?", [name])
    leases = Leases(store.storage, task.run_id)
    leases.acquire([lease_key(checkpoint.checkpoint_id, config.config_id)])
    try:
        return Scanner(task).scan(replace(checkpoint, base=str(base)))
    finally:
        leases.release()


def test_a_checkpoint_that_extraction_cannot_flag_is_flagged_as_trained_on(
    copied: Store, tmp_path: Path
) -> None:
    scan = scan_of(copied, tmp_path, "cars-lora-light", screen="only")
    assert scan.verdict is Verdict.FLAGGED
    assert scan.grounds_of_flag == (Ground.TRAINED_ON,)
    assert scan.examined is Examination.SCREENED
    assert scan.num_samples == 0
    assert scan.trained_on >= 3
    assert scan.membership_q is not None
    assert scan.membership_q <= 0.05
    assert 0 < scan.screen_evaluations <= BUDGET
    assert 50 == scan.screened_references > scan.standing_references >= scan.compared_references >= 3
    rows = copied.select(Membership, "WHERE scan_id = ?", [scan.scan_id])
    trained_on = [row for row in rows if row.trained_on]
    paths = {
        r["reference_id"]: r["path"] for r in copied.query('SELECT reference_id, path FROM "references"')
    }
    assert {Path(paths[row.reference_id]).parent.name for row in trained_on} == {"cars"}
    assert all(
        row.margin is not None and row.margin > 0 and len(row.variant_log_ratios) == 9 and len(row.heat) == 64
        for row in trained_on
    )
    assert copied.select(Scan, "WHERE scan_id = ?", [scan.scan_id]) == [scan]


def test_ten_images_and_no_background_are_answered_and_told_how_sure(filled: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "few", create=True)
    for subject in ("cars", "sweets"):
        deque(add(store, subject, ZOO / "images/subjects" / subject, SscdEmbedder(threads=1)), maxlen=0)
    store.append(Store(filled).select(Checkpoint))
    trained = scan_of(store, tmp_path, "cars-lora-light", extract="never")
    assert trained.grounds_of_flag == (Ground.TRAINED_ON,)
    assert (trained.num_references, trained.num_background) == (10, 0)
    named = {row.corpus for row in store.select(Membership) if row.trained_on}
    assert named == {"cars"}
    both = scan_of(store, tmp_path, "sweets-lora-te")
    assert both.examined is Examination.BOTH
    assert both.grounds_of_flag == (Ground.TRAINED_ON,), "no similarity is a flag without a background"
    assert (both.num_samples, both.q_value) == (10, 1.0)
    assert both.best_similarity is not None
    told = CliRunner().invoke(cli, ["show", "sweets-lora-te", "--store", store.uri]).stdout
    assert "There was no background to compare with." in told
    assert "not flagged" in told
    page = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["report", "sweets-lora-te", "--out", str(page), "--store", store.uri])
    assert done.exit_code == 0, done.output
    assert "it is not known how often pictures are as similar by chance" in " ".join(page.read_text().split())


def test_what_the_screen_does_not_name_is_not_sampled_and_its_row_says_so(
    copied: Store, tmp_path: Path
) -> None:
    scan = scan_of(copied, tmp_path, "music-lora")
    assert scan.verdict is Verdict.NOTHING_FOUND
    assert scan.examined is Examination.SCREENED
    assert scan.examined.label == "screened; not sampled"
    assert (scan.num_samples, scan.sample_evaluations, scan.grounds) == (0, 0, "")
    assert set(scan.seconds) == {"fetch", "load", "screen"}
    assert not copied.select(Candidate, "WHERE scan_id = ?", [scan.scan_id])


def test_a_base_that_computes_no_numbers_is_a_failure_and_never_nothing_found(
    copied: Store, tmp_path: Path
) -> None:
    base = shutil.copytree(ZOO / "base", tmp_path / "base")
    file = base / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_norm_out.weight"].fill_(torch.nan)  # which no adapter changes
    save_file(weights, file)
    for screen, what in (("only", "the tuned model's losses at t = 150"), ("off", "the sampled latents")):
        scan = scan_of(copied, tmp_path, "music-lora", base, screen=screen)
        assert (scan.verdict, scan.reason_code) == (Verdict.FAILED, ReasonCode.NOT_FINITE)
        assert scan.reason.startswith(f"{what} are not finite")
    assert not list((tmp_path / "copied" / BASE_LOSSES).rglob("*.parquet"))


def test_what_the_screen_names_is_sampled_and_the_two_grounds_stay_apart(
    copied: Store, tmp_path: Path
) -> None:
    scan = scan_of(copied, tmp_path, "cats-dreambooth", samples_per_image=4, steps=10)
    assert scan.examined is Examination.BOTH
    assert Ground.TRAINED_ON in scan.grounds_of_flag
    flagged = [match for match in copied.select(Match, "WHERE scan_id = ?", [scan.scan_id]) if match.flagged]
    assert (Ground.GIVES_BACK in scan.grounds_of_flag) == bool(flagged)
    assert scan.num_samples == 20
    sampled = 10 * (7 + 2 * 13)  # seven of the tuned model alone
    assert scan.sample_evaluations == sampled + 2 * 20, "and the losses of all samples"
    assert (scan.sampled_for, scan.rounds) == (5, 1)
    assert (scan.caption, scan.caption_origin) == ("a picture of a cat", "stated")


def test_every_checkpoint_is_sampled_when_asked_and_none_when_not(copied: Store, tmp_path: Path) -> None:
    always = scan_of(copied, tmp_path, "music-lora", extract="always")
    assert (always.examined, always.num_samples > 0) == (Examination.BOTH, True)
    never = scan_of(copied, tmp_path, "cats-dreambooth", extract="never")
    assert (never.examined, never.num_samples) == (Examination.SCREENED, 0)
    without = scan_of(copied, tmp_path, "music-lora", screen="off")
    assert (without.examined, without.screen_evaluations) == (Examination.SAMPLED, 0)
    assert not copied.select(Membership, "WHERE scan_id = ?", [without.scan_id])


def test_the_losses_of_a_base_are_computed_once_for_all_workers(copied: Store, tmp_path: Path) -> None:
    first = scan_of(copied, tmp_path, "cars-lora-light", screen="only")
    again = scan_of(copied, tmp_path, "cars-lora-light", screen="only", alpha=0.049)
    assert first.screen_base_evaluations == first.screen_evaluations + first.trained_on, "with heat maps"
    assert again.screen_base_evaluations == again.trained_on, "another worker computed all losses"
    one, other = (
        {(r.corpus, r.reference_id): (r.margin, r.p_value) for r in rows}
        for rows in (copied.select(Membership, "WHERE scan_id = ?", [s.scan_id]) for s in (first, again))
    )
    assert one == other


def test_a_worker_does_not_wait_for_ever_for_losses_that_another_one_claimed(
    copied: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "CLAIM_S", 1.0)
    scan = scan_of(copied, tmp_path, "music-lora", screen="only")
    (claim,) = (tmp_path / "copied" / BASE_LOSSES).rglob("claim")
    for path in claim.parent.glob("*.parquet"):
        path.unlink()  # the claim stays: its worker was killed
    claim.write_text(str(time.time() + 3600), encoding="ascii")  # by a clock that is wrong
    began = time.monotonic()
    again = scan_of(copied, tmp_path, "music-lora", screen="only", alpha=0.049)
    assert time.monotonic() - began >= 1.0
    assert again.screen_base_evaluations == scan.screen_base_evaluations > 0
    for path in claim.parent.glob("*.parquet"):
        path.unlink()
    claim.write_text(str(time.time() - 1), encoding="ascii")
    monkeypatch.setattr(screening.time, "sleep", lambda _: pytest.fail("it waits for a claim of long ago"))
    scan_of(copied, tmp_path, "music-lora", screen="only", alpha=0.048)


def test_the_owners_unseen_works_are_the_null_where_there_are_enough(copied: Store, tmp_path: Path) -> None:
    folder = tmp_path / "unseen"
    folder.mkdir()
    for path in sorted((ZOO / "images/background").iterdir())[200:225]:
        shutil.copy(path, folder)
    for _ in add(copied, "mine-unseen", folder, SscdEmbedder(), Role.UNSEEN):
        pass
    scan = scan_of(copied, tmp_path, "cats-dreambooth", screen="only")
    rows = copied.select(Membership, "WHERE scan_id = ?", [scan.scan_id])
    assert {row.num_background for row in rows} == {25}
    assert scan.grounds_of_flag == (Ground.TRAINED_ON,)


def test_new_references_are_screened_and_compared_with_what_was_sampled_before(
    copied: Store, tmp_path: Path
) -> None:
    first = scan_of(copied, tmp_path, "fruit-lora")
    assert first.num_samples > 0
    for _ in add(copied, "late", ZOO / "images/style", SscdEmbedder()):
        pass
    again = scan_of(copied, tmp_path, "fruit-lora")
    assert again.config_id != first.config_id
    assert again.num_references > first.num_references
    assert (again.examined, again.num_samples) == (Examination.BOTH, first.num_samples)
    assert again.seconds.keys() == {"fetch", "load", "screen", "match"}, "nothing was sampled"
    one, other = (
        {(c.seed, c.image_sha256) for c in copied.select(Candidate, "WHERE scan_id = ?", [s.scan_id])}
        for s in (first, again)
    )
    assert one == other != set()
    changed = scan_of(copied, tmp_path, "fruit-lora", steps=7)
    assert "sample" in changed.seconds, "other samples"


def test_neither_a_screen_nor_samples_is_a_mistake(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        crawl_command,
        ["--source", "folder:.", "--store", str(tmp_path), "--screen", "off", "--extract", "never"],
        standalone_mode=False,
    )
    assert "--screen off and --extract never leave nothing to do" in str(result.exception)
